"""What a run does when one of its ranks or workers fails, or when the launcher and the engine disagree."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fit_harness import QUICK, fit_arguments, seeded_serial_run, settings
from mpi_harness import MpiRun, run_environ, start_ranks
from small_clusters import scheduler_with_workers

pytestmark = pytest.mark.process


ONE_ROUND = (*QUICK, "mechanism.rounds=1")


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that others are compared with, serial."""
    return seeded_serial_run(tmp_path_factory.mktemp("serial"), ONE_ROUND)


@pytest.mark.slow
@pytest.mark.alone
def test_a_dask_worker_killed_while_sketching_changes_nothing(tmp_path: Path, serial: Path) -> None:
    pytest.importorskip("distributed")
    out = tmp_path / "run"
    with scheduler_with_workers(tmp_path, 2) as (address, workers):
        # One micro-batch a slot, so that the sketch takes long enough to be hit in its middle.
        dask = ("engine.kind=dask", f"engine.scheduler={json.dumps(address)}")
        arguments = fit_arguments(out, "--insecure-noise-seed", "7", overrides=(*ONE_ROUND, *dask))
        with MpiRun([sys.executable, *arguments], tmp_path) as run:
            _wait_for_sketch(out, run)
            os.kill(workers[0].pid, signal.SIGKILL)
            done = run.finish(240)
    assert done.code == 0, done.err
    assert workers[0].returncode == -signal.SIGKILL
    assert _sums(out / "quadratic-000.h5") == _sums(serial / "quadratic-000.h5")


@pytest.mark.alone  # ranks wait for each other in busy loops
@pytest.mark.parametrize(
    ("error", "code", "words"), [("RuntimeError", 5, "unexpected RuntimeError"), ("FileContentError", 3, "of rank 1")]
)
def test_one_rank_raising_ends_all_with_one_line(error: str, code: int, words: str, tmp_path: Path) -> None:
    body = f"""
        import os, sys, time
        from distqexp import fit
        from distqexp.errors import FileContentError
        from distqexp.sketching.sketcher import Sketcher
        def sketch(self, batches):
            if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
                print("raising", flush=True)
                raise {error}("of rank 1")
            time.sleep(60)
        Sketcher.sketch = sketch
        sys.exit(fit.main(sys.argv[1:]))
    """
    with start_ranks(3, tmp_path, body, "--out", str(tmp_path / "run"), *settings(*QUICK)) as run:
        run.wait_for("raising")
        started = time.monotonic()
        done = run.finish(30)
        assert time.monotonic() - started < 10
    assert done.code == code, done.err
    lines = done.lines("distqexp: rank ")
    assert len(lines) == 1, done.err
    assert lines[0].startswith(f"distqexp: rank 1 on {socket.gethostname()}: ")
    assert words in lines[0]
    assert "Traceback" not in done.err


def test_a_launcher_that_says_4_where_mpi_says_1_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom distqexp.problem import readers, dataset, schema\n"
        "def refuse(data):\n    print('opened', flush=True)\n    raise RuntimeError('a file was opened')\n"
        "dataset.open_reader = schema.open_reader = refuse\n"
        "from distqexp import fit\nsys.exit(fit.main(sys.argv[1:]))\n",
        "utf-8",
    )
    environ = run_environ({"SLURM_STEP_NUM_TASKS": "4"})
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path / "run")],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (5, 1), done
    assert "4 processes (SLURM_STEP_NUM_TASKS)" in lines[0]
    assert "the engine says 1" in lines[0]
    assert b"opened" not in done.stdout
    assert not (tmp_path / "run").exists()


def _wait_for_sketch(out: Path, run: MpiRun) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and run.process.poll() is None:
        progress = out / "progress.jsonl"
        if progress.exists() and '"stage": "sketch"' in progress.read_text().replace('":"', '": "'):
            return
        time.sleep(0.01)
    raise AssertionError(f"the sketch did not begin: {run.output()}")


def _sums(path: Path) -> bytes:
    from distqexp.storage.hdf5 import read_file

    return read_file(path, kind="quadratic").arrays["sums"].tobytes()
