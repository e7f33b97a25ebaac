"""The public half of a round's state: subspace, precision, clip and grid, from public data and released parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import FloatArray
from distqexp.artefacts.derived import derived_factor_grid, derived_grid
from distqexp.artefacts.state import RoundState, under
from distqexp.config import Config
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root, required
from distqexp.errors import UsageError
from distqexp.expansion.passes import (
    MOMENT_GROUPS,
    PublicContext,
    curvature_of_piece,
    folded,
    moments_of_group,
    norms_of_piece,
)
from distqexp.expansion.range_finder import public_range
from distqexp.geometry.moments import BlockMoments, unpack
from distqexp.geometry.precisions import Precision, make_precision, rescaled_arrays
from distqexp.gradients.setup import made_subspace
from distqexp.gradients.worker import Worker
from distqexp.kinds import Needs
from distqexp.mechanism.factor_grid import FactorGrid
from distqexp.mechanism.grid import Grid
from distqexp.privacy.calibration import Calibration
from distqexp.problem.sources import DataSource, ProbeSource

Arrays = dict[str, npt.NDArray[Any]]
Kept = tuple[Arrays, Arrays, float]  # subspace, precision and clip of an earlier round


def next_state(
    *,
    worker: Worker,
    calibration: Calibration,
    theta: FloatArray,
    round: int,
    k: int,
    source: DataSource | ProbeSource | None,
    engine: Engine,
    previous: RoundState | None = None,
) -> RoundState:
    """Subspace, precision, clip and grid of ``round`` at ``theta``; every rank takes part and gets the same state.

    All but the grid are made anew every ``precision.refresh`` rounds and kept from ``previous`` in between. Where
    the public curvature or the public norms at ``theta`` are of no use (a run that diverged), those of
    ``previous`` are kept too, so that a run whose budget is spent can be finished and exported.

    Sums over public records run over all ranks and are folded on the root in the order of the micro-batches,
    so that the state does not depend on the number of ranks.
    """
    config = worker.config
    context = PublicContext(worker=worker, theta=theta, round=round, k=k, sources=(source,) if source else ())
    given = config.mechanism.clip_of(round, config.privacy.units)
    kept = None if previous is None else _kept(config, previous, round)
    if kept is not None and config.precision.made_at(round) != round:
        subspace, precision, clip = kept
    else:
        subspace, precision = _made_anew(context, engine, kept)
        clip = given or _public_clip(context, engine, subspace, precision, kept)
    grid = derived_grid(config, calibration, clip, k)
    return RoundState(
        round=round, theta=theta, clip=clip, grid=grid, precision=precision, subspace=subspace,
        velocity=_velocity(config, theta, previous), factors=_factor_grid(context, grid),
    )  # fmt: skip


def _factor_grid(context: PublicContext, grid: Grid) -> FactorGrid | None:
    """The grid of the units' factors, where the curvature is private."""
    if not context.config.private_curvature:
        return None
    return derived_factor_grid(context.config, grid, context.k, context.curvature_rows)


def _velocity(config: Config, theta: FloatArray, previous: RoundState | None) -> FloatArray | None:
    """The last move, between released points, where the next one takes a share of it."""
    if config.mechanism.momentum == 0 or previous is None:
        return None
    return theta - previous.theta


def _kept(config: Config, previous: RoundState, round: int) -> Kept:
    """Subspace, precision and clip of an earlier round, scaled to this round's step; a clip of the config is its own."""
    ratio = config.mechanism.step_of(round) / config.mechanism.step_of(previous.round)
    clip = config.mechanism.clip_of(round, config.privacy.units)
    return (
        dict(previous.subspace),
        rescaled_arrays(config.precision.kind, previous.precision, ratio),
        previous.clip * math.sqrt(ratio) if clip is None else clip,
    )


