"""Folders in the Medical Event Data Standard, with the codes that MIMIC-IV has there, as stays.

A folder holds Parquet files below ``data``, with the columns subject_id, time, code and numeric_value. Events name no stay for certain: a
stay begins with an ICU_ADMISSION, and values belong to every stay of their patient whose window they fall into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distqexp.arrays import IntegerArray
from distqexp.errors import FileContentError
from distqexp.problem.readers.clinical.catalogue import ITEMS
from distqexp.problem.readers.clinical.lenient import NO_ID, NO_TIME, decimals, seconds, texts, whole_numbers, years
from distqexp.problem.readers.clinical.stays import DAY, Finder, Stays
from distqexp.problem.readers.clinical.streams import Progress, Stream, Tick, ticker
from distqexp.problem.readers.clinical.table import StayTable, stay_table
from distqexp.problem.readers.clinical.windows import RUN, Windows
from distqexp.problem.readers.folders import Folder

_PLACES = {str(itemid): place for place, (itemid, _) in enumerate(ITEMS)}
_EVENTS = (
    "ICU_ADMISSION", "ICU_DISCHARGE", "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "MEDS_BIRTH", "MEDS_DEATH", "GENDER",
)  # fmt: skip
_FEMALE = {"F": 1.0, "M": 0.0}

_Event = tuple[int, str]
"""Time and what follows the first part of the code."""


def read_meds(path: Path, progress: Progress | None = None, run: int = RUN) -> StayTable:
    """Read a folder of events, twice: first for stays, then for values.

    Args:
        path: the folder, with ``data`` in it.
        progress: is told the share of the work that is done.
        run: how many values are sorted at a time.

    Returns:
        The stays, in the order of patients and times. A stay's id is its number in this order; admissions have none. Private.

    Raises:
        FileContentError: There are no such files, a column is missing, or a file is damaged.
    """
    folder = Folder(path)
    names = [name for name in folder.files if name.startswith("data/") and name.endswith(".parquet")]
    if not names:
        raise FileContentError(
            f"{path}: no Parquet file below data; expected a folder in the Medical Event Data Standard; give the one with data in it"
        )
    stream = Stream(folder, names)
    tick = ticker(2 * stream.size, progress)
    stays = _stays(_events(stream, tick))
    windows = Windows(len(stays), run)
    finder = Finder(stays, windows)
    for batch in stream.batches(("subject_id", "time", "code", "numeric_value"), tick):
        items = _of_codes(batch["code"], _item)
        wanted = np.flatnonzero(items >= 0)
        part = {name: column.take(wanted) for name, column in batch.items() if name != "code"}
        finder.labs(
            whole_numbers(part["subject_id"]), items[wanted], seconds(part["time"]), decimals(part["numeric_value"])
        )
    return stay_table(folder, stays, windows, finder.charted)


def _of_codes(column: Any, number_of: Any) -> IntegerArray:
    """Return a number for each code, asked for once for each that differs; -1 where the code is missing."""
    import pyarrow
    import pyarrow.compute

    encoded = column if pyarrow.types.is_dictionary(column.type) else column.dictionary_encode()
    numbers = [-1 if code is None else number_of(code) for code in texts(encoded.dictionary)]
    places = pyarrow.compute.fill_null(encoded.indices, len(numbers)).to_numpy(zero_copy_only=False)
    return np.array([*numbers, -1], dtype=np.int64)[places]


def _item(code: str) -> int:
    """Return the place in ITEMS of LAB//220045//bpm or LAB//RESULT//50912//mg/dL, or -1."""
    kind, *parts = code.split("//")
    if kind != "LAB":
        return -1
    return _PLACES.get(parts[1] if parts[:1] == ["RESULT"] and len(parts) > 1 else parts[0] if parts else "", -1)


