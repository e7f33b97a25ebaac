"""The public half of a round's state: subspace, precision, clip and grid, from public data and released parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.config import Config, DataConfig
from distqexp.engines.base import Engine, split
from distqexp.engines.threads import pin_threads
from distqexp.errors import UsageError
from distqexp.geometry.moments import moments_size, unpack
from distqexp.geometry.precisions import curvature_sum, make_kronecker_precision, make_precision, rescaled_arrays
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace, factors_to_arrays, leading_factors
from distqexp.geometry.subspaces.public_pca import leading_basis
from distqexp.mechanism.factor_grid import FactorGrid
from distqexp.mechanism.grid import Grid
from distqexp.privacy.calibration import Calibration
from distqexp.problem.dataset import open_dataset
from distqexp.problem.images import Turns
from distqexp.problem.schema import Schema
from distqexp.problem.slots import SlotMap
from distqexp.sketching.curvature_sketcher import joint_sizes
from distqexp.stages.artefacts import RoundState, under
from distqexp.stages.context import DataSource, ProbeSource, RoundContext
from distqexp.stages.derived import derived_factor_grid, derived_grid
from distqexp.stages.public_range import public_range
from distqexp.stages.sharing import arrays_from_root, required

FloatArray = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
Kept = tuple[Arrays, Arrays, float]  # subspace, precision and clip of an earlier round

READ_AT_ONCE = 1024
MOMENT_GROUPS = 64  # second moments are large: at most so many partial sums travel to the root


def curvature_source(
    config: Config, public: DataConfig | None, schema: Schema, round: int = 0
) -> DataSource | ProbeSource | None:
    """The records that a round's public curvature is taken from: probes, where the config says so, else some of ``public``."""
    if config.precision.source == "probes":
        return ProbeSource(config.precision.samples, config.subspace.seed)
    return public_source(config, public, schema, round) if public else None


