"""The finished table of stays, one row each. Private."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.problem.readers.clinical.catalogue import FEATURES, UNITS
from distqexp.problem.readers.clinical.lenient import NO_ID
from distqexp.problem.readers.clinical.stays import Stays
from distqexp.problem.readers.clinical.windows import Windows
from distqexp.problem.readers.folders import Facts, Folder


@dataclass(frozen=True)
class StayTable:
    """One row an ICU stay, in the order of its source.

    Attributes:
        facts: of the source, as it was when it was read.
        ids: subject_id, hadm_id and stay_id; -1 where missing.
        units: the three care units; None where missing.
        numbers: features, labels and counts; NaN where missing.
        dirt: how often each rule for dirt applied, in words; empty where the source doesn't know.
    """

    facts: Facts
    ids: dict[str, IntegerArray]
    units: dict[str, list[str | None]]
    numbers: dict[str, FloatArray]
    dirt: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids["stay_id"])

    def column(self, name: str) -> FloatArray:
        """Return a column of numbers, ids among them, as float64 (n,)."""
        if name in self.ids:
            return np.where(self.ids[name] == NO_ID, np.nan, self.ids[name].astype(np.float64))
        return self.numbers[name]


def stay_table(folder: Folder, stays: Stays, windows: Windows, charted: BoolArray) -> StayTable:
    """Put together what was read of the stays, and reduce their values."""
    values = windows.reduced()
    labels, ages = stays.labels(), stays.ages()
    number, first_units = stays.numbers()
    dirt: Counter[str] = stays.dirt
    dirt["values that stand twice for one item and time: counted once"] += windows.copies
    dirt["stays without charts in their window: vitals are missing"] += int((~charted).sum())
    units = (stays.first_unit, stays.last_unit, first_units)
    return StayTable(
        facts=folder.facts(),
        ids={"subject_id": stays.subject, "hadm_id": stays.hadm, "stay_id": stays.stay},
        units=dict(zip(UNITS, units, strict=True)),
        numbers={
            "stay_number": number.astype(np.float64),
            "values": windows.kept.astype(np.float64),
            **labels,
            **dict(zip(FEATURES, [ages, stays.female, *values.T.copy()], strict=True)),
        },
        dirt={words: count for words, count in dirt.items() if count},
    )
