"""The bank of tasks, one small task of it: both methods have a row, the table is written, and nothing is run twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mpi_harness import REPOSITORY

NAMES = ("bank", "bank_of_tasks")


@pytest.fixture
def bank_of_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    monkeypatch.delenv("DISTQEXP_DATA", raising=False)
    threads = torch.get_num_threads()
    import bank_of_tasks

    yield bank_of_tasks
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[name]


def made(name: str, method: str, after: float, before: float = 0.5, seed: int = 0, **more: Any) -> Any:
    figures = {
        "before": before,
        "after": after,
        "gain": before - after,
        "standard_error": 0.01,
        "units": 1000,
        "cpu_seconds": 60.0,
    }
    return (name, method, 1.0, seed), figures | more


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
def test_a_task_has_a_row_for_both_methods_and_is_not_run_twice(
    tmp_path: Path, bank_of_tasks: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus")
    page = tmp_path / "page.md"
    page.write_text((REPOSITORY / "docs" / "bank.md").read_text("utf-8"), "utf-8")
    arguments = ["--out", str(tmp_path), "--tasks", "iris", "--epsilons", "8", "--seeds", "1", "--table", str(page)]
    bank_of_tasks.main(arguments)
    said = capsys.readouterr().out
    assert said.startswith("MNIST is left out")
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text("utf-8").splitlines()]
    assert [run["key"] for run in runs] == [["iris, linear", method, 8.0, 0] for method in ("distqexp", "Opacus")]
    for run in runs:
        assert run["before"] == runs[0]["before"], "both begin with one model"
        assert run["gain"] == pytest.approx(run["before"] - run["after"])
    (row,) = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| iris")]
    assert f"| {runs[0]['units']} | {runs[0]['before']:.3f} |" in row
    assert f"{runs[0]['after']:.3f}" in row
    assert f"{runs[1]['after']:.3f}" in row
    assert "of 1 tasks end better" in page.read_text("utf-8")
    bank_of_tasks.main(arguments)
    assert len((tmp_path / "runs.jsonl").read_text("utf-8").splitlines()) == 2


def test_the_counts_are_those_of_made_up_runs(bank_of_tasks: ModuleType) -> None:
    from bank.tables import BEGIN, END, counts, with_tables

    runs = dict(
        [
            made("better", "distqexp", 0.3), made("better", "Opacus", 0.4),
            made("noise", "distqexp", 0.5 + 0.015), made("noise", "Opacus", 0.5),
            made("worse", "distqexp", 0.4), made("worse", "distqexp", 0.7, seed=1), made("worse", "Opacus", 0.9),
            made("level", "distqexp", 0.2), made("level", "Opacus", 0.2),
            made("only ours", "distqexp", 0.2), (("only ours", "Opacus", 1.0, 0), {"failed": "no such layer", "cpu_seconds": 60.0}),
            made("diverged", "distqexp", 0.2), made("diverged", "Opacus", 1e12),
        ]
    )  # fmt: skip
    (line,) = counts(runs)
    assert (
        "4 of 6 tasks end better than their start, 1 worse by more than 2 standard errors (worse) (1 single runs)"
        in line
    )
    assert "ahead of Opacus in 3 of 5, behind in 1 (noise)" in line
    assert line.startswith("epsilon 1 (2 seeds): ")
    page = with_tables(f"before\n{BEGIN}\nold\n{END}\nafter\n", runs)
    assert "old" not in page
    assert page.endswith(f"{END}\nafter\n")
    assert "| better | 1,000 | 0.500 | **0.300** | +0.200 (0.010) | 0.400 |" in page
    assert "| only ours | 1,000 | 0.500 | 0.200 | +0.300 (0.010) | can't run |" in page
    assert "| diverged | 1,000 | 0.500 | **0.200** | +0.300 (0.010) | 1.0e+12 |" in page
    with pytest.raises(SystemExit, match="no marks"):
        with_tables("nothing", runs)


def test_every_task_can_be_begun(bank_of_tasks: ModuleType) -> None:
    """Each has its records apart, in three roles, and a module that takes them; a task of MNIST only where its files are."""
    from bank.methods import errors
    from bank.tasks import tasks

    assert len(tasks()) >= 24
    assert not any("MNIST" in name for name in tasks())
    for name, make in tasks().items():
        if "2,000 features" in name or "20,000" in name:
            continue  # wide: they take seconds
        task = make()
        torch.manual_seed(0)
        wrong = errors(task, task.module())
        assert wrong.shape == task.evaluation[1].shape, name
        assert np.isfinite(wrong).all(), name
        private = {row.tobytes() for row in task.private[0]}
        assert len(private) > len(task.public[0]), name
