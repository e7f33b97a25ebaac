"""Passes over public records on all ranks: curvature, second moments, norms. The root adds up parts in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.engines.base import Engine, split
from distqexp.engines.collectives import require
from distqexp.engines.threads import pin_threads
from distqexp.errors import UsageError
from distqexp.expansion.moments import FisherMoments, PackedSums
from distqexp.expansion.range_products import RangeSums
from distqexp.geometry.packing import add_packed
from distqexp.geometry.precisions import curvature_sum
from distqexp.geometry.subspaces.base import BlockSubspace
from distqexp.geometry.subspaces.kronecker import whole_space
from distqexp.gradients.context import RoundContext
from distqexp.gradients.joint import joint_sizes
from distqexp.gradients.layers import block_layout
from distqexp.gradients.worker import Worker
from distqexp.problem.records import blank_inputs

MOMENT_GROUPS = 64
"""Second moments are large: at most so many partial sums of them travel to the root."""


class PublicContext(RoundContext):
    """The context of a round's work on public records or probes, from which its curvature, subspace and clip are made."""

    private = False

    @cached_property
    def curvature_rows(self) -> int:
        """The number of factors that the loss's curvature has for one record, which blank inputs alone show."""
        network = self.worker.network_at(self.theta)
        outputs = network.outputs(blank_inputs(self.worker.schema, 1).to(network.device))
        return int(self.loss.hessian_factor(outputs).shape[-1])

    @property
    def block_subspace(self) -> BlockSubspace:
        """The subspace P of the round as factors of blocks. Raises UsageError for a subspace that mixes blocks."""
        subspace = self.subspace.by_blocks()
        if subspace is None:
            raise UsageError(
                f"subspace {self.subspace.kind}: mixes blocks of parameters; expected a pair of factors a block"
            )
        return subspace

    @cached_property
    def moment_subspace(self) -> BlockSubspace:
        """The coordinates of second moments: those of the subspace, where a seed alone gives it, else every parameter."""
        if self.config.subspace.traits.by_blocks and not self.config.subspace.traits.stored:
            return self.block_subspace
        return whole_space(block_layout(self.network)).by_blocks()

    @cached_property
    def moments(self) -> FisherMoments:
        """The second moments of public records at theta."""
        return FisherMoments(
            network=self.network,
            loss=self.loss,
            subspace=self.moment_subspace,
            micro_batch=self.config.engine.micro_batch,
            taps_of=self.worker.taps_of,
        )

    @cached_property
    def range_sums(self) -> RangeSums:
        """The products of a range finder with the gradients of public records at theta."""
        return RangeSums(
            network=self.network,
            loss=self.loss,
            micro_batch=self.config.engine.micro_batch,
            prepare=self.worker.learn,
        )


def curvature_of_piece(worker: Worker, piece: int, *, context: PublicContext) -> FloatArray:
    """Return the sum of the curvature in the subspace over a piece's public records."""
    context.on(worker)
    kind, gradients = context.config.precision.kind, context.whole_gradients
    parts = [
        curvature_sum(kind, gradients.curvature_factors(records)) for _, records, _ in context.numbered_batches(piece)
    ]
    return np.sum(parts, axis=0, dtype=np.float64)


def public_moments(context: PublicContext, engine: Engine) -> FloatArray | None:
    """Return the packed second moments of all public records on the root, None on other ranks. Collective.

    They are the same to the last bit on any number of ranks: sums of at most ``MOMENT_GROUPS`` groups of pieces, added up in order.
    """
    pieces = range(len(context.pieces))
    if engine.kind == "serial" and _single_batches(context):
        # Groups of one batch each: added straight into one sum, they give the same, and memory holds one sum in place of three.
        context.on(context.worker)
        pin_threads(context.config.engine.threads)
        sums = _sums_of(context, _until_stopped(pieces, engine), streamed=True)
        if sums is not None:
            return sums.flat()
    groups = range(min(MOMENT_GROUPS, len(pieces)))
    return moments_in_order(context, engine.collect(partial(moments_of_group, context=context), context.worker, groups))


def _single_batches(context: PublicContext) -> bool:
    """Return whether every group of pieces is one batch."""
    size, pieces = context.config.engine.micro_batch, context.pieces
    return len(pieces) <= MOMENT_GROUPS and all(last - first <= size for _, first, last in pieces)


def _until_stopped(items: Sequence[int], engine: Engine) -> Iterator[int]:
    for item in items:
        engine.raise_if_stopped()
        yield item


def moments_of_group(worker: Worker, group: int, *, context: PublicContext) -> FloatArray:
    """Return the packed second moments of a group of pieces of public records, one of at most ``MOMENT_GROUPS``."""
    context.on(worker)
    pin_threads(context.config.engine.threads)
    pieces = range(len(context.pieces))
    own = split(pieces, min(MOMENT_GROUPS, len(pieces)), group)
    return require(_sums_of(context, own, streamed=True) or _sums_of(context, own, streamed=False)).flat()


def _sums_of(context: PublicContext, pieces: Iterable[int], *, streamed: bool) -> PackedSums | None:
    """Return the second moments of some pieces; None where a record can't be left out of a streamed pass any more."""
    sums = context.moments.sums()
    for piece in pieces:
        for first, records, _ in context.numbered_batches(piece):
            seed, round = context.config.subspace.seed, context.round
            if not context.moments.add_records(
                sums, records, seed=seed, round=round, first_slot=first, streamed=streamed
            ):
                return None
    return sums


def norms_of_piece(worker: Worker, piece: int, *, context: PublicContext) -> FloatArray:
    """Return the Lipschitz constants of a piece's public units before the clip; non-finite units are left out.

    They are the norms of whitened gradients, and with private curvature the sizes that the joint clip bounds.
    """
    context.on(worker)
    trust_radius = context.config.mechanism.trust_radius
    if context.config.private_curvature and trust_radius is not None:
        return joint_sizes(context.whole_gradients, context.batches(piece), trust_radius)
    vectors, finite = context.gradients.of_piece(context.batches(piece))
    return np.sqrt(np.square(vectors[finite]).sum(axis=1))


def vectors_of_piece(worker: Worker, piece: int, *, context: PublicContext) -> FloatArray:
    """Return the whitened gradients of a piece's public units at labels drawn from the model, (units, k); zeros where not finite."""
    context.on(worker)
    numbered = context.numbered_batches(piece)
    batches = ((context.at_sampled_targets(records, first), unit) for first, records, unit in numbered)
    return context.gradients.of_piece(batches)[0]


def sum_in_order(parts: Iterator[FloatArray]) -> FloatArray | None:
    """Add up parts in their order; None where there are none, as on all ranks but the root."""
    total: FloatArray | None = None
    for part in parts:
        total = part if total is None else total + part
    return total


def moments_in_order(context: PublicContext, parts: Iterator[FloatArray]) -> FloatArray | None:
    """Add up packed second moments in their order; None where there are none, as on all ranks but the root."""
    total: FloatArray | None = None
    for part in parts:
        if total is None:
            total = part
        else:
            add_packed(context.moment_subspace.coordinates, total, part)
    return total
