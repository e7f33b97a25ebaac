"""Tables: what all of them have in common, and CSV, plain or gzip. Only the rows asked for are parsed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import Reader, existing_file, feature_names, some
from distqexp.problem.readers.bytes import ByteSource
from distqexp.problem.readers.entries import UNREADABLE, as_array, decode_text, legible_text, number_of, numbers_of
from distqexp.problem.readers.idx import ascending_runs
from distqexp.problem.readers.lines import LineIndex, index_lines

_SCAN = 65536

_Fields = list[str] | None
"""The fields of a record; None where its bytes aren't a record."""


class TableReader(Reader):
    """What CSV and Parquet share: columns with roles."""

    def __init__(self, path: Path, columns: Sequence[str], data: DataConfig) -> None:
        self.path = path
        self.columns = tuple(columns)
        if data.columns.target is None:
            raise UsageError("data.columns.target: not given; expected the column of the label")
        self.target = data.columns.target
        self.names = feature_names(self.columns, data, path)
        if not self.names:
            raise FileContentError(f"{path}: no feature column is left; expected at least one; check data.*.columns")
        self.shape = (len(self.names),)

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def _need(self, name: str, key: str) -> None:
        if name not in self.columns:
            raise FileContentError(f"{self.path}: no column {name!r} for {key}; the file has {some(self.columns)}")

    def _not_numbers(self, name: str) -> FileContentError:
        return FileContentError(
            f"{self.path}: column {name!r}: an entry is not a number; expected numbers, or blanks where missing; "
            "recode the column, or list it in data.*.columns.exclude"
        )

    def _missing_id(self, name: str) -> FileContentError:
        return FileContentError(
            f"{self.path}: unit column {name!r}: an id is missing; expected an id in every row; "
            "complete the column, or filter those rows away"
        )


class CsvReader(TableReader):
    """Comma-separated values in UTF-8 with a header line; quoted fields may hold commas and line ends.

    Opening the file scans its bytes for the borders of records. A record with fewer or more fields than the header is refused, and so is
    a damaged gzip file. Empty fields, NA, N/A, NaN, null and None (in upper or lower case) are missing values.
    """

    def __init__(self, data: DataConfig) -> None:
        path = existing_file(data.path, "data.path")
        self._source = ByteSource(path)
        self._index: LineIndex = index_lines(self._source)
        header = _header(self._source, *self._index.header)
        if header is None:
            raise self._no_csv()
        super().__init__(path, [name.strip() for name in header], data)
        self.count = len(self._index.starts)

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        values = self._numbers(self._lines_of(rows), [*names, self.target])
        return values[:, :-1], values[:, -1]

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        positions = [self.columns.index(name) for name in [*names, self.target]]
        records = self._records_of(self._lines_of(rows))
        return np.array(
            [[record is None or number_of(record[at]) is None for at in positions] for record in records],
            dtype=np.bool_,
        ).reshape(len(rows), len(positions))

    def file_stats(self) -> tuple[os.stat_result, ...]:
        return (self._source.stat(),)

    def check_whole(self) -> None:
        """Do nothing: every byte was read for the borders of the records.

        An entry that is no number is the matter of its record.
        """

    def numbers(self, name: str) -> FloatArray:
        self._need(name, "data.where")
        parts = [self._numbers(lines, [name], np.nan)[:, 0] for lines in self._scan()]
        return np.concatenate(parts) if parts else np.empty(0)

    def texts(self, name: str) -> list[str | None]:
        self._need(name, "data.where")
        return self._texts(name)

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        texts = self._texts(name)
        ids = [texts[row] for row in rows.tolist()]
        if not self.private and any(text is None for text in ids):
            raise self._missing_id(name)
        return ids

    def _texts(self, name: str) -> list[str | None]:
        position = self.columns.index(name)
        return [
            None if record is None else legible_text(record[position])
            for lines in self._scan()
            for record in self._records_of(lines)
        ]

    def _scan(self) -> Iterator[list[bytes]]:
        """Yield the bytes of all records, some thousands of them at a time."""
        for first in range(0, self.count, _SCAN):
            yield self._lines(first, min(first + _SCAN, self.count))

    def _lines_of(self, rows: IntegerArray) -> list[bytes]:
        lines: list[bytes] = [b""] * len(rows)
        for run, places in ascending_runs(rows):
            for place, line in zip(places.tolist(), self._lines(int(run[0]), int(run[-1]) + 1), strict=True):
                lines[place] = line
        return lines

    def _lines(self, first: int, after: int) -> list[bytes]:
        """Return the bytes of the records from ``first`` to before ``after``."""
        starts, ends = self._index.starts[first:after], self._index.ends[first:after]
        start = int(starts[0])
        blob = self._source.read(start, int(ends[-1]) - start)
        return [blob[a:b] for a, b in zip((starts - start).tolist(), (ends - start).tolist(), strict=True)]

    def _records_of(self, lines: Sequence[bytes]) -> list[_Fields]:
        """Return the fields of each record; None where its bytes are no record of the file's width.

        The result for a record depends on its bytes alone.
        """
        try:
            texts = [decode_text(line) if self.private else line.decode() for line in lines]
        except UnicodeDecodeError:
            raise self._no_csv() from None
        rows = _unquoted_fields(texts) or [_fields(text) for text in texts]
        records = [record if record is not None and len(record) == len(self.columns) else None for record in rows]
        if not self.private and None in records:
            raise self._no_csv()
        return records

    def _numbers(self, lines: Sequence[bytes], names: Sequence[str], unreadable: float = UNREADABLE) -> FloatArray:
        """Return float64 (n, len(names)), where each number is the double nearest to its text."""
        positions = [self.columns.index(name) for name in names]
        values = np.empty((len(lines), len(names)))
        for place, (line, record) in enumerate(zip(lines, self._records_of(lines), strict=True)):
            if record is None:
                values[place] = unreadable
                continue
            entries = [record[position] for position in positions]
            try:
                values[place] = [float(entry) for entry in entries]
                plain = b"_" not in line  # float() takes 1_000 for a number
            except ValueError:  # a missing value, or no number
                plain = False
            if not plain:
                numbers = numbers_of(entries)
                if not self.private and None in numbers:
                    raise self._not_numbers(names[numbers.index(None)])
                values[place] = as_array(numbers, unreadable)
        return values

    def _no_csv(self) -> FileContentError:
        return FileContentError(
            f"{self._source.path}: a record is not CSV in UTF-8; expected comma-separated text; save it as such"
        )


def _header(source: ByteSource, start: int, end: int) -> _Fields:
    try:
        return _fields(source.read(start, end - start).decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None


def _unquoted_fields(texts: list[str]) -> list[_Fields] | None:
    """Return the fields of records, parsed all at once.

    None where a quote or a lone carriage return might make one record of two, or two of one.
    """
    if any('"' in text for text in texts):
        return None
    try:
        rows: list[_Fields] = list(csv.reader(texts, strict=True))
    except csv.Error:
        return None
    return rows if len(rows) == len(texts) else None


def _fields(text: str) -> _Fields:
    """Return the fields of one record; None where the text is not one."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
