"""The private pass again, slowly and obviously: one record at a time, dense matrices, exact integers.

Nothing here calls the code of distqexp/sketching. P is written down column by column (its entries are tested
against their definition elsewhere), derivatives are plain automatic differentiation, whitening is a triangular
solve, the clip and the norm check are done in Python's own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import nn

from distqexp.geometry.precisions import Damping, make_precision
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.subspaces import make_subspace
from distqexp.geometry.subspaces.base import Subspace
from distqexp.gradients.batching import Batch
from distqexp.problem import models
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.slots import SlotMap

TIE = 1e-6
"""Grid coordinates nearer than this to where rounding changes may fall either way in another order of sums."""


def double_logistic(inputs: int, outputs: int = 1) -> nn.Module:
    """A factory for configs: the built-in model in float64."""
    return models.logistic(inputs, outputs).double()


def double_mlp(inputs: int, outputs: int, hidden: Sequence[int]) -> nn.Module:
    """A factory for configs: the built-in model in float64, with a smooth activation."""
    layers = [nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in models.mlp(inputs, outputs, hidden)]
    return nn.Sequential(*layers).double()


@dataclass
class Problem:
    """Private records with their slots, a model, and where the sketch is taken."""

    network: Network
    loss: Loss
    records: Records
    slots: SlotMap

    def batches(self, piece: tuple[int, int], micro_batch: int) -> list[Batch]:
        """The piece's records, a micro-batch at a time, with the unit of each."""
        found = []
        for start in range(piece[0], piece[1], micro_batch):
            window = slice(start, min(start + micro_batch, piece[1]))
            found.append((subset(self.records, window), self.slots.unit[window]))
        return found


def subset(records: Records, window: slice) -> Records:
    """The records of a window of slots."""
    return Records(records.inputs[window], records.targets[window], records.present[window])


def make_problem(
    name: str, sizes: Sequence[int], *, seed: int = 0, dtype: torch.dtype = torch.float64, absent: Sequence[int] = ()
) -> Problem:
    """A model and random records, ``sizes`` of them in each unit; slots in ``absent`` are blank."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    n = sum(sizes)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def classes(width: int) -> torch.Tensor:
        return torch.randint(0, width, (n,), generator=generator)

    module: nn.Module
    if name == "logistic":
        module, loss, inputs, targets = models.logistic(6), "binary-cross-entropy", normal(n, 6), classes(2).float()
    elif name == "softmax":
        module, loss, inputs, targets = models.logistic(6, 4), "cross-entropy", normal(n, 6), classes(4)
    elif name == "mlp" or name == "mlp head":
        module, loss, inputs, targets = models.mlp(5, 3, [6]), "cross-entropy", normal(n, 5), classes(3)
    elif name == "regression":
        module, loss, inputs, targets = models.mlp(5, 2, [4]), "mean-squared-error", normal(n, 5), normal(n, 2)
    elif name == "cnn":
        module, loss, inputs, targets = models.cnn(3), "cross-entropy", normal(n, 1, 28, 28).abs(), classes(3)
    else:
        raise ValueError(name)
    present = torch.ones(n, dtype=torch.bool)
    present[list(absent)] = False
    inputs[~present], targets[~present] = 0, 0
    network = Network(module.to(dtype), ("3.*",) if name == "mlp head" else ("*",))
    unit = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    return Problem(network, get_loss(loss), Records(inputs, targets, present), SlotMap(np.arange(n), unit))


def make_geometry(subspace: str, precision: str, d: int, k: int) -> tuple[Subspace, Precision, NDArray[np.float64]]:
    """A subspace, a precision, and its A as a dense matrix from the formula (units/step) (H + damping mean eig I)."""
    chosen = make_subspace(subspace, d, None if subspace == "identity" else k, seed=3, round=1)
    k = chosen.k
    root = np.random.default_rng(9).normal(size=(k, 2 * k + 1)) / np.sqrt(k)
    curvature = root @ root.T * np.geomspace(0.1, 10, k) * np.geomspace(0.1, 10, k)[:, None]
    public_units, units, step, damping = 7, 40, 0.5, 0.3
    if precision == "identity":
        return (
            chosen,
            make_precision("identity", k, None, public_units, units, step, Damping(damping, "mean")),
            np.eye(k) * units / step,
        )
    if precision == "diagonal":
        curvature = np.diag(np.diag(curvature))
    summed = np.diag(curvature) if precision == "diagonal" else curvature
    mean = curvature / public_units
    dense = (units / step) * (mean + damping * np.linalg.eigvalsh(mean).mean() * np.eye(k))
    return chosen, make_precision(precision, k, summed, public_units, units, step, Damping(damping, "mean")), dense


def dense_matrix(subspace: Subspace) -> NDArray[np.float64]:
    """P, (d, k), column by column."""
    return np.stack([subspace.lift(column) for column in np.eye(subspace.k)], axis=1)


def record_gradient(problem: Problem, slot: int) -> NDArray[np.float64]:
    """The gradient of one record's loss in theta, (d,), by one backward pass of its own."""
    network = problem.network
    x, y = problem.records.inputs[slot : slot + 1], problem.records.targets[slot : slot + 1]
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    value = problem.loss.value(network.module(x.to(network.dtype)), y).sum()
    return np.concatenate([g.double().numpy().ravel() for g in torch.autograd.grad(value, parameters)])


def whitened_units(problem: Problem, matrix: NDArray[np.float64], a: NDArray[np.float64]) -> NDArray[np.float64]:
    """L^{-1} P^T (sum of the unit's gradients) for every unit, (units, k)."""
    sums = np.zeros((problem.slots.units, matrix.shape[0]))
    for slot in range(problem.slots.slots):
        if problem.records.present[slot]:
            sums[problem.slots.unit[slot]] += record_gradient(problem, slot)
    factor = np.linalg.cholesky(a)
    return np.stack([solve_triangular(factor, matrix.T @ row, lower=True) for row in sums])


def grid_integers(vector: NDArray[np.float64], clip: float, step: float, limit: int) -> tuple[list[int], list[bool]]:
    """One unit's integers, and which coordinates are too near to a rounding boundary to be sure of."""
    norm = math.sqrt(math.fsum(x * x for x in vector))
    scaled = [x * min(1.0, clip / norm if norm else 1.0) / step for x in vector]
    integers = [round(x) for x in scaled]
    if sum(i * i for i in integers) <= limit**2:
        return integers, [abs(abs(x - math.floor(x)) - 0.5) < TIE for x in scaled]
    length = math.sqrt(math.fsum(x * x for x in scaled))
    shrunk = [x * min(1.0, limit / length * (1 - 1e-12)) for x in scaled]
    return [math.trunc(x) for x in shrunk], [x != 0 and abs(x - round(x)) < TIE for x in shrunk]


class SideBySide(torch.nn.Module):
    """Layers that all move one logit."""

    def __init__(self, inputs: int, layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(inputs, 1) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum what the layers give for x (B, inputs): (B, 1)."""
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


def side_by_side() -> torch.nn.Module:
    """Eight layers of six inputs that move one logit, in float64."""
    torch.manual_seed(0)
    return SideBySide(6, 8).double()
