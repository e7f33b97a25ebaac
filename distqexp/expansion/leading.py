"""The leading directions of many blocks, of which each rank finds some. Public."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from distqexp.arrays import FloatArray, NewArrays
from distqexp.engines.assignment import assign
from distqexp.engines.base import Engine
from distqexp.engines.collectives import on_root_only, require
from distqexp.errors import UsageError
from distqexp.expansion.passes import PublicContext
from distqexp.geometry.moments import BlockMoments, Moment
from distqexp.geometry.subspaces.kronecker import LeadingSide, leading_arrays, leading_directions, leading_sides


def shared_leading_arrays(
    context: PublicContext, engine: Engine, moments: Callable[[], Sequence[BlockMoments]]
) -> NewArrays:
    """Return the arrays of a kronecker-pca subspace on every rank. Collective.

    The eigenvectors of each moment are found by one rank, and are the same to the last bit whichever it is. Moments travel one after
    the other, so that no rank but the root holds more of them than its own.

    Args:
        context: The context of the round.
        engine: Where the work runs.
        moments: Gives the moments of all blocks, on the root.

    Raises:
        UsageError: A moment has no eigenvectors.
    """
    subspace, blocks = context.config.subspace, require(context.worker.blocks)
    sides = leading_sides(blocks, subspace.k_in, subspace.k_out)
    whole = on_root_only(engine, moments)
    own: dict[int, Moment] = {}
    places = assign([side.cost for side in sides], engine.size)
    for number, side in enumerate(sides):
        there = None if whole is None else {"moment": side.of(whole)}
        moment = engine.broadcast_arrays(there)["moment"]
        if number in places[engine.rank]:
            own[number] = moment
    work = partial(_directions_of_rank, sides=sides, places=places, moments=own)
    parts = list(engine.collect(work, context.worker, range(engine.size)))

    def arrays() -> NewArrays:
        found: dict[LeadingSide, FloatArray] = {}
        for numbers, part in zip(places, parts, strict=True):
            at = 0
            for number in numbers:
                side = sides[number]
                size = side.copies * side.k * side.n
                if at + size > part.size:
                    raise UsageError(
                        "subspace kronecker-pca: a public second moment has no eigenvectors in float64; check data.public"
                    )
                found[side] = part[at : at + size].reshape(side.copies, side.k, side.n)
                at += size
        return leading_arrays(blocks, require(whole), subspace.k_in, subspace.k_out, found)

    return engine.broadcast_arrays(on_root_only(engine, arrays))


def _directions_of_rank(
    worker: Any,
    rank: int,
    *,
    sides: Sequence[LeadingSide],
    places: Sequence[Sequence[int]],
    moments: Mapping[int, Moment],
) -> FloatArray:
    """Return the directions of a rank's moments, one after the other; none where one of them has no eigenvectors."""
    try:
        found = [leading_directions(moments[number], sides[number].k) for number in places[rank]]
    except UsageError:  # an error of one rank would end the run, where an earlier round may do
        return np.zeros(0)
    return np.concatenate([part.reshape(-1) for part in found]) if found else np.zeros(0)
