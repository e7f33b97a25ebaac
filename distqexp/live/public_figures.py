"""Warnings of public arrays: entries that are no finite numbers, and features or targets far from 1. No private record is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError

LARGE = 100.0
"""Features whose mean and deviation in public records add up to more than this are far from what modules are made for."""

_BLOCK = 4096
_SHOWN = 3


def not_finite_line(where: str, path: Path) -> str | None:
    """Return a line on the features of a scratch file of public arrays that are NaN or infinite; None where there are none.

    Args:
        where: The argument that the records came in.
        path: The file, HDF5 with ``features`` (n, ...).

    Raises:
        UsageError: No record is without such an entry.
    """
    import h5py

    found: list[str] = []
    count, left_out = 0, 0
    with h5py.File(path, "r") as file:
        features = file["features"]
        total = len(features)
        if features.dtype.kind != "f":
            return None
        for first in range(0, total, _BLOCK):
            places = np.argwhere(~np.isfinite(features[first : first + _BLOCK]))
            count += len(places)
            left_out += len(np.unique(places[:, 0]))
            for row, *rest in places[: _SHOWN - len(found)].tolist():
                found.append(f"[{', '.join(map(str, [first + row, *rest]))}]")
    if not found:
        return None
    more = f" and {count - len(found):,} more" if count > len(found) else ""
    what = f"{where}: NaN or infinite at {', '.join(found)}{more} of its features"
    if left_out == total:
        raise UsageError(f"{what}, in every record; expected finite numbers: fill them in, or leave {where} out")
    return (
        f"distqexp: warning: {what}; expected finite numbers: correct them, or leave these records out (they are no help: "
        f"{left_out:,} of {total:,} records have such an entry)"
    )


def scale_line(where: str, path: Path) -> str | None:
    """Return a line on a scratch file of public arrays whose features (n, f) are far from 1 in size; None for any other."""
    import h5py

    with h5py.File(path, "r") as file:
        features = file["features"]
        if features.ndim != 2 or features.dtype.kind != "f" or len(features) < 2:
            return None
        rows: FloatArray = np.asarray(features[:_BLOCK], dtype=np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) < 2:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.abs(rows.mean(axis=0)) + rows.std(axis=0)
    if not (sizes > LARGE).any():
        return None
    largest = int(np.argmax(sizes))
    return (
        f"distqexp: warning: {where}: feature {largest} is about {sizes[largest]:.2g} in size; modules expect about 1: standardise=True "
        "scales features by public moments"
    )


def unscaled_targets_line(loss: str, has_public: bool) -> str | None:
    """Return a line on a regression whose targets can't be scaled, as there are no public records; None for anything else."""
    if loss != "mean-squared-error" or has_public:
        return None
    return (
        "distqexp: warning: public: not given; targets are taken as they are, and those far from 1 in size are hardly learnt: give public "
        "records, or divide the targets by a public number"
    )
