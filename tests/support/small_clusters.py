"""A Dask scheduler and its workers as processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpi_harness import run_environ


@contextmanager
def scheduler_with_workers(folder: Path, count: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The scheduler's address and the processes of its workers; all of them end with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    processes: list[subprocess.Popen[bytes]] = []
    with (folder / "dask.log").open("wb") as log:
        try:
            for command in [scheduler, *[worker] * count]:
                words = [sys.executable, "-m", *command, "--no-dashboard"]
                processes.append(subprocess.Popen(words, stdout=log, stderr=log, env=run_environ(), cwd=folder))
            yield address, processes[1:]
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait(30)
