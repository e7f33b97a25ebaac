"""The watch that ends ranks with their launcher, and what launchers pass on.

The latter was measured with Open MPI 5.0.11. SIGUSR1 to mpirun reaches every rank, and mpirun ends
with the ranks' exit code (75). SIGTERM, SIGINT or SIGHUP to mpirun reach the ranks as SIGCONT and SIGTERM, but
SIGKILL follows half a second later, and mpirun's own exit code is 1. That is long enough for a quick checkpoint only,
so batch scripts should turn the scheduler's warning into SIGUSR1. SIGKILL of mpirun reaches nobody.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

LAUNCHERS = frozenset(
    {
        "mpirun", "mpiexec", "orterun", "prterun", "prte", "prted", "orted",
        "mpiexec.hydra", "hydra_pmi_proxy", "hydra_bstrap_pr", "slurmstepd", "palsd", "pmi_proxy",
    }
)  # fmt: skip
_PR_SET_PDEATHSIG = 1


def die_with_launcher(interval: float = 1.0) -> None:
    """End this process (SIGKILL) soon after the launcher that started it is gone.

    On Linux the kernel is asked for a signal at the parent's death. Besides, a daemon thread checks every
    ``interval`` seconds whether the parent, or the launcher above a wrapper script, is still the same
    process. Nothing is lost by SIGKILL, as files appear under their names only when complete.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    launcher = _launcher_above(parent)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent and (launcher is None or _identity(launcher[0]) == launcher):
            time.sleep(interval)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="distqexp-watchdog", daemon=True).start()


def _launcher_above(pid: int) -> tuple[int, str] | None:
    """Return the pid and start time of the nearest ancestor that is a known launcher, where /proc tells it."""
    while pid > 1:
        fields = _stat(pid)
        if fields is None:
            return None
        name, parent, start = fields
        if name in LAUNCHERS:
            return pid, start
        pid = parent
    return None


def _identity(pid: int) -> tuple[int, str] | None:
    """Return the pid and start time of a process, or None when it is gone."""
    fields = _stat(pid)
    return None if fields is None else (pid, fields[2])


def _stat(pid: int) -> tuple[str, int, str] | None:
    """Return name, parent and start time of a process, or None when it is gone, a zombie, or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else (name, int(fields[1]), fields[19])
