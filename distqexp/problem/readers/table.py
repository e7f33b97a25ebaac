"""Tables: what all of them have in common, and CSV, plain or packed. Only the rows asked for are parsed."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import Reader, existing_file, feature_names, some
from distqexp.problem.readers.codings import Coding
from distqexp.problem.readers.complaints import complaint
from distqexp.problem.readers.dialect import Dialect, decimal_of, separator_of
from distqexp.problem.readers.entries import UNREADABLE, as_array, legible_text, numbers_of
from distqexp.problem.readers.idx import ascending_runs
from distqexp.problem.readers.lines import LineIndex, first_record, index_lines
from distqexp.problem.readers.text_bytes import TextSource

_SCAN = 65536
_SAMPLED = 1000
"""So many public records are looked at for the decimal sign."""
_SURVEYED = 20_000
"""So many public records are looked at to say what is wrong with a file."""

_NO_LABELS = " "

_R = TypeVar("_R", bound="TableReader")

_Fields = list[str] | None
"""The fields of a record; None where its bytes aren't a record."""


class TableReader(Reader):
    """What CSV and Parquet share: columns with roles.

    Attributes:
        labels: the column of the label alone; none where records have no labels.
        numeric: the columns of features that are numbers; none where they are texts for a tokenizer, or lists of tokens.
    """

    def __init__(self, path: Path, columns: Sequence[str], data: DataConfig) -> None:
        self.path = path
        self.columns = tuple(columns)
        if data.columns.target is None and data.labelled:
            raise UsageError("data.columns.target: not given; expected the column of the label")
        # Without labels no column has this name, as a header's names have no blanks around them.
        self.target = (data.columns.target or "") if data.labelled else _NO_LABELS
        self.labels = (self.target,) if data.labelled else ()
        named = data if data.labelled else replace(data, columns=replace(data.columns, target=None))
        self.names = feature_names(self.columns, named, path)
        if not self.names:
            raise FileContentError(f"{path}: no feature column is left; expected at least one; check data.*.columns")
        self.numeric = () if data.columns.length is not None else self.names
        self.shape = (len(self.names),)
        self.codings: dict[str, Coding] = {}

    def coded(self, codings: Sequence[Coding]) -> Reader:
        if not codings:
            return self
        reader = copy_of(self)
        # The column of the label may have another name in every source.
        reader.codings = {self.target if coding.kind == "classes" else coding.column: coding for coding in codings}
        return reader

    def _parted(self, values: FloatArray, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Split the numbers of ``names`` and of the label, if there is one; without one all targets are NaN."""
        features = values[:, : len(names)]
        return features, values[:, -1] if self.labels else np.full(len(values), np.nan)

    @abstractmethod
    def entries(self, names: Sequence[str], rows: IntegerArray) -> list[list[Any]]:
        """Return the entries of these columns at these rows, a list a column, as they stand: texts, or values of a typed column.

        An entry that isn't there, or whose record is none, is None.
        """

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def _need(self, name: str, key: str) -> None:
        if name not in self.columns:
            raise FileContentError(f"{self.path}: no column {name!r} for {key}; the file has {some(self.columns)}")

    def _not_numbers(self, names: Sequence[str]) -> FileContentError:
        """Return the error for columns of which an entry isn't a number, or isn't what their coding reads.

        In public files every other column of the kind is named, too, with the lines that mend it.
        """
        if self.private:
            return FileContentError(
                f"{self.path}: column {some(names)}: of a type that is not a number; expected numbers, or what the plan says; recode it"
            )
        columns = [*self.numeric, self.target]
        entries = self.entries(columns, np.arange(min(self.count, _SURVEYED)))
        return FileContentError(f"{self.path}: {complaint(self, dict(zip(columns, entries, strict=True)), names)}")

    def _missing_id(self, name: str) -> FileContentError:
        return FileContentError(
            f"{self.path}: unit column {name!r}: an id is missing; expected an id in every row; "
            "complete the column, or filter those rows away"
        )


class CsvReader(TableReader):
    """Separated values with a header line; quoted fields may hold separators and line ends.

    Opening the file scans its bytes for the borders of records. A record with fewer or more fields than the header is refused, and so is
    a damaged packed file. Empty fields, NA, N/A, NaN, null and None (in upper or lower case) are missing values. The separator is found in
    the header; the decimal sign is found in public records, and declared for private ones.
    """

    def __init__(self, data: DataConfig, private: bool = False) -> None:
        path = existing_file(data.path, "data.path")
        self.private = private
        self.dialect: Dialect
        self._source = TextSource(path)
        self._source.refuse_other_formats()
        encoding = data.encoding or "utf-8"
        try:
            header = self._source.read(*first_record(self._source, data.quotes)).decode(
                "utf-8-sig" if encoding == "utf-8" else encoding
            )
        except UnicodeDecodeError:
            raise self._illegible(encoding) from None
        self.dialect = Dialect(separator_of(header, data, path), data.decimal or ".", encoding, data.quotes)
        self._index: LineIndex = index_lines(self._source, self.dialect.separator.encode(), data.quotes)
        names = self.dialect.fields(header)
        if names is None:
            raise self._no_csv()
        super().__init__(path, [name.strip() for name in names], data)
        self.count = len(self._index.starts)
        if data.decimal is None and not (private and data.labelled):
            self.dialect = replace(self.dialect, decimal=self._public_decimal())

    def _public_decimal(self) -> str:
        """Return the decimal sign of the first records, which are public."""
        names = [*self.names, *self.labels]
        positions = [self.columns.index(name) for name in names]
        lines = self._lines(0, min(self.count, _SAMPLED)) if self.count else []
        records = self._records_of(lines, lenient=True)  # those that aren't asked for may be anything
        return decimal_of(names, ([record[at] for at in positions] for record in records if record), self.path)

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        columns, lines = [*names, *self.labels], self._lines_of(rows)
        records = self._records_of(lines)
        plain = [at for at, name in enumerate(columns) if name not in self.codings]
        values = np.full((len(lines), len(columns)), UNREADABLE)
        values[:, plain] = self._numbers(lines, records, [columns[at] for at in plain])
        there = [at for at, record in enumerate(records) if record is not None]
        for at, name in enumerate(columns):
            if name in self.codings:
                numbers = self.codings[name].numbers(self._column(records, name))
                if not self.private and None in numbers:
                    raise self._not_numbers([name])
                values[there, at] = as_array(numbers, UNREADABLE)[there]
        return self._parted(values, names)

    def entries(self, names: Sequence[str], rows: IntegerArray) -> list[list[Any]]:
        records = self._records_of(self._lines_of(rows), lenient=True)
        return [self._column(records, name) for name in names]

    def _column(self, records: Sequence[_Fields], name: str) -> list[str | None]:
        position = self.columns.index(name)
        return [None if record is None else record[position] for record in records]

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        columns, records = [*names, self.target], self._records_of(self._lines_of(rows))
        marks = np.array([[record is None] * len(columns) for record in records], dtype=np.bool_)
        marks = marks.reshape(len(rows), len(columns))
        for at, name in enumerate(columns):
            entries = self._column(records, name)
            if name in self.codings:
                numbers = self.codings[name].numbers(entries)
            else:
                numbers = numbers_of(None if text is None else self.dialect.number_text(text) for text in entries)
            marks[:, at] |= np.array([number is None for number in numbers], dtype=np.bool_)
        return marks

    def file_stats(self) -> tuple[os.stat_result, ...]:
        return (self._source.stat(),)

    def check_whole(self) -> None:
        """Do nothing: every byte was read for the borders of the records.

        An entry that is no number is the matter of its record.
        """

    def numbers(self, name: str) -> FloatArray:
        self._need(name, "data.where")
        parts = [self._numbers(lines, self._records_of(lines), [name], np.nan)[:, 0] for lines in self._scan()]
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

    def _records_of(self, lines: Sequence[bytes], lenient: bool = False) -> list[_Fields]:
        """Return the fields of each record; None where its bytes are no record of the file's width.

        The result for a record depends on its bytes alone. In public files such a record is refused unless ``lenient``.
        """
        lenient = lenient or self.private
        try:
            texts = [self._decoded(line, lenient) for line in lines]
        except UnicodeDecodeError:
            raise self._illegible(self.dialect.encoding) from None
        rows = self._unquoted_fields(texts) or [self.dialect.fields(text) for text in texts]
        records = [record if record is not None and len(record) == len(self.columns) else None for record in rows]
        if not lenient and None in records:
            raise self._no_csv()
        return records

    def _numbers(
        self, lines: Sequence[bytes], records: Sequence[_Fields], names: Sequence[str], unreadable: float = UNREADABLE
    ) -> FloatArray:
        """Return float64 (n, len(names)), where each number is the double nearest to its text; ``records`` are the fields of ``lines``."""
        positions = [self.columns.index(name) for name in names]
        values = np.empty((len(lines), len(names)))
        for place, (line, record) in enumerate(zip(lines, records, strict=True)):
            if record is None:
                values[place] = unreadable
                continue
            entries = [record[position] for position in positions]
            if self.dialect.decimal != ".":
                entries = [self.dialect.number_text(entry) for entry in entries]
            try:
                values[place] = [float(entry or "nan") for entry in entries]  # most missing values are empty
                plain = b"_" not in line  # float() takes 1_000 for a number
            except ValueError:  # a missing value, or no number
                plain = False
            if not plain:
                numbers = numbers_of(entries)
                if not self.private and None in numbers:
                    raise self._not_numbers([names[numbers.index(None)]])
                values[place] = as_array(numbers, unreadable)
        return values

    def _decoded(self, line: bytes, lenient: bool) -> str:
        """Return the text of a record. If ``lenient``, bytes that are no letter become signs that no ``legible_text`` has."""
        return line.decode(self.dialect.encoding, "surrogateescape" if lenient else "strict")

    def _unquoted_fields(self, texts: list[str]) -> list[_Fields] | None:
        """Return the fields of records, parsed all at once.

        None where a quote or a lone carriage return might make one record of two, or two of one.
        """
        if self.dialect.quotes and any('"' in text for text in texts):
            return None
        rows = self.dialect.rows(texts)
        return [*rows] if rows is not None and len(rows) == len(texts) else None

    def _no_csv(self) -> FileContentError:
        return FileContentError(
            f"{self._source.path}: a record can't be split at {self.dialect.separator!r}; expected a table of text with one record a line, "
            "fields that hold the separator or a line end in quotation marks; save it as such"
        )

    def _illegible(self, encoding: str) -> FileContentError:
        """Return the error for bytes that aren't letters in the encoding."""
        if encoding != "utf-8":
            return FileContentError(
                f"{self._source.path}: bytes that are no letters in {encoding}; expected {encoding}, as data.*.encoding says; correct it"
            )
        return FileContentError(
            f"{self._source.path}: not UTF-8: it has bytes that are no letters there; expected UTF-8, or UTF-16 with its mark: save it "
            'so, or say data.*.encoding = "cp1252" (Windows, western Europe), "latin-1", "cp1250" or "mac-roman"'
        )


def copy_of(reader: _R) -> _R:
    """Return another reader of the same open file: unlike ``copy.copy`` it opens nothing anew."""
    clone = object.__new__(type(reader))
    clone.__dict__.update(reader.__dict__)
    return clone
