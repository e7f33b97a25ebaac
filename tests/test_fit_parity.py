"""The same integers, hence with one noise seed the same bytes, on any number of ranks, serially and by Dask."""

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
from fit_harness import QUICK, RECORD_OPENED_ROWS, opened_rows, pooled, rank_processes, released, start_fit, summary
from mpi_harness import MpiRun, run_environ, run_ranks

from distqexp import fit

pytestmark = pytest.mark.alone  # ranks wait for each other in busy loops


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others are compared with, serial."""
    folder = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        settings = [word for assignment in QUICK for word in ("--set", assignment)]
        assert fit.main(["--out", str(folder / "run"), "--insecure-noise-seed", "7", *settings]) == 0
    return folder / "run"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_give_the_bytes_of_the_serial_run(ranks: int, tmp_path: Path, serial: Path) -> None:
    out = tmp_path / "run"
    with start_fit(ranks, tmp_path / "log", out, "--insecure-noise-seed", "7") as run:
        done = run.finish(120)
    assert done.code == 0, done.err
    assert pooled(out) == pooled(serial)
    assert released(out) == released(serial)
    assert len(pooled(out)) == 3
    assert summary(done.out)["rounds"] == 3
    assert done.out.count('{"delta"') == 1, "rank 0 alone prints"
    assert sum("sketch, round 1/3: started" in line for line in done.err.splitlines()) == 1


@pytest.mark.slow
def test_64_ranks_give_the_same_bytes_in_20_gigabytes(tmp_path: Path, serial: Path) -> None:
    out = tmp_path / "run"
    most = 0
    with start_fit(64, tmp_path / "log", out, "--insecure-noise-seed", "7") as run:
        while run.process.poll() is None:
            most = max(most, sum(_proportional_bytes(pid) for pid in rank_processes(out)))
            time.sleep(8.0)  # looking costs a good second itself
        done = run.finish(600)
    assert done.code == 0, done.err
    assert pooled(out) == pooled(serial)
    assert released(out) == released(serial)
    assert 2 * 2**30 < most < 20e9, f"{most / 1e9:.1f} GB"


def test_dask_gives_the_bytes_of_the_serial_run(tmp_path: Path, serial: Path) -> None:
    pytest.importorskip("distributed")
    settings = [
        word for assignment in [*QUICK, "engine.kind=dask", "engine.workers=2"] for word in ("--set", assignment)
    ]
    command = [
        sys.executable,
        "-m",
        "distqexp.fit",
        "--out",
        str(tmp_path / "run"),
        "--insecure-noise-seed",
        "7",
        *settings,
    ]
    with MpiRun(command, tmp_path) as run:
        done = run.finish(180)
    assert done.code == 0, done.err
    assert pooled(tmp_path / "run") == pooled(serial)
    assert released(tmp_path / "run") == released(serial)


@pytest.mark.slow
def test_a_dask_worker_killed_while_sketching_changes_nothing(tmp_path: Path, serial: Path) -> None:
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{_free_port()}"
    out, environ = tmp_path / "run", run_environ()
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
    ]
    # One micro-batch a slot, so that the sketch takes long enough to be hit in its middle.
    slow = [*QUICK, "engine.kind=dask", f"engine.scheduler={json.dumps(address)}", "mechanism.rounds=1"]
    settings = [word for assignment in slow for word in ("--set", assignment)]
    command = [sys.executable, "-m", "distqexp.fit", "--out", str(out), "--insecure-noise-seed", "7", *settings]
    with (tmp_path / "dask.log").open("wb") as log:
        scheduler = subprocess.Popen(
            [*dask, "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"],
            stderr=log,
            stdout=log,
            env=environ,
        )
        workers = [subprocess.Popen(worker, stderr=log, stdout=log, env=environ, cwd=tmp_path) for _ in range(2)]
        try:
            with MpiRun(command, tmp_path) as run:
                _wait_for_sketch(out, run)
                os.kill(workers[0].pid, signal.SIGKILL)
                done = run.finish(240)
        finally:
            for process in [*workers, scheduler]:
                process.kill()
                process.wait(30)
    assert done.code == 0, done.err
    assert workers[0].returncode == -signal.SIGKILL
    first = {name: content for name, content in pooled(serial).items() if name == "quadratic-000.h5"}
    assert _sums(out / "quadratic-000.h5") == _sums(serial / "quadratic-000.h5"), first.keys()


def test_each_rank_opens_its_own_slots_only(tmp_path: Path) -> None:
    settings = [word for assignment in [*QUICK, "mechanism.rounds=1"] for word in ("--set", assignment)]
    done = run_ranks(3, tmp_path, RECORD_OPENED_ROWS, "--out", str(tmp_path / "run"), *settings, timeout=120)
    assert done.code == 0, done.err
    opened = opened_rows(tmp_path, 3)
    assert sorted(row for rows in opened for row in rows) == list(range(597, 1397)), "each slot by one rank, once"
    assert all(len(rows) in range(200, 333) for rows in opened), [len(rows) for rows in opened]


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
    settings = [word for assignment in QUICK for word in ("--set", assignment)]
    from mpi_harness import start_ranks

    with start_ranks(3, tmp_path, body, "--out", str(tmp_path / "run"), *settings) as run:
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


def _proportional_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it ended meanwhile
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
