"""ICU stays with what is known of their patients and admissions: labels, ages, and which stay a value belongs to. All of it is private."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.problem.readers.clinical.catalogue import (
    AFTER,
    BEFORE,
    CHARTS,
    FAHRENHEIT_ABOVE,
    ITEMS,
    LONG_STAY,
    OLDEST,
    TEMPERATURE,
    VARIABLES,
)
from distqexp.problem.readers.clinical.lenient import NO_ID, NO_TIME, years
from distqexp.problem.readers.clinical.windows import Windows

DAY = 86_400
_VARIABLE = np.array([place for _, place in ITEMS])
_LOWEST = np.array([variable.lowest for variable in VARIABLES])
_HIGHEST = np.array([variable.highest for variable in VARIABLES])
_CHARTED = np.array([variable.source == CHARTS for variable in VARIABLES])
_FAHRENHEIT = np.array([itemid == 223761 for itemid, _ in ITEMS])


@dataclass
class Stays:
    """One entry a stay, in the order of the file; ids are NO_ID and times NO_TIME where missing. Private.

    Attributes:
        subject: the patient.
        hadm: the hospital admission.
        stay: the stay.
        intime: when it begins.
        outtime: when it ends.
        first_unit: the care unit where it begins.
        last_unit: the care unit where it ends.
        birth_year: the year of birth.
        female: 1 for women and 0 for men.
        admitted: when the admission begins.
        discharged: when it ends.
        death: when the patient died, as the admission says.
        death_day: when the day of the patient's death begins, as the patient's entry says.
        expired: 1 where the admission ended with death, 0 where it didn't.
        dirt: how often each rule for dirt applied.
    """

    subject: IntegerArray
    hadm: IntegerArray
    stay: IntegerArray
    intime: IntegerArray
    outtime: IntegerArray
    first_unit: list[str | None]
    last_unit: list[str | None]
    birth_year: FloatArray
    female: FloatArray
    admitted: IntegerArray
    discharged: IntegerArray
    death: IntegerArray
    death_day: IntegerArray
    expired: FloatArray
    dirt: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.subject)

    def labels(self) -> dict[str, FloatArray]:
        """Return the labels of each stay, NaN where a rule leaves it without. Counts the dirt."""
        known_in, known_out = self.intime != NO_TIME, self.outtime != NO_TIME
        backwards = known_in & known_out & (self.outtime < self.intime)
        dead_before = known_in & (
            _before(self.death, self.intime) | ((self.death_day != NO_TIME) & (self.death_day + DAY <= self.intime))
        )
        disordered = _before(self.discharged, self.admitted) & (self.admitted != NO_TIME)
        early = known_in & _before(self.intime, self.admitted)
        late = _before(self.discharged, self.death) & (self.discharged != NO_TIME)
        for words, marks in (
            ("stays that begin after the patient's death: they have no label", dead_before),
            ("stays that end before they begin: no length, and no death in the unit", backwards),
            ("stays whose admission ends before it begins: nothing depends on it", disordered),
            ("stays that begin before their admission: nothing depends on it", early),
            ("stays whose patient died after the discharge, as the admission says: the flag counts", late),
            ("stays without a time of beginning: no values", ~known_in),
            ("stays without a time of ending: no length, and no death in the unit", known_in & ~known_out),
            ("stays whose patient or stay has no legible id: no values", ~self._named()),
        ):
            self.dirt[words] += int(marks.sum())
        timed = known_in & known_out & ~backwards & ~dead_before
        length = np.where(timed, self.outtime - self.intime, 0)
        died_inside = (self.death != NO_TIME) & (self.death >= self.intime) & (self.death <= self.outtime)
        unclear = (self.expired == 1) & (self.death == NO_TIME)
        return {
            "in_hospital_mortality": np.where(dead_before, np.nan, self.expired),
            "icu_mortality": np.where(timed & ~unclear, died_inside, np.nan),
            "long_stay": np.where(timed, length > LONG_STAY, np.nan),
            "stay_days": np.where(timed, length / DAY, np.nan),
        }

    def ages(self) -> FloatArray:
        """Return the age in years at each stay's beginning, NaN where it isn't known or can't be."""
        ages = years(self.intime) - self.birth_year
        possible = (ages >= 0) & (ages <= OLDEST)
        self.dirt["ages that can't be: they are missing"] += int((~possible & ~np.isnan(ages)).sum())
        return np.where(possible, ages, np.nan)

    def numbers(self) -> tuple[IntegerArray, list[str | None]]:
        """Return which stay of its patient each one is, by the time of its beginning and from 1, and the care unit of the first one."""
        order = np.lexsort((self.stay, self.intime, self.subject))
        subjects = self.subject[order]
        first = np.flatnonzero(np.concatenate([[True], subjects[1:] != subjects[:-1]])) if len(order) else order
        lengths = np.diff(first, append=len(order))
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.arange(len(order)) - np.repeat(first, lengths) + 1
        firsts = np.empty(len(order), dtype=np.int64)
        firsts[order] = np.repeat(order[first], lengths)
        nobody = self.subject == NO_ID
        return np.where(nobody, 1, numbers), [
            self.first_unit[row if none else first]
            for row, (none, first) in enumerate(zip(nobody.tolist(), firsts.tolist(), strict=True))
        ]

    def _named(self) -> BoolArray:
        return (self.subject != NO_ID) & (self.stay != NO_ID)


