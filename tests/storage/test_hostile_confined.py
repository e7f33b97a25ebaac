"""The process that reads HDF5 from elsewhere: what it dies of is a refused file; what it says is checked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi_harness import MpiRun, mpi_command

from distqexp.errors import EngineError, FileContentError, UsageError
from distqexp.storage.confined import parent as confined
from distqexp.storage.content import Request
from distqexp.storage.hdf5 import read_file, write_file
from distqexp.storage.label import LABEL_BYTES, make_label

pytestmark = pytest.mark.process

REAL = sys.executable


def write(path: Path, **arrays: Any) -> Path:
    write_file(path, kind="release", plan_id="ab" * 32, header={"round": 0}, arrays=arrays, private=False)
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write(tmp_path / "release.h5", x=np.arange(1000.0), empty=np.zeros((0, 2)), one=np.array(True))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a program in the place of the reading process: it gets a frame out and then does what it likes."""

    def replace(code: str) -> None:
        script = tmp_path / "reader.py"
        script.write_text(
            "import os, resource, signal, struct, sys, time\n"
            "def send(text, more=b''):\n"
            "    os.write(1, struct.pack('<Q', len(text)) + text + more)\n" + code,
            "utf-8",
        )
        program = tmp_path / "program"
        program.write_text(f'#!/bin/sh\nexec "{REAL}" "{script}"\n', "utf-8")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


READY = "send(b'{\"ready\": true}')\n"


def test_the_answer_is_the_content(stored: Path) -> None:
    here, there = read_file(stored, own=True), read_file(stored)
    assert here.header == there.header
    assert here.arrays.keys() == there.arrays.keys()
    for name, array in here.arrays.items():
        assert (array.dtype, array.shape) == (there.arrays[name].dtype, there.arrays[name].shape)
        assert array.tobytes() == there.arrays[name].tobytes()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (READY + "os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        (READY + "os.abort()", "SIGABRT"),
        (READY + "resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass", "more time"),
        (READY + "os.kill(os.getpid(), signal.SIGKILL)", "too long"),
        (READY + "sys.exit(1)", "exit code 1"),
        (READY + "os.write(1, struct.pack('<Q', 2**60))", "larger than the file"),
        (READY + "send(b'{\"name\": \"x\", \"type\": \"<f8\", \"shape\": [1099511627776]}')", "more arrays"),
        (READY + "send(b'{\"name\": \"x\", \"type\": \"<f8\", \"shape\": [100000]}', bytes(800000))", "more arrays"),
        (READY + "send(b'{\"refused\": \"no good\"}')", "no good"),
    ],
)  # fmt: skip
def test_a_process_that_dies_or_lies_is_a_refused_file(
    stored: Path, reader: Callable[[str], None], code: str, words: str
) -> None:
    reader(code)
    before = threading.active_count()
    with pytest.raises(FileContentError, match=words) as caught:
        read_file(stored)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert threading.active_count() == before


def test_a_process_that_hangs_is_ended(
    stored: Path, reader: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "WALL_SECONDS", 1.0)
    reader(READY + "time.sleep(600)")
    began = time.monotonic()
    with pytest.raises(FileContentError, match="too long"):
        read_file(stored)
    assert time.monotonic() - began < 10


