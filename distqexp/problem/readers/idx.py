"""IDX files, the format of MNIST and its kin: a big-endian header, then unsigned bytes; plain or gzip."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError
from distqexp.problem.readers.base import LABEL, Reader, changed_file_error, existing_file
from distqexp.problem.readers.bytes import ByteSource


class IdxReader(Reader):
    """Images (n, h, w) and labels (n,), both unsigned bytes; a record has shape (1, h, w), with pixels divided by 255."""

    scale = 1.0 / 255.0
    image = True

    def __init__(self, data: DataConfig) -> None:
        self._images = _IdxFile(existing_file(data.path, "data.path"), dimensions=3)
        self.count = self._images.shape[0]
        self._labels = _IdxFile(existing_file(data.labels, "data.labels"), dimensions=1) if data.labelled else None
        if self._labels is not None and self._labels.shape[0] != self.count:
            raise FileContentError(
                f"{self._labels.source.path}: not as many labels as {self._images.source.path} has images; "
                "expected one label an image; give matching files"
            )
        self.names = ("pixels",)
        self.shape = (1, *self._images.shape[1:])

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._images.read(rows).reshape(-1, *self.shape), self._numbers(rows)

    def numbers(self, name: str) -> FloatArray:
        """Return the labels over all rows, for filters on the column ``label``; there is no other."""
        if name != LABEL:
            return super().numbers(name)
        return self._numbers(np.arange(self.count))

    def check_whole(self) -> None:
        for source in self._sources():
            source.check_whole()

    def files(self) -> tuple[Path, ...]:
        return tuple(source.path for source in self._sources())

    def file_stats(self) -> tuple[os.stat_result, ...]:
        return tuple(source.stat() for source in self._sources())

    def _sources(self) -> tuple[ByteSource, ...]:
        return (self._images.source, *([self._labels.source] if self._labels is not None else []))

    def _numbers(self, rows: IntegerArray) -> FloatArray:
        return np.full(len(rows), np.nan) if self._labels is None else self._labels.read(rows).astype(np.float64)


class _IdxFile:
    """One IDX file of unsigned bytes, whose rows are along its first axis."""

    def __init__(self, path: Path, dimensions: int) -> None:
        self.source = ByteSource(path)
        self._header = 4 + 4 * dimensions
        head = self.source.read(0, self._header, short=True)
        expected = bytes([0, 0, 8, dimensions])
        if head[:4] != expected:
            raise FileContentError(
                f"{path}: begins with {head[:4].hex()}; expected {expected.hex()}, an IDX file of unsigned bytes with "
                f"{dimensions} dimension{'s' if dimensions > 1 else ''}; give the right file"
            )
        if len(head) < self._header:
            raise FileContentError(f"{path}: ends within its header; expected {self._header} bytes; fetch it again")
        self.shape = tuple(int(size) for size in np.frombuffer(head[4:], dtype=">u4"))
        self._record = math.prod(self.shape[1:])
        if self._record == 0:
            raise FileContentError(f"{path}: the header says images without pixels; expected at least 1 x 1")
        if not self.source.holds_exactly(self._header + self.shape[0] * self._record):
            raise FileContentError(
                f"{path}: not as long as its header says; expected {self._header} bytes, then the records; "
                "the file is truncated or damaged: fetch it again"
            )

    def read(self, rows: IntegerArray) -> NDArray[np.uint8]:
        """Return uint8 (n, ...) in the order of ``rows``; the file is walked in ascending order, run by run."""
        values = np.empty((len(rows), self._record), dtype=np.uint8)
        for run, places in ascending_runs(rows):
            first, count = int(run[0]), len(run)
            raw = self.source.read(self._header + first * self._record, count * self._record)
            if len(raw) != count * self._record:
                raise changed_file_error(self.source.path)
            values[places] = np.frombuffer(raw, dtype=np.uint8).reshape(count, self._record)
        return values.reshape(len(rows), *self.shape[1:])


def ascending_runs(rows: IntegerArray) -> list[tuple[IntegerArray, IntegerArray]]:
    """Split rows into runs of consecutive numbers, in ascending order, each with the places where they stood."""
    if len(rows) == 0:
        return []
    order = np.argsort(rows, kind="stable")
    cuts = np.flatnonzero(np.diff(rows[order]) != 1) + 1
    return list(zip(np.split(rows[order], cuts), np.split(order, cuts), strict=True))
