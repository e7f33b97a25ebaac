"""Measuring this process: seconds of processor time or of a clock, and peaks of resident memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_LONG = 5.0
"""Seconds after which work is not repeated."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Times work, and says how much memory it took.

    Args:
        processor: Whether to count the seconds of this process on the processor; a clock's otherwise.
        ready: Called before a clock is read, such as to wait for a GPU.
    """

    def __init__(self, *, processor: bool, ready: Callable[[], None] | None = None) -> None:
        self.clock = "processor" if processor else "wall"
        self._now = time.process_time if processor else time.perf_counter
        self._ready = ready

    def since_start(self) -> float:
        """Return the seconds since this process began."""
        return time.process_time() if self.clock == "processor" else _age()

    def timed(self, work: Callable[[], T]) -> tuple[float, T]:
        """Do some work, and return its seconds and its result."""
        started = self._read()
        result = work()
        return self._read() - started, result

    def least(self, work: Callable[[], object], times: int = 3) -> float:
        """Do some work several times, long work fewer times, and return the least seconds."""
        found = [self.timed(work)[0]]
        while len(found) < times and sum(found) < _LONG:
            found.append(self.timed(work)[0])
        return min(found)

    def _read(self) -> float:
        if self._ready is not None:
            self._ready()
        return self._now()


def peak_bytes() -> int:
    """Return the largest resident memory of this process since ``forget_peak``, or since its start."""
    try:
        for line in _STATUS.read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def forget_peak() -> bool:
    """Give free memory back and let ``peak_bytes`` begin anew at the present size. Returns whether the system allows that."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _RESET.write_text("5", "ascii")
    except OSError:
        return False
    return True


def _age() -> float:
    """Return the seconds of a clock since this process began, as far as the system tells; else its seconds on the processor."""
    try:
        ticks = int(Path("/proc/self/stat").read_text("ascii").rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return time.process_time()
    return up - ticks / os.sysconf("SC_CLK_TCK")
