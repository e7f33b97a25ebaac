"""Raw texts, in a column of a CSV file, a Parquet file or a saved dataset, which a tokenizer turns into tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.problem.readers.base import Reader
from distqexp.problem.readers.codings import Coding
from distqexp.problem.readers.tokenizer import open_tokenizer


class TextReader(Reader):
    """One column of texts; a record is int64 (2, L), tokens and their mask. A missing text has no token that is seen.

    The source is a saved dataset where ``path`` is a folder, Parquet where it ends so, and CSV otherwise. Its column of texts is held
    in memory.
    """

    def __init__(self, data: DataConfig) -> None:
        from distqexp.problem.readers import open_reader  # which imports this module

        roles = data.columns
        self._tokenizer = open_tokenizer(data.tokenizer)
        self.tokenizer = self._tokenizer.digest
        columns = ColumnsConfig(
            target=roles.target, features=roles.features, classes=roles.classes, length=roles.length or 1
        )
        # Its own ``private`` is set before it is asked for anything.
        decimal = data.decimal if data.labelled else "."  # without labels no number is read
        table = dataclasses.replace(data, format=_format(data), tokenizer=None, columns=columns, decimal=decimal)
        self._source = open_reader(table, True)
        self.count, self.names = self._source.count, self._source.names
        self.shape = (2, roles.length or 1)
        self._texts: list[str | None] | None = None

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        source = self._asked()
        if self._texts is None:
            self._texts = source.texts(self.names[0])
        length = self.shape[1]
        tokens = [self._tokenizer.tokens(self._texts[row], length) for row in rows.tolist()]
        _, targets = source.read(rows, ())
        return np.array(tokens, dtype=np.int64).reshape(len(rows), 2, length), targets

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        targets = self._asked().unreadable(rows, ())
        return np.concatenate([np.zeros_like(targets), targets], axis=1)

    def coded(self, codings: Sequence[Coding]) -> Reader:
        if not codings:
            return self
        reader = object.__new__(TextReader)
        reader.__dict__.update(self.__dict__)
        reader._source = self._source.coded(codings)
        return reader

    def files(self) -> tuple[Path, ...]:
        return self._source.files()

    def facts(self) -> tuple[tuple[int, int, int, int, int], ...]:
        return self._source.facts()

    def check_whole(self) -> None:
        self._asked().check_whole()

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        return self._asked().identifiers(name, rows)

    def numbers(self, name: str) -> FloatArray:
        return self._asked().numbers(name)

    def texts(self, name: str) -> list[str | None]:
        return self._asked().texts(name)

    def _asked(self) -> Reader:
        self._source.private = self.private
        return self._source

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_texts": None}


def _format(data: DataConfig) -> Any:
    path = Path(data.path or "")
    return "arrow" if path.is_dir() else "parquet" if path.suffix == ".parquet" else "csv"
