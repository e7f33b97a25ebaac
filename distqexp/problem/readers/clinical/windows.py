"""The values of the stays' windows, reduced to minimum, maximum and mean: exact whatever the order of the rows, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.problem.readers.clinical.catalogue import AFTER, BEFORE, ITEMS, STATISTICS, VARIABLES
from distqexp.storage.atomic import storage_error

RUN = 1 << 20
"""So many values are sorted at a time: 16 MiB. More go to a file without a name, which ends with the process."""

_SECOND_BITS = 17  # of AFTER + BEFORE seconds
_ITEM_BITS = 6
_SAMPLED = 1 << 10

if AFTER + BEFORE >= 1 << _SECOND_BITS or len(ITEMS) > 1 << _ITEM_BITS:
    raise ValueError("the window or the items don't fit a key")


class Windows:
    """Collects values and reduces them.

    A value's key is a number with its cell (the stay and the variable), its second in the window and its item. Equal values of one item at
    one second are copies of each other and count once; then those of a cell at one second are averaged; then come the statistics.

    Attributes:
        copies: how many values were copies of others. Private; known after ``reduced``.
        kept: how many values each stay has, copies aside: int64 (stays,). Private; known after ``reduced``.
    """

    def __init__(self, stays: int, run: int = RUN) -> None:
        self._stays = stays
        self._run = run
        self._waiting: list[tuple[IntegerArray, FloatArray]] = []
        self._count = 0
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []
        self._samples: list[IntegerArray] = []
        self.copies = 0
        self.kept: IntegerArray = np.zeros(stays, dtype=np.int64)

    def add(self, stays: IntegerArray, items: IntegerArray, seconds: IntegerArray, values: FloatArray) -> None:
        """Add values: the number of each one's stay, of its item in ITEMS, and the second, counted from the window's beginning."""
        variables = _VARIABLES[items]
        cells = stays * len(VARIABLES) + variables
        keys = ((cells << _SECOND_BITS | seconds) << _ITEM_BITS) | items
        self._waiting.append((keys, values))
        self._count += len(keys)
        if self._count >= self._run:
            self._spill()

    def reduced(self) -> FloatArray:
        """Return float64 (stays, variables * 3): minimum, maximum and mean of each variable; NaN where a stay has no value of it."""
        table = np.full((self._stays * len(VARIABLES), len(STATISTICS)), np.nan)
        for keys, values in self._parts():
            self._reduce(keys, values, table)
        self._close()
        return table.reshape(self._stays, len(VARIABLES) * len(STATISTICS))

    def _reduce(self, keys: IntegerArray, values: FloatArray, table: FloatArray) -> None:
        """Reduce sorted values of whole cells."""
        if not len(keys):
            return
        fresh = np.ones(len(keys), dtype=np.bool_)
        fresh[1:] = (keys[1:] != keys[:-1]) | (values[1:] != values[:-1])
        self.copies += int(len(keys) - fresh.sum())
        keys, values = keys[fresh], values[fresh]
        moments = keys >> _ITEM_BITS
        starts = _starts(moments)
        means = np.add.reduceat(values, starts) / _lengths(starts, len(values))
        cells = moments[starts] >> _SECOND_BITS
        first = _starts(cells)
        table[cells[first], 0] = np.minimum.reduceat(means, first)
        table[cells[first], 1] = np.maximum.reduceat(means, first)
        table[cells[first], 2] = np.add.reduceat(means, first) / _lengths(first, len(means))
        stays = (keys >> (_ITEM_BITS + _SECOND_BITS)) // len(VARIABLES)
        self.kept += np.bincount(stays, minlength=self._stays)

    def _sorted(self) -> tuple[IntegerArray, FloatArray]:
        """Return the values that wait, in the order of their keys and, of one key, of the values themselves."""
        keys = np.concatenate([part for part, _ in self._waiting]) if self._waiting else np.zeros(0, dtype=np.int64)
        values = np.concatenate([part for _, part in self._waiting]) if self._waiting else np.zeros(0)
        self._waiting, self._count = [], 0
        return _in_order(keys, values)

    def _spill(self) -> None:
        keys, values = self._sorted()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="distqexp-")  # noqa: SIM115 - it ends with this object
            self._runs.append((self._file.seek(0, 2), len(keys)))
            self._file.write(keys.data)
            self._file.write(values.data)
            self._file.flush()
        except OSError as error:
            raise storage_error(Path(tempfile.gettempdir()), error) from None
        self._samples.append(keys[::_SAMPLED].copy())

    def _parts(self) -> Iterator[tuple[IntegerArray, FloatArray]]:
        """Yield all values, whole cells at a time, in the order of the keys."""
        if self._file is None:
            yield self._sorted()
            return
        if self._count:
            self._spill()
        # Every so-manieth key of all runs: between two borders lies about a run's length of values.
        sample = np.sort(np.concatenate(self._samples))
        step = max(1, self._run // _SAMPLED)
        shift = _ITEM_BITS + _SECOND_BITS
        borders = np.unique(sample[step::step] >> shift) << shift
        runs = [
            (start, np.concatenate([[0], self._places(start, count, borders), [count]]), count)
            for start, count in self._runs
        ]
        for part in range(len(borders) + 1):
            pieces = [self._piece(start, count, int(at[part]), int(at[part + 1])) for start, at, count in runs]
            yield _in_order(
                np.concatenate([keys for keys, _ in pieces]), np.concatenate([values for _, values in pieces])
            )

    def _places(self, start: int, count: int, borders: IntegerArray) -> IntegerArray:
        file: Any = self._file
        mapped = np.memmap(file, dtype=np.int64, mode="r", offset=start, shape=(count,))
        return np.searchsorted(mapped, borders)

    def _piece(self, start: int, count: int, first: int, after: int) -> tuple[IntegerArray, FloatArray]:
        """Read the values ``first`` to before ``after`` of the run of ``count`` values that begins at the byte ``start``."""
        keys, values = np.empty(after - first, dtype=np.int64), np.empty(after - first)
        for array, offset in ((keys, start), (values, start + 8 * count)):
            file: Any = self._file
            file.seek(offset + 8 * first)
            if file.readinto(array.view(np.uint8).data) != array.nbytes:
                raise OSError("a file of temporary values is shorter than what was written to it")
        return keys, values

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


_VARIABLES = np.array([place for _, place in ITEMS], dtype=np.int64)


def _starts(sorted_numbers: IntegerArray) -> IntegerArray:
    """Return where each run of equal numbers begins."""
    return np.flatnonzero(np.concatenate([[True], sorted_numbers[1:] != sorted_numbers[:-1]]))


def _lengths(starts: IntegerArray, total: int) -> IntegerArray:
    return np.diff(starts, append=total)


def _in_order(keys: IntegerArray, values: FloatArray) -> tuple[IntegerArray, FloatArray]:
    order = np.lexsort((values, keys))
    return keys[order], values[order]
