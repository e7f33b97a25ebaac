"""A secret Poisson sample of a source's units, in micro-batches whose number does not depend on who or how many were drawn.

The sample's slots are filled up with slots of nobody (NO_ROW), which are absent records. How many micro-batches there are is
a function of the slot map: enough but for a stated probability, in which case there are more.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import bdtrc  # scipy.stats would take 50 MB in every rank

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.problem.slots import NO_ROW, SlotMap


@dataclass(frozen=True)
class SampleRoom:
    """How much work is set aside for a sample. Public where the slot map is.

    Attributes:
        batches: The number of micro-batches for units that fit in one.
        large_units: The number of units with more records than a micro-batch has slots.
        large_batches: The micro-batches of each of those.
    """

    batches: int
    large_units: int
    large_batches: int


def room_for_sample(slots: SlotMap, micro_batch: int, sampling: float, failure: float) -> SampleRoom:
    """Return the room that a sample exceeds with probability ``failure`` at most.

    Args:
        slots: The slots of the whole source.
        micro_batch: The slots of a micro-batch.
        sampling: The probability with which a unit is drawn.
        failure: A probability above 0.
    """
    sizes = np.diff(slots.bounds())
    small, large = sizes[sizes <= micro_batch], sizes[sizes > micro_batch]
    most_slots = _largest_total(small, sampling, failure / 2)
    largest = int(small.max(initial=1))
    # Units are packed one after the other: no batch but the last is left with room for the next unit, and two batches in a
    # row hold more than one batch does.
    batches = min(math.ceil(most_slots / (micro_batch - largest + 1)), 2 * math.ceil(most_slots / micro_batch))
    return SampleRoom(
        batches=max(batches, 0 if len(large) else 1),
        large_units=_largest_total(np.ones_like(large), sampling, failure / 2),
        large_batches=math.ceil(int(large.max(initial=0)) / micro_batch),
    )


def sampled_slots(slots: SlotMap, drawn: BoolArray, micro_batch: int, room: SampleRoom) -> SlotMap:
    """Return the slots of the units that were drawn, filled up with slots of nobody to the size of ``room``. Private.

    ``SlotMap.pieces`` cuts the result into exactly the micro-batches of the room: every piece of small units fills one
    micro-batch, every large unit its own ones.

    Args:
        slots: The slots of the whole source.
        drawn: Which units were drawn, bool (units,).
        micro_batch: The slots of a micro-batch.
        room: The room, as ``room_for_sample`` gives it for the same slots.
    """
    bounds = slots.bounds()
    units = np.flatnonzero(drawn)
    sizes = bounds[units + 1] - bounds[units]
    parts = _Parts()
    for first, after in _packed(sizes[sizes <= micro_batch], micro_batch):
        members = units[sizes <= micro_batch][first:after]
        parts.add([slots.rows[bounds[unit] : bounds[unit + 1]] for unit in members], micro_batch)
    for _ in range(room.batches - parts.count):
        parts.add([], micro_batch)
    length = room.large_batches * micro_batch
    large = units[sizes > micro_batch]
    for unit in large:
        rows = slots.rows[bounds[unit] : bounds[unit + 1]]
        parts.add_unit(np.pad(rows, (0, length - len(rows)), constant_values=NO_ROW))
    for _ in range(room.large_units - len(large)):
        parts.add_unit(np.full(length, NO_ROW, dtype=np.int64))
    return parts.slot_map()


class _Parts:
    """The rows of slots and the sizes of their units, in the order of the slots."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[IntegerArray] = []
        self._sizes: list[IntegerArray] = []

    def add(self, members: list[IntegerArray], micro_batch: int) -> None:
        """Add one micro-batch of these units' rows, with units of nobody in what is left."""
        left = micro_batch - sum(len(rows) for rows in members)
        self._rows += [*members, np.full(left, NO_ROW, dtype=np.int64)]
        self._sizes += [np.array([len(rows) for rows in members], dtype=np.int64), np.ones(left, dtype=np.int64)]
        self.count += 1

    def add_unit(self, rows: IntegerArray) -> None:
        self._rows.append(rows)
        self._sizes.append(np.array([len(rows)], dtype=np.int64))

    def slot_map(self) -> SlotMap:
        sizes = np.concatenate([np.zeros(0, dtype=np.int64), *self._sizes])
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *self._rows])
        return SlotMap(rows, np.repeat(np.arange(len(sizes), dtype=np.int64), sizes))


def _packed(sizes: IntegerArray, micro_batch: int) -> list[tuple[int, int]]:
    """Pack units of these sizes, in order, into micro-batches; return half-open ranges of units."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    ranges: list[tuple[int, int]] = []
    first = 0
    while first < len(sizes):
        after = int(np.searchsorted(ends, ends[first] + micro_batch, side="right")) - 1
        ranges.append((first, after))
        first = after
    return ranges


def _largest_total(sizes: IntegerArray, sampling: float, failure: float) -> int:
    """Return a total that the sizes of the drawn units exceed with probability ``failure`` at most."""
    total = int(sizes.sum())
    if total == 0 or sampling == 1:
        return total
    values, counts = np.unique(sizes, return_counts=True)
    if len(values) == 1:
        drawn = int(counts[0])
        exceeded = bisect_left(range(drawn), True, key=lambda count: bool(bdtrc(count, drawn, sampling) <= failure))
        return int(values[0]) * exceeded

    def bound(log_slope: float) -> float:  # by Chernoff: any slope gives a true one
        slope = math.exp(log_slope) / float(values.max())
        moments = _log_moments(slope * values.astype(np.float64), sampling)
        return (float(counts @ moments) - math.log(failure)) / slope

    best = minimize_scalar(bound, bounds=(-12.0, 4.0), method="bounded")
    return min(total, math.floor(float(best.fun) * (1 + 1e-9)))


def _log_moments(exponents: FloatArray, sampling: float) -> FloatArray:
    """Return log(1 - q + q e^x) for every x >= 0."""
    return np.log1p(sampling * np.expm1(exponents))
