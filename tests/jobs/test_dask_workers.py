"""dask-jobqueue's workers: the job scripts that it would submit, and a run whose worker is killed, over a stub of Slurm."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fit_harness import released
from job_sites import JOBS, SEED, TASK, has_begun, wait_until
from mpi_harness import alive, run_environ

from distqexp import fit

pytestmark = [pytest.mark.slow, pytest.mark.process]
pytest.importorskip("dask_jobqueue")

SBATCH = """#!/usr/bin/env bash
spooled=$(mktemp "{folder}/job-XXXX") # the script is gone once it was submitted
cp "$1" "$spooled"
bash "$spooled" >>"{folder}/workers.log" 2>&1 &
echo $! >>"{folder}/workers"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/usr/bin/env bash
kill "$@"
"""


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("slurm", ("#SBATCH -A ours", "#SBATCH --cpus-per-task=8", "#SBATCH -t 03:10:00", "#SBATCH --qos=long")),
        ("pbs", ("#PBS -A ours", "#PBS -l select=1:ncpus=8:", "#PBS -l walltime=03:10:00")),
        ("lsf", ('#BSUB -P "ours"', "#BSUB -n 8", "#BSUB -W 03:10")),
    ],
)
def test_the_job_script_asks_for_what_was_asked(
    system: str, expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--cores", "8", "--workers", "4", "--memory", "16GB", "--minutes", "190", "--account", "ours"]
    asked += ["--directive=--qos=long"] if system == "slurm" else []
    program = runpy.run_path(str(JOBS / "dask_workers.py"))
    assert program["main"](["--system", system, *asked, "--show"]) == 0
    shown = capsys.readouterr().out
    for text in (*expected, "--nthreads 2", "--nworkers 4", "--lifetime 185m", sys.executable):
        assert text in shown


def test_a_batch_system_that_takes_no_job_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n", "utf-8")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    program = runpy.run_path(str(JOBS / "dask_workers.py"))
    assert program["main"](["--jobs", "1", "--out", str(tmp_path / "run")]) == 2
    assert "distqexp: no job of workers could be submitted" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_worker_that_is_lost_is_replaced_and_the_result_is_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.toml").write_text(TASK, "utf-8")
    for name, body in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(body.format(folder=tmp_path), "utf-8")
        (tmp_path / name).chmod(0o755)
    environ = run_environ(
        {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}
    )
    command = [sys.executable, str(JOBS / "dask_workers.py"), "--jobs", "1", "--cores", "1", "--memory", "1GB"]
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            [*command, "task.toml", "--out", "run", *SEED],
            cwd=tmp_path,
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: has_begun(tmp_path / "run") or run.poll() is not None)
        assert run.poll() is None, (tmp_path / "log").read_text("utf-8")
        first = int((tmp_path / "workers").read_text("utf-8"))
        for pid in descendants(first):
            os.kill(pid, signal.SIGKILL)
        assert run.wait(180) == 0, (tmp_path / "log").read_text("utf-8")
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    jobs = [int(line) for line in (tmp_path / "workers").read_text("utf-8").split()]
    assert len(jobs) >= 2
    wait_until(lambda: not alive(jobs), 60)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "other.sqlite"))
    assert fit.main(["task.toml", "--out", "undisturbed", *SEED]) == 0
    assert released(tmp_path / "run") == released(tmp_path / "undisturbed")


def descendants(pid: int) -> list[int]:
    """A process and all that came from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    return [pid, *(each for child in children for each in descendants(int(child)))]
