"""A warning of entries of public arrays that are no finite numbers. No private record is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_BLOCK = 4096
_SHOWN = 3


def not_finite_line(where: str, path: Path) -> str | None:
    """Return a line on the features of a scratch file of public arrays that are NaN or infinite; None where there are none.

    Args:
        where: The argument that the records came in.
        path: The file, HDF5 with ``features`` (n, ...).
    """
    import h5py

    found: list[str] = []
    count = 0
    with h5py.File(path, "r") as file:
        features = file["features"]
        if features.dtype.kind != "f":
            return None
        for first in range(0, len(features), _BLOCK):
            places = np.argwhere(~np.isfinite(features[first : first + _BLOCK]))
            count += len(places)
            for row, *rest in places[: _SHOWN - len(found)].tolist():
                found.append(f"[{', '.join(map(str, [first + row, *rest]))}]")
    if not found:
        return None
    more = f" and {count - len(found):,} more" if count > len(found) else ""
    return (
        f"distqexp: warning: {where}: NaN or infinite at {', '.join(found)}{more} of its features; expected finite numbers: correct them, "
        "or leave these records out"
    )
