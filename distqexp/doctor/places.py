"""Experiments on a folder: locks between two processes, its clock, its space, the kind of its file system.

Every file that they make is temporary, and removed.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distqexp.errors import DistqexpError

_NETWORK = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb",
    "ceph",
    "glusterfs",
    "panfs",
    "pvfs",
    "orangefs",
    "afs",
    "9p",
    "fuse.",
)
"""How the names of file systems begin that several hosts may share."""

_TRY = """
import sys
from pathlib import Path
from distqexp.doctor.places import excludes
print(*(excludes(Path(sys.argv[1]), kind) for kind in ("posix", "flock")))
"""


@dataclass(frozen=True)
class Place:
    """What was found out about a folder.

    Attributes:
        name: What the folder is for.
        path: The folder that a run would use.
        folder: The nearest folder that is there already, which was tried.
        kind: The file system's kind, such as ext4; empty where it isn't known.
        problem: Why no file can be made there; empty where one can.
        free: The bytes that are free for this user.
        posix: Whether POSIX locks exclude another process; None where that wasn't found out.
        flock: The same of flock.
        skew: The file system's clock minus this host's, in seconds.
        hdf5: Why an HDF5 file can't be written and read back; empty where it can; None where nobody tried.
    """

    name: str
    path: Path
    folder: Path
    kind: str = ""
    problem: str = ""
    free: int = 0
    posix: bool | None = None
    flock: bool | None = None
    skew: float = 0.0
    hdf5: str | None = None

    @property
    def network(self) -> bool:
        """Whether the file system may be shared by several hosts."""
        return self.kind.startswith(_NETWORK)

    def words(self) -> str:
        """Return the folder and the kind of its file system."""
        return f"{self.path}" + (f" ({self.kind})" if self.kind else "")


def excludes(path: Path, kind: str) -> bool:
    """Whether another holder's lock keeps this process from one on the file: "posix" or "flock". Its own is released at once."""
    import fcntl

    lock = fcntl.lockf if kind == "posix" else fcntl.flock
    with path.open("r+b") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def look_at(name: str, path: Path, *, locks: bool = True, hdf5: bool = False) -> Place:
    """Return what experiments in a folder say, or in the nearest one above that is there."""
    folder = nearest(path)
    kind = file_system(folder)
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
            before = time.time()
            probe = Path(scratch, "lock")
            probe.write_bytes(b"\0")
            middle = (before + time.time()) / 2
            skew = probe.stat().st_mtime - middle
            posix, flock = _two_processes(probe) if locks else (None, None)
            found = _try_hdf5(Path(scratch)) if hdf5 else None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return Place(name, path, folder, kind, problem=reason)
    return Place(name, path, folder, kind, "", free, posix, flock, skew, found)


def nearest(path: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    path = Path(os.path.abspath(path))
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path(path.anchor))


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the kind of the file system that a folder is on; empty where the system doesn't say."""
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    real, best, kind = Path(os.path.realpath(folder)), -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        words = left.split()
        if len(words) < 5 or not right:
            continue
        place = Path(words[4].replace("\\040", " "))
        if real.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), right.split()[0]
    return kind


def _two_processes(path: Path) -> tuple[bool | None, bool | None]:
    """Hold both kinds of lock here, try them in another process, and return whether each kept it out; None if it said nothing."""
    with path.open("r+b") as file, _held(file.fileno()) as held:
        if not held:
            return False, False
        words = [sys.executable, "-c", _TRY, str(path)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "PRTE_"))}
        try:
            done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            return None, None
    said = done.stdout.split()
    return (said[0] == "True", said[1] == "True") if len(said) == 2 else (None, None)


@contextmanager
def _held(descriptor: int) -> Iterator[bool]:
    """Hold a POSIX lock and a flock on an open file; yields whether both were granted."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    yield True


def _try_hdf5(folder: Path) -> str:
    """Write and read back an HDF5 file in distqexp's own way; return why that fails, or nothing."""
    import numpy as np

    from distqexp.storage.hdf5 import read_file, write_file

    path, numbers = folder / "try.h5", np.arange(1000, dtype=np.int64)
    try:
        write_file(path, kind="release", plan_id="0" * 64, header={}, arrays={"numbers": numbers}, private=True)
        arrays = read_file(path, kind="release", own=True).arrays
    except DistqexpError as error:
        return str(error)
    return "" if np.array_equal(arrays["numbers"], numbers) else "other numbers come back"
