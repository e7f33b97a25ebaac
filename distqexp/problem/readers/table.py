"""Tables: what all have in common, and CSV, plain or gzip. Only the rows asked for are parsed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import MISSING, Reader, changed, existing_file, feature_names, some
from distqexp.problem.readers.bytes import ByteSource
from distqexp.problem.readers.idx import ascending_runs
from distqexp.problem.readers.lines import LineIndex, index_lines

_SCAN = 65536


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

    Opening scans the bytes for record borders; a record with fewer or more fields than the header is refused.
    Empty fields, NA, N/A, NaN, null and None (in any case) are missing values.
    """

    def __init__(self, data: DataConfig) -> None:
        path = existing_file(data.path, "data.path")
        self._source = ByteSource(path)
        self._index: LineIndex = index_lines(self._source)
        start, end = self._index.header
        header = next(iter(self._fields(self._source.read(start, end - start), "utf-8-sig")), [])
        super().__init__(path, [name.strip() for name in header], data)
        self.count = len(self._index.starts)

    def read(self, rows: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        wanted = [*names, self.target]
        places: list[NDArray[np.int64]] = []
        parts: list[bytes] = []
        for run, where in ascending_runs(rows):
            first, last = int(self._index.starts[run[0]]), int(self._index.ends[run[-1]])
            parts.append(self._source.read(first, last - first))
            places.append(where)
        values = np.full((len(rows), len(wanted)), np.nan)
        if places:
            values[np.concatenate(places)] = self._numbers(b"\n".join(parts), wanted, len(rows))
        return values[:, :-1], values[:, -1]

    def numbers(self, name: str) -> NDArray[np.float64]:
        self._need(name, "data.where")
        found = [self._numbers(blob, [name], count)[:, 0] for blob, count in self._scan()]
        return np.concatenate(found) if found else np.empty(0)

    def texts(self, name: str) -> list[str | None]:
        self._need(name, "data.where")
        return self._texts(name)

    def identifiers(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        texts = self._texts(name)
        found = [texts[row] for row in rows.tolist()]
        if any(text is None for text in found):
            raise self._missing_id(name)
        return found

    def _scan(self) -> Iterator[tuple[bytes, int]]:
        """The bytes of all records, some thousands at a time, and how many they are."""
        for first in range(0, self.count, _SCAN):
            after = min(first + _SCAN, self.count)
            start, end = int(self._index.starts[first]), int(self._index.ends[after - 1])
            yield self._source.read(start, end - start), after - first

    def _texts(self, name: str) -> list[str | None]:
        position = self.columns.index(name)
        return [
            None if record[position].strip().lower() in MISSING else record[position]
            for blob, count in self._scan()
            for record in self._records(blob, count)
        ]

    def _numbers(self, blob: bytes, names: Sequence[str], count: int) -> NDArray[np.float64]:
        """float64 (count, len(names)); each number is the double nearest to its text."""
        positions = [self.columns.index(name) for name in names]
        found = np.empty((count, len(names)))
        for place, record in enumerate(self._records(blob, count)):
            try:
                found[place] = [float(record[position]) for position in positions]
            except ValueError:  # a missing value, or no number
                found[place] = [self._number(record[position], self.columns[position]) for position in positions]
        if b"_" in blob:  # float() takes 1_000 for a number
            for record in self._records(blob, count):
                for position in positions:
                    if "_" in record[position]:
                        raise self._not_numbers(self.columns[position])
        return found

    def _number(self, text: str, name: str) -> float:
        if text.strip().lower() in MISSING:
            return np.nan
        try:
            return float(text)
        except ValueError:
            raise self._not_numbers(name) from None

    def _records(self, blob: bytes, count: int) -> list[list[str]]:
        found = [record for record in self._fields(blob) if record]
        if len(found) != count or any(len(record) != len(self.columns) for record in found):
            raise changed(self.path)
        return found

    def _fields(self, blob: bytes, encoding: str = "utf-8") -> list[list[str]]:
        try:
            return list(csv.reader(io.StringIO(blob.decode(encoding), newline=""), strict=True))
        except (UnicodeDecodeError, csv.Error):
            raise FileContentError(
                f"{self._source.path}: a record is not CSV in UTF-8; expected comma-separated text; save it as such"
            ) from None
