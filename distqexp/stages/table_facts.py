"""What a public table of text holds, column by column: enough to write a config for tables like it. Public files only."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from distqexp.errors import FileContentError, StorageError

_MISSING = {"", "na", "n/a", "nan", "null", "none"}
_SEPARATORS = ",;\t"
_MOST_VALUES = 1000
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass
class Column:
    """What stands in a column.

    Attributes:
        name: Its name.
        count: How many entries it has that aren't missing.
        numbers: Whether all of these are finite numbers.
        whole: Whether all of these are whole numbers.
        values: Its different entries, as texts; at most 1000 of them, see ``many``.
        many: Whether it has more.
    """

    name: str
    count: int = 0
    numbers: bool = True
    whole: bool = True
    values: set[str] = field(default_factory=set)
    many: bool = False

    def add(self, entry: str) -> None:
        """Take note of an entry."""
        text = entry.strip()
        if text.lower() in _MISSING:
            return
        self.count += 1
        number = _number(text)
        self.numbers = self.numbers and number is not None
        self.whole = self.whole and number is not None and number == int(number)
        if not self.many:
            self.values.add(text)
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
    """

    columns: dict[str, Column]
    rows: int
    units: int


def read_facts(path: Path, unit: str | None) -> TableFacts:
    """Read a public table, plain or packed, with a header line.

    Args:
        path: The file.
        unit: The column of the unit ids, if any; the caller checks that it is there.

    Raises:
        StorageError: It can't be read.
        FileContentError: It is no table of text in UTF-8, or has no row.
    """
    try:
        with _open(path) as file:
            return _facts(path, file, unit)
    except (UnicodeDecodeError, csv.Error, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise FileContentError(
            f"{path}: not a table of text in UTF-8 ({type(error).__name__}); expected CSV with a header line"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror or error}); check its path and mode") from error


def _open(path: Path) -> IO[str]:
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.open("r", encoding="utf-8-sig", newline="")
    file: IO[str] = opener(path, "rt", encoding="utf-8-sig", newline="")
    return file


def _facts(path: Path, file: IO[str], unit: str | None) -> TableFacts:
    first = file.readline()
    separator = max(_SEPARATORS, key=first.count)
    names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    if len(set(names)) != len(names) or "" in names:
        raise FileContentError(f"{path}: a header with empty or double names; expected a name for each column")
    columns, rows = [Column(name) for name in names], 0
    place = names.index(unit) if unit in names else None
    units: set[str] = set()
    for record in _records(file, separator):
        if len(record) != len(names):
            raise FileContentError(
                f"{path}: row {rows + 1} has {len(record)} fields, the header {len(names)}; expected as many"
            )
        rows += 1
        for column, entry in zip(columns, record, strict=True):
            column.add(entry)
        if place is not None:
            units.add(record[place])
    if rows == 0:
        raise FileContentError(f"{path}: a header and no row; expected public records")
    return TableFacts({column.name: column for column in columns}, rows, len(units) if place is not None else rows)


def _records(file: IO[str], separator: str) -> Iterator[list[str]]:
    return (record for record in csv.reader(file, delimiter=separator) if record)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
