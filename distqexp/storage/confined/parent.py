"""Reading files from elsewhere in a child process with limits, so that no file can crash this process.

The child gets the descriptor that this process opened and checked, not the path. For a plan, sketch, quadratic or release it
answers with plain arrays, so that the HDF5 library of this process never sees the bytes. A file of records is only checked
by the child. When the child dies, by a signal or at a limit, the file is refused.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from distqexp.errors import EngineError, FileContentError
from distqexp.storage.content import Frame, Request

WALL_SECONDS = 60.0
"""The seconds that reading any file may take."""
_SLOWEST_DISK = 1 << 20
"""The bytes for which a second more is allowed: reading more slowly than this is given up."""
_LONGEST_FRAME = 1 << 20
MOST_GROWTH = 8
"""How many times its bytes in a file an array may have in memory: a triangle has two, and a narrowed one of doubles four times them."""
_ENVIRONMENT_NAMES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "TMPDIR",
)


def read_confined(file: BinaryIO, request: Request) -> Generator[Frame, None, None]:
    """Yield the frames of ``read_content`` from a child. Raises FileContentError also if it crashes or exceeds a limit."""
    total = 0
    with _child("content", file, request) as answer:
        while (frame := _frame(answer, request)) is not None:
            if "name" not in frame:
                yield frame, None
                continue
            dtype, shape = np.dtype(frame["type"]), tuple(frame["shape"])
            total += prod(shape) * dtype.itemsize
            if dtype.kind not in "biuf" or total > MOST_GROWTH * request.length:
                raise FileContentError(f"{request.path}: more arrays than the file can hold; not written by distqexp")
            array = np.empty(shape, dtype=dtype)
            _fill(answer, array.reshape(-1).view(np.uint8).data)
            yield frame, array


def check_confined(file: BinaryIO, request: Request, task: str) -> None:
    """Check a file of records in a child.

    Args:
        file: The open file.
        request: What to check.
        task: "structure" for ``confined.hdf5.check_structure``, "texts" for ``confined.parquet.check_texts``, "batches" for
            ``confined.arrow.check_batches``.

    Raises:
        FileContentError: The file is refused, or the child crashed or took too much time or memory.
    """
    with _child(task, file, request) as answer:
        while _frame(answer, request) is not None:
            pass


class _BrokenAnswer(Exception):
    """The child stopped in the middle of its answer."""


@contextmanager
def _child(task: str, file: BinaryIO, request: Request) -> Iterator[BinaryIO]:
    """Start a child for one request, and give its answer after the first frame."""
    # -P: never a module from the current folder. The text of the request is ASCII, whatever the path.
    command = [sys.executable, "-P", "-m", "distqexp.storage.confined.child", task, json.dumps(asdict(request))]
    try:
        process = subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
    except OSError as error:
        raise EngineError(f"no process could be started to read {request.path} ({error.strerror})") from error
    seconds = WALL_SECONDS + request.length / _SLOWEST_DISK
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    ready = False
    try:
        with process:
            answer = cast(BinaryIO, process.stdout)
            try:
                ready = _frame(answer, request) is not None
                yield answer
            except _BrokenAnswer:
                code = process.wait()
                raise _death_error(request, code, ready) from None
            finally:
                process.kill()
    finally:
        timer.cancel()
        timer.join()


def _frame(answer: Any, request: Request) -> dict[str, Any] | None:
    """Return the next frame, or None after the last. Raises FileContentError for a refusal, _BrokenAnswer for no frame."""
    head = bytearray(8)
    _fill(answer, memoryview(head))
    (length,) = struct.unpack("<Q", head)
    if length > _LONGEST_FRAME + 2 * request.length:
        raise FileContentError(f"{request.path}: a header larger than the file; not written by distqexp")
    text = bytearray(length)
    _fill(answer, memoryview(text))
    frame: dict[str, Any] = json.loads(text)
    if "refused" in frame:
        raise FileContentError(frame["refused"])
    return None if "end" in frame else frame


def _fill(answer: Any, buffer: memoryview) -> None:
    """Fill the whole buffer from the answer."""
    position = 0
    while position < len(buffer):
        count = answer.readinto(buffer[position:])
        if not count:
            raise _BrokenAnswer
        position += count


def _death_error(request: Request, code: int, ready: bool) -> Exception:
    """Return the error for a child that ended with an exit code in the middle of its answer."""
    if code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return EngineError(
            f"{request.path}: the process that reads it was ended from outside ({signal.Signals(-code).name}); expected it to end by "
            "itself: run the command again"
        )
    if not ready:
        return EngineError(
            f"the process that reads files from elsewhere did not start (exit code {code}); "
            'see what "python -m distqexp.storage.confined.child" says, and mend the installation'
        )
    resources = {
        -signal.SIGXCPU: "more time than a file of its size can need",
        -signal.SIGKILL: "too long, or more memory than this machine has",
    }.get(code, f"the library that reads it down ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})")
    return FileContentError(f"{request.path}: reading it took {resources}; it is damaged or hostile: copy it again")


def _environment() -> dict[str, str]:
    """Return a plain environment: without a launcher's variables (the child is no rank), one thread, no plugins of HDF5."""
    home = str(Path(__file__).parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {name: os.environ[name] for name in _ENVIRONMENT_NAMES if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "HDF5_PLUGIN_PRELOAD": "::",
    }
