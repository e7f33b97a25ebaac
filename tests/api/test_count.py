"""A noisy count of the units: its noise, its charge, and the run that shares the cap with it."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting import spent
from scipy.stats import chi2
from small_runs import make_config, random_table, with_blank

from distqexp import cli
from distqexp.api import Ledger, count, fit
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.errors import BudgetError, UsageError
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.calibration import calibrate
from distqexp.stages.count import _noise

SIZES = [1, 3, 1, 2, 5, 1, 4] * 6
EPSILON, DELTA = 0.3, 1e-5


def task(folder: Path, **privacy: Any) -> Config:
    """A small task under add-remove with a cap of epsilon 1 in the test's ledger."""
    random_table("logistic", SIZES, seed=1).write(folder / "private.h5")
    random_table("logistic", SIZES, seed=2).write(folder / "public.h5")
    Ledger.open().set_cap("somebody", 1.0, DELTA)
    return make_config(folder, "logistic", privacy={"adjacency": "add-remove", **privacy})


@pytest.mark.parametrize("presence", [1, 3])
def test_the_noise_is_what_the_epsilon_asks_for(presence: int, tmp_path: Path) -> None:
    grid, event = _noise(task(tmp_path, presence=presence), EPSILON)
    calibration = calibrate(epsilon=EPSILON, delta=DELTA, rounds=1, k=1, noise="discrete")
    # A unit moves the sum by one clip at every shard that it is in.
    assert Fraction(presence * grid.clip_integer, grid.sigma) <= Fraction(calibration.mu_round)
    assert event.mu == grid.mu == pytest.approx(calibration.mu_round, rel=1e-3)
    assert spent([event], EPSILON) <= DELTA
    smaller = replace(grid, sigma=int(0.9 * grid.sigma))
    assert spent([replace(event, mu=smaller.mu, sigma=float(smaller.sigma))], EPSILON) > DELTA


def test_the_count_has_the_law_that_is_told(tmp_path: Path) -> None:
    """Chi-square on 20,000 counts through the release rule, false-alarm rate 1e-6; noise a tenth smaller is rejected."""
    grid, _ = _noise(task(tmp_path), EPSILON)
    many = 20_000
    low, high = chi2.ppf([5e-7, 1 - 5e-7], many)
    for scale, accepted in ((1.0, True), (0.9, False)):
        rule = ReleaseRule(many, replace(grid, sigma=int(scale * grid.sigma)), "discrete")
        sums = np.full(many, len(SIZES) * grid.clip_integer, dtype=np.int64)
        noisy = rule.noisy_sums(sums, rule.draw(sums, 3, 0)) / grid.clip_integer
        square = (((noisy - len(SIZES)) / (grid.sigma / grid.clip_integer)) ** 2).sum()
        assert (low <= square <= high) == accepted


def test_patients_are_counted_not_rows_and_blank_ones_are_not(tmp_path: Path) -> None:
    config = task(tmp_path)
    found = count(config, 0.9, insecure_noise_seed=1)
    assert abs(found.units - len(SIZES)) <= 6 * found.deviation + 0.5
    table = random_table("logistic", SIZES, seed=1)
    np.save(tmp_path / "blank.npy", table.u < 30)
    # The same seed draws the same noise, so that the difference is that of the counts.
    other = count(with_blank(config, tmp_path / "blank.npy"), 0.9, ledger=_capped(tmp_path), insecure_noise_seed=1)
    assert found.units - other.units == 30


def _capped(folder: Path) -> Path:
    path = folder / "other.sqlite"
    Ledger.open(path).set_cap("somebody", 1.0, DELTA)
    return path


def test_it_is_charged_once_and_anew_for_other_records(tmp_path: Path) -> None:
    config = task(tmp_path)
    first = count(config, EPSILON)
    assert first.private
    ledger = Ledger.open()
    mu = ledger.spent("somebody").mu
    assert mu == pytest.approx(_noise(config, EPSILON)[1].mu, rel=1e-12)
    assert count(config, EPSILON) == first
    assert len(ledger.rows("somebody")) == 1
    random_table("logistic", SIZES[:-1], seed=1).write(tmp_path / "private.h5")
    second = count(config, EPSILON)
    assert len(ledger.rows("somebody")) == 2
    assert ledger.spent("somebody").mu == pytest.approx(mu * 2**0.5, rel=1e-9)
    assert second.left < first.left


def test_count_and_run_share_the_cap(tmp_path: Path) -> None:
    config = task(tmp_path)
    found = count(config, EPSILON)
    assert 0.9 < found.left < 1
    tree = config_to_tree(config)
    tree["privacy"] |= {"units": found.units, "epsilon": found.left}
    result = fit(config_from_tree(tree), tmp_path / "run")
    assert result is not None
    tree["privacy"]["epsilon"] = 1.0
    Ledger.open().set_cap("somebody", 1.0, DELTA)
    with pytest.raises(BudgetError):
        fit(config_from_tree(tree), tmp_path / "more")


def test_over_the_cap_no_record_is_read(tmp_path: Path) -> None:
    config = task(tmp_path)
    (tmp_path / "private.h5").write_bytes(b"no file of records")
    with pytest.raises(BudgetError):
        count(config, 1.5)
    assert Ledger.open().rows("somebody") == []


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"adjacency": "replace-one"}, "replace-one, where the number of units is public"),
        ({"epsilon": 0.0}, "privacy.epsilon"),
    ],
)
def test_refusals(privacy: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        count(task(tmp_path, **privacy), EPSILON)


def test_without_a_cap_the_command_says_how_to_set_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["count", "--epsilon", "0.1", "--set", "privacy.adjacency=zero-out"]) == 2
    told = capsys.readouterr().err
    assert "no cap in the ledger" in told
    command = told[told.index("distqexp ledger cap") :].split()
    assert cli.run(command[1:]) == 0
    capsys.readouterr()
    assert cli.run(["count", "--epsilon", "0.1", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tree = json.loads(lines[-1])
    assert lines[0].startswith(f"units: {tree['units']:,} +- ")
    assert abs(tree["units"] - 797) <= 6 * tree["deviation"]
