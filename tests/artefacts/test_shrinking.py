"""Steps that shrink with the noise: the factor, where it enters, and that no longer step is worth its noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.derived import derived_calibration, derived_clip, derived_step, step_shrinkage
from distqexp.config import Config
from distqexp.kinds import Adjacency


def config_of(folder: Path, units: int, **mechanism: Any) -> Config:
    random_table("double", [1, 2] * 4, seed=2).write(folder / "public.h5")
    return make_config(
        folder, "double", mechanism={"clip": None, "clip_natural": 1.5, **mechanism}, privacy={"units": units}
    )


@pytest.mark.parametrize(
    ("mechanism", "units"),
    [({}, 1.0), ({"rounds": 4, "parts": 2}, 0.5), ({"sampling": 0.25, "rounds": 4}, 0.25)],
    ids=["everybody", "parts", "samples"],
)
def test_the_factor_counts_the_units_of_a_round(mechanism: dict[str, Any], units: float, tmp_path: Path) -> None:
    config = config_of(tmp_path, 80, **mechanism)
    calibration = derived_calibration(config, 7)
    signal = 80 * units * calibration.mu_round
    expected = signal**2 / (signal**2 + 7)
    assert 0.001 < expected < 0.999
    assert step_shrinkage(config, calibration, 7) == pytest.approx(expected, rel=1e-12)
    for round in range(config.mechanism.rounds):
        step, clip = config.mechanism.step_of(round), config.mechanism.clip_of(round, 80)
        assert clip is not None
        assert derived_step(config, calibration, 7, round) == pytest.approx(step * expected, rel=1e-12)
        assert derived_clip(config, calibration, 7, round) == pytest.approx(clip * expected**0.5, rel=1e-12)


def test_the_sensitivity_counts_as_noise(tmp_path: Path) -> None:
    config = config_of(tmp_path, 80)
    calibration = derived_calibration(config, 7)
    twice = dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, adjacency=Adjacency.REPLACE_ONE))
    thrice = dataclasses.replace(twice, privacy=dataclasses.replace(twice.privacy, presence=3))  # in the sum as well
    quotients = [1 / step_shrinkage(each, calibration, 7) - 1 for each in (config, twice, thrice)]
    assert quotients[1:] == pytest.approx([4 * quotients[0], 4 * quotients[0]], rel=1e-9)


def test_a_fixed_clip_stays_and_so_does_everything_where_it_is_switched_off(tmp_path: Path) -> None:
    fixed = config_of(tmp_path, 80, clip=0.05, clip_natural=None)
    calibration = derived_calibration(fixed, 7)
    assert derived_clip(fixed, calibration, 7, 0) == 0.05
    assert step_shrinkage(fixed, calibration, 7) < 1
    for plain in (config_of(tmp_path, 80, shrink=False), config_of(tmp_path, 80, trust_radius=1.0, noise="gaussian")):
        assert step_shrinkage(plain, calibration, 7) == 1.0


def test_precision_and_clip_of_a_plan_follow_it(tmp_path: Path) -> None:
    plan, plain = (plan_of(config_of(tmp_path, 60, shrink=shrink)) for shrink in (True, False))
    factor = step_shrinkage(plan.config, plan.calibration, plan.k)
    assert factor < 0.9
    assert plan.state.clip == pytest.approx(plain.state.clip * factor**0.5, rel=1e-12)
    names = list(plan.state.precision)
    assert names
    for name in names:
        expected = plain.state.precision[name] * factor**0.5
        np.testing.assert_allclose(plan.state.precision[name], expected, rtol=1e-12)


@pytest.mark.parametrize("mu", [0.01, 0.05, 0.3])
def test_no_longer_step_is_worth_its_noise_even_if_all_units_agree(mu: float) -> None:
    """On the quadratic of docs/method.md, with n gradients that are all as long as the clip and point one way."""
    n, k, clip = 100, 40, 0.7
    steps = np.linspace(0.0, 1.0, 100_001)
    signal, noise = (n * clip) ** 2, k * (clip / mu) ** 2
    best = steps[np.argmin(-steps * signal + steps**2 / 2 * (signal + noise))]
    assert best == pytest.approx(1 / (1 + k / (n * mu) ** 2), abs=1e-5)