def _events(stream: Stream, tick: Tick | None) -> dict[str, dict[int, list[_Event]]]:
    """Return the events that make stays, by the first part of their code and by patient, in the order of time."""
    found: dict[str, dict[int, list[_Event]]] = {kind: defaultdict(list) for kind in _EVENTS}
    for batch in stream.batches(("subject_id", "time", "code"), tick):
        kinds = _of_codes(batch["code"], lambda code: int(code.split("//")[0] in _EVENTS))
        wanted = np.flatnonzero(kinds > 0)
        codes = texts(batch["code"].take(wanted))
        subjects = whole_numbers(batch["subject_id"].take(wanted)).tolist()
        times = seconds(batch["time"].take(wanted)).tolist()
        for subject, time, code in zip(subjects, times, codes, strict=True):
            kind, _, rest = str(code).partition("//")
            found[kind][subject].append((time, rest))
    for by_subject in found.values():
        for events in by_subject.values():
            events.sort()
    return found


def _stays(events: dict[str, dict[int, list[_Event]]]) -> Stays:
    rows = list(_rows(events))
    columns: list[list[Any]] = [[row[place] for row in rows] for place in range(10)]
    subject, intime, outtime, first, last, birth, female, admitted, discharged, died = columns
    subjects = np.array(subject, dtype=np.int64)
    death = np.array([events["MEDS_DEATH"].get(name, [(NO_TIME, "")])[0][0] for name in subject], dtype=np.int64)
    midnight = (death != NO_TIME) & (death % DAY == 0)  # a day without an hour
    begin, end = np.array(admitted, dtype=np.int64), np.array(discharged, dtype=np.int64)
    inside = (death != NO_TIME) & (death >= np.where(midnight, begin - DAY, begin)) & (death <= end)
    return Stays(
        subject=subjects,
        hadm=np.full(len(rows), NO_ID),
        stay=np.arange(1, len(rows) + 1),
        intime=np.array(intime, dtype=np.int64),
        outtime=np.array(outtime, dtype=np.int64),
        first_unit=first,
        last_unit=last,
        birth_year=years(np.array(birth, dtype=np.int64)),
        female=np.array(female, dtype=np.float64),
        admitted=begin,
        discharged=end,
        death=np.where(midnight, NO_TIME, death),
        death_day=np.where(death == NO_TIME, NO_TIME, death - death % DAY),
        expired=np.where(end == NO_TIME, np.nan, np.array(died, dtype=np.bool_) | inside),
    )


def _rows(events: dict[str, dict[int, list[_Event]]]) -> Iterator[tuple[Any, ...]]:
    """Yield what is known of each stay, by patient and time; two beginnings at one time are one."""
    for subject, admissions in sorted(events["ICU_ADMISSION"].items()):
        if subject == NO_ID:
            continue
        birth = events["MEDS_BIRTH"].get(subject, [(NO_TIME, "")])[0][0]
        female = _FEMALE.get(events["GENDER"].get(subject, [(NO_TIME, "")])[0][1].strip().upper(), np.nan)
        for place, (time, unit) in enumerate(admissions):
            if place and admissions[place - 1][0] == time:
                continue
            out, last = _first(events["ICU_DISCHARGE"], subject, time)
            admitted = max(
                (at for at, _ in events["HOSPITAL_ADMISSION"].get(subject, []) if at <= time), default=NO_TIME
            )
            if admitted == NO_TIME:  # some stays begin minutes before their admission
                admitted = _first(events["HOSPITAL_ADMISSION"], subject, time)[0]
            discharged, where = _first(events["HOSPITAL_DISCHARGE"], subject, admitted)
            yield (
                subject, time, out, unit or None, last or None, birth, female, admitted, discharged, where == "DIED",
            )  # fmt: skip


def _first(events: dict[int, list[_Event]], subject: int, time: int) -> _Event:
    """Return a patient's first event at a time or after it; nothing for no time."""
    later = (event for event in events.get(subject, []) if event[0] >= time)
    return (NO_TIME, "") if time == NO_TIME else next(later, (NO_TIME, ""))
