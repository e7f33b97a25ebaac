"""Derivatives of each record's loss in the trainable parameters, by torch.func or, where that can't, one record at a time.

A record's row depends on that record alone as long as the batch keeps one shape: so mask records, never drop them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.func import grad, vjp

from distqexp.problem.hiding import private_rows
from distqexp.problem.losses import Loss
from distqexp.problem.mapping import vmap
from distqexp.problem.network import Network
from distqexp.problem.one_by_one import factor_rows, gradient_rows


def per_example_gradients(
    network: Network,
    loss: Loss,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    count: int | None = None,
    private: bool = True,
) -> torch.Tensor:
    """Return (B, d): the gradient of each record's loss in theta, in the network's type, on its device, not yet clipped.

    Private when the records are.

    Args:
        network: the model; its ``one_by_one`` says whether torch.func can take it.
        loss: the loss.
        inputs: (B, ...).
        targets: (B,) or (B, o).
        count: how many of the records are more than padding, whose rows are of no use; None for all.
        private: whether the records are private. The row of one that the model or the loss raises an exception for is then NaN, so that
            it contributes nothing and the exception tells nobody.
    """
    count = len(inputs) if count is None else count
    if network.one_by_one is not None:
        return gradient_rows(network, loss, inputs, targets, count, private)

    def value(parameters: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outputs = network.functional(parameters, x.unsqueeze(0))
        return loss.value(outputs, y.unsqueeze(0)).squeeze(0)

    def rows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with network.sealed(loss):
            by_name = vmap(grad(value), in_dims=(None, 0, 0))(network.trainable_tensors(), x, y)
        return torch.cat([by_name[name].reshape(len(x), -1) for name, _ in network.names_shapes], dim=1)

    sides = network.prepare(inputs), targets.to(network.device)
    return private_rows(rows, sides, count, network.blank_row()) if private else rows(*sides)


def loss_curvature_factors(
    network: Network, loss: Loss, inputs: torch.Tensor, *, count: int | None = None, private: bool = True
) -> torch.Tensor:
    """Return (B, r, d): V = S^T J of each record, so that V^T V = J^T Lambda J is its generalised Gauss-Newton matrix.

    J is the Jacobian of the outputs in theta, and Lambda = S S^T the Hessian of the loss in the outputs. ``count`` and ``private`` are
    those of ``per_example_gradients``.
    """
    count = len(inputs) if count is None else count
    if network.one_by_one is not None:
        return factor_rows(network, loss, inputs, count, private)
    names = [name for name, _ in network.names_shapes]

    def factor(parameters: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        outputs, pull_back = vjp(lambda tensors: network.functional(tensors, x.unsqueeze(0)), parameters)[:2]
        width = outputs.numel()
        root = loss.hessian_factor(outputs).reshape(width, -1)
        (rows,) = vmap(lambda column: pull_back(column.reshape(outputs.shape)))(root.T)
        return torch.cat([rows[name].reshape(root.shape[1], -1) for name in names], dim=1)

    def rows(x: torch.Tensor) -> torch.Tensor:
        with network.sealed(loss):
            found: torch.Tensor = vmap(factor, in_dims=(None, 0))(network.trainable_tensors(), x)
        return found

    x = network.prepare(inputs)
    return private_rows(rows, [x], count, network.blank_row()[None]) if private else rows(x)
