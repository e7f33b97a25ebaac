"""An audit where matplotlib is missing: its findings and its exit code are as ever, and a line names the extra."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from run_harness import Commands, table_tree, write_task

from distqexp.audit.roc import write_plot

LINE = "distqexp: audit: no {}: matplotlib is not installed; install distqexp[plots] and run the same command again"


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing matplotlib fails as where it isn't installed."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_of_a_plan(no_matplotlib: None, tmp_path: Path, run: Commands) -> None:
    plan, out = tmp_path / "plan.h5", tmp_path / "audit"
    run.done("plan", write_task(tmp_path), "--out", plan)
    done = run.done("audit", plan, "--out", out, "--draws", "2000")
    assert done.err.splitlines() == [LINE.format("audit.png")]
    assert json.loads((out / "audit.json").read_text())["holds"] is True
    assert [path.name for path in out.iterdir()] == ["audit.json"]


@pytest.mark.slow
@pytest.mark.process
def test_of_a_run(no_matplotlib: None, tmp_path: Path, run: Commands) -> None:
    task = write_task(tmp_path, table_tree())
    done = run.distqexp("audit", task, "--canaries", "40", "--out", tmp_path / "audit")
    assert done.code == 0, done
    assert done.reasons() == [LINE.format("audit-run.png")]
    assert [path.name for path in (tmp_path / "audit").iterdir()] == ["audit-run.json"]


def test_another_missing_module_is_an_error(tmp_path: Path) -> None:
    def plot() -> bytes:
        raise ModuleNotFoundError("No module named 'cycler'", name="cycler")

    with pytest.raises(ModuleNotFoundError):
        write_plot(tmp_path / "a.png", plot)
