"""Parquet tables: row groups are read one at a time, and texts only after a process with limits has read them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.readers.base import changed_file_error, check_first, existing_file, require_unchanged
from distqexp.problem.readers.entries import UNREADABLE, as_array, decode_text, is_missing, legible_text, numbers_of
from distqexp.problem.readers.table import TableReader

_ROWS_A_BYTE = 1024
"""A Parquet file with more rows than this for each of its bytes is no table of records, whatever its encoding."""

_LARGEST_GROUP = 1 << 31
_GROUP_GROWTH = 64
"""How far a row group may unpack.

It is not read where its numbers take more than _LARGEST_GROUP bytes and more than this many times the file.
"""


class ParquetReader(TableReader):
    """A Parquet file, whose row groups are read one at a time; the last one is kept."""

    def __init__(self, data: DataConfig) -> None:
        path = self._located(data)
        self._path = path
        self._file: Any = None
        self._last_group: tuple[int, tuple[str, ...], Any] | None = None
        handle = self._handle()
        super().__init__(path, list(handle.schema_arrow.names), data)
        self.count, size = int(handle.metadata.num_rows), self._stat.st_size
        if not 0 <= self.count <= _ROWS_A_BYTE * size:
            raise FileContentError(f"{path}: declares more rows than a file of its size holds; fetch it again")
        sizes = [handle.metadata.row_group(group).num_rows for group in range(handle.metadata.num_row_groups)]
        if sum(sizes) != self.count or min(sizes, default=0) < 0:
            raise changed_file_error(path)
        numbers = 8 * max(sizes, default=0) * (len(self.names) + 1)
        if numbers > max(_LARGEST_GROUP, _GROUP_GROWTH * size):
            raise FileContentError(
                f"{path}: a row group unpacks to more than 2 GiB and {_GROUP_GROWTH} times the file; "
                "expected smaller ones; write it anew with fewer rows a group"
            )
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def _located(self, data: DataConfig) -> Path:
        return existing_file(data.path, "data.path")

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        columns = tuple(dict.fromkeys([*names, *self.labels]))
        values = np.full((len(rows), len(names) + len(self.labels)), np.nan)
        if not columns:
            return self._parted(values, names)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            places = np.flatnonzero(groups == group)
            table = self._group(group, columns).take(rows[places] - self._starts[group])
            for column, name in enumerate([*names, *self.labels]):
                values[places, column] = self._numbers_of(table.column(name), name)
        return self._parted(values, names)

    def entries(self, names: Sequence[str], rows: IntegerArray) -> list[list[Any]]:
        return [_entries(self._column(name).take(rows)) for name in names]

    def _numbers_of(self, column: Any, name: str) -> FloatArray:
        """Return a column as numbers, by its coding where it has one."""
        if name not in self.codings:
            return self._numbers_in(column, name)
        numbers = self.codings[name].numbers(_entries(column))
        if not self.private and None in numbers:
            raise self._not_numbers([name])
        return as_array(numbers, UNREADABLE)

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        marks = np.zeros((len(rows), len(names) + 1), dtype=np.bool_)
        for place, name in enumerate([*names, self.target]):
            if len(rows) and name in self.codings:
                numbers = self.codings[name].numbers(_entries(self._column(name).take(rows)))
                marks[:, place] = [number is None for number in numbers]
            elif len(rows) and _is_text(self._handle().schema_arrow.field(name).type):
                numbers = numbers_of(_texts(self._column(name).take(rows)))
                marks[:, place] = [number is None for number in numbers]
        return marks

    def file_stats(self) -> tuple[os.stat_result, ...]:
        self._handle()
        return (self._stat,)

    def check_whole(self) -> None:
        columns = tuple(dict.fromkeys([*self.names, *self.labels]))
        self._check(columns)
        empty = self._handle().schema_arrow.empty_table()
        wrong = [name for name in columns if name not in self.codings and not _holds_numbers(empty.column(name))]
        if wrong:
            raise self._not_numbers(wrong)
        for group in range(len(self._starts) - 1):
            self._group(group, columns)

    def numbers(self, name: str) -> FloatArray:
        self._need(name, "data.where")
        return self._numbers_in(self._column(name), name, np.nan)

    def texts(self, name: str) -> list[str | None]:
        import pyarrow

        self._need(name, "data.where")
        column = self._column(name)
        if _is_text(column.type):
            return [legible_text(text) for text in _texts(column)]
        try:
            texts: list[str | None] = column.cast(pyarrow.string()).to_pylist()
        except (pyarrow.ArrowException, ValueError):
            raise FileContentError(
                f"{self.path}: column {name!r} holds no text; expected some for data.where"
            ) from None
        return texts

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        import pyarrow

        column = self._column(name).take(pyarrow.array(rows))
        ids: list[Any]
        if pyarrow.types.is_string(_plain(column.type)) or pyarrow.types.is_large_string(_plain(column.type)):
            texts = _texts(column)
            ids = [legible_text(text) for text in texts]
            legal = all(
                name is not None or text is None or is_missing(text) for name, text in zip(ids, texts, strict=True)
            )
        else:
            ids, legal = _values(column)
        if not self.private and not legal:
            raise FileContentError(
                f"{self.path}: unit column {name!r}: an id can't be read; expected numbers, dates or texts in UTF-8"
            )
        ids = [None if value != value else value for value in ids]
        if not self.private and None in ids:
            raise self._missing_id(name)
        return ids

    def _handle(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        if self._file is None:
            try:
                # Opened here, as Arrow's own files don't tell which file they have open.
                stream = self._path.open("rb")
                self._stat = os.fstat(stream.fileno())
                self._file = pyarrow.parquet.ParquetFile(stream)
                weakref.finalize(self._file, stream.close)  # readers with other codings share it
            except (pyarrow.ArrowException, OSError, ValueError):
                raise FileContentError(
                    f"{self._path}: not a whole Parquet file; expected Parquet; fetch it again or correct data.*.format"
                ) from None
        return self._file

    def _check(self, names: Sequence[str]) -> None:
        """Refuse columns of lists, and have a process with limits read those that aren't numbers first."""
        import pyarrow

        types = {name: self._handle().schema_arrow.field(name).type for name in names}
        if lists := [name for name, kind in types.items() if pyarrow.types.is_nested(kind)]:
            raise FileContentError(
                f"{self.path}: column {lists[0]!r} holds lists; expected one number or text a row; correct data.*.columns"
            )
        number_tests = (pyarrow.types.is_primitive, pyarrow.types.is_decimal, pyarrow.types.is_null)
        if texts := sorted(name for name, kind in types.items() if not any(test(kind) for test in number_tests)):
            check_first(self.path, "texts", tuple(texts))
            require_unchanged(self.path, self._stat)

    def _group(self, group: int, names: tuple[str, ...]) -> Any:
        import pyarrow

        if self._last_group is None or self._last_group[:2] != (group, names):
            self._check(names)
            try:
                table = self._handle().read_row_group(group, columns=list(names), use_threads=False)
            except (pyarrow.ArrowException, OSError, ValueError):
                raise changed_file_error(self.path) from None
            if table.num_rows != self._starts[group + 1] - self._starts[group]:
                raise changed_file_error(self.path)
            self._last_group = (group, names, table)
        return self._last_group[2]

    def _column(self, name: str) -> Any:
        import pyarrow

        self._check([name])
        try:
            column = self._handle().read(columns=[name], use_threads=False).column(name)
        except (pyarrow.ArrowException, OSError, ValueError):
            raise changed_file_error(self.path) from None
        if len(column) != self.count:
            raise changed_file_error(self.path)
        return column

    def _numbers_in(self, column: Any, name: str, unreadable: float = UNREADABLE) -> FloatArray:
        import pyarrow

        if _is_text(column.type):
            numbers = numbers_of(_texts(column))
            if not self.private and None in numbers:
                raise self._not_numbers([name])
            return as_array(numbers, unreadable)
        try:
            values: FloatArray = column.cast(pyarrow.float64(), safe=False).to_numpy()
        except (pyarrow.ArrowException, ValueError):
            raise self._not_numbers([name]) from None
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_last_group": None}


