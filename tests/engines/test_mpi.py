"""The MPI engine under a real mpirun: sums, order, broadcasts, failures, signals and kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi_harness import Finished, MpiRun, alive, mpi_command, run_environ, run_ranks, start_ranks, write_script

pytestmark = [pytest.mark.process, pytest.mark.alone]  # ranks wait for each other in busy loops

VERBS = """
import os, sys
import numpy as np
from distqexp import arrays
from distqexp.engines import SerialEngine
from distqexp.engines.mpi import MpiEngine

opened = []

def add(context, chunk, control):
    opened.extend(chunk)
    total = np.zeros(1000, np.int64)
    for done, item in enumerate(chunk, 1):
        total += np.arange(1000) * item + context
        control.tick(done, len(chunk))
    return total

def part(context, item):
    return np.random.default_rng(item).standard_normal((3, item % 4, 2)) * context

with SerialEngine() as oracle:
    total = oracle.sum(add, 2**62, range(37))
    parts = list(oracle.collect(part, 0.1, range(29)))
opened.clear()
shares = []
with MpiEngine(limit=int(sys.argv[1])) as engine:
    arrays.BLOCK, start = 96, np.arange(1000)
    own = engine.scattered_sum(add, 2**62, range(37), start if engine.is_root else None)
    places = [slice(first, first + 96) for first in range(96 * engine.rank, 1000, 96 * engine.size)]
    assert own.dtype == np.int64 and np.array_equal(own, np.concatenate([(total + start)[place] for place in places] + [total[:0]]))
    opened.clear()
    engine.on_progress = shares.append
    got = engine.sum(add, 2**62, range(37))
    collected = list(engine.collect(part, 0.1, range(29)))
    none = engine.sum(add, 0, [])
    sent = {"a": np.arange(24.0).reshape(4, 6).T, "b": np.array(3, np.int32), "c": np.zeros((0, 5)), "d": np.arange(99) % 2 == 0}
    got_arrays = engine.broadcast_arrays(sent if engine.is_root else None)
    same = engine.on_root(lambda: ["small", 1])
    engine.raise_if_stopped()
    assert same == ["small", 1]
    assert list(got_arrays) == list(sent)
    for name in sent:
        assert got_arrays[name].dtype == sent[name].dtype and np.array_equal(got_arrays[name], sent[name]), name
    if engine.is_root:
        assert np.array_equal(got, total) and got.dtype == np.int64
        assert np.array_equal(none, np.zeros(1000))
        assert len(collected) == 29 and all(np.array_equal(a, b) for a, b in zip(parts, collected))
        assert shares[-1] == 1.0 and shares == sorted(shares)
    else:
        assert got is None and none is None and collected == []
    print(f"rank {engine.rank} of {engine.size} opened {opened}\\n", end="", flush=True)
"""

FAILURES = """
import os, sys, time
import numpy as np
from distqexp.config import EngineConfig
from distqexp.engines import make_engine
from distqexp.errors import DistqexpError, FileContentError, NotAvailableYet

mode = sys.argv[1]

def work(context, chunk, control):
    if mode == "foreign" and control.label == "r0001":
        raise ValueError("the value 71.5 kg")
    if mode == "own" and control.label == "r0001":
        raise FileContentError("column age: missing")
    if mode == "all":
        raise FileContentError("column age: missing")
    if mode == "lengths":
        return np.zeros(3 + chunk[0], np.int64)
    for _ in range(600):
        time.sleep(0.1)
    return np.zeros(3, np.int64)

def fail(error):
    raise error

try:
    with make_engine(EngineConfig(kind="mpi"), os.environ) as engine:
        if engine.is_root and mode == "root":
            say = engine._print

            def slowly(*arguments):
                time.sleep(1.0)  # the others must not leave, and so end the job, before the line is printed
                say(*arguments)

            engine._print = slowly
        if mode == "root":
            engine.on_root(lambda: fail(FileContentError("plan.h5: truncated")))
        if mode == "later":
            engine.on_root(lambda: fail(NotAvailableYet("tune")))
        if mode == "between" and engine.rank == 1:
            {}["absent"]
        if mode == "killed" and engine.rank == 1:
            os.kill(os.getpid(), 9)
        engine.sum(work, None, range(engine.size))
        print("finished", flush=True)
