"""What the benchmark scripts remember, and how they choose the best settings of baselines."""

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


def test_the_search_follows_a_ridge_of_rate_and_clip_and_ends_at_the_top() -> None:
    """Rate times clip is what counts, and the best clip is three numbers from the start: rates at clip 1 alone end elsewhere."""
    from benchmarks.search import Axis, climb, half_decade, listed, rates

    asked: list[tuple[float, float, str]] = []

    def score(setting: dict[str, object]) -> float:
        rate, clip, name = (setting[key] for key in ("learning_rate", "clip", "name"))
        assert isinstance(rate, float)
        assert isinstance(clip, float)
        asked.append((rate, clip, str(name)))
        product, alone = 2 * math.log10(rate * clip) - 1, 2 * math.log10(clip) + 3
        return -abs(product) - abs(alone) / 10 + (5.0 if name == "b" else 0.0)

    axes = [
        rates([-1, 0, 1]),
        Axis("clip", half_decade, [-1, 0, 1], least=-4, most=4, slide=lambda index: -index),
        listed("name", ["a", "b", "a"]),
    ]
    best = climb(axes, {"learning_rate": 0, "clip": 0, "name": 0}, {"fixed": 7}, score)
    assert best is not None
    assert best.setting == {"fixed": 7, "learning_rate": half_decade(4), "clip": half_decade(-3), "name": "b"}
    assert (best.at_edge, best.complete, best.converged) == ((), True, True)
    assert best.tried == len(asked) == len(set(asked)), "no setting is scored twice"
    neighbours = {(half_decade(rate), half_decade(-3), "b") for rate in (3, 5)}
    assert neighbours <= set(asked), "the best has a smaller and a larger rate beside it"


def test_without_a_slide_the_old_rate_is_taken_along_and_rates_beside_it_can_win() -> None:
    from benchmarks.search import Axis, climb, rates

    def score(setting: dict[str, object]) -> float:
        return 1.0 if (setting["learning_rate"], setting["clip"]) == (10.0, 2) else 0.0

    def axes(beside: int) -> list[Axis]:
        return [rates([-1, 0, 1]), Axis("clip", lambda index: index, [1, 2, 3], beside=beside)]

    start = {"learning_rate": 0, "clip": 1}
    narrow, wide = (climb(axes(beside), start, {}, score) for beside in (1, 2))
    assert narrow is not None
    assert wide is not None
    assert (narrow.score, wide.score) == (0.0, 1.0)


def test_an_endless_slope_is_said_to_be_at_the_edge() -> None:
    from benchmarks.search import FURTHEST, climb, half_decade, rates

    best = climb([rates([-2, -1, 0])], {"learning_rate": -1}, {}, lambda setting: -math.log(setting["learning_rate"]))
    assert best is not None
    assert best.at_edge == ("learning_rate",)
    assert best.setting["learning_rate"] == half_decade(-2 - FURTHEST)
    assert best.tried == 3 + FURTHEST


def test_of_equal_scores_an_inner_rate_is_the_best_and_nan_is_the_worst() -> None:
    from benchmarks.search import climb, half_decade, rates

    def score(setting: dict[str, float]) -> float:
        return math.nan if setting["learning_rate"] > 9 else 1.0

    best = climb([rates([0, 1, 2])], {"learning_rate": 0}, {}, score)
    assert best is not None
    assert best.setting["learning_rate"] == half_decade(1)
    assert best.at_edge == ()


def test_an_unfinished_search_is_neither_extended_nor_complete() -> None:
    from benchmarks.search import climb, rates

    start = {"learning_rate": 1}
    best = climb([rates([0, 1, 2])], start, {}, lambda setting: None if setting["learning_rate"] == 1.0 else 5.0)
    assert best is not None
    assert (best.complete, best.converged, best.tried) == (False, False, 2)
    assert climb([rates([0, 1])], start, {}, lambda setting: None) is None


def test_the_mean_of_all_seeds_and_splits_chooses_not_the_first_seed(tmp_path: Path) -> None:
    """On planted results: one setting is best at seed 0, another one in the mean of three."""
    pytest.importorskip("opacus")
    from benchmarks.methods import CHOICE_SEEDS, mean_score
    from benchmarks.search import climb, rates

    planted = {1.0: (0.9, 0.5, 0.5), 3.16: (0.7, 0.7, 0.71), 10.0: (0.6, 0.6, 0.6)}

    def results(setting: dict[str, float], seed: int) -> list[dict[str, object]]:
        values = planted.get(setting["learning_rate"], (0.0, 0.0, 0.0))
        return [{"metrics": {"auroc": values[seed] + shift}} for shift in (0.0, 0.1)]

    def chosen(seeds: int) -> float:
        best = climb(
            [rates([0, 1, 2])], {"learning_rate": 1}, {},
            lambda setting: mean_score([results(setting, seed) for seed in range(seeds)], "auroc"),
        )  # fmt: skip
        assert best is not None
        return float(best.setting["learning_rate"])

    assert CHOICE_SEEDS == 3
    assert (chosen(1), chosen(CHOICE_SEEDS)) == (1.0, 3.16)
    assert mean_score([[{"metrics": {"auroc": 0.5}}, None]], "auroc") is None
    assert math.isnan(mean_score([[{"metrics": {"auroc": None}}]], "auroc") or 0.0)


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
