"""The public half of a round's state: subspace, precision, clip and grid, from public data and released parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import FloatArray, NewArrays
from distqexp.artefacts.derived import derived_clip, derived_factor_grid, derived_grid, derived_step
from distqexp.artefacts.state import RoundState, under
from distqexp.config import Config
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root, require
from distqexp.errors import UsageError
from distqexp.expansion.across import with_directions
from distqexp.expansion.leading import shared_leading_arrays
from distqexp.expansion.passes import (
    PublicContext,
    curvature_of_piece,
    norms_of_piece,
    public_moments,
    sum_in_order,
)
from distqexp.expansion.range_finder import public_range
from distqexp.geometry.moments import BlockMoments
from distqexp.geometry.packing import unpack
from distqexp.geometry.precisions import JointPrecision, KroneckerPrecision, Precision, make_precision, rescaled_arrays
from distqexp.gradients.setup import damping_of, make_subspace_arrays, still_blocks
from distqexp.gradients.worker import Worker
from distqexp.kinds import Needs
from distqexp.mechanism.factor_grid import FactorGrid
from distqexp.mechanism.grid import Grid
from distqexp.privacy.calibration import Calibration
from distqexp.problem.sources import DataSource, ProbeSource

Earlier = tuple[NewArrays, NewArrays, float]
"""The subspace, precision and clip of an earlier round."""


def next_state(
    *,
    worker: Worker,
    calibration: Calibration,
    theta: FloatArray,
    round: int,
    source: DataSource | ProbeSource | None,
    engine: Engine,
    previous: RoundState | None = None,
) -> RoundState:
    """Make the state of a round: subspace, precision, clip and grid. Collective: every rank gets the same state.

    All but the grid are made anew every ``precision.refresh`` rounds and kept in between. Where the public curvature or the public
    norms at ``theta`` are of no use (a run that diverged), those of ``previous`` are kept too, so that a run whose budget is spent
    can be finished and exported.

    Sums over public records run over all ranks, and the root adds them up in the order of the micro-batches, so that the state
    does not depend on the number of ranks.

    Args:
        worker: The rank's worker.
        calibration: The noise that the budget allows.
        theta: The parameters at which the round expands, (d,).
        round: The round.
        source: The public records or probes, if any.
        engine: Where the work runs.
        previous: The state of the round before, if there is one.

    Raises:
        UsageError: What is made from public records is of no use, and there is no earlier state to fall back to.
    """
    config, k = worker.config, worker.k
    context = PublicContext(worker=worker, theta=theta, round=round, k=k, sources=(source,) if source else ())
    fixed_clip = derived_clip(config, calibration, k, round)
    earlier = None if previous is None else _earlier(config, previous, round, fixed_clip)
    if earlier is not None and config.refresh_round(round) != round:
        subspace, precision, clip = earlier
    else:
        step = derived_step(config, calibration, k, round)
        subspace, precision = _new_arrays(context, engine, step, earlier)
        if config.precision.traits.joint:
            precision = with_directions(context, engine, subspace, precision)
        clip = fixed_clip or _public_clip(context, engine, subspace, precision, earlier)
    grid = derived_grid(config, calibration, clip, k)
    return RoundState(
        round=round, theta=theta, clip=clip, grid=grid, precision=precision, subspace=subspace,
        velocity=_velocity(config, theta, previous), factors=_factor_grid(context, grid),
    )  # fmt: skip


def _factor_grid(context: PublicContext, grid: Grid) -> FactorGrid | None:
    """Return the grid of the units' factors, or None where the curvature is public."""
    if not context.config.private_curvature:
        return None
    return derived_factor_grid(context.config, grid, context.k, context.curvature_rows)


def _velocity(config: Config, theta: FloatArray, previous: RoundState | None) -> FloatArray | None:
    """Return the last move between released points, or None where the next move takes no share of it."""
    if config.mechanism.momentum == 0 or previous is None:
        return None
    return theta - previous.theta


def _earlier(config: Config, previous: RoundState, round: int, clip: float | None) -> Earlier:
    """Return the previous subspace, precision and clip, scaled to this round's step; a ``clip`` of the config is this round's."""
    ratio = config.mechanism.step_of(round) / config.mechanism.step_of(previous.round)
    return (
        dict(previous.subspace),
        rescaled_arrays(config.precision.kind, previous.precision, ratio),
        previous.clip * math.sqrt(ratio) if clip is None else clip,
    )


