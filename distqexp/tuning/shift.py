"""Stand-ins and test records: public records, shifted once by public augmentations and held in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.config import DataConfig, TuneConfig
from distqexp.errors import UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.images import Turns, Views, viewed
from distqexp.problem.readers import open_reader
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.sources import DataSource, Readers


class HeldDataset(Dataset):
    """Some rows of a file, read and shifted already; ``read`` looks them up."""

    def __init__(self, dataset: Dataset, rows: NDArray[np.int64], records: Records) -> None:
        super().__init__(dataset.data, dataset.schema, open_reader(dataset.data, dataset.private))
        self._place = {int(row): place for place, row in enumerate(rows)}
        self.records = records

    def read(self, rows: NDArray[np.int64] | Sequence[int], views: Views | None = None) -> Records:
        """These rows, in this order; KeyError for one that isn't held."""
        places = torch.tensor([self._place[int(row)] for row in rows], dtype=torch.int64)
        self.opened += len(places)
        held = self.records
        records = Records(held.inputs[places], held.targets[places], held.present[places])
        return viewed(records, np.asarray(rows, dtype=np.int64), views) if views else records


@dataclass(frozen=True)
class StandIns(DataSource):
    """A source whose records are held in memory instead of being read again in every round."""

    held: HeldDataset | None = None

    def of_part(self, number: int, parts: int) -> StandIns:
        """As that of a DataSource."""
        part = super().of_part(number, parts)
        return StandIns(part.data, part.slots, part.partition, held=self.held, private=self.private)

    def open(self, schema: Schema, round: int, readers: Readers | None = None) -> Dataset:
        """The records that are held."""
        return self.held or super().open(schema, round, readers)


def hold(data: DataConfig, schema: Schema, tune: TuneConfig, *, private: bool = False) -> HeldDataset:
    """Read what ``data`` selects, shifted by random angles and noise as [tune] says; the fixed angle is in ``data.rotate``.

    ``private``: whether the records play private ones, see Dataset. Shifts are functions of (tune.seed, row of the file)
    alone. Raises UsageError where the records can't be shifted so.
    """
    if tune.rotate is not None and not schema.image:
        raise UsageError(
            f"tune.rotate: {tune.rotate} with format {data.format}; expected images: digits or idx; leave it out"
        )
    if tune.noise and schema.tokens:
        raise UsageError(f"tune.noise: {tune.noise:g} with tokens; expected features that are numbers; leave it out")
    turns = Turns(*tune.rotate, tune.seed, 0) if isinstance(tune.rotate, tuple) else None
    dataset = open_dataset(data, schema, turns, private=private)
    rows = dataset.slot_map().rows
    records = dataset.read(rows)
    if tune.noise:
        records = _with_noise(records, rows, schema, tune)
    return HeldDataset(dataset, rows, records)


def _with_noise(records: Records, rows: NDArray[np.int64], schema: Schema, tune: TuneConfig) -> Records:
    """Normal noise on the features of records that are there; flags and the constant stay as they are."""
    width = math.prod(schema.shape or ())
    inputs = records.inputs.clone()
    flat = inputs.reshape(len(inputs), -1)
    for record in torch.nonzero(records.present).flatten().tolist():
        key = hashlib.sha256(f"tune noise/{tune.seed}/{int(rows[record])}".encode()).digest()[:16]
        draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).standard_normal(width)
        flat[record, :width] += torch.from_numpy(tune.noise * draw).to(flat.dtype)
    return Records(flat.reshape(inputs.shape), records.targets, records.present)
