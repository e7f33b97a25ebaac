"""What the benchmark scripts remember, and how they choose Opacus' best setting."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from mpi_harness import REPOSITORY


@pytest.fixture(autouse=True)
def _scripts_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_the_learning_rates_grow_until_the_best_is_inside() -> None:
    from benchmarks.search import best_of_grid, half_decade

    asked: list[tuple[str, float]] = []

    def score(setting: dict[str, object]) -> float:
        rate = float(str(setting["learning_rate"]))
        asked.append((str(setting["name"]), rate))
        peak = 3 if setting["name"] == "high" else -1
        return -abs(math.log10(rate) * 2 - peak) + (5.0 if setting["name"] == "high" else 0.0)

    best = best_of_grid([{"name": "low"}, {"name": "high"}], [-1, 0, 1], score)
    assert best is not None
    assert best.setting == {"name": "high", "learning_rate": half_decade(3)}
    assert (best.at_edge, best.complete, best.tried) == (False, True, len(asked))
    high = [rate for name, rate in asked if name == "high"]
    assert high == [half_decade(index) for index in (-1, 0, 1, 2, 3, 4)]
    assert [rate for name, rate in asked if name == "low"] == [half_decade(index) for index in (-1, 0, 1, -2)]


def test_the_smallest_rate_is_extended_downwards_and_an_endless_slope_is_said_to_be_at_the_edge() -> None:
    from benchmarks.search import FURTHEST, best_of_grid, half_decade

    best = best_of_grid([{}], [-2, -1, 0], lambda setting: -math.log(setting["learning_rate"]))
    assert best is not None
    assert best.at_edge
    assert best.setting["learning_rate"] == half_decade(-2 - FURTHEST)
    assert best.tried == 3 + FURTHEST


def test_of_equal_scores_an_inner_rate_is_the_best_and_nan_is_the_worst() -> None:
    from benchmarks.search import best_of_grid, half_decade

    best = best_of_grid([{}], [0, 1, 2], lambda setting: math.nan if setting["learning_rate"] > 9 else 1.0)
    assert best is not None
    assert best.setting["learning_rate"] == half_decade(1)
    assert not best.at_edge


def test_an_unfinished_grid_is_neither_extended_nor_complete() -> None:
    from benchmarks.search import best_of_grid

    best = best_of_grid([{}], [0, 1, 2], lambda setting: None if setting["learning_rate"] == 1.0 else 5.0)
    assert best is not None
    assert (best.complete, best.tried) == (False, 3)
    assert best_of_grid([{}], [0, 1], lambda setting: None) is None


def test_a_run_is_made_once_and_a_line_cut_short_is_made_again(tmp_path: Path) -> None:
    from benchmarks.checkpoint import Runs

    path, made = tmp_path / "runs.jsonl", []

    def make(seed: int) -> dict[str, float]:
        made.append(seed)
        return {"metrics": {"accuracy": seed / 10}}

    runs = Runs(path)
    for seed in (1, 2, 1):
        found = runs.result({"method": "m", "epsilon": 1.0, "seed": seed}, lambda seed=seed: make(seed))
        assert found == {"metrics": {"accuracy": seed / 10}}
    assert (made, runs.made) == ([1, 2], 2)
    whole = path.read_text("utf-8")
    assert len(whole.splitlines()) == 2
    path.write_text(whole[:-9], "utf-8")
    again = Runs(path)
    for seed in (1, 2):
        again.result({"seed": seed, "epsilon": 1.0, "method": "m"}, lambda seed=seed: make(seed))
    assert made == [1, 2, 2]
    assert path.read_text("utf-8") == whole


def test_without_time_or_leave_a_run_is_missing_and_remembered_ones_still_count(tmp_path: Path) -> None:
    from benchmarks.checkpoint import Runs

    path = tmp_path / "runs.jsonl"
    known = {"method": "m", "epsilon": 1.0, "seed": 0}
    Runs(path).result(known, lambda: {"metrics": {"accuracy": 0.5}})

    def never() -> dict[str, float]:
        raise AssertionError("made without time")

    late, barred = Runs(path, seconds=0.0), Runs(path)
    assert late.result(known, never) == barred.result(known, never, allowed=False) == {"metrics": {"accuracy": 0.5}}
    assert late.result({**known, "seed": 1}, never) is None
    assert barred.result({**known, "seed": 1}, never, allowed=False) is None
    assert late.missing == barred.missing == {"m, epsilon 1.0": 1}
    assert len([json.loads(line) for line in path.read_text("utf-8").splitlines()]) == 1


def test_the_difference_is_paired_by_split_with_a_t_interval() -> None:
    pytest.importorskip("opacus")
    from frontier import difference

    ours = {"mean": {"auroc": 0.82}, "values": {"auroc": [[0.80, 0.82], [0.83, 0.83]]}}
    theirs = {"mean": {"auroc": 0.81}, "values": {"auroc": [[0.80, 0.80], [0.82, 0.82]]}}
    found = difference(ours, theirs, "auroc")
    assert found is not None
    assert found["by_split"] == pytest.approx([0.01, 0.01])
    assert found["low"] == pytest.approx(0.01)
    theirs["values"]["auroc"][1] = [0.80, 0.80]
    found = difference(ours, theirs, "auroc")
    assert found is not None
    # Two differences, 0.01 and 0.03: mean 0.02, standard error 0.01, t(0.975, 1) = 12.706.
    assert (found["low"], found["high"]) == pytest.approx((0.02 - 0.12706, 0.02 + 0.12706), abs=1e-4)
    del sys.modules["frontier"]
