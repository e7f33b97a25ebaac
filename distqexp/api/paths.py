"""Paths as callers give them: texts or path objects."""

from __future__ import annotations

import os
from pathlib import Path

StrPath = str | os.PathLike[str]


def optional_path(path: StrPath | None) -> Path | None:
    """Turn a path into a ``Path``; None and the empty text give None."""
    return Path(path) if path else None
