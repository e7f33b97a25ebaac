"""Folders as Hugging Face's datasets save them: Arrow files, read batch by batch, after a process with limits has read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import changed_file_error, check_first, existing_folder
from distqexp.problem.readers.folders import Folder
from distqexp.problem.readers.parquet import ParquetReader

_LARGEST_STATE = 1 << 24
_UNREADABLE_TOKEN = -1


class ArrowFolder:
    """The batches of a saved dataset, behind the few methods of a ParquetFile that its reader calls.

    Attributes:
        folder: the open folder.
        schema_arrow: the columns.
        metadata: the number of rows, in all and of each batch.
    """

    def __init__(self, path: Path) -> None:
        """Find the batches. Raises FileContentError for a folder that isn't a saved dataset, or is damaged."""
        self.folder = Folder(path)
        self._batches: list[tuple[Any, int]] = []
        self.schema_arrow: Any = None
        sizes: list[int] = []
        for name in _data_files(self.folder):
            check_first(path / name, "batches")
            sizes += self._find(name)
        groups = [SimpleNamespace(num_rows=size) for size in sizes]
        self.metadata = SimpleNamespace(num_rows=sum(sizes), num_row_groups=len(sizes), row_group=groups.__getitem__)

    def read_row_group(self, group: int, columns: list[str], use_threads: bool = False) -> Any:
        """Return these columns of a batch as a table."""
        import pyarrow

        source, place = self._batches[group]
        source.seek(place)
        batch = pyarrow.ipc.read_record_batch(pyarrow.ipc.read_message(source), self.schema_arrow)
        return pyarrow.Table.from_batches([batch]).select(columns)

    def read(self, columns: list[str], use_threads: bool = False) -> Any:
        """Return these columns of all batches as a table."""
        import pyarrow

        # Taken, so that a column doesn't keep the others of its batch in memory.
        tables = [self.read_row_group(group, columns) for group in range(len(self._batches))]
        parts = [table.take(np.arange(table.num_rows)) for table in tables]
        return pyarrow.concat_tables(parts) if parts else self.schema_arrow.empty_table().select(columns)

    def _find(self, name: str) -> list[int]:
        """Note where the batches of a file begin, and return how many rows each has."""
        import pyarrow
        import pyarrow.ipc

        source = pyarrow.PythonFile(self.folder.open(name), mode="r")
        sizes: list[int] = []
        try:
            schema = pyarrow.ipc.read_schema(pyarrow.ipc.read_message(source))
            if self.schema_arrow is not None and not schema.equals(self.schema_arrow):
                raise FileContentError(
                    f"{self.folder.path}: {name} has other columns than the files before it; expected the same in all; save it anew"
                )
            self.schema_arrow = schema
            while True:
                place = source.tell()
                try:
                    message = pyarrow.ipc.read_message(source)
                except EOFError:
                    return sizes
                sizes.append(pyarrow.ipc.read_record_batch(message, schema).num_rows)
                self._batches.append((source, place))
        except (pyarrow.ArrowException, OSError, ValueError):
            raise changed_file_error(self.folder.path / name) from None


