"""Shared by all tests: a ledger of their own, quick models, the data folder when there is one."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: more threads than cores would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import safetensors.numpy
from processes import Processes
from run_harness import Commands

from distqexp.config import load_config
from distqexp.engines.serial import SerialEngine
from distqexp.privacy.ledger import Ledger
from distqexp.stages.plan import make_plan
from distqexp.tuning.rehearsal import only_pretrained


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of tests that run alone come first, then those that start processes, then slow ones: short ones fill the end."""
    items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in ("alone", "process", "slow")])


def pytest_collection_finish() -> None:
    """What is imported by now stays: collecting garbage, which some tests do often, need not walk through it each time."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of the test, those of its module too."""
    Processes.allowed = item.get_closest_marker("process") is not None


@pytest.fixture(scope="session", autouse=True)
def processes() -> Iterator[None]:
    """Tests without the mark ``process`` start none."""
    with pytest.MonkeyPatch.context() as patch:
        Processes(patch)
        yield


@contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """A lock on a file, shared or exclusive, until the end of the block."""
    with path.open("w") as file:
        fcntl.flock(file, kind)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test marked ``alone``, with all its fixtures, waits until the tests of other workers are done, and they wait for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    shared = Path(tempfile.gettempdir()) / f"turns-{os.environ['PYTEST_XDIST_TESTRUNUID']}"
    shared.mkdir(exist_ok=True)
    door, room = shared / "door", shared / "room"
    if item.get_closest_marker("alone"):
        # Holding the door, so that the others can't go on entering while this one waits.
        with locked(door, fcntl.LOCK_EX), locked(room, fcntl.LOCK_EX):
            return (yield)
    with ExitStack() as inside:
        with locked(door, fcntl.LOCK_EX):
            inside.enter_context(locked(room, fcntl.LOCK_SH))
        return (yield)


@pytest.fixture(scope="session")
def ledger_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """New folders without end. pytest's own look through all earlier ones for the next number, which takes ever longer."""
    folder = tmp_path_factory.mktemp("ledgers")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_ledger(ledger_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's ledger."""
    folder = next(ledger_folders)
    folder.mkdir()
    monkeypatch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
    return folder / "ledger.sqlite"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with mnist/ and icu2012/; tests skip where it is not there."""
    folder = os.environ.get("DISTQEXP_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DISTQEXP_DATA is not set to a folder with mnist/ and icu2012/")
    return Path(folder)


@pytest.fixture(scope="session")
def mnist_start(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained weights of the MNIST configs, which all start from the same: fitted once, by whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = folder / "mnist-start.safetensors"
    with locked(folder / "mnist-start.lock", fcntl.LOCK_EX):
        if not path.exists():
            config = load_config(Path(__file__).resolve().parent.parent / "configs" / "mnist-kronecker.toml")
            with SerialEngine() as engine:
                weights = make_plan(only_pretrained(config), engine).weights
            whole = folder / "mnist-start.part"
            safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, whole)
            whole.rename(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def own_launcher_sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Launchers keep their session folders apart from what killed ones left on this machine, see MpiRun."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("launchers")))
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Commands:
    """The commands, in this process."""
    return Commands(capsys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a ledger that isn't there yet."""
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """An open ledger."""
    with Ledger.open(path) as opened:
        yield opened
