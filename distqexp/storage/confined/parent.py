"""Reading files that came from elsewhere: in a process of its own, with limits, so that no file can crash this one.

The child gets the descriptor that this process opened and checked, not the path. Of a plan, sketch, quadratic or release it
answers with plain arrays: the HDF5 library of this process never meets the bytes. A file of records is looked through. A child that dies,
by a signal or at a limit, is a refused file.
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
SLOWEST_DISK = 1 << 20
"""Bytes a second: below it, a file is given up."""
_LONGEST_FRAME = 1 << 20
_PASSED_ON = (
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
    """As read_content. Raises FileContentError also when the child crashed, or took too long or too much."""
    total = 0
    with _child("content", file, request) as answer:
        while (frame := _frame(answer, request)) is not None:
            if "name" not in frame:
                yield frame, None
                continue
            dtype, shape = np.dtype(frame["type"]), tuple(frame["shape"])
            total += prod(shape) * dtype.itemsize
            if dtype.kind not in "biuf" or total > request.length:
                raise FileContentError(f"{request.path}: more arrays than the file can hold; not written by distqexp")
            array = np.empty(shape, dtype=dtype)
            _fill(answer, array.reshape(-1).view(np.uint8).data)
            yield frame, array


def check_confined(file: BinaryIO, request: Request, task: str) -> None:
    """A file of records: "structure" as confined.hdf5.check_structure, "texts" as confined.parquet.check_texts.

    Raises FileContentError also when the child crashed, or took too long or too much.
    """
    with _child(task, file, request) as answer:
        while _frame(answer, request) is not None:
            pass


class _Ended(Exception):
    """The child stopped in the middle of its answer."""


@contextmanager
def _child(task: str, file: BinaryIO, request: Request) -> Iterator[BinaryIO]:
    """The child's answer, after its first frame."""
    # -P: never a module from the current folder. The text of the request is ASCII, whatever the path.
    command = [sys.executable, "-P", "-m", "distqexp.storage.confined.child", task, json.dumps(asdict(request))]
    try:
        process = subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
    except OSError as error:
        raise EngineError(f"no process could be started to read {request.path} ({error.strerror})") from error
    seconds = WALL_SECONDS + request.length / SLOWEST_DISK
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
            except _Ended:
                code = process.wait()
                raise _died(request, code, ready) from None
            finally:
                process.kill()
    finally:
        timer.cancel()
        timer.join()


def _frame(answer: Any, request: Request) -> dict[str, Any] | None:
    """The next frame; None after the last. Raises FileContentError for a refusal, _Ended for none."""
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
    at = 0
    while at < len(buffer):
        count = answer.readinto(buffer[at:])
        if not count:
            raise _Ended
        at += count


def _died(request: Request, code: int, ready: bool) -> Exception:
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
    how = {
        -signal.SIGXCPU: "more time than a file of its size can need",
        -signal.SIGKILL: "too long, or more memory than this machine has",
    }.get(code, f"the library that reads it down ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})")
    return FileContentError(f"{request.path}: reading it took {how}; it is damaged or hostile: copy it again")


def _environment() -> dict[str, str]:
    """A plain environment: no launcher's variables (the child is no rank), one thread, no plugins of the HDF5 library."""
    home = str(Path(__file__).parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "HDF5_PLUGIN_PRELOAD": "::",
    }
