"""A folder to submit the job scripts from, with stub schedulers on PATH that record what they are asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpi_harness import REPOSITORY, find_mpirun

JOBS = REPOSITORY / "jobs"
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

step = 0.5

[subspace]
kind = "gaussian"
k = 16

[precision]
kind = "identity"

[engine]
micro_batch = 8
"""

SEED = ("--insecure-noise-seed", "7")

RUN_SERIALLY = """
while (($#)) && [[ $1 != "$PYTHON" ]]; do shift; done
exec "$@"
"""
RUN_TWO_RANKS = """
while (($#)) && [[ $1 != "$PYTHON" ]]; do shift; done
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec "MPIRUN" --oversubscribe -n 2 "$@"
"""
WAIT_FOR_THE_STOP = """
trap 'exit 75' USR1
touch waiting
while :; do sleep 0.1; done
"""


def wait_until(holds: Callable[[], bool], patience: float = 120.0) -> None:
    """Wait until something holds; AssertionError when it does not come."""
    until = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < until, f"it did not come within {patience} s"
        time.sleep(0.02)


def has_begun(out: Path) -> bool:
    """Whether the run in this folder reads private records by now."""
    progress = out / "progress.jsonl"
    return progress.exists() and '"stage": "sketch"' in progress.read_text("utf-8")


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
        """Make a command that records its arguments and then does something."""
        if "MPIRUN" in body:
            body = body.replace("MPIRUN", find_mpirun())
        path = self.folder / "bin" / name
        record = f'echo "{name} $* (OMP_NUM_THREADS=$OMP_NUM_THREADS)" >>"{self.folder}/calls"\n'
        path.write_text("#!/usr/bin/env bash\n" + record + body, "utf-8")
        path.chmod(0o755)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8")

    def calls(self, name: str) -> list[str]:
        """The recorded calls of one command."""
        calls = self.folder / "calls"
        lines = calls.read_text("utf-8").splitlines() if calls.exists() else []
        return [line.split(" (OMP")[0] for line in lines if line.startswith(f"{name} ")]

    def requests(self) -> list[str]:
        """The calls that ask for the job to be queued again."""
        return [call for call in self.calls("scontrol") if "requeue" in call] + self.calls("qsub")

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

    def queued_again(self, scheduler: str, code: int, job: str = "42") -> bool:
        """Whether the scheduler would start the job once more after it ended with this code."""
        if scheduler == "slurm":
            return f"scontrol requeue {job}" in self.calls("scontrol")
        if scheduler == "lsf":
            return str(code) in directives("lsf")["-Q"].split()
        return len(self.calls("qsub")) == 1


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
