"""Derivatives of each record's loss by plain automatic differentiation, one record at a time, for any module.

A record's row depends on that record alone: it goes through the model without others. As private as the records.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from distqexp.problem.hiding import unless_raised
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.user_code import own_code


def gradient_rows(
    network: Network, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor, count: int, private: bool
) -> torch.Tensor:
    """Return (B, d): the gradient of the loss of each of the first ``count`` records, and zeros for the others.

    Args:
        network: the model.
        loss: the loss.
        inputs: (B, ...).
        targets: (B,) or (B, o).
        count: how many of the records are more than padding.
        private: whether the records are private. A private record that the model raises an exception for has a row of NaN; of others
            the exception is shown.
    """
    rows = network.blank_row().repeat(len(inputs), 1)
    for j in range(count):
        compute = partial(_loss_gradient, network, loss, inputs[j : j + 1], targets[j : j + 1])
        row = _guarded(network, loss, compute, private)
        rows[j] = torch.nan if row is None else row
    return rows


def factor_rows(network: Network, loss: Loss, inputs: torch.Tensor, count: int, private: bool) -> torch.Tensor:
    """Return (B, r, d): V = S^T J of each of the first ``count`` records, and zeros for the others; see ``gradient_rows``."""
    factors = [
        _guarded(network, loss, partial(_factor, network, loss, inputs[j : j + 1]), private) for j in range(count)
    ]
    width = next((len(factor) for factor in factors if factor is not None), 1)
    rows = network.blank_row().repeat(len(inputs), width, 1)
    for j, factor in enumerate(factors):
        rows[j] = torch.nan if factor is None else factor
    return rows


def _loss_gradient(network: Network, loss: Loss, record: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return _gradient(network, loss.value(_outputs(network, record), target.to(network.device)).sum())


def _factor(network: Network, loss: Loss, record: torch.Tensor) -> torch.Tensor:
    """Return the factor (r, d) of one record (1, ...).

    Every row takes a pass of its own: what a module keeps for its backward pass need not last for two.
    """
    with torch.no_grad():
        outputs = network.forward(network.prepare(record))
        root = loss.hessian_factor(outputs).reshape(outputs.numel(), -1)
    return torch.stack(
        [_gradient(network, (_outputs(network, record).reshape(-1) * column).sum()) for column in root.T]
    )


def _outputs(network: Network, record: torch.Tensor) -> torch.Tensor:
    inputs = network.prepare(record)
    if network.inputs_need_gradients and inputs.is_floating_point():
        inputs = inputs.detach().requires_grad_(True).clone()  # the module may change a copy in place, not a leaf
    outputs: torch.Tensor = network.forward(inputs)
    return outputs


def _gradient(network: Network, value: torch.Tensor) -> torch.Tensor:
    """Return the gradient (d,) of a value, as ``backward`` leaves it: re-entrant checkpoints take no other way."""
    parameters = network.trainable_parameters
    try:
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in parameters]
    finally:
        for parameter in parameters:
            parameter.grad = None
    parts = [
        torch.zeros_like(parameter) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return torch.cat([part.reshape(-1) for part in parts])


def _guarded(network: Network, loss: Loss, compute: Callable[[], torch.Tensor], private: bool) -> torch.Tensor | None:
    """Return what ``compute`` returns; for a private record None where it raises an exception."""

    def sealed() -> torch.Tensor:
        with torch.enable_grad(), network.sealed(loss):
            return compute()

    if private:
        return unless_raised(sealed)
    with own_code("model: for a public record", "correct the model, or take such records out of data.public"):
        return sealed()
