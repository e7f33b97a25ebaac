"""The directions of a joint precision: the leading curvature of the whole network over public records. Public."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from distqexp.arrays import NewArrays
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.errors import UsageError
from distqexp.expansion.passes import PublicContext, vectors_of_piece
from distqexp.geometry.precisions import UNITS_A_DIRECTION, KroneckerPrecision, blocks_only, joint, leading_curvature

LARGEST = 1 << 29
"""The root takes at most so many numbers of gradients, 4 GiB, which it holds twice while it joins the pieces."""


def with_directions(context: PublicContext, engine: Engine, subspace: NewArrays, precision: NewArrays) -> NewArrays:
    """Return the arrays of a joint precision with directions, from those of its blocks. Collective: every rank gets the same.

    Args:
        context: The round's work on public records.
        engine: Where the work runs.
        subspace: The arrays of the subspace.
        precision: The arrays of the precision by blocks. Directions that it has, of an earlier round, are made anew.

    Raises:
        UsageError: The gradients of public units don't fit the root's memory.
    """
    config, k = context.config, context.k
    blocks = KroneckerPrecision(k, blocks_only(precision))
    pieces, units = _first_pieces(context, UNITS_A_DIRECTION * config.precision.directions)
    if units * k > LARGEST:
        raise UsageError(
            f"precision.directions: {config.precision.directions} from {units} public units of {k} coordinates; expected at most "
            f"{LARGEST} numbers: lower it, precision.samples or k"
        )
    by_blocks = dataclasses.replace(context, subspace_arrays=subspace, precision_arrays=joint(blocks).to_arrays())
    found = engine.collect(partial(vectors_of_piece, context=by_blocks), context.worker, range(pieces))
    vectors = list(found)  # on the root

    def make() -> NewArrays:
        several = leading_curvature(np.concatenate(vectors), config.units_in_a_round, config.precision.directions)
        return joint(blocks, *several).to_arrays()

    return arrays_from_root(engine, make)


def _first_pieces(context: PublicContext, wanted: int) -> tuple[int, int]:
    """Return how many pieces hold the first ``wanted`` units, or all, and how many units they have."""
    units = 0
    for number, (source, first, last) in enumerate(context.pieces, start=1):
        units += len(np.unique(context.sources[source].slots.unit[first:last]))
        if units >= wanted:
            return number, units
    return len(context.pieces), units
