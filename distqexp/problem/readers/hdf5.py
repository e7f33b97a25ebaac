"""HDF5 arrays: one dataset of features or tokens, one of targets, one of unit ids if wanted; read by slices, never whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import (
    Reader,
    changed,
    check_first,
    existing_file,
    feature_names,
    require_unchanged,
)
from distqexp.problem.readers.entries import decoded, is_missing, legible
from distqexp.problem.readers.idx import ascending_runs

_AT_ONCE = 1 << 26
"""Bytes, about, that are read at once where a file is looked through."""


class Hdf5Reader(Reader):
    """``columns.features`` names one dataset (n, ...), or is absent when only one other is there.

    ``columns.target`` names a dataset (n,) or (n, o); ``unit`` one (n,) of numbers or texts. With ``columns.tokens`` the
    features are whole numbers (n, L), and raw features int64 (n, 2, L): the tokens, and the dataset ``columns.mask`` or
    ones; a mask that is neither 0 nor 1 becomes -1.
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
        self._aligned(self._target, target)
        self.target_shape = tuple(int(size) for size in target.shape[1:])

    def read(self, rows: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        features, targets = (self._rows(self._dataset(name), rows) for name in (self.names[0], self._target))
        if not self._tokens:
            return features.reshape(len(rows), *self.shape), targets
        # What int64 can't hold is out of every vocabulary: kept apart, not wrapped.
        tokens = np.minimum(features, 2**62).astype(np.int64) if features.dtype == np.uint64 else features
        mask = np.ones(tokens.shape, dtype=np.int64)
        if self._mask is not None:
            found = self._rows(self._dataset(self._mask), rows)
            mask = np.where(found == 1, 1, np.where(found == 0, 0, -1))
        return np.stack([tokens.astype(np.int64), mask], axis=1), targets

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def opened(self) -> tuple[os.stat_result, ...]:
        return (os.fstat(self._opened().id.get_vfd_handle()),)

    def check_whole(self) -> None:
        for name in (self.names[0], self._target, *([self._mask] if self._mask is not None else [])):
            node = self._dataset(name)
            if node.chunks is None or node.id.get_create_plist().get_nfilters() == 0:
                continue  # bytes as they are, and all within the file: seen when it was opened
            step = node.chunks[0] * max(1, _AT_ONCE // (node.chunks[0] * max(1, node.nbytes // max(1, node.shape[0]))))
            for first in range(0, node.shape[0], step):
                self._rows(node, np.arange(first, min(first + step, node.shape[0])))

    def identifiers(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        values = self._vector(name)[rows]
        # A short float keeps its type: it holds fewer whole numbers exactly.
        found: list[Any] = list(values) if values.dtype.kind == "f" and values.dtype.itemsize < 8 else values.tolist()
        found = [None if _is_no_id(value) else value for value in found]
        if not self.private and None in found:
            raise FileContentError(
                f"{self.path}: unit dataset {name!r}: an id is missing; expected an id in every row; complete it"
            )
        return found

    def numbers(self, name: str) -> NDArray[np.float64]:
        self._numeric(name)
        return self._vector(name).astype(np.float64)

    def texts(self, name: str) -> list[str | None]:
        found = self._vector(name)
        values = [decoded(value) if isinstance(value, bytes) else value for value in found]
        if not all(isinstance(value, str) for value in values):
            raise FileContentError(f"{self.path}: dataset {name!r} holds no text; expected text for data.where")
        return [legible(value) for value in values]

    def _opened(self) -> Any:
        if self._file is None:
            import h5py

            found = check_first(self.path, "structure")
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError:
                raise changed(self.path) from None
            require_unchanged(self.path, found)
        return self._file

    def _datasets(self) -> list[str]:
        import h5py

        found: list[str] = []

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                found.append(name)

        try:
            self._opened().visititems(visit)
        except (OSError, RuntimeError):
            raise changed(self.path) from None
        return found

    def _dataset(self, name: str) -> Any:
        import h5py

        node = self._opened().get(name)
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

    def _aligned(self, name: str, node: Any) -> None:
        if node.shape[0] != self.count:
            raise FileContentError(
                f"{self.path}: dataset {name!r} has not as many rows as {self.names[0]!r}; expected equally many"
            )

    def _vector(self, name: str) -> NDArray[Any]:
        node = self._dataset(name)
        self._aligned(name, node)
        if node.ndim != 1:
            raise FileContentError(f"{self.path}: dataset {name!r} has shape (n, ...); expected one value a row")
        try:
            values: NDArray[Any] = node[:]
        except (OSError, RuntimeError):
            raise changed(self.path) from None
        return values

    def _rows(self, node: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
        found = np.empty((len(rows), *node.shape[1:]), dtype=node.dtype)
        try:
            for run, places in ascending_runs(rows):
                found[places] = node[int(run[0]) : int(run[-1]) + 1]
        except (OSError, RuntimeError):
            raise changed(self.path) from None
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _is_no_id(value: Any) -> bool:
    text = decoded(value) if isinstance(value, bytes) else value
    return is_missing(text) if isinstance(text, str) else bool(value != value)


def _filter_columns(data: DataConfig) -> set[str]:
    from distqexp.problem.filters import parse_filter

    named = {comparison.column for comparison in parse_filter(data.where)} if data.where else set()
    return named - {data.columns.target, data.unit, *(data.columns.features or ())}
