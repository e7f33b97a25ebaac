"""The scratch file with the features of private records: what the frozen part of a model gives for each of them. Private."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.errors import EngineError
from distqexp.problem.slots import NO_ROW


@dataclass(frozen=True)
class FeatureFile:
    """The features of a source's records, float32 or float64 as the head takes them, which every process looks up by row.

    Attributes:
        path: The file, in NumPy's format, with mode 0600.
        rows: The rows of the source's file that it holds, ascending.
        places: The place of each of these rows in the file.
    """

    path: Path
    rows: IntegerArray
    places: IntegerArray

    @staticmethod
    def of_slots(path: Path, slot_rows: IntegerArray) -> FeatureFile:
        """Return the file at ``path`` for features in the order of these slots, of which some may hold NO_ROW."""
        order = np.argsort(slot_rows, kind="stable")
        order = order[slot_rows[order] != NO_ROW]
        return FeatureFile(path, slot_rows[order], order.astype(np.int64))

    def read(self, rows: IntegerArray) -> torch.Tensor:
        """Return the features of these rows, in this order: (n, ...), zeros for NO_ROW."""
        values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        result = np.zeros((len(rows), *values.shape[1:]), dtype=values.dtype)
        live = np.flatnonzero(rows != NO_ROW)
        found = np.searchsorted(self.rows, rows[live])
        result[live] = values[self.places[found]]
        return torch.from_numpy(result)


def writer_of_features(shape: tuple[int, ...], dtype: str, blocks: Iterator[FloatArray]) -> Callable[[BinaryIO], None]:
    """Return a function that writes features (*shape) to an open file in NumPy's format, block after block of their rows.

    ``dtype`` is "<f4" or "<f8". Raises EngineError, while writing, where the rows have another shape.
    """

    def write(file: BinaryIO) -> None:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        count = 0
        for block in blocks:
            if block.shape[1:] != shape[1:]:
                raise EngineError(
                    "features: records of different shapes; expected one shape of all; freeze no such layer"
                )
            with np.errstate(all="ignore"):  # a warning would tell of the data
                part: NDArray[Any] = block[: shape[0] - count].astype(dtype)
            file.write(part.tobytes())
            count += len(part)

    return write
