"""A real Slurm of one node in a folder of its own: munged, slurmctld and slurmd, with their own key, ports and configuration."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from job_sites import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
PMIX_LIBRARIES = "/usr/lib/*/pmix2/lib/libpmix.so"
"""Where Debian's plugin looks for PMIx, without which ranks under srun don't find each other (package libpmix-dev)."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=pmix
ReturnToService=2
KillWait=5
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """The running Slurm: its commands."""

    folder: Path

    def run(self, *command: str, cwd: Path | None = None, **environ: str) -> str:
        """Run a command of Slurm, and return what it prints."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**outer, **environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr, self.logs())
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The job's state and how often it was queued again, as Slurm says them; its state is gone when it was purged."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        facts = dict(word.split("=", 1) for word in words if "=" in word)
        return f"{facts['JobState']} {facts['Restarts']}"

    def logs(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in sorted(self.folder.glob("*.log")))


@contextmanager
def one_node(cpus: int = 2) -> Iterator[Slurm]:
    """Start Slurm, and end it with all that it runs. Skips the test where Slurm isn't installed or this user isn't root."""
    missing = [name for name in DAEMONS if _found(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge libpmix-dev")
    if not list(Path("/").glob(PMIX_LIBRARIES[1:])):
        pytest.skip("no PMIx for srun: apt-get install libpmix-dev")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root alone")
    # A socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        yield _start(folder, cpus)
    finally:
        _end(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _start(folder: Path, cpus: int) -> Slurm:
    folder.chmod(0o755)  # munged refuses a folder that others can write to
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = {"controller": one.getsockname()[1], "daemon": other.getsockname()[1]}
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, cpus=cpus, **ports), "utf-8")
    slurm = Slurm(folder)
    own = [f"--{name}={folder}/munge{end}" for name, end in (("socket", ".socket"), ("seed-file", ".seed"))]
    own += [f"--key-file={key}", f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
    slurm.run(str(_found("munged")), "--force", *own)
    slurm.run(str(_found("slurmctld")), "-c")
    slurm.run(str(_found("slurmd")))
    wait_until(lambda: "idle" in slurm.run("sinfo", "--noheader", "--format=%T"), 60)
    return slurm


def _end(folder: Path) -> None:
    slurm = Slurm(folder)
    with suppress(AssertionError, OSError):
        slurm.run("scancel", "--signal=KILL", "--full", "--state=RUNNING")
        slurm.run("scancel", "--user=root")
        wait_until(lambda: slurm.run("squeue", "--noheader") == "", 20)
    for name in ("slurmd", "slurmctld", "munged"):
        with suppress(OSError, ValueError):
            pid = int((folder / f"{name}.pid").read_text("utf-8"))
            os.kill(pid, signal.SIGTERM)
            with suppress(AssertionError):
                wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 10)
