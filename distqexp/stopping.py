"""Requests to stop: the signals SIGTERM and SIGUSR1, from a command's first instant to its last. It imports nothing heavy.

Whoever signals also kills, some time later. So a run that was asked to stop leaves at its next checkpoint, and a command in which none
comes within PATIENCE leaves all the same: a kill at any instant is survived, and this one has the exit code of a stop.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from distqexp.errors import StoppedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = "stopped on request; run the same command with --resume"
PATIENCE = 5.0
"""Seconds that a command has for its next checkpoint after a signal; those that signal wait for ten and more."""
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""What launchers call the number of a process."""


class StopRequest:
    """Counts the signals SIGTERM and SIGUSR1 between ``install`` and ``restore``, which brings the old handlers back.

    Those that came to ``leave_in_time`` before are counted too. Handlers can be set in the main thread only: elsewhere (a notebook's
    worker thread) nothing is installed and the count stays 0.
    """

    def __init__(self) -> None:
        self.count = 0
        """How many signals have come so far."""
        self._old: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.count > 0

    def install(self) -> None:
        """Set the handlers of the signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            self._old[number] = signal.signal(number, self._note)
        self.count += _early.count

    def restore(self) -> None:
        """Bring the old handlers back."""
        for number, old in self._old.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        self._old.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


_early = StopRequest()


def leave_in_time() -> None:
    """For a command's process, as its first deed: count signals from now on, and leave PATIENCE seconds after one at the latest.

    A thread waits for what the kernel's own handler writes into a pipe, so that neither an import nor a long computation is in the way.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _early.install()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_leave, args=(reader,), name="distqexp-stop", daemon=True).start()


def end(code: int) -> NoReturn:
    """End a command's process with this exit code, whatever signal still comes. After a stop, at once: nothing waits for other ranks.

    Python gives the signals back to the kernel before it ends, and ranks whose launcher ends them at another's exit would die of one.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code == StoppedError.exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _leave(reader: int) -> None:
    while not set(os.read(reader, 64)) & set(STOP_SIGNALS):
        pass
    time.sleep(PATIENCE)
    if any(os.environ.get(name, "0") != "0" for name in RANK_VARIABLES):
        # The first process says why and ends, and its launcher signals to the others before they say the same.
        os.set_blocking(reader, False)
        with suppress(BlockingIOError):
            os.read(reader, 64)
        if select.select([reader], [], [], 1.0)[0]:
            os._exit(StoppedError.exit_code)
    os.write(2, f"distqexp: {STOPPED}\n".encode())
    os._exit(StoppedError.exit_code)
