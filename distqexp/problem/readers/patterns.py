"""Paths that name several files: a pattern such as ward-*.csv in the last part of a path."""

from __future__ import annotations

from pathlib import Path

from distqexp.errors import UsageError
from distqexp.problem.readers.base import existing_file


def is_pattern(path: str | None) -> bool:
    """Return whether a path is a pattern: its name has one of the signs ``*?[``, and no file has that very name."""
    return path is not None and any(sign in Path(path).name for sign in "*?[") and not Path(path).exists()


def matching_files(path: str) -> list[Path]:
    """Return the files that a pattern names now, in the order of their names; for any other path the path alone."""
    if not is_pattern(path):
        return [Path(path)]
    return sorted(file for file in Path(path).parent.glob(Path(path).name) if file.is_file())


def existing_files(path: str | None, key: str) -> list[Path]:
    """Return the files that a path or a pattern names. Raises UsageError, which names the config key, where there is none."""
    if path is None or not is_pattern(path):
        return [existing_file(path, key)]
    files = matching_files(path)
    if not files:
        raise UsageError(f"{key}: {path}: no file matches; correct the pattern")
    return [existing_file(str(file), key) for file in files]
