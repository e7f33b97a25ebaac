"""The range finder of a public-pca subspace: passes over public records on all ranks, small factorisations on the root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.engines.base import Engine, split
from distqexp.engines.collectives import arrays_from_root, require
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

RANGE_GROUPS = 16
"""Sums are as large as the basis: at most so many travel to the root in a pass."""


@dataclass(frozen=True)
class RangeContext:
    """The context of one pass of the range finder over a round's public records. It is sent to Dask workers whole.

    Attributes:
        public: The context of the round.
        width: The number of directions that are followed.
        factor: What the gradients are multiplied by, (n, width) by slots or (d, width); None for the Gaussian test matrix.
    """

    public: PublicContext
    width: int
    factor: FloatArray | None = None

    def on(self, worker: Worker) -> RangeContext:
        """Give this pass the worker of the process that it arrived in, and return it."""
        self.public.on(worker)
        return self

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @cached_property
    def basis(self) -> torch.Tensor:
        """The factor on the device of the network."""
        return torch.from_numpy(require(self.factor)).to(self.public.network.device)

    def rows(self, first_slot: int, count: int) -> FloatArray:
        """Return the factor's rows of ``count`` slots from ``first_slot`` on."""
        if self.factor is not None:
            return self.factor[first_slot : first_slot + count]
        return gaussian_rows(self.public.config.subspace.seed, self.public.round, first_slot, count, self.width)

    def batches(self, piece: int) -> Iterator[tuple[int, Records]]:
        """Yield the batches of a piece: the first slot, and the records with targets drawn from the model."""
        pin_threads(self.public.config.engine.threads)
        for first, records, _ in self.public.numbered_batches(piece):
            yield first, self.public.at_sampled_targets(records, first)


def _combine_group(worker: Worker, group: int, *, context: RangeContext) -> FloatArray:
    """Return G W over a group of pieces of public records, float64 (d, width)."""
    context.on(worker)
    pieces, sums = range(len(context.public.pieces)), context.public.range_sums
    total: torch.Tensor | None = None
    for piece in split(pieces, min(RANGE_GROUPS, len(pieces)), group):
        for first, records in context.batches(piece):
            part = sums.combine(records, context.rows(first, len(records)))
            total = part if total is None else total.add_(part)
    return require(total).cpu().numpy()


def _piece_coefficients(worker: Worker, piece: int, *, context: RangeContext) -> FloatArray:
    """Return the rows of G^T Q of a piece of public records, float64 (records, width)."""
    context.on(worker)
    sums = context.public.range_sums
    return np.concatenate([sums.coefficients(records, context.basis) for _, records in context.batches(piece)])


def public_range(context: PublicContext, engine: Engine) -> tuple[FloatArray, FloatArray] | None:
    """Return what ``leading_basis`` takes, on the root: Q (d, width) and G^T Q (records, width). None on the other ranks.

    G has the gradients at the context's parameters, at targets drawn from the model. The root adds up sums in the order of the
    micro-batches, so that the bits do not depend on the number of ranks. This is collective. It raises UsageError on every rank
    when k is above d or the number of records, or memory is short.
    """
    pin_threads(context.config.engine.threads)
    records = context.sources[0].slots.slots if context.sources else 0
    width = engine.on_root(lambda: range_width(context.network.d, context.k, records, _memory()))
    factor: FloatArray | None = None
    basis = coefficients = None
    for step in range(POWER_ITERATIONS + 1):
        if step:
            factor = _shared_basis(engine, coefficients)
        basis = _shared_basis(engine, _combine(engine, RangeContext(context, width, factor)))
        coefficients = _coefficients(engine, RangeContext(context, width, basis))
    return None if basis is None or coefficients is None else (basis, coefficients)


def _combine(engine: Engine, context: RangeContext) -> FloatArray | None:
    """Return G W over all public records on the root, None elsewhere."""
    total: FloatArray | None = None
    groups: Sequence[int] = range(min(RANGE_GROUPS, len(context.public.pieces)))
    for part in engine.collect(partial(_combine_group, context=context), context.public.worker, groups):
        if total is None:
            total = part
        else:
            total += part
    return total


def _coefficients(engine: Engine, context: RangeContext) -> FloatArray | None:
    """Return G^T Q of all public records on the root, None elsewhere."""
    pieces = range(len(context.public.pieces))
    parts = list(engine.collect(partial(_piece_coefficients, context=context), context.public.worker, pieces))
    return np.concatenate(parts) if parts else None


def _shared_basis(engine: Engine, columns: FloatArray | None) -> FloatArray:
    """Return an orthonormal basis of the root's columns, on every rank."""
    return arrays_from_root(engine, lambda: {"basis": orthonormal(require(columns))})["basis"]


def _memory() -> int | None:
    """Return the bytes of this machine's memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
