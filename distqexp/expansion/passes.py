"""Passes over public records on all ranks: curvature, second moments, norms. Sums are folded on the root in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.engines.base import split
from distqexp.engines.threads import pin_threads
from distqexp.errors import UsageError
from distqexp.expansion.moments import FisherMoments
from distqexp.expansion.range_products import RangeSums
from distqexp.geometry.moments import moments_size
from distqexp.geometry.precisions import curvature_sum
from distqexp.geometry.subspaces.base import BlockSubspace
from distqexp.geometry.subspaces.kronecker import unprojected
from distqexp.gradients.context import RoundContext
from distqexp.gradients.joint import joint_sizes
from distqexp.gradients.layers.layout import block_layout
from distqexp.gradients.worker import Worker
from distqexp.problem.records import blank_inputs

MOMENT_GROUPS = 64  # second moments are large: at most so many partial sums travel to the root


class PublicContext(RoundContext):
    """A round's work on public records or probes: what its curvature, subspace and clip are made from."""

    @cached_property
    def curvature_rows(self) -> int:
        """How many factors the loss's curvature has for one record: known from blank inputs alone."""
        network = self.network
        outputs = network.outputs(blank_inputs(self.worker.schema, 1).to(network.device))
        return int(self.loss.hessian_factor(outputs).shape[-1])

    @property
    def block_subspace(self) -> BlockSubspace:
        """P of the round as factors of blocks. Raises UsageError for a subspace that mixes blocks."""
        found = self.subspace.by_blocks()
        if found is None:
            raise UsageError(
                f"subspace {self.subspace.kind}: mixes blocks of parameters; expected a pair of factors a block"
            )
        return found

    @cached_property
    def moment_subspace(self) -> BlockSubspace:
        """The coordinates that second moments are taken in: those of a subspace that a seed gives, else every parameter."""
        if self.config.subspace.traits.by_blocks and not self.config.subspace.traits.stored:
            return self.block_subspace
        return unprojected(block_layout(self.network)).by_blocks()

    @cached_property
    def moments(self) -> FisherMoments:
        """Second moments of public records at theta."""
        return FisherMoments(
            network=self.network,
            loss=self.loss,
            subspace=self.moment_subspace,
            micro_batch=self.config.engine.micro_batch,
        )

    @cached_property
    def range_sums(self) -> RangeSums:
        """Products with the gradients of public records at theta."""
        return RangeSums(network=self.network, loss=self.loss, micro_batch=self.config.engine.micro_batch)


def curvature_of_piece(worker: Worker, item: int, *, context: PublicContext) -> FloatArray:
    """Sum over a piece's public records of the curvature in the subspace."""
    context.on(worker)
    kind, gradients = context.config.precision.kind, context.whole_gradients
    parts = [
        curvature_sum(kind, gradients.curvature_factors(records)) for _, records, _ in context.numbered_batches(item)
    ]
    return np.sum(parts, axis=0, dtype=np.float64)


def moments_of_group(worker: Worker, item: int, *, context: PublicContext) -> FloatArray:
    """Packed second moments of a group of pieces of public records."""
    context.on(worker)
    pin_threads(context.config.engine.threads)
    pieces, subspace = range(len(context.pieces)), context.moment_subspace
    total = np.zeros(moments_size(subspace.coordinates))
    for piece in split(pieces, min(MOMENT_GROUPS, len(pieces)), item):
        for first, records, _ in context.numbered_batches(piece):
            seed = context.config.subspace.seed
            total += context.moments.of_records(records, seed=seed, round=context.round, first_slot=first)
    return total


def norms_of_piece(worker: Worker, item: int, *, context: PublicContext) -> FloatArray:
    """Lipschitz constants of a piece's public units before the clip; non-finite units are left out.

    Whitened gradient norms; with private curvature those of the joint clip.
    """
    context.on(worker)
    radius = context.config.mechanism.trust_radius
    if context.config.private_curvature and radius is not None:
        return joint_sizes(context.whole_gradients, context.batches(item), radius)
    vectors, finite = context.gradients.of_piece(context.batches(item))
    return np.sqrt(np.square(vectors[finite]).sum(axis=1))


def folded(parts: Iterator[FloatArray]) -> FloatArray | None:
    """The sum in the order of the parts; None where there are none: on other ranks than the root."""
    total: FloatArray | None = None
    for part in parts:
        total = part if total is None else total + part
    return total
