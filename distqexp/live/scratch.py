"""Private scratch folders (mode 0700): of a run's records and sums, and of records to predict for. None is left behind.

A folder goes when its work ends. Where the process is killed, a small process that waits for its death removes it. Where both are killed
(a container, a control group), the next start does: whoever makes a folder holds a lock in it as long as the process lives, and removes
those of the same user and machine that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distqexp.storage.atomic import storage_error

_REAPER = 'trap "" HUP INT TERM; read -r _; rm -rf -- "$1"'
_PREFIX = "distqexp-"
_BESIDE = ".records-"
_OWNER = ".owner"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Scratch:
    """A private folder, beside a path or in the system's folder of temporary files.

    Args:
        beside: The path; None for the system's folder.

    Attributes:
        path: The folder.
    """

    def __init__(self, beside: Path | None) -> None:
        parent = Path(tempfile.gettempdir()) if beside is None else beside.absolute().parent
        prefix = f"{_PREFIX}records-" if beside is None else f".{beside.name}{_BESIDE}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _sweep(parent)
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError as error:
            raise storage_error(beside or parent, error) from None
        self._lock = _locked(self.path)
        # A process that is killed can't tidy up: this one reads until the other end of its pipe is gone, and removes the folder.
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", _REAPER, "sh", str(self.path)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._end = weakref.finalize(self, _remove, self.path, self._lock, os.getpid())

    def folder(self, name: str) -> Path:
        """Make a folder in this one."""
        path = self.path / name
        path.mkdir(mode=0o700)
        return path

    def keep(self, name: str) -> None:
        """Remove all but what is called so, which has nothing private; it goes with this object. Nobody waits for the process any more."""
        for entry in self.path.iterdir():
            if entry.name not in (name, _OWNER):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._reaper.kill()
        self._reaper.communicate()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._end()
        self._reaper.communicate()  # which ends its input, and waits


@contextmanager
def scratch_folder(beside: Path | None) -> Iterator[Path]:
    """Make a private folder, beside a path or in the system's folder of temporary files, and remove it at the end, come what may."""
    scratch = Scratch(beside)
    try:
        yield scratch.path
    finally:
        scratch.remove()


def _remove(path: Path, lock: int | None, process: int) -> None:
    if os.getpid() != process:
        return  # a copy of the process, which isn't its owner
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """Hold a lock in a folder while this process lives, and say whose it is; None where the file system has no locks."""
    new = folder / f"{_OWNER}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, "\n".join(_machine()).encode())
        new.rename(folder / _OWNER)  # only now: a folder without this name is left alone
    except OSError:
        os.close(lock)
        return None
    return lock


def _machine() -> tuple[str, str]:
    """Return this machine's name, and the number of its start, which containers on it share."""
    boot = ""
    with suppress(OSError):
        boot = _BOOT.read_text().strip()
    return socket.gethostname(), boot


def _sweep(parent: Path) -> None:
    """Remove the scratch folders of this user and machine whose process is gone."""
    for entry in os.scandir(parent):
        if not (entry.name.startswith(_PREFIX) or (entry.name.startswith(".") and _BESIDE in entry.name)):
            continue
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                _remove_dead(Path(entry.path))


def _remove_dead(folder: Path) -> None:
    """Remove a folder whose lock nobody holds. Raises OSError where it isn't one of ours, or somebody does."""
    lock = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name, _, boot = os.read(lock, 1024).decode("utf-8", "replace").partition("\n")
        here = _machine()
        # Locks of a shared file system may be known on their own machine alone.
        if name == here[0] or (boot and boot == here[1]):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
