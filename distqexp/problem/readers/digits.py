"""The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels of 0..16, ten classes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import UsageError
from distqexp.problem.readers.base import LABEL, Reader


class DigitsReader(Reader):
    """The rows in scikit-learn's order; a record has shape (1, 8, 8), with pixels divided by 16."""

    scale = 1.0 / 16.0
    image = True

    def __init__(self, data: DataConfig) -> None:
        self.names = ("pixels",)
        self.shape = (1, 8, 8)
        table = _table()
        self._pixels, self._labels = table[:, :64].astype(np.uint8), table[:, 64].astype(np.float64)
        self.count = len(table)

    def read(self, rows: IntegerArray, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._pixels[rows].reshape(-1, *self.shape), self._labels[rows]

    def numbers(self, name: str) -> FloatArray:
        """Return the labels over all rows, for filters on the column ``label``; there is no other."""
        return self._labels if name == LABEL else super().numbers(name)

    def check_whole(self) -> None:
        """Do nothing: the table is in memory."""

    def files(self) -> tuple[Path, ...]:
        return ()


@cache
def _table() -> FloatArray:
    """Read (1797, 65), once, from the packaged file where it is there, since importing scikit-learn costs each rank seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("data.format: 'digits' needs scikit-learn, which is not installed; pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([pixels, labels])
