"""HDF5 arrays: a dataset of features or tokens, one of targets, and perhaps one of unit ids; read by slices, never whole."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.config import DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.readers.arrays import ArraysReader
from distqexp.problem.readers.base import changed_file_error, check_first, existing_file, require_unchanged

_AT_ONCE = 1 << 26
"""About so many bytes are read at once where a file is looked through."""


class Hdf5Reader(ArraysReader):
    """Datasets of one HDF5 file with roles.

    Where a target is named, bytes are images only if ``columns.images`` says so.
    """

    noun = "dataset"

    def __init__(self, data: DataConfig) -> None:
        self._file: Any = None
        self.path = existing_file(data.path, "data.path")
        self.detects_images = data.columns.target is None
        super().__init__(self.path, data)

    def file_stats(self) -> tuple[os.stat_result, ...]:
        return (os.fstat(self._handle().id.get_vfd_handle()),)

    def check_whole(self) -> None:
        for name in self._used():
            node = self._array(name)
            if node.chunks is None or node.id.get_create_plist().get_nfilters() == 0:
                continue  # plain bytes, which lie within the file: that was checked when it was opened
            step = node.chunks[0] * max(1, _AT_ONCE // (node.chunks[0] * max(1, node.nbytes // max(1, node.shape[0]))))
            for first in range(0, node.shape[0], step):
                self._rows(node, np.arange(first, min(first + step, node.shape[0])))

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

    def _array_names(self) -> list[str]:
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

    def _array(self, name: str) -> Any:
        import h5py

        node = self._handle().get(name)
        if not isinstance(node, h5py.Dataset) or not node.shape:
            raise FileContentError(f"{self.path}: no dataset {name!r} with rows; correct data.*.columns or the file")
        if node.dtype.kind not in "biufSO" or (node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is None):
            raise FileContentError(
                f"{self.path}: dataset {name!r} holds neither numbers nor texts; correct data.*.columns"
            )
        return node

    def _slice(self, array: Any, first: int, after: int) -> NDArray[Any]:
        try:
            values: NDArray[Any] = array[first:after]
        except (OSError, RuntimeError):
            raise changed_file_error(self.path) from None
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}
