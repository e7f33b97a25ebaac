"""The choice of the public records, or probes, for a round's curvature and clip."""

from __future__ import annotations

import numpy as np
import torch

from distqexp.config import Config, DataConfig
from distqexp.errors import UsageError
from distqexp.problem.dataset import open_dataset
from distqexp.problem.images import Turns
from distqexp.problem.schema import Schema
from distqexp.problem.slots import SlotMap
from distqexp.problem.sources import DataSource, ProbeSource, Readers

READ_AT_ONCE = 1024
"""How many records are read at a time."""


def curvature_source(
    config: Config, public: DataConfig | None, schema: Schema, round: int = 0, readers: Readers | None = None
) -> DataSource | ProbeSource | None:
    """Return the source for a round's public curvature: probes where the config says so, else some records of ``public``."""
    if config.precision.source == "probes":
        return ProbeSource(config.precision.samples, config.subspace.seed)
    return public_source(config, public, schema, round, readers) if public else None


def public_classes(data: DataConfig, schema: Schema, readers: Readers | None = None) -> torch.Tensor:
    """Return the classes that usable public records have, int64, in order."""
    dataset = open_dataset(data, schema, reader=readers.of(data, private=False) if readers else None)
    rows = dataset.slot_map().rows
    parts = [dataset.read(rows[start : start + READ_AT_ONCE]) for start in range(0, len(rows), READ_AT_ONCE)]
    return torch.unique(torch.cat([part.targets[part.present] for part in parts]))


def public_source(
    config: Config, data: DataConfig, schema: Schema, round: int = 0, readers: Readers | None = None
) -> DataSource:
    """Return at most ``precision.samples`` public records: whole units spread evenly over the file, others in every round.

    Absent records (blank, not finite, without a label) are left out, and so are units without any other: they count
    neither in the curvature's mean over units nor in the quantile of the norms. Raises UsageError where no record is left.
    """
    dataset = open_dataset(data, schema, reader=readers.of(data, private=False) if readers else None)
    slots = dataset.slot_map()
    if slots.units == 0:
        raise UsageError("data.public: 0 records pass its rows and filter; expected at least one: widen them")
    count = max(1, min(slots.units, config.precision.samples * slots.units // len(slots.unit)))
    units = np.arange(count) * slots.units // count + round % max(1, slots.units // count)
    keep = np.isin(slots.unit, units)
    rows, unit = slots.rows[keep], slots.unit[keep]
    starts = range(0, len(rows), READ_AT_ONCE)
    present = np.concatenate([dataset.read(rows[start : start + READ_AT_ONCE]).present.numpy() for start in starts])
    if not present.any():
        raise UsageError("data.public: none of the records chosen for the curvature is usable; expected at least one")
    turns = Turns(*config.precision.rotate, config.subspace.seed, round) if config.precision.rotate else None
    present_slots = SlotMap(rows=rows[present], unit=np.unique(unit[present], return_inverse=True)[1])
    return DataSource(data, present_slots, turns=turns, private=False)
