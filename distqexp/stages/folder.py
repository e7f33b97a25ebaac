"""The folder of a run: which file stands where, and where new ones may go."""

from __future__ import annotations

import os
from pathlib import Path

from distqexp.errors import StorageError, UsageError
from distqexp.report.progress import FILE_NAME as PROGRESS
from distqexp.storage.atomic import remove_unfinished


def open_folder(out: Path, resume: bool, *, private: bool = False) -> None:
    """Make the folder of a run (private: mode 0700).

    Raises UsageError when it holds files already and ``resume`` is not set.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: a file; expected a folder that is new or empty")
    try:
        out.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        # A run that was refused at its config leaves its progress lines only; the corrected run may go there.
        taken = any(path.name != PROGRESS for path in out.iterdir())
    except OSError as error:
        raise StorageError(
            f"--out {out}: {os.strerror(error.errno or 0)}; choose a folder that can be written"
        ) from None
    if taken and not resume:
        raise UsageError(f"--out {out}: not empty; choose a new folder, or go on with its run by --resume")
    # A kill in mid-write leaves a hidden file with private content.
    remove_unfinished(out)


def quadratic_path(out: Path, round: int) -> Path:
    """The pooled quadratic of a round. Private."""
    return out / f"quadratic-{round:03d}.h5"


def release_path(out: Path, round: int) -> Path:
    """The release of a round. Public."""
    return out / f"release-{round:03d}.h5"


def new_file(path: Path) -> Path:
    """The path, where a new file may go. Raises UsageError."""
    if path.exists():
        raise UsageError(f"--out {path}: exists; expected a new file, nothing is overwritten")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path}: its folder does not exist; make it first")
    return path
