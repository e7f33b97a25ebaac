"""What a public table of text holds, column by column: enough to write a config for tables like it. Public files only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distqexp.config.data import NewRecords
from distqexp.errors import FileContentError
from distqexp.problem.readers.dialect import Dialect
from distqexp.problem.readers.entries import is_missing, legible_text, number_of
from distqexp.problem.readers.table import CsvReader

_MOST_VALUES = 1000
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
    """

    name: str
    count: int = 0
    numbers: bool = True
    whole: bool = True
    values: set[str] = field(default_factory=set)
    many: bool = False

    def add(self, entry: str, dialect: Dialect) -> None:
        """Take note of an entry."""
        text = entry.strip()
        if is_missing(text):
            return
        self.count += 1
        number = number_of(dialect.number_text(text))
        finite = number is not None and math.isfinite(number)
        self.numbers = self.numbers and finite
        self.whole = self.whole and finite and number == int(number or 0)
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


def read_facts(path: Path, unit: str | None, encoding: str | None = None) -> TableFacts:
    """Read a public table in any dialect, plain or packed, as runs do.

    Args:
        path: The file.
        unit: The column of the unit ids, if any; the caller checks that it is there.
        encoding: How letters are stored, as ``data.*.encoding`` says it; None for UTF-8, or UTF-16 with its mark.

    Raises:
        StorageError: It can't be read.
        FileContentError: It is no table of text in that encoding, has a row that is no record, or has none.
    """
    reader = CsvReader(NewRecords(format="csv", path=str(path), encoding=encoding))
    names = reader.columns
    if "" in names:
        raise FileContentError(f"{path}: a header with an empty name; expected a name for each column")
    if reader.count == 0:
        raise FileContentError(f"{path}: a header and no row; expected public records")
    columns, units = [Column(name) for name in names], set[str]()
    for first in range(0, reader.count, _ROWS):
        rows = np.arange(first, min(first + _ROWS, reader.count))
        for column, entries in zip(columns, reader.entries(names, rows), strict=True):
            for row, entry in zip(rows.tolist(), entries, strict=True):
                column.add(_checked(entry, row, reader), reader.dialect)
            if column.name == unit:
                units.update(entry for entry in entries if entry is not None)
    count = len(units) if unit in names else reader.count
    return TableFacts({column.name: column for column in columns}, reader.count, count, reader.dialect)


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