def _holds_numbers(column: Any) -> bool:
    """Whether a column is of a type that becomes numbers: numbers, truth values or texts."""
    import pyarrow

    if _is_text(column.type):
        return True
    try:
        column.cast(pyarrow.float64(), safe=False)
    except (pyarrow.ArrowException, ValueError):
        return False
    return True


def _entries(column: Any) -> list[Any]:
    """Return a column's entries as texts where it holds texts, else as Python's values."""
    return list(_texts(column)) if _is_text(column.type) else _values(column)[0]


def _plain(kind: Any) -> Any:
    """Return the type of a column's values, whether or not they are stored as a dictionary."""
    import pyarrow

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    import pyarrow

    tests = ("is_string", "is_large_string", "is_binary", "is_large_binary")
    return any(getattr(pyarrow.types, test)(_plain(kind)) for test in tests)


def _texts(column: Any) -> list[str | None]:
    """Return a column of texts, each decoded on its own: bytes that aren't UTF-8 don't harm the others."""
    import pyarrow

    binary = column.cast(_plain(column.type)).cast(pyarrow.large_binary())
    return [None if content is None else decode_text(content) for content in binary.to_pylist()]


def _values(column: Any) -> tuple[list[Any], bool]:
    """Return a column as Python's values, and whether there is one for each.

    It is None where Python has none, as for dates far away.
    """
    import pyarrow

    if pyarrow.types.is_float32(column.type) or pyarrow.types.is_float16(column.type):
        return list(column.to_numpy()), True  # a short float keeps its type: it holds fewer whole numbers exactly
    try:
        return column.to_pylist(), True
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return [_value(scalar) for scalar in column], False


def _value(scalar: Any) -> Any:
    import pyarrow

    try:
        return scalar.as_py()
    except (pyarrow.ArrowException, ValueError, OverflowError):
        return None
