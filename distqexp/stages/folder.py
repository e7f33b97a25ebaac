"""The folder of a run: where each file stands, and where new files may go."""

from __future__ import annotations

import os
from pathlib import Path

from distqexp.errors import StorageError, UsageError
from distqexp.report.progress import FILE_NAME as PROGRESS
from distqexp.storage.atomic import remove_unfinished


def open_folder(out: Path, resume: bool, *, private: bool = False, of_run: bool = True) -> None:
    """Make the folder of a run, with mode 0700 if ``private``, and remove unfinished files from it.

    An export (``of_run`` unset) can't be gone on with, so its message names no option for that.

    Raises UsageError when it holds files already and ``resume`` is not set, StorageError when it can't be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: a file; expected a folder that is new or empty")
    try:
        out.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        # A run that was refused because of its config leaves only its progress lines; the corrected run may go there.
        occupied = any(path.name != PROGRESS for path in out.iterdir())
    except OSError as error:
        raise StorageError(
            f"--out {out}: {os.strerror(error.errno or 0)}; choose a folder that can be written"
        ) from None
    if occupied and not of_run:
        raise UsageError(f"--out {out}: not empty; choose a new folder: an export is written into no other")
    if occupied and not resume:
        raise UsageError(
            f"--out {out}: not empty; choose a new folder, go on with its run by --resume, or begin anew by --overwrite where "
            "nothing was spent"
        )
    # A kill in the middle of a write leaves a hidden file with private content, and any kill may leave features.
    remove_unfinished(out)
    forget_features(out)


def forget_features(folder: Path) -> None:
    """Delete the private files of features in a folder; for the first process."""
    for path in folder.glob("features-*.npy"):
        path.unlink(missing_ok=True)


def quadratic_path(out: Path, round: int) -> Path:
    """Return the path of a round's pooled quadratic, which is private."""
    return out / f"quadratic-{round:03d}.h5"


def release_path(out: Path, round: int) -> Path:
    """Return the path of a round's release, which is public."""
    return out / f"release-{round:03d}.h5"


def new_file(path: Path) -> Path:
    """Return ``path`` if a new file may be written there. Raises UsageError if not."""
    if path.exists():
        raise UsageError(f"--out {path}: exists; expected a new file, nothing is overwritten")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path}: its folder does not exist; make it first")
    return path
