"""The folder of a run: which file stands where."""

from __future__ import annotations

import os
from pathlib import Path

from distqexp.errors import StorageError, UsageError


def open_folder(out: Path, resume: bool) -> None:
    """Make the folder of a run. Raises UsageError when it holds files already and ``resume`` is not set."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: a file; expected a folder that is new or empty")
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = any(out.iterdir())
    except OSError as error:
        raise StorageError(
            f"--out {out}: {os.strerror(error.errno or 0)}; choose a folder that can be written"
        ) from None
    if taken and not resume:
        raise UsageError(f"--out {out}: not empty; choose a new folder, or go on with its run by --resume")


def quadratic_path(out: Path, round: int) -> Path:
    """The pooled quadratic of a round. Private."""
    return out / f"quadratic-{round:03d}.h5"


def release_path(out: Path, round: int) -> Path:
    """The release of a round. Public."""
    return out / f"release-{round:03d}.h5"