def public_source(config: Config, data: DataConfig, schema: Schema, round: int = 0) -> DataSource:
    """At most ``precision.samples`` public records, whole units spread evenly over the file, others in every round.

    Absent records (blank, not finite, without a label) are left out, and units that hold no other: they count
    neither in the curvature's mean per unit nor in the quantile of the norms.
    """
    dataset = open_dataset(data, schema)
    slots = dataset.slot_map()
    if slots.units == 0:
        raise UsageError("data.public: 0 records pass its rows and filter; expected at least one: widen them")
    wanted = max(1, min(slots.units, config.precision.samples * slots.units // len(slots.unit)))
    chosen = np.arange(wanted) * slots.units // wanted + round % max(1, slots.units // wanted)
    keep = np.isin(slots.unit, chosen)
    rows, unit = slots.rows[keep], slots.unit[keep]
    starts = range(0, len(rows), READ_AT_ONCE)
    present = np.concatenate([dataset.read(rows[start : start + READ_AT_ONCE]).present.numpy() for start in starts])
    if not present.any():
        raise UsageError("data.public: none of the records chosen for the curvature is usable; expected at least one")
    turned = Turns(*config.precision.rotate, config.subspace.seed, round) if config.precision.rotate else None
    kept = SlotMap(rows=rows[present], unit=np.unique(unit[present], return_inverse=True)[1])
    return DataSource(data, kept, turned=turned, private=False)


def next_state(
    *,
    config: Config,
    schema: Schema,
    calibration: Calibration,
    weights: dict[str, npt.NDArray[np.float64]],
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
    context = RoundContext(
        config=config, schema=schema, weights=weights, theta=theta, round=round, k=k,
        sources=(source,) if source else (),
    )  # fmt: skip
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


def curvature_of_piece(context: RoundContext, item: int) -> FloatArray:
    """Sum over a piece's public records of the curvature in the subspace."""
    kind, gradients = context.config.precision.kind, context.projected_gradients
    parts = [
        curvature_sum(kind, gradients.curvature_factors(records)) for _, records, _ in context.numbered_batches(item)
    ]
    return np.sum(parts, axis=0, dtype=np.float64)


def moments_of_group(context: RoundContext, item: int) -> FloatArray:
    """Packed second moments of a group of pieces of public records."""
    pin_threads(context.config.engine.threads)
    pieces, subspace = range(len(context.pieces)), context.moment_subspace
    total = np.zeros(moments_size(subspace.coordinates))
    for piece in split(pieces, min(MOMENT_GROUPS, len(pieces)), item):
        for first, records, _ in context.numbered_batches(piece):
            seed = context.config.subspace.seed
            total += context.moments.of_records(records, seed=seed, round=context.round, first_slot=first)
    return total


def norms_of_piece(context: RoundContext, item: int) -> FloatArray:
    """Lipschitz constants of a piece's public units before the clip; non-finite units are left out.

    Whitened gradient norms; with private curvature those of the joint clip.
    """
    radius = context.config.mechanism.trust_radius
    if context.config.private_curvature and radius is not None:
        return joint_sizes(context.projected_gradients, context.batches(item), radius)
    vectors, finite = context.gradients.of_piece(context.batches(item))
    return np.sqrt(np.square(vectors[finite]).sum(axis=1))


def _factor_grid(context: RoundContext, grid: Grid) -> FactorGrid | None:
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
        rescaled_arrays(previous.precision, ratio),
        previous.clip * math.sqrt(ratio) if clip is None else clip,
    )


def _made_anew(context: RoundContext, engine: Engine, kept: Kept | None) -> tuple[Arrays, Arrays]:
    """The arrays of subspace and precision, made on the root; those kept where the public sums are of no use."""
    config, pieces = context.config, range(len(context.pieces))
    kind, pca = config.precision.kind, config.subspace.kind == "kronecker-pca"
    moments: FloatArray | None = None
    if pca or kind == "kronecker":
        groups = range(min(MOMENT_GROUPS, len(pieces)))
        moments = _folded(engine.collect(moments_of_group, context, groups))

    def subspace_arrays() -> Arrays:
        blocks = context.moment_subspace
        found = unpack(blocks.coordinates, required(moments))
        return factors_to_arrays(leading_factors(blocks.blocks, found, config.subspace.k_in, config.subspace.k_out))

    subspace: Arrays = {}
    if pca:
        subspace = arrays_from_root(engine, lambda: _unless_useless(subspace_arrays, kept and kept[0]))
    elif config.subspace.kind == "public-pca":
        subspace = _basis_arrays(context, engine, kept and kept[0])
    if subspace:
        context = dataclasses.replace(context, subspace_arrays=subspace)
    curvature: FloatArray | None = None
    if kind in ("diagonal", "dense"):
        curvature = _folded(engine.collect(curvature_of_piece, context, pieces))

    def both_arrays() -> Arrays:
        precision = _precision(context, moments, curvature)
        return _together(subspace, precision.to_arrays())

    both = _together(*kept[:2]) if kept else None
    found = arrays_from_root(engine, lambda: _unless_useless(both_arrays, both))
    return under(found, "subspace/"), under(found, "precision/")


def _basis_arrays(context: RoundContext, engine: Engine, kept: Arrays | None) -> Arrays:
    """The basis of public gradients on every rank; that kept where fewer records of the round than k are usable."""
    if kept is not None and context.sources[0].slots.slots < context.k:
        return dict(kept)
    found = public_range(context, engine)
    return arrays_from_root(
        engine, lambda: _unless_useless(lambda: {"basis": leading_basis(*required(found), context.k)}, kept)
    )


def _precision(context: RoundContext, moments: FloatArray | None, curvature: FloatArray | None) -> Precision:
    config, units = context.config, context.sources[0].slots.units if context.sources else 0
    # The sum of a round is over the units of its part.
    n_bar = config.privacy.units / config.mechanism.parts
    step, damping = config.mechanism.step_of(context.round), config.precision.damping
    if config.precision.kind != "kronecker":
        return make_precision(config.precision.kind, context.k, curvature, units, n_bar, step, damping)
    found = unpack(context.moment_subspace.coordinates, required(moments))
    if config.subspace.kind == "kronecker-pca" and isinstance(context.subspace, KroneckerSubspace):
        factors = context.subspace.factors
        found = [part.projected(factor.row, factor.column) for part, factor in zip(found, factors, strict=True)]
    return make_kronecker_precision(found, units, n_bar, step, damping)


def _folded(parts: Iterator[FloatArray]) -> FloatArray | None:
    """The sum in the order of the parts; None where there are none: on other ranks than the root."""
    total: FloatArray | None = None
    for part in parts:
        total = part if total is None else total + part
    return total


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
    context: RoundContext, engine: Engine, subspace: Arrays, precision: Arrays, kept: Kept | None
) -> float:
    whitened = dataclasses.replace(context, precision_arrays=precision, subspace_arrays=subspace)
    norms = list(engine.collect(norms_of_piece, whitened, range(len(context.pieces))))
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
