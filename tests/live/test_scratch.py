"""Private scratch folders: none is left behind, whoever was killed, and nobody else's is touched."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi_harness import run_environ

from distqexp.live import scratch
from distqexp.live.scratch import Scratch, scratch_folder

pytestmark = pytest.mark.process  # a small process watches over each folder

KILLED = """
import os, signal
from pathlib import Path
from distqexp.live import scratch

scratch._REAPER = {reaper!r}
folders = [scratch.Scratch(None), scratch.Scratch(Path("runs/study"))]
for folder in folders:
    (folder.path / "private").write_text("a name")
os.kill(os.getpid(), signal.SIGKILL)
"""
NO_REAPER = "exec true"
FIT = """
import os, signal
import distqexp
from live_records import BUDGET, PRIVATE, PUBLIC, OwnNet

model = OwnNet()
model.body.requires_grad_(False)

def kill(event):
    if event.stage == "pool":
        print(*sorted(f"{place}/{name}" for place, _, names in os.walk("tmp") for name in names), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

distqexp.fit(model, PRIVATE, public=PUBLIC, callback=kill, **BUDGET)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def killed(place: Path, script: str) -> str:
    """Run a script that kills itself, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, env=run_environ({"TMPDIR": str(place / "tmp")}), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def empty_soon(folder: Path) -> bool:
    """Whether nothing is in a folder after a while, but what torch makes there."""

    def left() -> list[Path]:
        return [path for path in folder.iterdir() if not path.name.startswith("torch")]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left()


def test_the_next_start_removes_what_was_left_when_all_were_killed(tmp_path: Path, temporary: Path) -> None:
    """As by a container's end: the process that waits for the death is gone too."""
    killed(tmp_path, KILLED.format(reaper=NO_REAPER))
    left = [*temporary.iterdir(), *(tmp_path / "runs").iterdir()]
    assert [(path / "private").read_text() for path in left] == ["a name", "a name"]
    with scratch_folder(None) as folder, scratch_folder(tmp_path / "runs" / "other") as beside:
        assert list(temporary.iterdir()) == [folder]
        assert list((tmp_path / "runs").iterdir()) == [beside]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [*temporary.iterdir(), *(tmp_path / "runs").iterdir()] == []


def test_a_killed_process_leaves_nothing_for_long(tmp_path: Path, temporary: Path) -> None:
    killed(tmp_path, KILLED.format(reaper=scratch._REAPER))
    assert empty_soon(temporary)
    assert empty_soon(tmp_path / "runs")


def test_a_killed_fit_leaves_neither_records_nor_sums(tmp_path: Path, temporary: Path) -> None:
    said = killed(tmp_path, FIT)
    assert "private-0000.h5" in said
    assert "/run/sketch-000-" in said
    assert "/run/features-000" in said
    assert empty_soon(temporary)


def test_folders_of_others_are_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a living process, of another machine, of another user, links, and whatever has no mark."""
    living = Scratch(None)
    kept = Scratch(None)
    kept.folder("run")
    kept.keep("run")
    unmarked = temporary / "distqexp-records-unmarked"
    unmarked.mkdir()
    elsewhere = temporary / "distqexp-records-elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".owner").write_text("another host\nanother start")
    rebooted = temporary / "distqexp-records-rebooted"
    shutil.copytree(elsewhere, rebooted)
    (rebooted / ".owner").write_text(f"{scratch._machine()[0]}\nanother start")
    link = temporary / "distqexp-records-link"
    link.symlink_to(elsewhere)
    foreign = temporary / "distqexp-records-foreign"
    foreign.mkdir()
    (foreign / ".owner").write_text("\n".join(scratch._machine()))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    scratch._sweep(temporary)
    assert len(list(temporary.iterdir())) == 7
    monkeypatch.undo()
    scratch._sweep(temporary)
    assert set(temporary.iterdir()) == {living.path, kept.path, unmarked, elsewhere, link}
    living.remove()
    assert not living.path.exists()


def test_what_is_kept_goes_with_its_object(temporary: Path) -> None:
    own = Scratch(None)
    (own.folder("run") / "model").write_text("public")
    (own.path / "private.h5").write_text("private")
    own.folder("features")
    own.keep("run")
    assert sorted(path.name for path in own.path.iterdir()) == [".owner", "run"]
    assert (own.path / "run" / "model").exists()
    del own
    assert list(temporary.iterdir()) == []


def test_a_forked_copy_removes_nothing(temporary: Path) -> None:
    own = Scratch(None)
    child = os.fork()
    if child == 0:
        own._end()
        os._exit(0)
    os.waitpid(child, 0)
    assert own.path.is_dir()
    own.remove()
    assert list(temporary.iterdir()) == []


def test_without_locks_a_folder_is_no_ones_to_sweep(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("no locks on this file system")

    monkeypatch.setattr("fcntl.flock", fails)
    own = Scratch(None)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    scratch._sweep(temporary)
    assert own.path.is_dir()
    own.remove()
    assert list(temporary.iterdir()) == []
