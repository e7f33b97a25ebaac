"""A disk that is full at every write of a run, page by page and file by file: nothing is half there, nothing is free, all is resumable."""

from __future__ import annotations

import contextlib
import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_harness import Commands, table_tree, to_toml, write_task

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.sums import Quadratic
from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file

pytestmark = pytest.mark.process

SEED = 3


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"can't mount a small tmpfs here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_room(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10k", str(folder)], check=True)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = write_task(tmp_path)
    tree = table_tree(mechanism={"rounds": 2}, model={"pretrain": {"epochs": 2, "optimiser": "lbfgs"}})
    path.write_text(to_toml(tree), "utf-8")
    return path


def start(run: Commands, task: Path, out: Path, *more: str) -> tuple[int, str]:
    outcome = run.fit(task, "--out", out, "--insecure-noise-seed", str(SEED), *more)
    return outcome.code, "\n".join(outcome.reasons())


def released(out: Path) -> dict[str, bytes]:
    names = ("plan.h5", "release-000.h5", "release-001.h5", "model.safetensors")
    return {name: (out / name).read_bytes() for name in names}


def charged(ledger: Path) -> list[tuple[str, str]]:
    if not ledger.exists():
        return []
    with Ledger.open(ledger) as books:
        books.verify()
        return [(row.key.split("/")[2], row.state) for row in books.rows()]


def check_what_is_there(out: Path, ledger: Path) -> None:
    """Every final name is a whole file, and a release stands with its charge only."""
    found = {path.name for path in out.glob("*")} if out.is_dir() else set()
    plan = Plan.read(out / "plan.h5") if "plan.h5" in found else None
    for name in sorted(found):
        if name.startswith("sketch-"):
            read_file(out / name, own=True)
        elif name.startswith("quadratic-"):
            assert plan is not None
            Quadratic.read(out / name, plan, own=True)
        elif name.startswith("release-"):
            assert plan is not None
            Release.read(out / name, plan)
    rounds = {str(int(name[8:11])) for name in found if name.startswith("release-")}
    if rounds:
        make_room(ledger.parent)  # opening a ledger takes a little room
        assert {(number, "committed") for number in rounds} <= set(charged(ledger))


def walk(run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> list[int]:
    """A run on a disk of each size; returns their exit codes, and sees each of them resumed."""
    monkeypatch.setenv("DISTQEXP_LEDGER", str(task.parent / "plenty.sqlite"))
    assert start(run, task, task.parent / "plenty")[0] == 0
    expected, codes = released(task.parent / "plenty"), []
    for number, option in enumerate(options):
        disk = task.parent / f"disk{number}"
        out, ledger = disk / "run", disk / "ledger.sqlite"
        monkeypatch.setenv("DISTQEXP_LEDGER", str(ledger))
        with small_disk(disk, option):
            code, reason = start(run, task, out)
            codes.append(code)
            assert code in (0, 6), (option, code, reason)
            assert code == 0 or (reason.startswith("distqexp: ") and "\n" not in reason), (option, reason)
            check_what_is_there(out, ledger)
            make_room(disk)
            resumed = start(run, task, out, "--resume")
            assert resumed[0] == 0, (option, reason, resumed)
            assert released(out) == expected, option
            assert charged(ledger) == [("0", "committed"), ("1", "committed")], option
            assert not list(disk.rglob("*.unfinished")), option
        if code == 0:
            break
    return codes


@pytest.mark.slow
def test_a_disk_that_is_full_at_every_page(run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = walk(run, task, monkeypatch, [f"size={4 * pages}k" for pages in range(1, 200)])
    assert len(codes) > 15
    assert codes == [6] * (len(codes) - 1) + [0]


@pytest.mark.slow
def test_a_disk_without_room_for_another_file(run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = walk(run, task, monkeypatch, [f"size=8m,nr_inodes={files}" for files in range(2, 60)])
    assert len(codes) > 8
    assert codes == [6] * (len(codes) - 1) + [0]


def test_a_disk_full_at_a_few_places(run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 6 in walk(run, task, monkeypatch, ["size=40k", "size=72k", "size=8m,nr_inodes=9"])


def test_read_only_output_is_exit_6(run: Commands, task: Path) -> None:
    disk = task.parent / "disk"
    with small_disk(disk, "size=64k"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for out in (disk / "run", disk):
            code, reason = start(run, task, out)
            assert code == 6, reason
            assert "\n" not in reason
        plan = task.parent / "plan.h5"
        assert run.distqexp("plan", task, "--out", plan).code == 0
        run.distqexp("plan", task, "--out", disk / "plan.h5").refused(6, "plan.h5")


def test_a_ledger_on_a_read_only_disk_is_exit_6_and_nothing_is_released(
    run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = task.parent / "disk"
    monkeypatch.setenv("DISTQEXP_LEDGER", str(disk / "ledger.sqlite"))
    with small_disk(disk, "size=64k"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, reason = start(run, task, task.parent / "run")
        assert (code, "\n" in reason) == (6, False), reason
        assert not list((task.parent / "run").glob("release-*"))
