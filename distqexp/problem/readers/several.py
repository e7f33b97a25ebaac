"""Several tables with the same columns, read as one: their records follow each other in the order of the files' names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.readers.base import Reader, some
from distqexp.problem.readers.codings import Coding
from distqexp.problem.readers.table import TableReader, copy_of


class SeveralTables(TableReader):
    """The tables of a pattern as one table. All must have the same columns, in any order, and be written alike."""

    def __init__(self, data: DataConfig, parts: Sequence[TableReader]) -> None:
        first = parts[0]
        super().__init__(Path(data.path or ""), first.columns, data)
        for part in parts[1:]:
            missing, more = (
                [name for name in a if name not in b] for a, b in ((first.names, part.names), (part.names, first.names))
            )
            if missing or more:
                raise FileContentError(
                    f"{part.path}: other columns than {first.path}: missing {some(missing, 20)}; unexpected {some(more, 20)}; expected the "
                    "same in every file of a pattern"
                )
            if part.dialect != first.dialect:
                raise FileContentError(
                    f"{part.path}: not written as {first.path} is: {part.dialect}, and not {first.dialect}; expected one separator and "
                    "decimal sign in every file of a pattern; write them alike, or say data.*.decimal"
                )
        self.parts = tuple(parts)
        self.dialect = first.dialect
        self._starts = np.concatenate([[0], np.cumsum([part.count for part in parts])]).astype(np.int64)
        self.count = int(self._starts[-1])

    def coded(self, codings: Sequence[Coding]) -> Reader:
        reader = copy_of(self)
        reader.codings = {coding.column: coding for coding in codings}
        reader.parts = tuple(part.coded(codings) for part in self.parts)  # type: ignore[misc]
        return reader

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        values, labels = np.empty((len(rows), len(names))), np.empty(len(rows))
        for part, own, places in self._split(rows):
            values[places], labels[places] = part.read(own, names)
        return values, labels

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        marks = np.zeros((len(rows), len(names) + 1), dtype=np.bool_)
        for part, own, places in self._split(rows):
            marks[places] = part.unreadable(own, names)
        return marks

    def entries(self, names: Sequence[str], rows: IntegerArray) -> list[list[Any]]:
        if not names:
            return []
        records = self._collected(rows, lambda part, own: list(zip(*part.entries(names, own), strict=True)))
        return [[record[at] for record in records] for at in range(len(names))]

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        return self._collected(rows, lambda part, own: part.identifiers(name, own))

    def numbers(self, name: str) -> FloatArray:
        return np.concatenate([part.numbers(name) for part in self.parts])

    def texts(self, name: str) -> list[str | None]:
        return [text for part in self.parts for text in part.texts(name)]

    def files(self) -> tuple[Path, ...]:
        return tuple(part.path for part in self.parts)

    def file_stats(self) -> tuple[os.stat_result, ...]:
        return tuple(stat for part in self.parts for stat in part.file_stats())

    def check_whole(self) -> None:
        for part in self.parts:
            part.check_whole()

    def _split(self, rows: IntegerArray) -> Iterator[tuple[TableReader, IntegerArray, IntegerArray]]:
        """Yield each table that has some of the rows, with their numbers in it and the places where they stood."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(which == number)
            if len(places):
                yield part, rows[places] - self._starts[number], places

    def _collected(self, rows: IntegerArray, values_of: Callable[[TableReader, IntegerArray], list[Any]]) -> list[Any]:
        values: list[Any] = [None] * len(rows)
        for part, own, places in self._split(rows):
            for place, value in zip(places.tolist(), values_of(part, own), strict=True):
                values[place] = value
        return values
