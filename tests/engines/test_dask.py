"""The Dask engine on real clusters: the serial engine's results, worker deaths, failures and stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi_harness import Finished, MpiRun, alive, run_environ, write_script

pytestmark = pytest.mark.process

pytest.importorskip("distributed")

SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
from distqexp.config import EngineConfig
from distqexp.engines import SerialEngine, make_engine
from distqexp.errors import DistqexpError, FileContentError, StoppedError

def add(context, chunk, control):
    total = np.zeros(50, np.int64)
    for item in chunk:
        total += np.arange(50) * item + context["offset"]
    if context["pause"]:
        with open(context["log"], "a") as log:
            log.write(f"{os.getpid()} {control.label}\\n")
        time.sleep(context["pause"])
    return total

def part(context, item):
    return np.random.default_rng(item).standard_normal((2, item % 3)) * context

def fail(context, chunk, control):
    if 5 in chunk:
        raise context
    return np.zeros(3, np.int64)

def lengths(context, chunk, control):
    return np.zeros(3 + (5 in chunk), np.int64)

def forever(context, chunk, control):
    Path(f"{context}/started-{os.getpid()}").write_text("")
    while not control.stop():
        time.sleep(0.05)
    Path(f"{context}/checkpoint-{control.label}").write_text("")
    raise StoppedError("checkpoint written")

def main():
    mode, folder = sys.argv[1:3]
    config = EngineConfig(kind="dask", workers=2, scheduler=sys.argv[3] if len(sys.argv) > 3 else None)
    with make_engine(config, {}) as engine:
        if mode == "verbs":
            shares = []
            engine.on_progress = shares.append
            context = {"offset": 2**62, "pause": 0}
            items = [3 * i for i in range(101)]
            oracle = SerialEngine()
            assert np.array_equal(engine.sum(add, context, items), oracle.sum(add, context, items))
            assert shares[-1] == 1.0
            assert np.array_equal(engine.sum(add, context, []), np.zeros(50))
            parts, expected = list(engine.collect(part, 0.1, range(40))), list(oracle.collect(part, 0.1, range(40)))
            assert len(parts) == 40 and all(np.array_equal(a, b) for a, b in zip(parts, expected))
            assert engine.on_root(lambda: 5) == 5
            for error in (FileContentError("column age: missing"), ValueError("71.5 kg")):
                try:
                    engine.sum(fail, error, range(100))
                except DistqexpError as found:
                    print(type(found).__name__, found)
            try:
                engine.sum(lengths, None, range(100))
            except DistqexpError as found:
                print(found)
        if mode == "death":
            context = {"offset": 2**62, "pause": 0.3, "log": f"{folder}/log.txt"}
            print("ready", flush=True)
            found = engine.sum(add, context, range(100))
            context["pause"] = 0
            print("equal" if np.array_equal(found, SerialEngine().sum(add, context, range(100))) else "different")
        if mode == "forever":
            print("ready", flush=True)
            engine.sum(forever, folder, range(8))

if __name__ == "__main__":
    try:
        main()
    except DistqexpError as error:
        print(f"distqexp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
"""


def run_script(folder: Path, *arguments: str, timeout: float = 90.0) -> Finished:
    with MpiRun([sys.executable, str(write_script(folder, SCRIPT)), *arguments], folder) as run:
        return run.finish(timeout)


def test_local_cluster_equals_the_serial_engine(tmp_path: Path) -> None:
    done = run_script(tmp_path, "verbs", str(tmp_path))
    assert done.code == 0, done.err
    assert re.search(r"FileContentError chunk c\d{4} on \S+: column age: missing", done.out)
    assert re.search(
        r"EngineError chunk c\d{4} on \S+: unexpected ValueError at (script\.py|<dynamic-code>):\d+ in fail", done.out
    )
    assert "vectors of 3 and of 4 entries" in done.out
    assert "71.5" not in done.out + done.err


def test_no_scheduler_is_one_line(tmp_path: Path) -> None:
    body = """
    from distqexp.engines.dask import DaskEngine
    from distqexp.errors import EngineError

    try:
        with DaskEngine("tcp://127.0.0.1:9", patience=1.0):
            print("entered")
    except EngineError as error:
        print(error)
    """
    with MpiRun([sys.executable, str(write_script(tmp_path, body))], tmp_path) as run:
        done = run.finish(60)
    assert done.code == 0, done.err
    assert done.out.startswith("Dask at tcp://127.0.0.1:9: no scheduler with a worker answers")
    assert done.out.count("\n") == 1
    assert done.err == ""


def wait_until(condition: object, timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        if time.monotonic() > until:
            raise AssertionError("waited too long")
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    environ = run_environ()
    where = tmp_path / "scheduler.json"
    quiet = {"env": environ, "cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def dask(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], **quiet)  # type: ignore[call-overload, no-any-return]

    processes = [
        dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(where))
    ]
    try:
        wait_until(where.exists)
        address = re.search(r"tcp://127\.0\.0\.1:\d+", where.read_text())
        assert address is not None
        options = ("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
        processes += [dask("worker", address[0], *options) for _ in range(2)]
        log = tmp_path / "log.txt"

        def seen() -> list[str]:
            return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

        script = write_script(tmp_path, SCRIPT)
        with MpiRun([sys.executable, str(script), "death", str(tmp_path), address[0]], tmp_path) as run:
            victim = str(processes[1].pid)
            # It holds finished chunks, perhaps the context too, and is at work on another chunk.
            wait_until(lambda: seen().count(victim) >= 3)
            os.kill(processes[1].pid, signal.SIGKILL)
            processes[1].wait(10)
            done = run.finish(90)
        assert done.code == 0, done.err
        assert "equal" in done.out
        assert len(seen()) > 32  # some chunks ran twice
        assert processes[2].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def test_a_signal_stops_the_workers_after_their_checkpoints(tmp_path: Path) -> None:
    with MpiRun([sys.executable, str(write_script(tmp_path, SCRIPT)), "forever", str(tmp_path)], tmp_path) as run:
        run.wait_for("ready")
        wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("started-*")]
        run.process.send_signal(signal.SIGUSR1)
        done = run.finish(60)
    assert done.code == 75, done.err
    assert len(list(tmp_path.glob("checkpoint-*"))) == 8
    assert len(done.lines()) == 1
    assert alive(workers) == []


def test_workers_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    with MpiRun([sys.executable, str(write_script(tmp_path, SCRIPT)), "forever", str(tmp_path)], tmp_path) as run:
        run.wait_for("ready")
        wait_until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("started-*")]
        assert sorted(alive(workers)) == sorted(workers)
        run.process.kill()
        run.process.wait(10)
        wait_until(lambda: alive(workers) == [], timeout=10)
