"""Paths as callers give them: texts or path objects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

StrPath = str | os.PathLike[str]


def optional_path(path: StrPath | None) -> Path | None:
    """Turn a path into a ``Path``; None and the empty text give None."""
    return Path(path) if path else None


def several_paths(paths: StrPath | Sequence[StrPath] | None) -> tuple[Path, ...]:
    """Return one path, several or none as a tuple."""
    if paths is None:
        return ()
    if isinstance(paths, str | os.PathLike):
        return (Path(paths),)
    return tuple(Path(path) for path in paths)
