"""The public half of a round's state: precision, clip and grid, from public data and released parameters only."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from distqexp.config import Config, DataConfig
from distqexp.engines.base import Engine
from distqexp.errors import UsageError
from distqexp.geometry.precisions import curvature_sum, make_precision
from distqexp.mechanism.grid import check_capacity, choose_grid
from distqexp.privacy.calibration import Calibration
from distqexp.problem.dataset import open_dataset
from distqexp.problem.schema import Schema
from distqexp.problem.slots import SlotMap
from distqexp.sketching.integers import LARGEST_CLIP_INTEGER
from distqexp.stages.artefacts import RoundState
from distqexp.stages.context import DataSource, RoundContext
from distqexp.stages.sharing import arrays_from_root

FloatArray = npt.NDArray[np.float64]


READ_AT_ONCE = 1024


def public_source(config: Config, data: DataConfig, schema: Schema) -> DataSource:
    """At most ``precision.samples`` public records, whole units spread evenly over the file.

    Absent records (blank, not finite, without a label) are left out, and units that hold no other: they count
    neither in the curvature's mean per unit nor in the quantile of the norms.
    """
    dataset = open_dataset(data, schema)
    slots = dataset.slot_map()
    if slots.units == 0:
        raise UsageError("data.public: 0 records pass its rows and filter; expected at least one: widen them")
    wanted = max(1, min(slots.units, config.precision.samples * slots.units // len(slots.unit)))
    chosen = np.arange(wanted) * slots.units // wanted
    keep = np.isin(slots.unit, chosen)
    rows, unit = slots.rows[keep], slots.unit[keep]
    starts = range(0, len(rows), READ_AT_ONCE)
    present = np.concatenate([dataset.read(rows[start : start + READ_AT_ONCE]).present.numpy() for start in starts])
    if not present.any():
        raise UsageError("data.public: none of the records chosen for the curvature is usable; expected at least one")
    return DataSource(data, SlotMap(rows=rows[present], unit=np.unique(unit[present], return_inverse=True)[1]))


def next_state(
    *,
    config: Config,
    schema: Schema,
    calibration: Calibration,
    weights: dict[str, npt.NDArray[np.float64]],
    theta: FloatArray,
    round: int,
    k: int,
    source: DataSource | None,
    engine: Engine,
    previous: RoundState | None = None,
) -> RoundState:
    """Precision, clip and grid of ``round`` at ``theta``; every rank takes part and gets the same state.

    Where the public curvature or the public norms at ``theta`` are of no use (a run that diverged), those of
    ``previous`` are kept, so that a run whose budget is spent can be finished and exported.

    Sums over public records run over all ranks and are folded on the root in the order of the micro-batches,
    so that the state does not depend on the number of ranks.
    """
    context = RoundContext(
        config=config, schema=schema, weights=weights, theta=theta, round=round, k=k,
        sources=(source,) if source else (),
    )  # fmt: skip
    items = range(len(context.pieces))
    units = source.slots.units if source else 0

    total: FloatArray | None = None
    if config.precision.kind != "identity":
        for part in engine.collect(curvature_of_piece, context, items):
            total = part if total is None else total + part

    def precision_arrays() -> dict[str, npt.NDArray[np.float64]]:
        try:
            return make_precision(
                config.precision.kind, k, total, n_public_units=units, n_bar=config.privacy.units,
                step=config.mechanism.step, damping=config.precision.damping,
            ).to_arrays()  # fmt: skip
        except UsageError:
            if previous is None:
                raise
            return dict(previous.precision)

    arrays = arrays_from_root(engine, precision_arrays)
    clip = config.mechanism.clip
    if clip is None:
        whitened = dataclasses.replace(context, precision_arrays=arrays)
        norms = list(engine.collect(norms_of_piece, whitened, items))
        kept = previous.clip if previous else None
        clip = engine.on_root(lambda: _quantile(np.concatenate(norms), config.mechanism.clip_quantile, kept))
    grid = choose_grid(
        clip, calibration.mu_round, calibration.sigma_minimum, config.privacy.adjacency, exponent=config.mechanism.grid
    )
    check_capacity(grid, k, config.privacy.units)
    if grid.clip_integer > LARGEST_CLIP_INTEGER:
        raise UsageError(
            f"grid overflow: the clip is {grid.clip_integer} grid steps; expected at most 2^30; lower epsilon or rounds, "
            "raise delta, or leave mechanism.grid out"
        )
    return RoundState(round=round, theta=theta, clip=clip, grid=grid, precision=arrays)


def curvature_of_piece(context: RoundContext, item: int) -> FloatArray:
    """Sum over a piece's public records of the curvature in the subspace."""
    kind = context.config.precision.kind
    parts = [curvature_sum(kind, context.gradients.curvature_factors(records)) for records, _ in context.batches(item)]
    return np.sum(parts, axis=0, dtype=np.float64)


def norms_of_piece(context: RoundContext, item: int) -> FloatArray:
    """Whitened gradient norms of a piece's public units; non-finite units are left out."""
    vectors, finite = context.gradients.of_piece(context.batches(item))
    return np.sqrt(np.square(vectors[finite]).sum(axis=1))


def _quantile(norms: FloatArray, quantile: float | None, kept: float | None) -> float:
    clip = float(np.quantile(norms, quantile if quantile is not None else 1.0, method="higher")) if norms.size else 0.0
    if np.isfinite(clip) and clip > 0:
        return clip
    if kept is not None:
        return kept
    raise UsageError(
        f"mechanism.clip_quantile: the quantile of public norms is {clip}; expected above 0: raise it, or set mechanism.clip"
    )
