"""The grid, the search, and the rule of choice: on made-up scores, against a slow recount."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distqexp.config import Config, TuneConfig, load_config
from distqexp.errors import FileContentError, UsageError
from distqexp.tuning.search import MORE, MOST, best_of, search
from distqexp.tuning.space import Setting, Space, make_space, values_of, with_values
from distqexp.tuning.trials import KEYS, Run, Summary, Trials


def config_with(**lists: Any) -> Config:
    """The digits task with a [tune] section."""
    return replace(load_config(), tune=TuneConfig(**lists))


def bowl(space: Space, calls: list[tuple[Setting, int]]) -> Callable[[Setting, int], Summary]:
    """Runs whose score falls with the distance from step 2 and damping 3, with a little noise by seed."""

    def run(setting: Setting, seeds: int) -> Summary:
        calls.append((setting, seeds))
        values = space.values(setting)
        far = abs(math.log(values["step"] / 2)) + abs(math.log(values["damping"] / 3))
        runs = [Run(seed, "accuracy", 0.9 - 0.1 * far - 0.001 * (seed % 3), far, 0.0) for seed in range(seeds)]
        return Summary(values, tuple(runs))

    return run


# --- the grid ----------------------------------------------------------------------------------------------------


def test_the_grid_is_every_combination_that_a_config_allows() -> None:
    config = config_with(
        rounds=(8, 2, 4, 4), parts=(1, 2, 3), clip_quantile=(0.5,), clip_natural=(1.0, 2.0), max_passes=4
    )
    space = make_space(config)
    assert space.size == 3 * 3 * 3
    found = list(space.order(0))
    assert len(set(found)) == len(found)
    expected = {
        (rounds, parts, *clip)
        for rounds, parts in itertools.product((2, 4, 8), (1, 2, 3))
        for clip in ((0.5, None), (None, 1.0), (None, 2.0))
        if rounds % parts == 0 and rounds / parts <= 4
    }
    values = [space.values(setting) for setting in found]
    assert {(v["rounds"], v["parts"], v["clip_quantile"], v["clip_natural"]) for v in values} == expected
    for setting in found:
        made = space.config_of(setting)
        assert values_of(made) == space.values(setting)
        assert made.privacy == config.privacy


def test_the_configs_own_setting_comes_first_and_the_order_is_that_of_the_seed() -> None:
    space = make_space(config_with(step=(0.1, 0.5, 2.0), damping=(0.5, 1.0), rounds=(2, 8)))
    own = space.first(1, 0)[0]
    assert space.values(own) == values_of(load_config())
    assert space.first(12, 1) == space.first(12, 1) != space.first(12, 2)
    assert space.first(5, 1) == space.first(12, 1)[:5]
    assert sorted(space.first(99, 1)) == sorted(space.numbered(i) for i in range(12))


def test_neighbours_differ_by_one_step_of_one_axis() -> None:
    space = make_space(config_with(step=(0.1, 0.5, 2.0, 3.0), damping=(0.5, 1.0, 3.0)))
    for setting in space.order(0):
        steps = {tuple(abs(a - b) for a, b in zip(setting, other, strict=True)) for other in space.neighbours(setting)}
        assert steps <= {(1, 0), (0, 1)}
        assert set(space.neighbours(setting)) == {
            other for other in space.order(0) if sum(abs(a - b) for a, b in zip(setting, other, strict=True)) == 1
        }


def test_without_lists_the_grid_lies_around_the_config() -> None:
    space = make_space(config_with())
    assert space.own_setting() is not None
    names = {name for axis in space.axes for name in axis.keys}
    assert names >= {"rounds", "step", "damping", "clip_quantile"}
    assert space.size == 3**4
    assert len(list(space.order(0))) == space.size


def test_lists_without_an_allowed_combination_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"mechanism\.rounds: found 3; expected a multiple of mechanism\.parts = 2"):
        make_space(config_with(rounds=(3,), parts=(2,))).first(4, 0)
    with pytest.raises(UsageError, match=r"tune\.max_passes: 8 passes over the records; expected at most 3"):
        make_space(config_with(step=(1.0,), max_passes=3)).first(4, 0)


def test_samples_are_tried_where_a_config_allows_them_and_passes_are_the_work() -> None:
    config = config_with(rounds=(8, 20, 70, 80), parts=(1, 2), sampling=(0.1, 1.0, 0.25), max_passes=7)
    space = make_space(config)
    values = [space.values(setting) for setting in space.order(0)]
    assert {(v["rounds"], v["parts"], v["sampling"]) for v in values} == {
        (8, 2, 1.0),  # 4 passes; sampled rounds have no parts
        (8, 1, 0.1),
        (20, 1, 0.1),
        (70, 1, 0.1),  # 7 passes, although 70 * 0.1 is above 7 in floats
        (8, 1, 0.25),
        (20, 1, 0.25),
    }
    made = space.config_of(space.first(1, 0)[0])
    assert made.mechanism.work <= 7 * (1 + 1e-9)
    with pytest.raises(UsageError, match=r"tune\.max_passes: 8 passes over the records; expected at most 7"):
        make_space(config_with(rounds=(80,), sampling=(0.1,), max_passes=7)).first(1, 0)


def test_without_lists_a_sampled_config_has_samples_around_its_own() -> None:
    config = with_values(config_with(), values_of(load_config()) | {"sampling": 0.6})
    space = make_space(config)
    assert space.own_setting() is not None
    assert {space.values(setting)["sampling"] for setting in space.order(0)} == {0.3, 0.6, 1.0}


def test_a_clip_takes_the_place_of_the_other_ones() -> None:
    config = with_values(load_config(), {"clip": None, "clip_quantile": None, "clip_natural": 2.0})
    assert (config.mechanism.clip_quantile, config.mechanism.clip_natural) == (None, 2.0)
    assert config.data == load_config().data


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tune.holdout=1.0", "tune.holdout: found 1.0; expected a share"),
        ("tune.step=[]", "tune.step: found (); expected at least one value"),
        ("tune.step=[0.5, 0]", "tune.step: found 0.0; expected above 0"),
        ("tune.rounds=[0]", "tune.rounds: found 0; expected 1 or more"),
        ("tune.sampling=[0.5, 1.5]", "tune.sampling: found 1.5; expected a probability, 0.0001 to 1"),
        ("tune.rotate=[30, -30]", "two angles, the smaller one first"),
        ("tune.rotate=[30]", "expected a pair"),
        ("tune.trials=0", "tune.trials: found 0"),
        ("tune.noise=-1", "tune.noise: found -1.0"),
        ("tune.metric=recall", "expected one of accuracy, auroc"),
        ("tune.eval={format='csv', path='x.csv'}", "tune.eval.columns.target"),
    ],
)
def test_sections_that_are_refused(override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, [override])
    assert words in str(caught.value)


# --- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [1, 4, 12, 40])
def test_the_search_finds_the_top_of_a_bowl_within_its_budget(trials: int) -> None:
    tune = TuneConfig(trials=trials, step=(0.1, 0.3, 0.5, 1.0, 2.0, 4.0), damping=(0.1, 0.3, 1.0, 3.0, 10.0))
    space, calls = make_space(replace(load_config(), tune=tune)), []
    tried = search(space, bowl(space, calls), tune)
    assert len(tried) == len({setting for setting, _ in calls}) <= trials
    best = best_of(tried, 1)
    assert best.seeds == MOST
    assert best.rank == max(s.rank for s in tried if s.seeds == MOST)
    if trials >= 12:
        assert (best.values["step"], best.values["damping"]) == (2.0, 3.0)
    repeated: list[tuple[Setting, int]] = []
    assert [s.values for s in search(space, bowl(space, repeated), tune)] == [s.values for s in tried]
    assert repeated == calls


def test_a_quarter_gets_more_seeds_and_the_leaders_the_most() -> None:
    tune = TuneConfig(trials=30, seeds=2, step=(0.1, 0.3, 0.5, 1.0, 2.0, 4.0), damping=(0.1, 0.3, 1.0, 3.0, 10.0))
    space, calls = make_space(replace(load_config(), tune=tune)), []
    tried = search(space, bowl(space, calls), tune)
    by_mean = sorted(tried, key=lambda summary: summary.mean, reverse=True)
    assert len(tried) == 30
    assert [summary.seeds for summary in by_mean[:3]] == [2 * MOST] * 3
    assert sum(summary.seeds >= 2 * MORE for summary in tried) == 8
    assert {summary.seeds for summary in tried} == {2, 2 * MORE, 2 * MOST}


def summary(scores: list[float | None], losses: list[float | None], metric: str = "accuracy") -> Summary:
    runs = [Run(i, metric, *pair, 0.0) for i, pair in enumerate(zip(scores, losses, strict=True))]
    return Summary({}, tuple(runs))


def test_the_rule_of_choice() -> None:
    steady = summary([0.80] * 5, [1.0] * 5)
    lucky = summary([0.95, 0.70, 0.90, 0.75, 0.75], [0.5] * 5)
    assert lucky.mean > steady.mean
    assert best_of([lucky, steady], 1) is steady
    assert best_of([steady, summary([0.80] * 5, [0.9] * 5)], 1).loss == pytest.approx(0.9)
    few = summary([0.99], [0.1])
    assert best_of([few, steady], 1) is steady
    broken = summary([0.99] * 4 + [None], [0.1] * 4 + [None])
    assert (broken.mean, broken.loss, broken.error) == (-math.inf, math.inf, 0.0)
    assert best_of([broken, steady], 1) is steady
    with pytest.raises(UsageError, match="no setting that was tried worked"):
        best_of([broken], 1)
    low, high = (summary([loss] * 5, [loss] * 5, "log_loss") for loss in (0.3, 0.4))
    assert best_of([high, low], 1) is low
    assert low.score == pytest.approx(0.3)


# --- the table ---------------------------------------------------------------------------------------------------


def test_the_table_keeps_runs_by_epsilon_setting_and_seed(tmp_path: Path) -> None:
    values = values_of(load_config())
    other = values | {"step": 0.1 + 0.2}
    table = Trials(tmp_path / "trials.csv", "task")
    table.add(1.0, values, Run(1, "accuracy", 0.1 + 0.2, 1 / 3, 0.25))
    table.add(1.0, values, Run(0, "accuracy", None, None, 0.5, 'diverged, "very"\n'))
    table.add(0.5, values, Run(0, "accuracy", 0.5, 0.5, 1.0))
    table.add(1.0, other, Run(0, "accuracy", 0.7, 0.5, 1.0))
    for read in (table, Trials(tmp_path / "trials.csv", "task")):
        found = read.of(1.0, values, "accuracy", 9)
        assert read.of(1.0, values, "accuracy", 1).runs == found.runs[:1]
        assert [run.seed for run in found.runs] == [0, 1]
        assert found.runs[1] == Run(1, "accuracy", 0.1 + 0.2, 1 / 3, 0.25)
        assert found.runs[0].value == -math.inf
        assert read.of(1.0, other, "accuracy", 9).runs[0].score == 0.7
        assert read.of(0.5, other, "accuracy", 9).runs == ()
        assert read.of(1.0, values, "log_loss", 9).runs == ()
    assert set(KEYS) == set(values)
    with pytest.raises(UsageError, match="runs of another config"):
        Trials(tmp_path / "trials.csv", "other")


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00", "HEADER\nx,1.0\n", "HEADER\nROW\n"])
def test_a_damaged_table_is_refused(tmp_path: Path, content: str) -> None:
    table = Trials(tmp_path / "trials.csv", "task")
    table.add(1.0, values_of(load_config()), Run(1, "accuracy", 0.5, 0.5, 0.25))
    header, row = (tmp_path / "trials.csv").read_text().splitlines()
    (tmp_path / "trials.csv").write_text(content.replace("HEADER", header).replace("ROW", row.replace("0.25", "soon")))
    with pytest.raises(FileContentError, match="take a new --out"):
        Trials(tmp_path / "trials.csv", "task")
