"""What a public table holds, column by column: enough to write a config for tables like it. Public files only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np

from distqexp.config.data import NewRecords
from distqexp.errors import FileContentError
from distqexp.problem.readers import open_reader
from distqexp.problem.readers.dialect import Dialect
from distqexp.problem.readers.entries import is_missing, legible_text, number_of
from distqexp.problem.readers.table import CsvReader, TableReader

_MOST_VALUES = 1000
_MOST_TEXTS = 2000
_ROWS = 10_000
"""So many rows are held at a time."""


@dataclass
class Column:
    """What stands in a column.

    Attributes:
        name: Its name.
        count: How many entries it has that aren't missing.
        numbers: Whether all of these are finite numbers.
        whole: Whether all of these are whole numbers.
        values: Its different entries, as texts, numbers with a decimal point; at most 1000 of them, see ``many``.
        many: Whether it has more.
        lists: Whether its entries are lists.
        texts: The first of its entries that are no numbers.
        letters: How many letters all entries have.
    """

    name: str
    count: int = 0
    numbers: bool = True
    whole: bool = True
    values: set[str] = field(default_factory=set)
    many: bool = False
    lists: bool = False
    texts: list[str] = field(default_factory=list)
    letters: int = 0

    def add(self, entry: str, dialect: Dialect) -> None:
        """Take note of an entry."""
        text = entry.strip()
        if is_missing(text):
            return
        self.count += 1
        self.letters += len(text)
        number = number_of(dialect.number_text(text))
        finite = number is not None and math.isfinite(number)
        self.numbers = self.numbers and finite
        self.whole = self.whole and finite and number == int(number or 0)
        if not finite and len(self.texts) < _MOST_TEXTS:
            self.texts.append(text)
        if not self.many:
            self.values.add(dialect.number_text(text) if finite else text)
            self.many = len(self.values) > _MOST_VALUES

    @property
    def looks_like_an_id(self) -> bool:
        """Whether it is named like an id, or has whole numbers of which none comes twice."""
        word = self.name.lower()
        named = word == "id" or word.endswith(("_id", " id", "-id")) or self.name.endswith("Id")
        unique = self.whole and self.count > 20 and len(self.values) == min(self.count, _MOST_VALUES + 1)
        return named or unique


@dataclass(frozen=True)
class TableFacts:
    """A public table.

    Attributes:
        columns: By name, in the order of the file.
        rows: How many rows it has.
        units: How many different units, or rows where no column of units was named.
        dialect: How its fields are written.
    """

    columns: dict[str, Column]
    rows: int
    units: int
    dialect: Dialect


def read_facts(path: Path, unit: str | None, encoding: str | None = None, format: str = "csv") -> TableFacts:
    """Read a public table, a CSV in any dialect, plain or packed, as runs do.

    Args:
        path: The file or folder.
        unit: The column of the unit ids, if any; the caller checks that it is there.
        encoding: How letters are stored, as ``data.*.encoding`` says it; None for UTF-8, or UTF-16 with its mark.
        format: csv, parquet or arrow.

    Raises:
        StorageError: It can't be read.
        FileContentError: It is no table of text in that encoding, has a row that is no record, or has none.
    """
    reader = cast("TableReader", open_reader(NewRecords(format=cast("Any", format), path=str(path), encoding=encoding)))
    dialect = reader.dialect or Dialect()
    names = reader.columns
    if "" in names:
        raise FileContentError(f"{path}: a header with an empty name; expected a name for each column")
    if reader.count == 0:
        raise FileContentError(f"{path}: a header and no row; expected public records")
    lists = _lists(reader)
    columns, units = [Column(name, lists=name in lists) for name in names], set[str]()
    plain = [column for column in columns if not column.lists]
    for first in range(0, reader.count, _ROWS):
        rows = np.arange(first, min(first + _ROWS, reader.count))
        for column, entries in zip(plain, reader.entries([column.name for column in plain], rows), strict=True):
            for row, entry in zip(rows.tolist(), entries, strict=True):
                text = _checked(entry, row, reader) if isinstance(reader, CsvReader) else _text_of(entry)
                column.add(text, dialect)
                if column.name == unit and not is_missing(text):
                    units.add(text)
    count = len(units) if unit in names else reader.count
    return TableFacts({column.name: column for column in columns}, reader.count, count, dialect)


def longest_list(path: Path, name: str) -> tuple[int, int]:
    """Return the length of the longest list in a column of a saved dataset, and the largest whole number in any of them."""
    from distqexp.problem.readers.arrow import ArrowFolder

    entries = ArrowFolder(path).read([name]).column(name).to_pylist()
    return max(map(len, filter(None, entries)), default=1), max((max(entry) for entry in entries if entry), default=0)


def _lists(reader: TableReader) -> set[str]:
    """Return the columns of lists, which saved datasets have."""
    from distqexp.problem.readers.arrow import ArrowReader

    return set(reader.list_columns()) if isinstance(reader, ArrowReader) else set()


def _text_of(entry: Any) -> str:
    """Return an entry of a typed column as it would stand in a table of text."""
    if entry is None or entry != entry:
        return ""
    if isinstance(entry, date):
        return entry.isoformat()
    return legible_text(entry) or "" if isinstance(entry, str) else str(entry)


def _checked(entry: str | None, row: int, reader: CsvReader) -> str:
    if entry is None:
        raise FileContentError(
            f"{reader.path}: row {row + 1} is no record of {len(reader.columns)} fields, as the header is; expected as many"
        )
    if legible_text(entry) is None and not is_missing(entry):
        raise FileContentError(
            f"{reader.path}: row {row + 1} has letters that are not UTF-8; expected UTF-8, or UTF-16 with its mark: save it so, or say "
            "--encoding cp1252, or what it is"
        )
    return entry
