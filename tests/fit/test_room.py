"""A folder in which nothing was spent serves another run; whatever was spent or is somebody's own stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_harness import Commands, charges, table_source, table_tree, write_task

from distqexp import api
from distqexp.errors import UsageError
from distqexp.privacy.ledger import Ledger


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path, table_tree(data={"eval": table_source("eval.csv")}))


def left_by_a_kill(folder: Path, task: Path) -> None:
    """What a run leaves that was killed in its first sketch: a plan, and the sums of some pieces."""
    folder.mkdir()
    api.plan(api.load_config(task), folder / "plan.h5")
    (folder / "sketch-000-all-a000-r0000.h5").write_bytes(b"sums")
    (folder / ".release-000.h5.1.ab.unfinished").write_bytes(b"half")
    (folder / "progress.jsonl").write_text('{"stage": "plan"}\n', "utf-8")


def test_a_plan_alone_makes_way_for_another_config(run: Commands, task: Path, own_ledger: Path) -> None:
    out = task.parent / "run"
    out.mkdir()
    first = api.plan(api.load_config(task), out / "plan.h5")
    assert run.fit(task, "--out", out, "--set", "privacy.epsilon=0.5").code == 0
    assert api.Plan.read(out / "plan.h5").plan_id != first.plan_id
    assert charges(own_ledger) == 1


def test_unfinished_sums_go_where_that_is_asked_for(run: Commands, task: Path) -> None:
    out = task.parent / "run"
    left_by_a_kill(out, task)
    run.fit(task, "--out", out).refused(2, "not empty", "--resume", "--overwrite")
    assert (out / "sketch-000-all-a000-r0000.h5").exists()
    run.fit(task, "--out", out, "--overwrite", "--resume").refused(2, "expected one of them")
    assert run.fit(task, "--out", out, "--overwrite").code == 0
    assert not list(out.glob("sketch-*"))
    assert not list(out.glob(".*"))
    assert (out / "report.html").exists()


def test_what_was_spent_is_never_overwritten(run: Commands, task: Path, own_ledger: Path) -> None:
    out = task.parent / "run"
    assert run.fit(task, "--out", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    run.fit(task, "--out", out, "--overwrite").refused(2, "its plan has charges in the ledger", "--resume")
    with pytest.raises(UsageError, match="charges in the ledger"):
        api.fit(api.load_config(task), out, overwrite=True)
    run.fit(task, "--out", out).refused(2, "not empty")
    mine = task.parent / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    run.fit(task, "--out", mine, "--resume").refused(2, "no run in", "thesis.txt")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # The charge alone binds the folder, too: its release may have been moved away, and the sums be on their way.
    for path in out.iterdir():
        if path.name != "plan.h5":
            path.unlink()
    run.fit(task, "--out", out).refused(2, "not empty")
    assert charges(own_ledger) == 1


def test_a_release_binds_a_folder_whatever_the_ledger(
    run: Commands, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.fit(task, "--out", tmp_path / "run").code == 0
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "another.sqlite"))
    run.fit(task, "--out", tmp_path / "run", "--overwrite").refused(2, "certificate.json is in it")


@pytest.mark.parametrize("name", ["thesis.txt", "plan.toml", "notes/a.txt"])
def test_a_file_of_ones_own_is_never_removed(run: Commands, task: Path, name: str) -> None:
    out = task.parent / "run"
    left_by_a_kill(out, task)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine", "utf-8")
    for words in ([], ["--overwrite"]):
        run.fit(task, "--out", out, *words).refused(2, str(out))
    assert (out / name).read_text("utf-8") == "mine"
    assert (out / "sketch-000-all-a000-r0000.h5").exists()


def test_a_ledger_or_a_plan_that_can_not_be_read_leaves_everything(run: Commands, task: Path, own_ledger: Path) -> None:
    out = task.parent / "run"
    left_by_a_kill(out, task)
    Ledger.open().set_cap("patients", 2.0, 1e-5)
    own_ledger.write_text("dear diary", "utf-8")
    assert run.fit(task, "--out", out, "--overwrite").code == 2
    own_ledger.unlink()
    (out / "plan.h5").write_text("torn", "utf-8")
    assert run.fit(task, "--out", out, "--overwrite").code == 2
    assert (out / "sketch-000-all-a000-r0000.h5").exists()