class Finder:
    """Finds the stays that a value belongs to, and hands it to their windows when a person can have it.

    A value of the charts belongs to the stay that it names together with its patient. One of the laboratory belongs to every stay of its
    patient whose window it falls into. So no stay's values depend on another patient's rows.
    """

    def __init__(self, stays: Stays, windows: Windows) -> None:
        self._windows = windows
        self._dirt = stays.dirt
        rows = np.flatnonzero((stays.subject != NO_ID) & (stays.stay != NO_ID) & (stays.intime != NO_TIME))
        self._begin = np.where(stays.intime == NO_TIME, 0, stays.intime) - BEFORE
        keys = _pairs(stays.subject[rows], stays.stay[rows])
        by_key = np.argsort(keys, kind="stable")
        self._keys, self._key_rows = keys[by_key], rows[by_key]
        by_subject = np.argsort(stays.subject[rows], kind="stable")
        self._subjects, self._subject_rows = stays.subject[rows][by_subject], rows[by_subject]
        self.charted: BoolArray = np.zeros(len(stays), dtype=np.bool_)

    def charts(
        self, subject: IntegerArray, stay: IntegerArray, items: IntegerArray, times: IntegerArray, values: FloatArray
    ) -> None:
        """Take values that name their stay."""
        keys = _pairs(subject, stay)
        places = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        known = (
            (self._keys[places] == keys) & (subject != NO_ID) & (stay != NO_ID)
            if len(self._keys)
            else np.zeros(len(keys), np.bool_)
        )
        self._dirt["chart rows of no stay: left out"] += int((~known).sum())
        rows = self._key_rows[places[known]]
        self._take(rows, items[known], times[known], values[known])

    def labs(self, subject: IntegerArray, items: IntegerArray, times: IntegerArray, values: FloatArray) -> None:
        """Take values that name their patient alone."""
        place = np.searchsorted(self._subjects, subject)
        after = np.searchsorted(self._subjects, subject, side="right")
        while True:
            more = np.flatnonzero((place < after) & (subject != NO_ID))
            if not len(more):
                return
            subject, place, after = subject[more], place[more], after[more]
            items, times, values = items[more], times[more], values[more]
            self._take(self._subject_rows[place], items, times, values)
            place = place + 1

    def _take(self, rows: IntegerArray, items: IntegerArray, times: IntegerArray, values: FloatArray) -> None:
        """Hand over the values that are in the windows of ``rows``, legible and plausible."""
        seconds = times - self._begin[rows]
        inside = (times != NO_TIME) & (seconds >= 0) & (seconds <= BEFORE + AFTER) & ~np.isnan(values)
        rows, items, seconds, values = rows[inside], items[inside], seconds[inside], values[inside]
        values = self._in_celsius(items, values)
        variables = _VARIABLE[items]
        illegible = np.isinf(values)
        good = (values >= _LOWEST[variables]) & (values <= _HIGHEST[variables])
        self._dirt["values that are no numbers: left out"] += int(illegible.sum())
        for place, count in enumerate(np.bincount(variables[~good & ~illegible], minlength=len(VARIABLES)).tolist()):
            variable = VARIABLES[place]
            self._dirt[
                f"values of {variable.name} outside {variable.lowest:g} to {variable.highest:g} {variable.unit}: left out"
            ] += count
        self._windows.add(rows[good], items[good], seconds[good], values[good])
        self.charted[rows[good & _CHARTED[variables]]] = True

    def _in_celsius(self, items: IntegerArray, values: FloatArray) -> FloatArray:
        """Return the values with temperatures in degrees Celsius."""
        temperature = _VARIABLE[items] == TEMPERATURE
        hot = temperature & (values > FAHRENHEIT_ABOVE) & np.isfinite(values)
        other = temperature & np.isfinite(values) & (hot != _FAHRENHEIT[items])
        self._dirt["temperatures in the other unit than their itemid's: taken by their size"] += int(other.sum())
        return np.where(hot, (values - 32) / 1.8, values)


def _before(one: IntegerArray, other: IntegerArray) -> BoolArray:
    return (one != NO_TIME) & (one < other)


def _pairs(subject: IntegerArray, stay: IntegerArray) -> IntegerArray:
    return (subject << 32) | (stay & 0xFFFFFFFF)
