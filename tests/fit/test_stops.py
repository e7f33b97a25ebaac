"""SIGTERM from a run's first instant to its last: exit code 75, and resume gives the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fit_harness import QUICK, rank_processes, released, seeded_serial_run, settings, start_fit
from mpi_harness import Finished, MpiRun, run_environ
from same_bytes import job_of

from distqexp.privacy.ledger import Ledger

pytestmark = pytest.mark.process

INSTANTS = ("while it imports", "plan", "sketch", "export")

LEAVES = """
import os, signal, sys, time
from distqexp import stopping

stopping.PATIENCE = 0.1
stopping.leave_in_time()
if sys.argv[1] == "a signal to another process of it":
    os.environ["PMI_RANK"] = "1"
os.kill(os.getpid(), signal.SIGTERM)
request = stopping.StopRequest()
request.install()
assert request.requested, "a signal from before the engine is lost"
while True:
    time.sleep(0.01)
"""

ENDS = """
import os, signal, sys
from distqexp import stopping

stopping.leave_in_time()
try:
    stopping.end(int(sys.argv[1]))
finally:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def run_script(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(body, "utf-8")
    command = [sys.executable, str(folder / "script.py"), *arguments]
    return subprocess.run(command, env=run_environ(), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("whom", ["a signal to the first process", "a signal to another process of it"])
def test_a_command_that_nobody_stops_leaves_by_itself(whom: str, tmp_path: Path) -> None:
    done = run_script(tmp_path, LEAVES, whom)
    assert (done.returncode, done.stderr) == (75, "distqexp: stopped on request; run the same command with --resume\n")


@pytest.mark.parametrize("code", [0, 75])
def test_a_signal_after_the_end_changes_no_exit_code(code: int, tmp_path: Path) -> None:
    assert run_script(tmp_path, ENDS, str(code)).returncode == code


def wait_until(instant: str, out: Path, run: MpiRun) -> None:
    """Until the ranks catch SIGTERM, or until a stage begins."""
    progress, until = out / "progress.jsonl", time.monotonic() + 120
    running = True
    while running and time.monotonic() < until:
        running = run.process.poll() is None
        ranks = rank_processes(out)
        if instant == INSTANTS[0] and len(ranks) == 2 and all(map(catches, ranks)):
            return
        events = progress.read_text("utf-8").splitlines() if progress.exists() else []
        if any(json.loads(line)["stage"] == instant for line in events):
            return
        time.sleep(0.005)
    raise AssertionError(f"never came to {instant}: {run.output()}")


def catches(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def stop_at(instant: str, out: Path, log: Path, first: int) -> Finished:
    """A run of two ranks whose ranks from ``first`` on get SIGTERM at an instant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", f"{out}.sqlite")
        with start_fit(2, log, out, "--insecure-noise-seed", "7") as run:
            wait_until(instant, out, run)
            for pid in rank_processes(out)[first:]:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.kill(pid, signal.SIGTERM)
            return run.finish()


@pytest.mark.slow
def test_runs_stopped_in_every_stage_go_on_as_if_they_had_not_been(tmp_path: Path) -> None:
    expected = released(seeded_serial_run(tmp_path, QUICK))
    runs: dict[str, list[str]] = {}
    for number, instant in enumerate(INSTANTS):
        for attempt in range(5):  # on a busy machine the last stage may be over before the signal is sent
            out = tmp_path / f"stopped-{number}-{attempt}"
            done = stop_at(instant, out, tmp_path / f"log-{number}-{attempt}", number % 2)
            if done.code != 0:
                break
            assert released(out) == expected
        assert done.code == 75, (instant, done.err)
        assert sum("stopped on request" in line for line in done.lines()) == 1, done.err
        runs[str(out)] = [*settings(*QUICK), "--resume"]
    (tmp_path / "runs.json").write_text(json.dumps(runs), "utf-8")
    again = job_of(tmp_path, tmp_path / "runs.json", 1)
    assert again.code == 0, again.err
    for out in map(Path, runs):
        assert released(out) == expected
        with Ledger.open(Path(f"{out}.sqlite")) as ledger:
            assert [row.state for row in ledger.rows("digits")] == ["committed"] * 3
