"""The serial engine, the launcher's account, and what may be printed about an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpi_harness import run_environ

from distqexp.config import EngineConfig, load_config
from distqexp.engines import Control, SerialEngine, make_engine
from distqexp.engines.base import is_collective, reason, rebuild, split
from distqexp.engines.launcher import (
    allocation_warning,
    check_size,
    launched_rank,
    launched_size,
    local_rank,
    may_print,
)
from distqexp.engines.placement import device_of
from distqexp.errors import EngineError, FileContentError, NotAvailableYet, StoppedError, UsageError
from distqexp.gradients.setup import build_network
from distqexp.stopping import StopRequest


def add_items(context: int, chunk: Sequence[int], control: Control) -> np.ndarray:
    total = np.zeros(3, np.int64)
    for done, item in enumerate(chunk, 1):
        if control.stop():
            raise StoppedError("checkpoint written")
        total += np.arange(3) * item + context
        control.tick(done, len(chunk))
    return total


@given(items=st.integers(0, 200), parts=st.integers(1, 70))
def test_split_is_contiguous_and_balanced(items: int, parts: int) -> None:
    chunks = [split(range(items), parts, index) for index in range(parts)]
    assert [item for chunk in chunks for item in chunk] == list(range(items))
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_serial_verbs() -> None:
    shares: list[float] = []
    with SerialEngine() as engine:
        engine.on_progress = shares.append
        total = engine.sum(add_items, 7, range(11))
        parts = list(engine.collect(lambda context, item: np.full((2, item), context / 3), 5, [2, 0, 1]))
        arrays = engine.broadcast_arrays({"x": np.arange(3)})
        assert engine.on_root(lambda: "result") == "result"
    assert total.dtype == np.int64
    assert total.tolist() == [77, 77 + 55, 77 + 110]
    assert [part.shape for part in parts] == [(2, 2), (2, 0), (2, 1)]
    assert arrays["x"].tolist() == [0, 1, 2]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 2), np.int64), [1, 2], np.zeros(3, np.int32)])
def test_a_sum_of_something_else_is_refused(wrong: object) -> None:
    with SerialEngine() as engine, pytest.raises(EngineError, match="expected an int64 vector"):
        engine.sum(lambda context, chunk, control: wrong, None, range(3))  # type: ignore[arg-type, return-value]


def test_arrays_of_objects_are_refused() -> None:
    with SerialEngine() as engine, pytest.raises(EngineError, match="broadcast of x"):
        engine.broadcast_arrays({"x": np.array([object()])})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_stop_the_work_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with SerialEngine() as engine:
        engine.raise_if_stopped()
        os.kill(os.getpid(), number)
        with pytest.raises(StoppedError, match="--resume") as caught:
            engine.sum(add_items, 0, range(5))
        assert caught.value.exit_code == 75
        assert is_collective(caught.value)
        with pytest.raises(StoppedError):
            next(engine.collect(lambda context, item: np.zeros(1), None, [1]))
        with pytest.raises(StoppedError):
            engine.raise_if_stopped()
    assert signal.getsignal(number) is before


def test_stop_request_counts_signals() -> None:
    stop = StopRequest()
    stop.install()
    try:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.count == 2
    finally:
        stop.restore()


def test_reason_tells_no_message_of_foreign_code() -> None:
    def parse() -> None:
        float("71.5 kg, ward 3")

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what must not be looked at
        parse()
    line = reason(caught.value)
    assert "ward" not in line
    assert "ValueError at test_serial.py" in line
    assert reason(FileContentError("column age:\n missing")) == "column age: missing"
    assert "no_such_module" in reason(ModuleNotFoundError("No module named 'no_such_module'"))


def test_rebuilt_errors_keep_their_message() -> None:
    error = NotAvailableYet("tune")
    assert str(rebuild(type(error), str(error))) == str(error)


def test_launcher_variables() -> None:
    assert launched_size({}) is None
    assert launched_size({"SLURM_NTASKS": "9", "PBS_NP": "9", "LSB_DJOB_NUMPROC": "9"}) is None
    assert launched_size({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "4"}) == (4, "OMPI_COMM_WORLD_SIZE")
    assert launched_size({"SLURM_STEP_NUM_TASKS": "3", "PMI_SIZE": "2"}) == (2, "PMI_SIZE")
    assert launched_size({"SLURM_STEP_NUM_TASKS": "3"}) == (3, "SLURM_STEP_NUM_TASKS")
    assert launched_size({"PMI_SIZE": "four"}) is None
    assert launched_rank({"PMI_RANK": "2"}) == 2
    assert local_rank({"SLURM_LOCALID": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "5"}) == 5
    assert local_rank({}) == 0


def test_launcher_and_engine_must_agree() -> None:
    check_size(1, {})
    check_size(4, {"PMI_SIZE": "4", "SLURM_NTASKS": "8"})
    with pytest.raises(EngineError, match=r"says 4 processes \(PMI_SIZE\), the engine says 1: .*mpi4py"):
        check_size(1, {"PMI_SIZE": "4"})
    with pytest.raises(EngineError, match=r"says 4 .* says 2: a variable left over"):
        check_size(2, {"PMI_SIZE": "4"})


def test_allocations_only_warn() -> None:
    assert allocation_warning(8, {"SLURM_NTASKS": "8"}) is None
    assert allocation_warning(1, {}) is None
    assert "64 tasks (PBS_NP)" in str(allocation_warning(1, {"PBS_NP": "64"}))
    with make_engine(EngineConfig(kind="serial"), {"LSB_DJOB_NUMPROC": "16"}) as engine:
        assert engine.kind == "serial"
        assert "LSB_DJOB_NUMPROC" in str(engine.warning)


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("3", [10.0])])
def test_serial_copies_under_a_launcher_are_refused(
    rank: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("distqexp.engines.launcher.time.sleep", waited.append)
    with pytest.raises(EngineError, match="says 4 processes") as caught:
        make_engine(EngineConfig(kind="serial"), {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": rank})
    assert getattr(caught.value, "reported", False) is bool(waits)
    assert waited == waits


def test_only_the_first_process_prints() -> None:
    assert may_print({})
    assert may_print({"OMPI_COMM_WORLD_RANK": "0"}, patience=0.0)
    assert not may_print({"OMPI_COMM_WORLD_RANK": "3"}, patience=0.0)


@pytest.mark.process
def test_engines_import_nothing_heavy() -> None:
    code = (
        "import sys; import distqexp.engines; from distqexp.config import EngineConfig; import os;"
        "distqexp.engines.make_engine(EngineConfig(), {});"
        "print(sorted({'mpi4py', 'dask', 'distributed', 'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=run_environ(), capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.process
def test_pinned_threads_and_kernels() -> None:
    code = (
        "import torch; from distqexp.engines.threads import pin_threads; pin_threads(1); pin_threads(2); pin_threads(1)\n"
        "import numpy; from threadpoolctl import threadpool_info\n"
        "print(torch.get_num_threads(), torch.are_deterministic_algorithms_enabled() == torch.cuda.is_available(),"
        " torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,"
        " {pool['num_threads'] for pool in threadpool_info()})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=run_environ(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "1 True False False {1}", done.stderr


# --- GPUs --------------------------------------------------------------------------------------------------------


def test_ranks_go_round_the_gpus_of_their_host() -> None:
    assert [device_of("cuda", rank, 4) for rank in range(6)] == [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)]
    assert [device_of("cuda", rank, 1) for rank in range(3)] == ["cuda:0"] * 3
    assert device_of("cpu", 3, 0) == "cpu"
    with pytest.raises(UsageError, match="sees no GPU"):
        device_of("cuda", 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_config_for_a_gpu_is_refused_without_one() -> None:
    with pytest.raises(UsageError, match=r"engine\.device: cuda, and this process sees no GPU"):
        build_network(load_config(None, ["engine.device=cuda"]))