class ArrowReader(ParquetReader):
    """A saved dataset: a table of columns, or lists of tokens.

    With ``columns.tokens`` the features are lists of whole numbers, and raw features are int64 (n, 2, L): the tokens and the list
    ``columns.mask``, or else ones. Lists of more than L tokens are cut off, and padding with a mask of 0 follows shorter ones. L is
    ``columns.length``, or else the length of the longest public list.
    """

    def __init__(self, data: DataConfig) -> None:
        self._roles = data.columns
        super().__init__(data)
        if not self._roles.tokens:
            return
        if len(self.names) != 1:
            raise FileContentError(
                f"{self.path}: {len(self.names)} columns could hold the tokens; expected one; name it in data.*.columns.features"
            )
        for name in self._lists():
            self._require_whole_numbers(name)
        self.shape = (2, self._roles.length or 0)

    def survey(self, rows: IntegerArray, record_shape: tuple[int, ...] | None, numbers: bool) -> None:
        if self._roles.tokens and not self.shape[1]:
            import pyarrow.compute

            lengths = pyarrow.compute.list_value_length(self._column(self.names[0]).take(rows))
            longest = (record_shape or (pyarrow.compute.max(lengths).as_py() or 0,))[0]
            if longest == 0:
                raise UsageError("data.*.columns.length: not given, and all public lists of tokens are empty; give it")
            self.shape = (2, longest)

    def follow(self, shape: tuple[int, ...] | None, class_names: tuple[str, ...]) -> None:
        if self._roles.tokens and shape is not None:
            self.shape = shape

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        if not self._roles.tokens:
            return super().read(rows, names)
        _, targets = super().read(rows, ())
        features = np.zeros((len(rows), *self.shape), dtype=np.int64)
        lists = self._lists()
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups).tolist():
            places = np.flatnonzero(groups == group)
            table = self._group(group, (*lists, *self.labels)).take(rows[places] - self._starts[group])
            columns = [table.column(name).to_pylist() for name in lists]
            for place, *entries in zip(places.tolist(), *columns, strict=True):
                seen = entries[1] if len(entries) > 1 else [1] * len(entries[0] or ())
                features[place] = _padded(entries[0], seen, self.shape[1])
        return features, targets

    def unreadable(self, rows: IntegerArray, names: Sequence[str]) -> BoolArray:
        if not self._roles.tokens:
            return super().unreadable(rows, names)
        targets = super().unreadable(rows, ())
        return np.concatenate([np.zeros_like(targets), targets], axis=1)

    def check_whole(self) -> None:
        if not self._roles.tokens:
            super().check_whole()

    def list_columns(self) -> list[str]:
        """Return the columns of lists."""
        import pyarrow

        schema = self._handle().schema_arrow
        return [field.name for field in schema if pyarrow.types.is_nested(field.type)]

    def facts(self) -> tuple[tuple[int, int, int, int, int], ...]:
        return (self._handle().folder.facts(),)

    def _located(self, data: DataConfig) -> Path:
        return existing_folder(data.path, "data.path")

    def _handle(self) -> Any:
        if self._file is None:
            self._file = ArrowFolder(self._path)
            self._stat: Any = SimpleNamespace(st_size=self._file.folder.facts()[0])
        return self._file

    def _lists(self) -> tuple[str, ...]:
        return (*self.names, *([self._roles.mask] if self._roles.mask is not None else []))

    def _check(self, names: Sequence[str]) -> None:
        """Refuse columns of lists, but those of tokens; the files were read by a process with limits when they were opened."""
        import pyarrow

        for name in names:
            tokens = self._roles.tokens and name in self._lists()
            if not tokens and pyarrow.types.is_nested(self._handle().schema_arrow.field(name).type):
                raise FileContentError(
                    f"{self.path}: column {name!r} holds lists; expected one number or text a row; set data.*.columns.tokens = true for "
                    "tokens, or correct data.*.columns"
                )

    def _require_whole_numbers(self, name: str) -> None:
        import pyarrow

        self._need(name, "data.*.columns")
        kind = self._handle().schema_arrow.field(name).type
        tests = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
        if not any(test(kind) for test in tests) or not pyarrow.types.is_integer(kind.value_type):
            raise FileContentError(
                f"{self.path}: column {name!r} holds {kind}; expected lists of whole numbers, token numbers; correct data.*.columns"
            )


def _padded(tokens: Any, seen: Any, length: int) -> NDArray[np.int64]:
    """Return tokens and mask (2, length) of a record's lists; what is missing or unfit is no token of any vocabulary."""
    result = np.zeros((2, length), dtype=np.int64)
    if tokens is None or seen is None or len(seen) != len(tokens) or None in tokens:
        result[0], result[1, 0] = _UNREADABLE_TOKEN, 1
        return result
    count = min(len(tokens), length)
    result[0, :count] = [min(token, 2**62) for token in tokens[:count]]
    result[1, :count] = [entry if entry in (0, 1) else -1 for entry in seen[:count]]
    return result


def _data_files(folder: Folder) -> list[str]:
    """Return the names of a dataset's Arrow files, in their order. Raises FileContentError."""
    if "state.json" not in folder.files:
        if "dataset_dict.json" in folder.files:
            names = sorted({name.split("/")[0] for name in folder.files if "/" in name})
            raise FileContentError(
                f"{folder.path}: holds several datasets ({', '.join(names)}); expected one; give the folder of one of them"
            )
        raise FileContentError(
            f"{folder.path}: no state.json in it; expected a folder that save_to_disk of Hugging Face's datasets wrote"
        )
    try:
        with folder.open("state.json") as file:
            state = json.loads(file.read(_LARGEST_STATE))
        names = [entry["filename"] for entry in state["_data_files"]]
        whole = bool(names) and all(name in folder.files for name in names) and not state.get("_indices_data_files")
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise FileContentError(
            f"{folder.path}: its state.json doesn't name Arrow files in it; expected what save_to_disk writes; save the dataset anew"
        )
    return names
