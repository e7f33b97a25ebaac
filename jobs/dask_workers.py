"""A run on Dask workers that dask-jobqueue gets from Slurm, PBS or LSF: distqexp[jobqueue].

    python jobs/dask_workers.py --jobs 8 --cores 32 --memory 64GB --minutes 240 configs/icu.toml --out runs/icu --json

What this command doesn't know goes to ``distqexp.fit``, with ``--resume`` and the address of the workers' scheduler. A worker
leaves before its job's wall time and gives back what it holds; a job that ends or is lost is replaced, and what it was at is done
again by another from its last checkpoint. Run it where it may stay: on a login node, or as a job of one task, which comes back by
itself:

    PROGRAM="jobs/dask_workers.py --jobs 8 --cores 32 --memory 64GB --minutes 240" \\
        CONFIG=configs/icu.toml sbatch --nodes=1 --ntasks-per-node=1 jobs/slurm.sh

Folders, data and this Python must be where every node sees them. ``--show`` prints the job script that would be submitted.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from typing import Any

from distqexp import fit

LEAVE_BEFORE = 5
"""So many minutes before its wall time a worker leaves, give or take one, so that not all leave at once."""

STOPPED, LOST_A_WORKER, REFUSED = 75, 5, 2
"""Exit codes of a run."""


def main(arguments: list[str] | None = None) -> int:
    """Start the cluster, run the task on it and return the run's exit code."""
    options, rest = _parser().parse_known_args(arguments)
    if options.minutes <= LEAVE_BEFORE + 1:
        sys.stderr.write(f"distqexp: --minutes: found {options.minutes}; expected more than {LEAVE_BEFORE + 1}\n")
        return 2
    cluster = make_cluster(options)
    try:
        if options.show:
            sys.stdout.write(cluster.job_script())
            return 0
        # Until the run itself listens to them.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda *_: sys.exit(STOPPED))
        # As many at the least as at the most: jobs that are gone are replaced.
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)
        return _run(cluster, [*rest, "--resume"], options.retries)
    finally:
        with contextlib.suppress(AssertionError):  # which Dask raises for jobs that were refused
            cluster.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run distqexp.fit on Dask workers from a batch system.")
    parser.add_argument("--system", choices=("slurm", "pbs", "lsf"), default="slurm", help="the batch system")
    parser.add_argument("--jobs", type=int, default=2, help="how many jobs of workers there are at any time")
    parser.add_argument("--cores", type=int, default=32, help="cores of a job")
    parser.add_argument("--workers", type=int, help="workers of a job; one for each core when absent")
    parser.add_argument("--memory", default="64GB", help="memory of a job")
    parser.add_argument("--minutes", type=int, default=240, help="wall time of a job")
    parser.add_argument("--queue", help="queue or partition")
    parser.add_argument("--account", help="account or project")
    parser.add_argument("--interface", help="network interface between workers and scheduler, such as ib0")
    parser.add_argument("--directive", action="append", default=[], help="a further directive, such as --qos=long")
    parser.add_argument("--retries", type=int, default=3, help="how often a run without workers waits for new ones")
    parser.add_argument("--show", action="store_true", help="print the job script and end")
    return parser


def make_cluster(options: argparse.Namespace) -> Any:
    """Return the cluster, which has no worker yet. Raises SystemExit without dask-jobqueue."""
    try:
        import dask_jobqueue
    except ImportError as error:
        sys.exit(f"distqexp: dask-jobqueue can't be loaded ({error}); install distqexp[jobqueue]")
    kinds = {
        "slurm": dask_jobqueue.SLURMCluster,
        "pbs": dask_jobqueue.PBSCluster,
        "lsf": dask_jobqueue.LSFCluster,
    }
    hours, minutes = divmod(options.minutes, 60)
    more = {"project": options.account} if options.system == "lsf" else {"account": options.account}
    return kinds[options.system](
        cores=options.cores,
        processes=options.workers or options.cores,
        memory=options.memory,
        walltime=f"{hours:02d}:{minutes:02d}" + ("" if options.system == "lsf" else ":00"),
        queue=options.queue,
        interface=options.interface,
        python=sys.executable,
        job_extra_directives=options.directive,
        worker_extra_args=["--lifetime", f"{options.minutes - LEAVE_BEFORE}m", "--lifetime-stagger", "1m"],
        scheduler_options={"dashboard_address": None},
        **more,
    )


def _run(cluster: Any, arguments: list[str], retries: int) -> int:
    """Run the task, again from its checkpoints where the workers were gone for too long."""
    engine = ["--set", "engine.kind=dask", "--set", f"engine.scheduler={cluster.scheduler_address}"]
    for _ in range(retries + 1):
        if not _has_workers(cluster):
            sys.stderr.write("distqexp: no job of workers could be submitted; the batch system says above why\n")
            return REFUSED
        code = fit.main([*arguments, *engine])
        if code != LOST_A_WORKER:
            break
    return code


def _has_workers(cluster: Any) -> bool:
    """Wait for the first worker, however long the queue is; False where the batch system took none of the jobs."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        while not client.nthreads():
            if cluster.workers and all(job.job_id is None for job in cluster.workers.values()):
                return False
            time.sleep(0.5)
    return True


if __name__ == "__main__":
    sys.exit(main())