def _new_arrays(
    context: PublicContext, engine: Engine, step: float, earlier: Earlier | None
) -> tuple[NewArrays, NewArrays]:
    """Make the arrays of subspace and precision on the root; where the public sums are of no use, return the earlier ones."""
    config, pieces = context.config, range(len(context.pieces))
    subspace_needs, precision_needs = config.subspace.traits.needs, config.precision.traits.needs
    sums: FloatArray | None = None
    if Needs.MOMENTS in (subspace_needs, precision_needs):
        sums = public_moments(context, engine)

    def moments() -> list[BlockMoments]:  # on the root
        return unpack(context.moment_subspace.coordinates, require(sums))

    subspace: NewArrays = {}
    if subspace_needs is Needs.MOMENTS:
        subspace = _subspace_arrays(context, engine, moments, earlier)
    elif subspace_needs is Needs.GRADIENTS:
        subspace = _leading_arrays(context, engine, earlier)
    if subspace:
        context = dataclasses.replace(context, subspace_arrays=subspace)
    curvature: FloatArray | None = None
    if precision_needs is Needs.CURVATURE:
        curvature = sum_in_order(engine.collect(partial(curvature_of_piece, context=context), context.worker, pieces))

    def both_arrays() -> NewArrays:
        public: Any = curvature
        if precision_needs is Needs.MOMENTS:
            public = moments()
            if subspace_needs is Needs.MOMENTS:  # which is made from moments of all parameters, as these are
                public = context.block_subspace.project_moments(public)
        return _with_prefixes(subspace, _precision(context, public, step).to_arrays())

    fallback = _with_prefixes(*earlier[:2]) if earlier else None
    arrays = arrays_from_root(engine, lambda: _make_or_keep(both_arrays, fallback))
    return under(arrays, "subspace/"), under(arrays, "precision/")


def _subspace_arrays(
    context: PublicContext, engine: Engine, public: Callable[[], Any], earlier: Earlier | None
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a subspace on every rank. The root makes them of what ``public`` returns there.

    Those of kronecker-pca are made by all ranks under MPI: alone, the root would have more to do than its share of a pass.
    """
    if context.config.subspace.kind == "kronecker-pca" and engine.kind == "mpi":
        return _make_or_keep(lambda: shared_leading_arrays(context, engine, public), earlier and earlier[0])

    def make() -> NewArrays:
        blocks = context.worker.blocks
        return dict(make_subspace_arrays(context.config, context.network.d, context.k, context.round, blocks, public()))

    return arrays_from_root(engine, lambda: _make_or_keep(make, earlier and earlier[0]))


def _leading_arrays(context: PublicContext, engine: Engine, earlier: Earlier | None) -> NewArrays:
    """Return the arrays of leading directions of public gradients; the earlier ones where the round has fewer records than k."""
    if earlier is not None and context.sources[0].slots.slots < context.k:
        return dict(earlier[0])
    factors = public_range(context, engine)
    return _subspace_arrays(context, engine, lambda: require(factors), earlier)


def _precision(context: PublicContext, public: Any, step: float) -> Precision:
    config, public_units = context.config, context.sources[0].slots.units if context.sources else 0
    precision = make_precision(
        config.precision.kind, context.k, public, public_units, config.units_in_a_round, step, damping_of(config)
    )
    if not (config.mechanism.head and isinstance(precision, KroneckerPrecision | JointPrecision)):
        return precision
    return precision.with_still(
        still_blocks(config, context.worker.network, require(context.worker.blocks), context.round)
    )


def _make_or_keep(make: Callable[[], NewArrays], earlier: NewArrays | None) -> NewArrays:
    """Return what ``make`` returns, or the earlier arrays, if any, where public records are of no use."""
    try:
        return make()
    except UsageError:
        if earlier is None:
            raise
        return dict(earlier)


def _with_prefixes(subspace: NewArrays, precision: NewArrays) -> NewArrays:
    arrays = {f"subspace/{name}": array for name, array in subspace.items()}
    return arrays | {f"precision/{name}": array for name, array in precision.items()}


def public_norm(
    worker: Worker, state: RoundState, source: DataSource | ProbeSource, engine: Engine, quantile: float
) -> float:
    """Return this quantile of the norms of public units at a state, in its whitened coordinates; 0 where there is none.

    Collective. Takes one pass over the public records of ``source``.
    """
    context = PublicContext(worker=worker, theta=state.theta, round=state.round, k=worker.k, sources=(source,))
    return _norm(context, engine, dict(state.subspace), dict(state.precision), quantile)


def _public_clip(
    context: PublicContext, engine: Engine, subspace: NewArrays, precision: NewArrays, earlier: Earlier | None
) -> float:
    """Return the quantile of public norms in whitened coordinates; the earlier clip, if any, where it is of no use."""
    quantile = context.config.mechanism.clip_quantile
    clip = _norm(context, engine, subspace, precision, 1.0 if quantile is None else quantile)
    if clip > 0:
        return clip
    if earlier is not None:
        return earlier[2]
    raise UsageError(
        "mechanism.clip_quantile: the quantile of public norms is 0 or not finite; expected above 0: raise it, or set mechanism.clip"
    )


def _norm(context: PublicContext, engine: Engine, subspace: NewArrays, precision: NewArrays, quantile: float) -> float:
    """Return this quantile of the norms of public units in whitened coordinates; 0 where there is none, or it isn't finite."""
    whitened_context = dataclasses.replace(context, precision_arrays=precision, subspace_arrays=subspace)
    pieces = range(len(context.pieces))
    norms = list(engine.collect(partial(norms_of_piece, context=whitened_context), context.worker, pieces))

    def of_all() -> float:
        whole = np.concatenate(norms)
        value = float(np.quantile(whole, quantile, method="higher")) if whole.size else 0.0
        return value if math.isfinite(value) else 0.0

    return engine.on_root(of_all)
