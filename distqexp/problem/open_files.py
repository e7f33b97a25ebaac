"""Whether another process still writes to a file: what it holds then is not yet what it will hold."""

from __future__ import annotations

import contextlib
import fcntl
import signal
from pathlib import Path

from distqexp.errors import FileContentError
from distqexp.problem.readers.folders import Folder


def refuse_open_for_writing(path: Path) -> None:
    """Raise FileContentError where some process on this machine has the file, or one of a folder, open for writing.

    The kernel says so by refusing a read lease. Where it gives none (another owner, a network file system, another system than Linux)
    nothing is refused. The lease is given back at once. Should a writer come just then, it is told by SIGURG, which is ignored.
    """
    paths = [path / name for name in Folder(path).files] if path.is_dir() else [path]
    if any(map(_is_open_for_writing, paths)):  # the names in a folder are private
        raise FileContentError(
            f"{path}: open for writing in another program; expected a finished file: wait until it is written, or copy it"
        )


def _is_open_for_writing(path: Path) -> bool:
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    with path.open("rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        with contextlib.suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
