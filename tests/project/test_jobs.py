"""The job scripts, each run with a stub scheduler: stopped before the wall time, queued again, finished."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mpi_harness import REPOSITORY

from distqexp.privacy.ledger import Ledger

pytestmark = [pytest.mark.process, pytest.mark.alone]  # ranks wait for each other in busy loops

JOBS = REPOSITORY / "jobs"
SCHEDULERS = ("slurm", "pbs", "lsf")
ROUNDS = 3

TASK = f"""
[model]
factory = "distqexp.problem.models:logistic"
args = {{ inputs = 64, outputs = 10 }}
loss = "cross-entropy"

[data]
population = "jobs"
private = {{ format = "digits", rows = [[0, 800]] }}

[privacy]
epsilon = 1.0
delta = 1e-4
units = 800

[mechanism]
rounds = {ROUNDS}
clip = 0.5

[engine]
micro_batch = 4
threads = 2
"""

RUN_SERIALLY = """
while (($#)) && [[ $1 != "$PYTHON" ]]; do shift; done
exec "$@"
"""
WAIT_FOR_THE_STOP = """
trap 'exit 75' USR1
touch waiting
while :; do sleep 0.1; done
"""
FAIL = "exit 5\n"


@dataclass(frozen=True)
class Site:
    """A folder to submit from, with a stub scheduler first on PATH that records its calls."""

    folder: Path
    launcher: str = RUN_SERIALLY

    def __post_init__(self) -> None:
        (self.folder / "jobs").symlink_to(JOBS)
        (self.folder / "task.toml").write_text(TASK, "utf-8")
        (self.folder / "nodes").write_text("node1\nnode1\nnode2\nnode2\n", "utf-8")
        (self.folder / "bin").mkdir()
        for name in ("srun", "mpirun"):
            self.stub(name, self.launcher)
        for name in ("scontrol", "qsub", "bsub", "sbatch"):
            self.stub(name, "")

    def stub(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        record = f'echo "{name} $* (OMP_NUM_THREADS=$OMP_NUM_THREADS)" >>"{self.folder}/calls"\n'
        path.write_text("#!/usr/bin/env bash\n" + record + body, "utf-8")
        path.chmod(0o755)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def calls(self, name: str) -> list[str]:
        """The recorded calls of one command."""
        calls = self.folder / "calls"
        lines = calls.read_text("utf-8").splitlines() if calls.exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]

    def start(self, scheduler: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start the script as the scheduler would, on its first node."""
        launched = re.compile("SLURM|PBS|LSB|LS_|OMPI|PMI|PRTE")
        environ = {name: value for name, value in os.environ.items() if not launched.match(name)}
        environ |= {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{environ['PATH']}",
            "PYTHON": sys.executable,
            "CONFIG": "task.toml",
            "OUT": "run",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "42",
            "PBS_O_WORKDIR": str(self.folder),
            "PBS_JOBID": "42.server",
            "PBS_NODEFILE": "nodes",
            "LS_SUBCWD": str(self.folder),
            "LSB_DJOB_NUMPROC": "4",
            "LSB_DJOB_HOSTFILE": "nodes",
        }
        environ |= settings
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["bash", str(JOBS / f"{scheduler}.sh")], cwd="/", env=environ, stdout=log, stderr=log
            )

    def queued_again(self, scheduler: str, code: int) -> bool:
        """Whether the scheduler would start the job once more after it ended with this code."""
        if scheduler == "slurm":
            return [call.split(" (")[0] for call in self.calls("scontrol")] == ["scontrol requeue 42"]
        if scheduler == "lsf":
            return str(code) in directives("lsf")["-Q"].split()
        (*calls,) = self.calls("qsub")
        return len(calls) == 1 and calls[0].startswith("qsub -W depend=afterany:42.server -v CONFIG,OUT,PYTHON")


def directives(scheduler: str) -> dict[str, str]:
    """Option to value, from the script's directives."""
    mark = {"slurm": "#SBATCH", "pbs": "#PBS", "lsf": "#BSUB"}[scheduler]
    found: dict[str, str] = {}
    for line in (JOBS / f"{scheduler}.sh").read_text("utf-8").splitlines():
        if line.startswith(mark + " "):
            option, _, value = line.removeprefix(mark).strip().replace("=", " ", 1).partition(" ")
            if scheduler != "slurm" and option == "-l":  # resources: name=value
                option, _, value = line.removeprefix(f"{mark} -l ").partition("=")
            found[option] = value.strip('"')
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_job_that_is_stopped_is_queued_again_and_ends(scheduler: str, tmp_path: Path, own_ledger: Path) -> None:
    site = Site(tmp_path)
    job = site.start(scheduler)
    until = time.monotonic() + 120
    progress = site.out / "progress.jsonl"
    while not (progress.exists() and '"stage": "sketch"' in progress.read_text("utf-8")):
        assert job.poll() is None, (tmp_path / "log").read_text("utf-8")
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)  # what each directive asks for before the wall time
    assert job.wait(120) == 75, (tmp_path / "log").read_text("utf-8")
    assert site.queued_again(scheduler, 75)
    assert not (site.out / "certificate.json").exists()

    assert site.start(scheduler).wait(240) == 0, (tmp_path / "log").read_text("utf-8")
    assert (site.out / "certificate.json").exists()
    assert len(site.calls("scontrol") + site.calls("qsub")) == (0 if scheduler == "lsf" else 1)
    launched = site.calls("srun") + site.calls("mpirun")
    assert len(launched) == 2
    assert all("distqexp.fit task.toml --out run --resume" in call for call in launched)
    assert all("OMP_NUM_THREADS=2" in call for call in launched)
    with Ledger.open(own_ledger) as ledger:
        assert [row.state for row in ledger.rows("jobs")] == ["committed"] * ROUNDS


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_job_that_fails_is_not_queued_again(scheduler: str, tmp_path: Path) -> None:
    site = Site(tmp_path, FAIL)
    assert site.start(scheduler).wait(60) == 5
    assert len(site.calls("srun") + site.calls("mpirun")) == 1
    assert site.calls("scontrol") + site.calls("qsub") == []
    if scheduler == "lsf":
        assert not site.queued_again("lsf", 5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_wrong_config_ends_the_job_before_anything_is_launched(scheduler: str, tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.start(scheduler, CONFIG="none.toml").wait(60) == 2
    assert not (tmp_path / "calls").exists()
    (line,) = (tmp_path / "log").read_text("utf-8").splitlines()
    assert line.startswith("distqexp: config none.toml: no such file")


def test_pbs_stops_the_run_before_the_wall_time(tmp_path: Path) -> None:
    site = Site(tmp_path, WAIT_FOR_THE_STOP)
    assert site.start("pbs", STOP_AFTER="1", DISTQEXP_DATA="/data").wait(60) == 75
    (call,) = site.calls("mpirun")
    assert call.startswith("mpirun -n 4 --hostfile nodes -x OMP_NUM_THREADS")
    assert "-x DISTQEXP_DATA" in call
    (again,) = site.calls("qsub")
    assert "DISTQEXP_DATA" in again
    assert again.split(" (")[0].endswith(" jobs/pbs.sh")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sigterm_too_leads_to_a_checkpoint(scheduler: str, tmp_path: Path) -> None:
    site = Site(tmp_path, WAIT_FOR_THE_STOP)
    job = site.start(scheduler)
    until = time.monotonic() + 60
    while not (tmp_path / "waiting").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 75
    assert site.queued_again(scheduler, 75)


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


@pytest.mark.parametrize("script", sorted(path.name for path in JOBS.glob("*.sh")))
def test_bash_can_parse(script: str) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    checked = subprocess.run([bash, "-n", str(JOBS / script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
