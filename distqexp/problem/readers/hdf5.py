"""HDF5 arrays: a dataset of features or tokens, one of targets, and perhaps one of unit ids; read by slices, never whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.filters import parse_filter
from distqexp.problem.readers.base import (
    Reader,
    changed_file_error,
    check_first,
    existing_file,
    feature_names,
    require_unchanged,
)
from distqexp.problem.readers.entries import decode_text, is_missing, legible_text
from distqexp.problem.readers.idx import ascending_runs

_AT_ONCE = 1 << 26
"""About so many bytes are read at once where a file is looked through."""


class Hdf5Reader(Reader):
    """Datasets of one HDF5 file with roles.

    ``columns.features`` names one dataset (n, ...), and may be absent when only one other is there. ``columns.target`` names a
    dataset (n,) or (n, o), and ``unit`` one (n,) of numbers or texts. With ``columns.tokens`` the features are whole numbers (n, L),
    and raw features are int64 (n, 2, L): the tokens, then the dataset ``columns.mask`` or else ones; a mask entry that is neither 0 nor
    1 becomes -1.
    """

    def __init__(self, data: DataConfig) -> None:
        self.path = existing_file(data.path, "data.path")
        self._file: Any = None
        if data.columns.target is None:
            raise UsageError("data.columns.target: not given; expected the dataset of the label")
        self._target = data.columns.target
        self._tokens, self._mask = data.columns.tokens, data.columns.mask
        others = _filter_columns(data) | {self._mask}
        names = feature_names([name for name in self._datasets() if name not in others], data, self.path)
        if len(names) != 1:
            raise FileContentError(
                f"{self.path}: {len(names)} datasets could hold the features; expected one; "
                "name it in data.*.columns.features"
            )
        self.names = names
        features = self._numeric(names[0])
        self.count = int(features.shape[0])
        self.shape = tuple(int(size) for size in features.shape[1:]) or (1,)
        if self._tokens:
            self.shape = (2, *self._token_shape(features))
        target = self._numeric(self._target)
        self._require_aligned(self._target, target)
        self.target_shape = tuple(int(size) for size in target.shape[1:])

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        features, targets = (self._rows(self._dataset(name), rows) for name in (self.names[0], self._target))
        if not self._tokens:
            return features.reshape(len(rows), *self.shape), targets
        # What int64 can't hold is out of every vocabulary: it must stay so, and not wrap.
        tokens = np.minimum(features, 2**62).astype(np.int64) if features.dtype == np.uint64 else features
        mask = np.ones(tokens.shape, dtype=np.int64)
        if self._mask is not None:
            entries = self._rows(self._dataset(self._mask), rows)
            mask = np.where(entries == 1, 1, np.where(entries == 0, 0, -1))
        return np.stack([tokens.astype(np.int64), mask], axis=1), targets

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def file_stats(self) -> tuple[os.stat_result, ...]:
        return (os.fstat(self._handle().id.get_vfd_handle()),)

    def check_whole(self) -> None:
        for name in (self.names[0], self._target, *([self._mask] if self._mask is not None else [])):
            node = self._dataset(name)
            if node.chunks is None or node.id.get_create_plist().get_nfilters() == 0:
                continue  # plain bytes, which lie within the file: that was checked when it was opened
            step = node.chunks[0] * max(1, _AT_ONCE // (node.chunks[0] * max(1, node.nbytes // max(1, node.shape[0]))))
            for first in range(0, node.shape[0], step):
                self._rows(node, np.arange(first, min(first + step, node.shape[0])))

    def identifiers(self, name: str, rows: IntegerArray) -> list[Any]:
        values = self._vector(name)[rows]
        # A short float keeps its type: it holds fewer whole numbers exactly.
        short = values.dtype.kind == "f" and values.dtype.itemsize < 8
        ids: list[Any] = [None if _is_no_id(value) else value for value in (list(values) if short else values.tolist())]
        if not self.private and None in ids:
            raise FileContentError(
                f"{self.path}: unit dataset {name!r}: an id is missing; expected an id in every row; complete it"
            )
        return ids

    def numbers(self, name: str) -> FloatArray:
        self._numeric(name)
        return self._vector(name).astype(np.float64)

    def texts(self, name: str) -> list[str | None]:
        entries = self._vector(name)
        values = [decode_text(value) if isinstance(value, bytes) else value for value in entries]
        if not all(isinstance(value, str) for value in values):
            raise FileContentError(f"{self.path}: dataset {name!r} holds no text; expected text for data.where")
        return [legible_text(value) for value in values]

    def _handle(self) -> Any:
        """Return the open file, which a process with limits has looked at first."""
        if self._file is None:
            import h5py

            stat = check_first(self.path, "structure")
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError:
                raise changed_file_error(self.path) from None
            require_unchanged(self.path, stat)
        return self._file

    def _datasets(self) -> list[str]:
        import h5py

        dataset_names: list[str] = []

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                dataset_names.append(name)

        try:
            self._handle().visititems(visit)
        except (OSError, RuntimeError):
            raise changed_file_error(self.path) from None
        return dataset_names

    def _dataset(self, name: str) -> Any:
        import h5py

        node = self._handle().get(name)
        if not isinstance(node, h5py.Dataset) or not node.shape:
            raise FileContentError(f"{self.path}: no dataset {name!r} with rows; correct data.*.columns or the file")
        if node.dtype.kind not in "biufSO" or (node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is None):
            raise FileContentError(
                f"{self.path}: dataset {name!r} holds neither numbers nor texts; correct data.*.columns"
            )
        return node

    def _numeric(self, name: str) -> Any:
        node = self._dataset(name)
        if node.dtype.kind not in "biuf":
            raise FileContentError(f"{self.path}: dataset {name!r} holds {node.dtype}; expected real numbers")
        return node

    def _token_shape(self, features: Any) -> tuple[int, ...]:
        if features.dtype.kind not in "iu" or features.ndim != 2:
            raise FileContentError(
                f"{self.path}: dataset {self.names[0]!r} holds {features.dtype} in {features.ndim} dimensions; expected whole "
                "numbers (n, L), token numbers; correct data.*.columns or the file"
            )
        if self._mask is not None and self._numeric(self._mask).shape != features.shape:
            raise FileContentError(
                f"{self.path}: dataset {self._mask!r} has another shape than {self.names[0]!r}; expected a mask (n, L)"
            )
        return tuple(int(size) for size in features.shape[1:])

    def _require_aligned(self, name: str, node: Any) -> None:
        if node.shape[0] != self.count:
            raise FileContentError(
                f"{self.path}: dataset {name!r} has not as many rows as {self.names[0]!r}; expected equally many"
            )

    def _vector(self, name: str) -> NDArray[Any]:
        node = self._dataset(name)
        self._require_aligned(name, node)
        if node.ndim != 1:
            raise FileContentError(f"{self.path}: dataset {name!r} has shape (n, ...); expected one value a row")
        try:
            values: NDArray[Any] = node[:]
        except (OSError, RuntimeError):
            raise changed_file_error(self.path) from None
        return values

    def _rows(self, node: Any, rows: IntegerArray) -> NDArray[Any]:
        values = np.empty((len(rows), *node.shape[1:]), dtype=node.dtype)
        try:
            for run, places in ascending_runs(rows):
                values[places] = node[int(run[0]) : int(run[-1]) + 1]
        except (OSError, RuntimeError):
            raise changed_file_error(self.path) from None
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _is_no_id(value: Any) -> bool:
    text = decode_text(value) if isinstance(value, bytes) else value
    return is_missing(text) if isinstance(text, str) else bool(value != value)


def _filter_columns(data: DataConfig) -> set[str]:
    """Return the datasets that the filter names and that have no other role."""
    columns = {comparison.column for comparison in parse_filter(data.where)} if data.where else set()
    return columns - {data.columns.target, data.unit, *(data.columns.features or ())}
