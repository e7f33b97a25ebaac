"""Which public records, or probes, a round's curvature and clip are taken from."""

from __future__ import annotations

import numpy as np

from distqexp.config import Config, DataConfig
from distqexp.errors import UsageError
from distqexp.problem.dataset import open_dataset
from distqexp.problem.images import Turns
from distqexp.problem.schema import Schema
from distqexp.problem.slots import SlotMap
from distqexp.problem.sources import DataSource, ProbeSource, Readers

READ_AT_ONCE = 1024


def curvature_source(
    config: Config, public: DataConfig | None, schema: Schema, round: int = 0, readers: Readers | None = None
) -> DataSource | ProbeSource | None:
    """The records that a round's public curvature is taken from: probes, where the config says so, else some of ``public``."""
    if config.precision.source == "probes":
        return ProbeSource(config.precision.samples, config.subspace.seed)
    return public_source(config, public, schema, round, readers) if public else None


def public_source(
    config: Config, data: DataConfig, schema: Schema, round: int = 0, readers: Readers | None = None
) -> DataSource:
    """At most ``precision.samples`` public records, whole units spread evenly over the file, others in every round.

    Absent records (blank, not finite, without a label) are left out, and units that hold no other: they count
    neither in the curvature's mean per unit nor in the quantile of the norms.
    """
    dataset = open_dataset(data, schema, reader=readers.of(data, private=False) if readers else None)
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