def test_a_process_that_does_not_start_is_no_fault_of_the_file(
    stored: Path, reader: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader("sys.exit(3)")
    with pytest.raises(EngineError, match="did not start"):
        read_file(stored)
    monkeypatch.setattr(sys, "executable", str(stored.parent / "none"))
    with pytest.raises(EngineError, match="no process could be started"):
        read_file(stored)


def test_a_file_that_makes_the_library_loop_is_given_up_in_time(tmp_path: Path) -> None:
    """Texts whose heap has free space of no size: HDF5 reads on for ever."""
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as h5:
        h5["texts"] = ["first", "second", "third"]
    content = path.read_bytes()
    at = content.index(b"GCOL") + 16  # the heap's first entry
    path.write_bytes(content[:at] + bytes(16) + content[at + 16 :])
    began = time.monotonic()
    with path.open("rb") as file, pytest.raises(FileContentError) as caught:
        confined.check_confined(file, Request(str(path), len(content)), "structure")
    assert time.monotonic() - began < 40  # three seconds of processor time, on a machine that may be busy
    assert "\n" not in str(caught.value)
    assert "more time" in str(caught.value)


@pytest.mark.parametrize("allocate", ["bytearray(3 << 30)", "[bytes(1 << 20) for _ in range(3000)]"])
def test_memory_is_bounded(stored: Path, reader: Callable[[str], None], allocate: str) -> None:
    reader(
        "from distqexp.storage.confined import child as reader\nfrom distqexp.storage.content import Request\n"
        f"sys.stdout = os.fdopen(1, 'wb')\nreader.send(sys.stdout, {{'ready': True}})\nreader.set_limits(10000)\n"
        f"reader.read_content = lambda *_: {allocate}\n"
        f"reader.serve('content', Request('F', 10000), None, sys.stdout)"
    )
    with pytest.raises(FileContentError, match="F: takes more memory"):
        read_file(stored)


def test_no_core_file_and_no_launcher_in_the_child(
    stored: Path, reader: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS", "HDF5_PLUGIN_PATH"):
        monkeypatch.setenv(name, "2")
    reader(
        "from distqexp.storage.confined import child as reader\nfrom distqexp.storage.content import Request\n"
        "sys.stdout = os.fdopen(1, 'wb')\nreader.send(sys.stdout, {'ready': True})\nreader.set_limits(10000)\n"
        "seen = [name for name in os.environ if name[:4] in ('OMPI', 'PMI_', 'PMIX', 'SLUR') or name.endswith('_PATH')]\n"
        "core = resource.getrlimit(resource.RLIMIT_CORE)[0]\n"
        "reader.send(sys.stdout, {'refused': f'{seen} {core} {os.environ[\"HDF5_PLUGIN_PRELOAD\"]}'})"
    )
    with pytest.raises(FileContentError) as caught:
        read_file(stored)
    assert str(caught.value) in ("[] 0 ::", "['LD_LIBRARY_PATH'] 0 ::")


def test_modules_in_the_current_folder_are_not_taken(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("h5py", "numpy", "json"):
        (stored.parent / f"{name}.py").write_text("raise SystemExit(9)\n", "utf-8")
    monkeypatch.chdir(stored.parent)
    assert read_file(stored).header == {"round": 0}


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", Path("/dev/zero")):
        with pytest.raises(UsageError, match="expected a file"):
            read_file(path)


def test_many_names_of_one_array_are_no_bomb(tmp_path: Path) -> None:
    path = write(tmp_path / "release.h5", x=np.arange(100.0))
    with h5py.File(path, "r+", locking=False) as h5:
        for number in range(50):
            h5[f"again{number}"] = h5["x"]
        h5["loop"] = h5["/"]
    body = path.read_bytes()[LABEL_BYTES:]
    path.write_bytes(make_label(len(body), hashlib.sha256(body).hexdigest()) + body)
    try:
        assert list(read_file(path).arrays) == ["x"]
    except FileContentError as error:
        assert "belong together" in str(error)  # noqa: PT017 - either is right: the library chooses the name that it shows


def test_files_are_read_in_ranks(tmp_path: Path, stored: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mpi4py import MPI\n"
        "from distqexp.storage.hdf5 import read_file\n"
        f"found = read_file(Path({str(stored)!r})).arrays['x'].sum()\n"
        "assert MPI.COMM_WORLD.allreduce(found) == 2 * 499500.0\n"
    )
    script = tmp_path / "ranks.py"
    script.write_text(code, "utf-8")
    with MpiRun(mpi_command(2, str(script)), tmp_path) as run:
        done = run.finish(60)
    assert done.code == 0, done.err


def test_the_child_loads_nothing_heavy() -> None:
    code = "import sys, distqexp.storage.confined.child; print([n for n in ('torch', 'scipy', 'mpi4py') if n in sys.modules])"
    done = subprocess.run([REAL, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
