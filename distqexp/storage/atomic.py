"""Atomic writes: a file is complete under its final name, or it is not there at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from distqexp.errors import StorageError, UsageError

_UNFINISHED = ".unfinished"


def write_atomic(
    path: Path, content: bytes | Callable[[BinaryIO], None], *, private: bool = False, new: bool = False
) -> None:
    """Write a file durably, all of it or nothing.

    The bytes go to a new hidden file beside ``path``, which is fsynced and renamed over it; then the folder is fsynced. On
    any failure the temporary file is removed and whatever was at ``path`` before is untouched.

    Args:
        path: The file.
        content: Its bytes, or a function that writes them to an open binary file.
        private: Whether the file has the mode 0600, from its first byte on.
        new: Whether a file that is already there is refused and left as it is, instead of replaced.

    Raises:
        UsageError: The folder does not exist, or a file is there that must not be replaced.
        StorageError: The disk is full, or the folder can't be written.
    """
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: can't be written, the folder {folder} does not exist; create it first")
    temporary = folder / f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}{_UNFINISHED}"
    try:
        try:
            _fill(temporary, content, private)
            if new:
                _move_to_new(temporary, path)
            else:
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(folder)
    except FileExistsError:
        raise UsageError(f"{path}: exists; expected a new file, nothing is overwritten: choose another path") from None
    except OSError as error:
        raise storage_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside ``folder`` durable. File systems that can't fsync a folder are accepted."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> int:
    """Remove the files that killed writers left in ``folder`` and return their number. No other process may be writing there.

    A writer that is killed leaves a hidden file under a temporary name, which for private content has the mode 0600.
    """
    count = 0
    for leftover in folder.glob(f".*{_UNFINISHED}"):
        leftover.unlink(missing_ok=True)
        count += 1
    return count


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the one-line StorageError for a failed write at ``path``."""
    remedy = {
        errno.ENOSPC: "free some space, or choose another folder",
        errno.EDQUOT: "free some of the quota, or choose another folder",
        errno.EFBIG: "raise the file size limit (ulimit -f), or choose another folder",
        errno.EROFS: "choose a folder that can be written",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
    }.get(error.errno or 0, "check the file system")
    return StorageError(f"{path}: can't be written ({os.strerror(error.errno) if error.errno else error}); {remedy}")


def _move_to_new(temporary: Path, path: Path) -> None:
    """Move a file to a name that no file has. Raises FileExistsError, whoever else makes one meanwhile."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # No hard links, as on most sticks: the name is taken first. A kill in between leaves an empty file, and replaces none.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.replace(temporary, path)
    else:
        temporary.unlink()


def _fill(temporary: Path, content: bytes | Callable[[BinaryIO], None], private: bool) -> None:
    mode = 0o600 if private else 0o666
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w+b") as file:
        if private:
            os.fchmod(descriptor, 0o600)
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(descriptor)
