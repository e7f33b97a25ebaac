"""The Slurm script under a real Slurm of one node: two ranks under srun, a warning, a lost rank, two requeues, one result."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fit_harness import released
from job_sites import JOBS, ROUNDS, SEED, TASK, has_begun, wait_until
from mpi_harness import REPOSITORY
from slurm_cluster import Slurm, one_node

from distqexp import fit
from distqexp.privacy.ledger import Ledger

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with one_node() as started:
        yield started


def ranks(out: str) -> list[int]:
    """The processes that run the task into this folder."""
    words = [sys.executable, "-m", "distqexp.fit", "task.toml", "--out", out]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        if command[: len(words)] == words:
            found.append(int(entry.name))
    return sorted(found)


def submit(slurm: Slurm, folder: Path, *options: str, **settings: str) -> str:
    """Submit the script for two ranks on the one node, and return the job's number."""
    environ = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "DISTQEXP_LEDGER": str(folder / "ledger.sqlite"),
    }
    one = ["--nodes=1", "--ntasks-per-node=2", "--time=10", *options]
    return slurm.run("sbatch", "--parsable", *one, "jobs/slurm.sh", cwd=folder, **environ, **settings)


def site(folder: Path) -> Path:
    (folder / "jobs").symlink_to(JOBS)
    (folder / "task.toml").write_text(TASK, "utf-8")
    (folder / "tasks.txt").write_text(f"task.toml run {' '.join(SEED)}\n", "utf-8")
    return folder


def test_a_run_outlives_a_warning_and_a_lost_rank(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the bytes of an undisturbed run in one process, and with one charge a round."""
    folder = site(tmp_path)
    job = submit(slurm, folder, "--array=1", TASKS="tasks.txt")
    element = f"{job}_1"
    wait_until(lambda: has_begun(folder / "run"))
    slurm.run("scancel", "--batch", "--signal=USR1", element)  # as --signal=B:USR1@180 does before the wall time
    wait_until(lambda: slurm.state(element) == "PENDING 1")
    assert not (folder / "run.failures").exists()

    wait_until(lambda: len(ranks("run")) == 2)
    os.kill(ranks("run")[-1], signal.SIGKILL)
    wait_until((folder / "run.failures").exists)
    wait_until(lambda: slurm.state(element).endswith(" 2"))

    wait_until(lambda: slurm.state(element) == "COMPLETED 2")
    assert not (folder / "run.failures").exists()
    assert (folder / "run" / "certificate.json").exists()
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert [row.state for row in ledger.rows("jobs")] == ["committed"] * ROUNDS
    monkeypatch.chdir(folder)
    assert fit.main(["task.toml", "--out", "undisturbed", *SEED]) == 0
    assert released(folder / "run") == released(folder / "undisturbed")


def test_scancel_ends_a_job_for_good(slurm: Slurm, tmp_path: Path) -> None:
    folder = site(tmp_path)
    job = submit(slurm, folder, CONFIG="task.toml", OUT="run")
    wait_until(lambda: has_begun(folder / "run"))
    slurm.run("scancel", job)
    wait_until(lambda: slurm.state(job).startswith(("CANCELLED", "PENDING", "RUNNING 1")))
    assert slurm.state(job) == "CANCELLED 0"
    assert not ranks("run")