except DistqexpError as error:
    if not getattr(error, "reported", False):
        print(f"distqexp: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
"""

STOPS = """
import os, sys, time
from pathlib import Path
import numpy as np
from distqexp.config import EngineConfig
from distqexp.engines import make_engine
from distqexp.errors import DistqexpError, StoppedError

mode = sys.argv[1]

def work(context, chunk, control):
    print(f"ready {engine.rank} {os.getpid()}\\n", end="", flush=True)
    while True:
        time.sleep(0.05)
        if mode != "busy" and control.stop():
            if mode == "stubborn" and control.label == "r0000":
                time.sleep(300)
            Path(f"checkpoint-{control.label}").write_text("done")
            raise StoppedError("checkpoint written")
        if mode == "finishes" and control.label != "r0000":
            return np.zeros(3, np.int64)

def slow(context, item):
    print(f"ready {engine.rank} {os.getpid()}\\n", end="", flush=True)
    time.sleep(0.2)
    return np.zeros(200_000)

try:
    with make_engine(EngineConfig(kind="mpi"), os.environ) as engine:
        engine._grace = 2.0 if mode == "stubborn" else 15.0
        if mode == "collect":
            for _ in engine.collect(slow, None, range(1000)):
                pass
        engine.sum(work, None, range(engine.size))
except DistqexpError as error:
    if not getattr(error, "reported", False):
        print(f"distqexp: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)
"""


def check_verbs(done: Finished, ranks: int) -> None:
    assert done.code == 0, done.err
    opened = {int(m[1]): eval(m[2]) for m in re.finditer(r"rank (\d+) of \d+ opened (\[.*\])", done.out)}
    assert sorted(opened) == list(range(ranks))
    assert [item for rank in range(ranks) for item in opened[rank]] == list(range(37))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_verbs_equal_the_serial_engine(ranks: int, tmp_path: Path) -> None:
    check_verbs(run_ranks(ranks, tmp_path, VERBS, "7"), ranks)


@pytest.mark.slow
def test_verbs_on_64_ranks(tmp_path: Path) -> None:
    check_verbs(run_ranks(64, tmp_path, VERBS, "400", timeout=180), 64)


@pytest.mark.parametrize(
    ("mode", "code", "line"),
    [
        ("root", 3, r"distqexp: plan\.h5: truncated"),
        ("later", 2, r"distqexp: tune: not available yet"),
        ("foreign", 5, r"distqexp: rank 1 on \S+: unexpected ValueError at script\.py:\d+ in work"),
        ("own", 3, r"distqexp: rank 1 on \S+: column age: missing"),
        ("all", 3, r"distqexp: rank 0 on \S+: column age: missing"),
        ("between", 5, r"distqexp: rank 1 on \S+: unexpected KeyError at script\.py:\d+ in <module>"),
        ("lengths", 5, r"distqexp: work for a sum returned vectors of 3 and of 5 entries; expected one length"),
    ],
)
def test_a_failure_ends_all_ranks_with_one_line(mode: str, code: int, line: str, tmp_path: Path) -> None:
    done = run_ranks(3, tmp_path, FAILURES, mode, timeout=40)
    assert done.code == code, done.err
    assert len(done.lines()) == 1, done.err
    assert re.fullmatch(line, done.lines()[0])
    assert "finished" not in done.out
    assert "71.5" not in done.err
    assert "Traceback" not in done.err


def test_a_killed_rank_ends_the_others(tmp_path: Path) -> None:
    done = run_ranks(3, tmp_path, FAILURES, "killed", timeout=40)
    assert done.code != 0
    assert "finished" not in done.out


@pytest.mark.slow
def test_a_failure_on_64_ranks(tmp_path: Path) -> None:
    done = run_ranks(64, tmp_path, FAILURES, "foreign", timeout=180)
    assert done.code == 5, done.err
    assert len(done.lines()) == 1, done.err


def test_the_launcher_says_four_and_mpi_says_one(tmp_path: Path) -> None:
    script = write_script(tmp_path, FAILURES)
    environ = run_environ({"PMI_SIZE": "4", "PMI_RANK": "0"})
    done = subprocess.run(
        [sys.executable, str(script), "none"], env=environ, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("the launcher says 4 processes (PMI_SIZE), the engine says 1") == 1
    assert "finished" not in done.stdout


def ready_pids(run: MpiRun, times: int) -> dict[int, int]:
    """Process id of each rank, once the ranks have said so many times that they are at work."""
    run.wait_for("ready ", times=times)
    return {int(rank): int(pid) for rank, pid in re.findall(r"ready (\d+) (\d+)", run.output()[0])}


def check_stopped(done: Finished, folder: Path, checkpoints: int) -> None:
    assert done.code == 75, done.err
    assert len(done.lines()) == 1, done.err
    assert "--resume" in done.lines()[0]
    assert len(list(folder.glob("checkpoint-*"))) == checkpoints


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_after_their_checkpoints(number: signal.Signals, tmp_path: Path) -> None:
    with start_ranks(3, tmp_path, STOPS, "sum") as run:
        os.kill(ready_pids(run, 3)[2], number)
        check_stopped(run.finish(30), tmp_path, 3)


def test_sigusr1_to_mpirun_is_forwarded(tmp_path: Path) -> None:
    with start_ranks(3, tmp_path, STOPS, "sum") as run:
        ready_pids(run, 3)
        run.process.send_signal(signal.SIGUSR1)
        check_stopped(run.finish(30), tmp_path, 3)


def test_sigterm_to_mpirun_leaves_time_for_a_quick_checkpoint(tmp_path: Path) -> None:
    # Open MPI 5 sends SIGTERM to the ranks and SIGKILL half a second later, and ends with its own exit code.
    with start_ranks(3, tmp_path, STOPS, "sum") as run:
        pids = list(ready_pids(run, 3).values())
        run.process.terminate()
        done = run.finish(30)
    assert done.code != 0
    until = time.monotonic() + 10  # mpirun doesn't wait for the processes that it killed
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3
    assert alive(pids) == []


def test_a_stop_reaches_a_rank_while_others_have_finished(tmp_path: Path) -> None:
    with start_ranks(3, tmp_path, STOPS, "finishes") as run:
        pids = ready_pids(run, 3)
        os.kill(pids[1], signal.SIGUSR1)
        done = run.finish(30)
    assert done.code == 75, done.err


@pytest.mark.parametrize("whom", ["launcher", "first", "last"])
def test_a_stop_during_a_collection(whom: str, tmp_path: Path) -> None:
    with start_ranks(3, tmp_path, STOPS, "collect") as run:
        pids = ready_pids(run, 7)
        pid = {"launcher": run.process.pid, "first": pids[0], "last": pids[2]}[whom]
        os.kill(pid, signal.SIGUSR1)
        check_stopped(run.finish(30), tmp_path, 0)


def test_ranks_leave_a_stubborn_one_behind(tmp_path: Path) -> None:
    with start_ranks(3, tmp_path, STOPS, "stubborn") as run:
        pids = list(ready_pids(run, 3).values())
        run.process.send_signal(signal.SIGUSR1)
        done = run.finish(40)
    assert done.code == 75, done.err
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    assert alive(pids) == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_rank_outlives_a_killed_launcher(wrapped: bool, tmp_path: Path) -> None:
    command = mpi_command(2, str(write_script(tmp_path, STOPS)), "busy")
    if wrapped:  # a wrapper script between mpirun and python, as bindings of cores and GPUs are often set
        inner = " ".join(command[-3:])
        command = [*command[:-3], "sh", "-c", f"{inner}; true"]
    with MpiRun(command, tmp_path) as run:
        pids = list(ready_pids(run, 2).values())
        assert sorted(alive(pids)) == sorted(pids)
        run.process.kill()
        run.process.wait(10)
        until = time.monotonic() + 10
        while alive(pids) and time.monotonic() < until:
            time.sleep(0.1)
        survivors = alive(pids)
        for pid in survivors:
            os.kill(pid, signal.SIGKILL)
        assert survivors == []


def test_bulk_data_moves_without_sleeps(tmp_path: Path) -> None:
    # With a sleep for every fragment this takes minutes, and the run's time limit ends it; without, a second.
    body = """
    import numpy as np
    from distqexp.engines.mpi import MpiEngine

    with MpiEngine() as engine:
        total = engine.sum(lambda context, chunk, control: np.full(2**22, engine.rank - 2), None, range(2))
        parts = list(engine.collect(lambda context, item: np.full(2**20, item / 2), None, range(4)))
        sent = engine.broadcast_arrays({"x": np.arange(2**21)} if engine.is_root else None)
        assert np.array_equal(sent["x"], np.arange(2**21))
        if engine.is_root:
            assert (total == -3).all()
            assert [part[-1] for part in parts] == [0.0, 0.5, 1.0, 1.5]
            print("equal")
    """
    done = run_ranks(2, tmp_path, body)
    assert done.code == 0, done.err
    assert "equal" in done.out


def test_waiting_ranks_leave_the_cores_alone(tmp_path: Path) -> None:
    body = """
    import time
    import numpy as np
    from distqexp.engines.mpi import MpiEngine

    def work(context, chunk, control):
        if control.label == "r0000":
            time.sleep(4)
        return np.zeros(3, np.int64)

    with MpiEngine() as engine:
        wall, cpu = time.monotonic(), time.process_time()
        engine.sum(work, None, range(2))
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        if engine.rank == 1:
            print(cpu / wall)
    """
    done = run_ranks(2, tmp_path, body)
    assert done.code == 0, done.err
    assert float(done.out) < 0.2  # a wait that spins takes a whole core; this one measures about 0.003
