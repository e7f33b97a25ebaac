"""The job scripts, each run with a stub scheduler: stopped before the wall time, queued again, finished."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fit_harness import released
from job_sites import (
    JOBS,
    ROUNDS,
    RUN_SERIALLY,
    RUN_TWO_RANKS,
    SEED,
    TASK,
    WAIT_FOR_THE_STOP,
    Site,
    directives,
    has_begun,
    wait_until,
)

from distqexp import fit
from distqexp.privacy.ledger import Ledger

pytestmark = pytest.mark.process

SCHEDULERS = ("slurm", "pbs", "lsf")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the task releases when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "task.toml").write_text(TASK, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        assert fit.main([str(folder / "task.toml"), "--out", str(folder / "run"), *SEED]) == 0
    return released(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "launcher", "stop", "element"),
    [
        pytest.param(
            *("slurm", RUN_SERIALLY, signal.SIGTERM, {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}),
            id="slurm",
        ),
        pytest.param(
            *("pbs", RUN_SERIALLY, signal.SIGUSR1, {"PBS_ARRAY_INDEX": "2", "PBS_JOBID": "42[2].server"}), id="pbs"
        ),
        pytest.param(*("lsf", RUN_TWO_RANKS, signal.SIGTERM, {"LSB_JOBINDEX": "2"}), id="lsf", marks=pytest.mark.alone),
    ],
)
def test_an_element_that_is_stopped_is_queued_again_and_ends_like_an_undisturbed_run(
    scheduler: str,
    launcher: str,
    stop: signal.Signals,
    element: dict[str, str],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    own_ledger: Path,
) -> None:
    site = Site(tmp_path, launcher)
    (tmp_path / "tasks.txt").write_text(f"another.toml other\ntask.toml run {' '.join(SEED)}\n", "utf-8")
    job = site.start(scheduler, TASKS="tasks.txt", **element)
    wait_until(lambda: has_begun(site.out) or job.poll() is not None)
    job.send_signal(stop)
    assert job.wait(120) == 75, site.log
    assert site.queued_again(scheduler, 75, "40_2")
    assert not (site.out / "certificate.json").exists()
    if scheduler == "pbs":  # an element comes back as a job of its own, by the index that is passed on
        (call,) = site.calls("qsub")
        assert call.startswith("qsub -v CONFIG,OUT,PYTHON,TASK_INDEX,TASKS,")
        element = {"TASK_INDEX": "2"}

    assert site.start(scheduler, TASKS="tasks.txt", **element).wait(240) == 0, site.log
    assert released(site.out) == undisturbed
    assert len(site.requests()) == (0 if scheduler == "lsf" else 1)
    launched = site.calls("srun") + site.calls("mpirun")
    assert len(launched) == 2
    assert all("distqexp.fit task.toml --out run --resume" in call for call in launched)
    with Ledger.open(own_ledger) as ledger:
        assert [row.state for row in ledger.rows("jobs")] == ["committed"] * ROUNDS


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_a_repeat_may_mend_is_queued_again_and_nothing_else(scheduler: str, tmp_path: Path) -> None:
    """Here a lost rank is so twice in a row at most, and again after a new release; no job is after a request to stop."""
    site = Site(tmp_path)
    site.stub("python", "printf '1\n/ledger.sqlite\n'\n")

    def ends(code: int, again: bool) -> None:
        for name in ("srun", "mpirun"):
            site.stub(name, f"exit {code}\n")
        (tmp_path / "calls").unlink(missing_ok=True)
        got = site.start(scheduler, RETRIES="2", PYTHON="python").wait(60)
        if scheduler == "lsf":  # which decides by the exit code alone
            assert (got == 75) == again
        else:
            assert (got, len(site.requests())) == (code, int(again))

    for code in (2, 3, 4, 6, 70, 130):
        ends(code, again=False)
    ends(5, again=True)
    ends(137, again=True)
    ends(5, again=False)
    assert "failed 3 times in a row without a new release" in site.log
    ends(5, again=True)
    site.out.mkdir()
    (site.out / "release-000.h5").touch()
    ends(5, again=True)
    assert (tmp_path / "run.failures").read_text("utf-8") == "1 1\n"
    ends(75, again=True)
    assert not (tmp_path / "run.failures").exists()
    (tmp_path / "run.stop").touch()
    ends(75, again=False)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_wrong_config_ends_the_job_before_anything_is_launched(scheduler: str, tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.start(scheduler, CONFIG="none.toml").wait(60) == 2
    assert not (tmp_path / "calls").exists()
    (line,) = site.log.splitlines()
    assert line.startswith("distqexp: config none.toml: no such file")


def test_an_index_without_a_task_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "tasks.txt").write_text("task.toml run\n", "utf-8")
    assert (
        Site(tmp_path).start("slurm", TASKS="tasks.txt", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_JOB_ID="4").wait(60) == 2
    )
    assert not (tmp_path / "calls").exists()


def test_pbs_stops_the_run_before_the_wall_time(tmp_path: Path) -> None:
    site = Site(tmp_path, WAIT_FOR_THE_STOP)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "task.toml").write_text(TASK + "threads = 2\n", "utf-8")
    assert site.start("pbs", STOP_AFTER="1", DISTQEXP_DATA="/data", SCRATCH=str(tmp_path / "scratch")).wait(60) == 75
    (call,) = site.calls("mpirun")
    assert call.startswith("mpirun -n 4 --hostfile nodes -x OMP_NUM_THREADS")
    assert "-x DISTQEXP_DATA -x DISTQEXP_LEDGER" in call
    assert "(OMP_NUM_THREADS=2)" in (tmp_path / "calls").read_text("utf-8")  # from the config
    (again,) = site.calls("qsub")
    assert again == (
        "qsub -W depend=afterany:42.server "
        "-v CONFIG,OUT,PYTHON,TASK_INDEX,SCRATCH,STOP_AFTER,DISTQEXP_DATA,DISTQEXP_LEDGER jobs/pbs.sh"
    )
    assert list((tmp_path / "scratch").iterdir()) == []  # the job's own folder is gone


@pytest.mark.parametrize(("answer", "again"), [("JobState=RUNNING", True), ("JobState=COMPLETING", False)])
def test_a_job_that_was_cancelled_is_not_queued_again(answer: str, again: bool, tmp_path: Path) -> None:
    """Slurm sends SIGTERM for both, and a requeue would bring a cancelled job back."""
    site = Site(tmp_path, WAIT_FOR_THE_STOP)
    site.stub("scontrol", f"echo JobId=42 {answer} Reason=None\n")
    job = site.start("slurm")
    wait_until((tmp_path / "waiting").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 75
    assert site.queued_again("slurm", 75) == again


def test_the_directives_ask_for_ranks_threads_time_a_signal_and_a_requeue() -> None:
    slurm, pbs, lsf = (directives(name) for name in SCHEDULERS)
    assert int(slurm["--nodes"]) * int(slurm["--ntasks-per-node"]) == 64
    assert slurm["--time"] == pbs["walltime"] == "04:00:00"
    assert lsf["-W"] == "4:00"
    assert slurm["--signal"] == "B:USR1@180"
    assert {"--requeue", "--cpus-per-task", "--open-mode"} <= set(slurm)
    nodes, *chunk = pbs["select"].split(":")
    resources = dict(part.split("=") for part in chunk)
    assert int(nodes) * int(resources["mpiprocs"]) == 64
    assert int(resources["ncpus"]) == int(resources["mpiprocs"]) * int(resources["ompthreads"])
    assert pbs["-r"] == "y"
    assert lsf["-n"] == "64"
    assert (lsf["-wa"], lsf["-wt"], lsf["-Q"]) == ("USR1", "3", "75")
    assert "-r" in lsf


@pytest.mark.parametrize("script", ["common.sh", "slurm.sh", "pbs.sh", "lsf.sh", "containers/python"])
def test_shells_can_parse(script: str) -> None:
    """Bash can, and shellcheck finds nothing where it is installed."""
    checks = [["bash", "-n"], ["shellcheck", "--external-sources", f"--source-path={JOBS.parent}"]]
    for check in checks:
        command = shutil.which(check[0])
        if command is None and check[0] == "shellcheck":
            continue
        assert command is not None
        checked = subprocess.run([command, *check[1:], str(JOBS / script)], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
