"""The tables of MIMIC-IV (2.x and 3.x) as stays: columns by name, each table as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.problem.readers.clinical.catalogue import CHARTS, ITEMS, LABS, VARIABLES
from distqexp.problem.readers.clinical.lenient import NO_ID, NO_TIME, decimals, seconds, texts, whole_numbers
from distqexp.problem.readers.clinical.stays import Finder, Stays
from distqexp.problem.readers.clinical.streams import Progress, Stream, Tick, table_stream, ticker
from distqexp.problem.readers.clinical.table import StayTable, stay_table
from distqexp.problem.readers.clinical.windows import RUN, Windows
from distqexp.problem.readers.folders import Folder

_READ: dict[str, Callable[[Any], Any]] = {
    "subject_id": whole_numbers,
    "hadm_id": whole_numbers,
    "stay_id": whole_numbers,
    "first_careunit": texts,
    "last_careunit": texts,
    "gender": texts,
    "anchor_age": decimals,
    "anchor_year": decimals,
    "hospital_expire_flag": decimals,
}
"""How a column is read; all others hold times."""


def read_mimic(path: Path, progress: Progress | None = None, run: int = RUN) -> StayTable:
    """Read a folder of MIMIC-IV: hosp/patients, admissions and labevents; icu/icustays and chartevents.

    Memory is bounded by the stays and by the values that are sorted at a time, not by the tables.

    Args:
        path: the folder, with or without folders hosp and icu in it.
        progress: is told the share of the work that is done.
        run: how many values are sorted at a time.

    Returns:
        The stays. Private.

    Raises:
        FileContentError: A table or a column is missing, or a file is damaged.
    """
    folder = Folder(path)
    streams = {table: table_stream(folder, table) for table in ("patients", "admissions", "icustays", LABS, CHARTS)}
    tick = ticker(sum(stream.size for stream in streams.values()), progress)
    stays = _stays(streams, tick)
    windows = Windows(len(stays), run)
    finder = Finder(stays, windows)
    for table, columns in ((CHARTS, ("subject_id", "stay_id")), (LABS, ("subject_id",))):
        items = _Items(table)
        for batch in streams[table].batches((*columns, "itemid", "charttime", "valuenum"), tick):
            wanted, numbers = items.of(batch["itemid"])
            if not len(numbers):
                continue
            part = {name: column.filter(wanted) for name, column in batch.items()}
            subject, times, values = (
                whole_numbers(part["subject_id"]),
                seconds(part["charttime"]),
                decimals(part["valuenum"]),
            )
            if table == CHARTS:
                finder.charts(subject, whole_numbers(part["stay_id"]), numbers, times, values)
            else:
                finder.labs(subject, numbers, times, values)
    for table, stream in streams.items():
        stays.dirt[f"lines of {table} that are no records of its width: left out"] += stream.broken
    return stay_table(folder, stays, windows, finder.charted)


class _Items:
    """Which rows of a table are of an item that is wanted, and of which."""

    def __init__(self, table: str) -> None:
        import pyarrow

        places = [place for place, (_, variable) in enumerate(ITEMS) if VARIABLES[variable].source == table]
        itemids = [ITEMS[place][0] for place in places]
        self._places = np.array(places, dtype=np.int64)
        self._numbers = pyarrow.array(itemids, pyarrow.int64())
        self._texts = pyarrow.array([str(itemid) for itemid in itemids])

    def of(self, column: Any) -> tuple[Any, IntegerArray]:
        """Return which entries are wanted, and the place in ITEMS of each that is."""
        import pyarrow
        import pyarrow.compute

        numeric = pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)
        entries = column.cast(pyarrow.int64(), safe=False) if numeric else column.cast(pyarrow.string())
        found = pyarrow.compute.index_in(entries, value_set=self._numbers if numeric else self._texts)
        wanted = found.is_valid()
        return wanted, self._places[found.drop_null().to_numpy(zero_copy_only=False)]


def _stays(streams: dict[str, Stream], tick: Tick | None) -> Stays:
    """Read the small tables."""
    last = ("last_careunit",) if streams["icustays"].has("last_careunit") else ()
    rows = _whole(
        streams["icustays"], ("subject_id", "hadm_id", "stay_id", "first_careunit", *last, "intime", "outtime"), tick
    )
    died = ("dod",) if streams["patients"].has("dod") else ()
    patients = _whole(streams["patients"], ("subject_id", "gender", "anchor_age", "anchor_year", *died), tick)
    admissions = _whole(
        streams["admissions"],
        ("subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "hospital_expire_flag"),
        tick,
    )
    again = _copies(rows["subject_id"], rows["stay_id"])
    kept = np.flatnonzero(~again)
    ids = {name: rows[name][kept] for name in ("subject_id", "hadm_id", "stay_id")}
    patient = _Joined((patients["subject_id"],), (ids["subject_id"],))
    admission = _Joined((admissions["subject_id"], admissions["hadm_id"]), (ids["subject_id"], ids["hadm_id"]))
    flag = admission.numbers(admissions["hospital_expire_flag"])
    genders = {"F": 1.0, "M": 0.0}
    female = np.array(
        [genders.get((text or "").strip().upper(), np.nan) for text in patients["gender"]], dtype=np.float64
    )
    stays = Stays(
        subject=ids["subject_id"],
        hadm=ids["hadm_id"],
        stay=ids["stay_id"],
        intime=rows["intime"][kept],
        outtime=rows["outtime"][kept],
        first_unit=[rows["first_careunit"][row] for row in kept.tolist()],
        last_unit=[rows[(*last, "first_careunit")[0]][row] for row in kept.tolist()],
        birth_year=patient.numbers(patients["anchor_year"] - patients["anchor_age"]),
        female=patient.numbers(female),
        admitted=admission.times(admissions["admittime"]),
        discharged=admission.times(admissions["dischtime"]),
        death=admission.times(admissions["deathtime"]),
        death_day=patient.times(patients["dod"]) if died else np.full(len(kept), NO_TIME),
        expired=np.where((flag == 0) | (flag == 1), flag, np.nan),
    )
    stays.dirt["rows of icustays that name a stay again: the first one counts"] = int(again.sum())
    stays.dirt["rows of patients that name a patient again: the first one counts"] = patient.copies
    stays.dirt["rows of admissions that name an admission again: the first one counts"] = admission.copies
    stays.dirt["stays without a patient's entry: no age, no sex"] = int((patient.rows < 0).sum())
    stays.dirt["stays without an admission's entry: no label of deaths"] = int((admission.rows < 0).sum())
    return stays


class _Joined:
    """The rows of a table that belong to others, by ids; the first one counts.

    Attributes:
        rows: the row of each of the others, -1 for none.
        copies: how many rows name the same again.
    """

    def __init__(self, keys: Sequence[IntegerArray], wanted: Sequence[IntegerArray]) -> None:
        places: dict[tuple[int, ...], int] = {}
        self.copies = 0
        for row, key in enumerate(_tuples(keys)):
            if NO_ID in key:
                continue
            self.copies += key in places
            places.setdefault(key, row)
        self.rows = np.array([places.get(key, -1) for key in _tuples(wanted)], dtype=np.int64)

    def numbers(self, column: FloatArray) -> FloatArray:
        return np.where(self.rows < 0, np.nan, np.append(column, np.nan)[self.rows])

    def times(self, column: IntegerArray) -> IntegerArray:
        return np.where(self.rows < 0, NO_TIME, np.append(column, NO_TIME)[self.rows])


def _tuples(columns: Sequence[IntegerArray]) -> Iterator[tuple[int, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _copies(subject: IntegerArray, stay: IntegerArray) -> Any:
    """Return which rows name a patient's stay that an earlier row names."""
    seen: set[tuple[int, ...]] = set()
    marks = np.zeros(len(stay), dtype=np.bool_)
    for row, key in enumerate(_tuples((subject, stay))):
        marks[row] = NO_ID not in key and key in seen
        seen.add(key)
    return marks


def _whole(stream: Stream, columns: Sequence[str], tick: Tick | None) -> dict[str, Any]:
    """Return whole columns of a small table: arrays of numbers, lists of texts."""
    parts: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in stream.batches(columns, tick):
        for name in columns:
            read: Callable[[Any], Any] = _READ.get(name, seconds)
            parts[name].append(read(batch[name]))
    whole: dict[str, Any] = {}
    for name, found in parts.items():
        if _READ.get(name) is texts:
            whole[name] = [text for part in found for text in part]
        else:
            empty = np.zeros(0, dtype=np.float64 if _READ.get(name) is decimals else np.int64)
            whole[name] = np.concatenate([empty, *found])
    return whole
