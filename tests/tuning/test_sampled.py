"""Sampled rounds in a rehearsal: the noise of the real run against its signal, and ``tune`` over lists of probabilities."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from run_harness import Commands, overrides

from distqexp.config import load_config
from distqexp.engines.serial import SerialEngine
from distqexp.privacy.calibration import Sampling, calibrate
from distqexp.stages.plan import make_plan
from distqexp.tuning.rehearsal import LARGEST_EPSILON, LARGEST_SAMPLED_DISCRETE, Rehearsal, rehearsed_sampled_epsilon

QUICK = ("model.pretrain.epochs=5", "precision.samples=60")


@pytest.mark.parametrize("noise", ["discrete", "gaussian"])
@pytest.mark.parametrize(("epsilon", "ratio", "rate"), [(1.0, 5.4, 0.05), (0.5, 3.0, 0.25)])
def test_the_rehearsed_epsilon_has_the_round_mu_of_fewer_units(
    noise: str, epsilon: float, ratio: float, rate: float
) -> None:
    raised = rehearsed_sampled_epsilon(epsilon, 1e-5, ratio, noise, rate, 12)
    # Beyond this epsilon rehearsals draw continuous noise: discrete noise has no grid fine enough for sampled rounds.
    kinds = (noise, noise if raised <= LARGEST_SAMPLED_DISCRETE else "gaussian")
    mus = [
        calibrate(epsilon=e, delta=1e-5, rounds=12, k=10, noise=kind, sampling=Sampling(rate)).mu_round
        for e, kind in zip((epsilon, raised), kinds, strict=True)
    ]
    assert mus[1] == pytest.approx(ratio * mus[0], rel=1e-3)  # each is of 16 bits
    assert rehearsed_sampled_epsilon(epsilon, 1e-5, 1.0, noise, rate, 12) == epsilon
    assert rehearsed_sampled_epsilon(epsilon, 1e-5, 1e6, noise, rate, 12) > LARGEST_EPSILON


def test_a_sampled_rehearsal_has_the_noise_of_the_real_run_against_its_signal(tmp_path: Path) -> None:
    settings = [*QUICK, "mechanism.rounds=4", "mechanism.sampling=0.25", "tune.holdout=0.4"]
    config = load_config(None, settings)
    rehearsal = Rehearsal(config, tmp_path, SerialEngine())
    few = rehearsal.config_of(config, 1.0)
    ratio = config.privacy.units / rehearsal.roles.units
    assert few.mechanism.sampling == 0.25
    assert few.units_in_a_round == pytest.approx(config.units_in_a_round / ratio)
    # sampled rounds at a small ratio have a large epsilon, which continuous noise of the same size serves
    assert few.privacy.epsilon > LARGEST_SAMPLED_DISCRETE
    assert few.mechanism.noise == "gaussian"
    real, rehearsed = (make_plan(each, SerialEngine()) for each in (config, few))
    assert rehearsed.state.grid.mu / real.state.grid.mu == pytest.approx(ratio, rel=5e-3)  # clip and sigma are integers
    assert rehearsed.calibration.mu_round / real.calibration.mu_round == pytest.approx(ratio, rel=1e-3)


def test_tune_chooses_among_samples_on_the_digits(run: Commands, tmp_path: Path) -> None:
    lists = ("tune.rounds=[4]", "tune.sampling=[1.0, 0.25]", "tune.step=[0.5]", "tune.damping=[1.0]")
    settings = overrides(*QUICK, *lists, "tune.clip_quantile=[0.5]", "tune.metric=log_loss")
    said = run.done("tune", "--out", tmp_path / "out", "--trials", "2", "--json", *settings)
    found = json.loads(said.out.splitlines()[-1])["epsilons"]["1"]
    with (tmp_path / "out" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["sampling"] for row in rows} == {"1.0", "0.25"}
    assert all(row["score"] for row in rows)
    scores = {row["score"] for row in rows if row["sampling"] == "0.25"}
    assert len(scores) == sum(row["sampling"] == "0.25" for row in rows)  # each seed has its own coins and noise
    chosen = load_config(tmp_path / "out" / "tuned-eps1.toml").mechanism
    means = {
        rate: np.mean([float(row["score"]) for row in rows if row["sampling"] == str(rate)]) for rate in (1.0, 0.25)
    }
    assert chosen.sampling == found["values"]["sampling"]
    assert chosen.sampling in means
    assert found["score"] == pytest.approx(means[chosen.sampling])
