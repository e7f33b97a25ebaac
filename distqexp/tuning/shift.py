"""Stand-ins and test records: public records that are shifted once, by public augmentations, and kept in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distqexp.arrays import IntegerArray
from distqexp.config import DataConfig, TuneConfig
from distqexp.errors import UsageError
from distqexp.mechanism.randomness import seeded_stream
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.images import Turns, Views, with_views
from distqexp.problem.readers import open_reader
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema
from distqexp.problem.slots import NO_ROW
from distqexp.problem.sources import DataSource, Readers


class HeldDataset(Dataset):
    """Some rows of a file, already read and shifted; ``read`` looks them up in memory."""

    def __init__(self, dataset: Dataset, rows: IntegerArray, records: Records) -> None:
        super().__init__(dataset.data, dataset.schema, open_reader(dataset.data, dataset.private))
        self._place = {int(row): place for place, row in enumerate(rows)}
        self.records = records

    def read(self, rows: IntegerArray | Sequence[int], views: Views | None = None) -> Records:
        """Return the records of these rows, in this order; NO_ROW becomes an absent record of zeros.

        Raises KeyError for a row that isn't in memory.
        """
        numbers = np.asarray(rows, dtype=np.int64)
        places = torch.tensor([0 if row == NO_ROW else self._place[row] for row in numbers.tolist()], dtype=torch.int64)
        records = Records(self.records.inputs[places], self.records.targets[places], self.records.present[places])
        nobody = torch.from_numpy(numbers == NO_ROW)
        for side in (records.inputs, records.targets, records.present):  # indexing copied them
            side[nobody] = 0
        return with_views(records, numbers, views) if views else records


@dataclass(frozen=True)
class StandIns(DataSource):
    """A source whose records stay in memory instead of being read again in every round."""

    dataset: HeldDataset | None = None

    def open(self, schema: Schema, round: int, readers: Readers | None = None) -> Dataset:
        """Return the records in memory, the same in every round."""
        return self.dataset or super().open(schema, round, readers)


def hold(data: DataConfig, schema: Schema, tune: TuneConfig, *, private: bool = False) -> HeldDataset:
    """Read what ``data`` selects into memory, shifted by random angles and noise as [tune] says.

    Shifts are functions of (tune.seed, row of the file) alone. A fixed angle of [tune] is in ``data.rotate`` already.

    Args:
        data: The source.
        schema: The schema of the records.
        tune: The section [tune] of the config.
        private: Whether the records play private ones, see Dataset.

    Raises:
        UsageError: The records can't be shifted so.
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


def _with_noise(records: Records, rows: IntegerArray, schema: Schema, tune: TuneConfig) -> Records:
    """Add normal noise to the features of records that are present; flags and the constant stay as they are."""
    width = math.prod(schema.shape or ()) - len(schema.levels)  # which are no numbers
    inputs = records.inputs.clone()
    flat = inputs.reshape(len(inputs), -1)
    for record in torch.nonzero(records.present).flatten().tolist():
        stream = seeded_stream(f"tune noise/{tune.seed}/{int(rows[record])}")
        draw = np.random.Generator(stream).standard_normal(width)
        flat[record, :width] += torch.from_numpy(tune.noise * draw).to(flat.dtype)
    return Records(flat.reshape(inputs.shape), records.targets, records.present)