def _made_anew(context: PublicContext, engine: Engine, kept: Kept | None) -> tuple[Arrays, Arrays]:
    """The arrays of subspace and precision, made on the root; those kept where the public sums are of no use."""
    config, pieces = context.config, range(len(context.pieces))
    subspace_needs, precision_needs = config.subspace.traits.needs, config.precision.traits.needs
    sums: FloatArray | None = None
    if Needs.MOMENTS in (subspace_needs, precision_needs):
        groups = range(min(MOMENT_GROUPS, len(pieces)))
        sums = folded(engine.collect(partial(moments_of_group, context=context), context.worker, groups))

    def moments() -> list[BlockMoments]:  # on the root
        return unpack(context.moment_subspace.coordinates, required(sums))

    subspace: Arrays = {}
    if subspace_needs is Needs.MOMENTS:
        subspace = _subspace_arrays(context, engine, moments, kept)
    elif subspace_needs is Needs.GRADIENTS:
        subspace = _leading_arrays(context, engine, kept)
    if subspace:
        context = dataclasses.replace(context, subspace_arrays=subspace)
    curvature: FloatArray | None = None
    if precision_needs is Needs.CURVATURE:
        curvature = folded(engine.collect(partial(curvature_of_piece, context=context), context.worker, pieces))

    def both_arrays() -> Arrays:
        public: Any = curvature
        if precision_needs is Needs.MOMENTS:
            public = moments()
            if subspace_needs is Needs.MOMENTS:  # made of them, so that they were taken before it was known
                public = context.block_subspace.projected(public)
        return _together(subspace, _precision(context, public).to_arrays())

    both = _together(*kept[:2]) if kept else None
    found = arrays_from_root(engine, lambda: _unless_useless(both_arrays, both))
    return under(found, "subspace/"), under(found, "precision/")


def _subspace_arrays(
    context: PublicContext, engine: Engine, public: Callable[[], Any], kept: Kept | None
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a subspace made of ``public``, which the root brings, on every rank."""

    def make() -> Arrays:
        blocks = context.worker.blocks
        return dict(made_subspace(context.config, context.network.d, context.k, context.round, blocks, public()))

    return arrays_from_root(engine, lambda: _unless_useless(make, kept and kept[0]))


def _leading_arrays(context: PublicContext, engine: Engine, kept: Kept | None) -> Arrays:
    """Those of leading directions of public gradients; those kept where fewer records of the round than k are usable."""
    if kept is not None and context.sources[0].slots.slots < context.k:
        return dict(kept[0])
    found = public_range(context, engine)
    return _subspace_arrays(context, engine, lambda: required(found), kept)


def _precision(context: PublicContext, public: Any) -> Precision:
    config, units = context.config, context.sources[0].slots.units if context.sources else 0
    # The sum of a round is over the units of its part.
    n_bar = config.privacy.units / config.mechanism.parts
    step, damping = config.mechanism.step_of(context.round), config.precision.damping
    return make_precision(config.precision.kind, context.k, public, units, n_bar, step, damping)


def _unless_useless(make: Callable[[], Arrays], kept: Arrays | None) -> Arrays:
    try:
        return make()
    except UsageError:
        if kept is None:
            raise
        return dict(kept)


def _together(subspace: Arrays, precision: Arrays) -> Arrays:
    arrays = {f"subspace/{name}": array for name, array in subspace.items()}
    return arrays | {f"precision/{name}": array for name, array in precision.items()}


def _public_clip(
    context: PublicContext, engine: Engine, subspace: Arrays, precision: Arrays, kept: Kept | None
) -> float:
    whitened = dataclasses.replace(context, precision_arrays=precision, subspace_arrays=subspace)
    norms = list(engine.collect(partial(norms_of_piece, context=whitened), context.worker, range(len(context.pieces))))
    quantile = context.config.mechanism.clip_quantile
    return engine.on_root(lambda: _quantile(np.concatenate(norms), quantile, kept[2] if kept else None))


def _quantile(norms: FloatArray, quantile: float | None, kept: float | None) -> float:
    clip = float(np.quantile(norms, quantile if quantile is not None else 1.0, method="higher")) if norms.size else 0.0
    if np.isfinite(clip) and clip > 0:
        return clip
    if kept is not None:
        return kept
    raise UsageError(
        f"mechanism.clip_quantile: the quantile of public norms is {clip}; expected above 0: raise it, or set mechanism.clip"
    )
