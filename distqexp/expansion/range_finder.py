"""The basis of a public-pca subspace: passes over the public records on all ranks, small factorisations on the root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch

from distqexp.engines.base import Engine, split
from distqexp.engines.collectives import arrays_from_root, required
from distqexp.engines.threads import pin_threads
from distqexp.expansion.passes import PublicContext
from distqexp.geometry.subspaces.public_pca import (
    POWER_ITERATIONS,
    gaussian_rows,
    orthonormal,
    range_width,
)
from distqexp.gradients.worker import Worker
from distqexp.problem.records import Records

FloatArray = npt.NDArray[np.float64]

RANGE_GROUPS = 16  # sums are as large as the basis: at most so many travel to the root in a pass


@dataclass(frozen=True)
class RangeContext:
    """One pass of the range finder over a round's public records. Sent to Dask workers whole.

    factor: what the gradients are multiplied by, (n, width) by slots, or (d, width); None: the Gaussian test matrix.
    """

    round: PublicContext
    width: int
    factor: FloatArray | None = None

    def on(self, worker: Worker) -> RangeContext:
        """This pass with the worker of the process that it arrived in."""
        self.round.on(worker)
        return self

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def basis(self) -> torch.Tensor:
        """The factor on the device of the network."""
        return torch.from_numpy(required(self.factor)).to(self.round.network.device)

    def rows(self, first_slot: int, count: int) -> FloatArray:
        """Rows of the factor for some slots."""
        if self.factor is not None:
            return self.factor[first_slot : first_slot + count]
        return gaussian_rows(self.round.config.subspace.seed, self.round.round, first_slot, count, self.width)

    def batches(self, piece: int) -> Iterator[tuple[int, Records]]:
        """The records of a piece, the number of the first slot before them, with targets drawn from the model."""
        pin_threads(self.round.config.engine.threads)
        for first, records, _ in self.round.numbered_batches(piece):
            yield first, self.round.at_sampled_targets(records, first)


def combined_of_group(worker: Worker, item: int, *, context: RangeContext) -> FloatArray:
    """G W over a group of pieces of public records, float64 (d, width)."""
    context.on(worker)
    pieces, sums = range(len(context.round.pieces)), context.round.range_sums
    total: torch.Tensor | None = None
    for piece in split(pieces, min(RANGE_GROUPS, len(pieces)), item):
        for first, records in context.batches(piece):
            part = sums.combined(records, context.rows(first, len(records)))
            total = part if total is None else total.add_(part)
    return required(total).cpu().numpy()


def coefficients_of_piece(worker: Worker, item: int, *, context: RangeContext) -> FloatArray:
    """G^T Q of a piece of public records, float64 (records, width)."""
    context.on(worker)
    sums = context.round.range_sums
    return np.concatenate([sums.coefficients(records, context.basis) for _, records in context.batches(item)])


def public_range(context: PublicContext, engine: Engine) -> tuple[FloatArray, FloatArray] | None:
    """What ``leading_basis`` takes, on the root: Q (d, width) and G^T Q (records, width). None on the other ranks.

    G has the gradients at the context's parameters, at targets drawn from the model. Sums are folded on the root in the
    order of the micro-batches, so that the bits do not depend on the number of ranks. Collective. Raises UsageError on
    every rank when k is above d or the number of records, or memory is short.
    """
    pin_threads(context.config.engine.threads)
    records = context.sources[0].slots.slots if context.sources else 0
    width = engine.on_root(lambda: range_width(context.network.d, context.k, records, _memory()))
    numbers: FloatArray | None = None
    basis = coefficients = None
    for step in range(POWER_ITERATIONS + 1):
        if step:
            numbers = _shared(engine, coefficients)
        basis = _shared(engine, _combined(engine, RangeContext(context, width, numbers)))
        coefficients = _coefficients(engine, RangeContext(context, width, basis))
    return None if basis is None or coefficients is None else (basis, coefficients)


def _combined(engine: Engine, context: RangeContext) -> FloatArray | None:
    total: FloatArray | None = None
    groups: Sequence[int] = range(min(RANGE_GROUPS, len(context.round.pieces)))
    for part in engine.collect(partial(combined_of_group, context=context), context.round.worker, groups):
        if total is None:
            total = part
        else:
            total += part
    return total


def _coefficients(engine: Engine, context: RangeContext) -> FloatArray | None:
    parts = list(
        engine.collect(
            partial(coefficients_of_piece, context=context), context.round.worker, range(len(context.round.pieces))
        )
    )
    return np.concatenate(parts) if parts else None


def _shared(engine: Engine, columns: FloatArray | None) -> FloatArray:
    """An orthonormal basis of the root's columns, on every rank."""
    return arrays_from_root(engine, lambda: {"basis": orthonormal(required(columns))})["basis"]


def _memory() -> int | None:
    """Bytes of this machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
