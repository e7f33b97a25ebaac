"""Small files of arrays: the same records in each of the formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from distqexp.config import ColumnsConfig, DataConfig

PLAIN = ("hdf5", "npz", "packed npz", "npy")


def write_arrays(
    folder: Path,
    format: str,
    features: NDArray[Any],
    labels: NDArray[Any],
    named: bool = False,
    **others: NDArray[Any],
) -> DataConfig:
    """Store ``x``, ``y`` and others in a format of PLAIN; the config names the target only where ``named``."""
    folder.mkdir(exist_ok=True, parents=True)
    columns = ColumnsConfig(target="y", features=("x",)) if named and format != "npy" else ColumnsConfig()
    if format == "npy":
        np.save(folder / "t-x.npy", features)
        np.save(folder / "t-y.npy", labels)
        return DataConfig(format="npy", path=str(folder / "t-x.npy"), columns=columns)
    arrays = {"x": features, "y": labels, **others}
    if format == "hdf5":
        with h5py.File(folder / "t.h5", "w") as file:
            for name, values in arrays.items():
                file[name] = values
        return DataConfig(format="hdf5", path=str(folder / "t.h5"), columns=columns)
    (np.savez_compressed if "packed" in format else np.savez)(folder / "t.npz", **arrays)
    return DataConfig(format="npz", path=str(folder / "t.npz"), columns=columns)
