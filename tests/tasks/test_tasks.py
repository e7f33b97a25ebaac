"""The tasks in configs/, at their real size: how much the released model gains, as means over five noise draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fitted_tasks import CONFIGS, fitted, fitted_for_seeds

from distqexp.api import load_config
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.mechanism.noise import draw_insecure
from distqexp.stages.export import evaluate
from distqexp.stages.plan import make_plan
from distqexp.stages.release import moved_parameters
from distqexp.stages.shards import Shards, open_shards
from distqexp.stages.sketch import sketch_round

SEEDS = range(5)


def one_round_metrics(config: Config, folder: Path) -> list[dict[str, float]]:
    """Metrics after one round, for five noise draws on the same sketch."""
    with SerialEngine() as engine:
        plan = make_plan(config, engine)
        sources, fingerprints = open_shards(plan, config.data.private, engine)
        sums = sketch_round(plan, plan.state, Shards(sources, fingerprints), folder, engine)
    assert sums is not None
    found = []
    for seed in SEEDS:
        noise = draw_insecure(plan.k, plan.state.grid.sigma, noise_seed=seed, round=0, noise="discrete")
        theta = moved_parameters(plan, plan.state, sums + noise)
        found.append(evaluate(plan, theta, config.data.eval))
    return found


def mean(metrics: list[dict[str, float]], name: str) -> float:
    return float(np.mean([metric[name] for metric in metrics]))


def test_the_shipped_digits_config_is_the_one_in_configs() -> None:
    assert load_config() == load_config(CONFIGS / "digits.toml")


@pytest.mark.slow
def test_digits_gain_30_points_at_epsilon_1(tmp_path: Path) -> None:
    results = fitted_for_seeds(load_config(), tmp_path, SEEDS)
    gains = [result.metrics["after"]["accuracy"] - result.metrics["before"]["accuracy"] for result in results]
    assert all(result.certificate["epsilon"] <= 1 for result in results)
    assert np.mean(gains) >= 0.30, gains


@pytest.mark.slow
def test_icu_mortality(data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "half").mkdir()
    one = one_round_metrics(load_config(CONFIGS / "icu.toml"), tmp_path / "one")
    assert mean(one, "auroc") >= 0.822, one
    assert mean(one, "log_loss") <= 0.33, one
    half = one_round_metrics(load_config(CONFIGS / "icu.toml", ["privacy.epsilon=0.5"]), tmp_path / "half")
    assert mean(half, "auroc") >= 0.812, half


@pytest.mark.slow
def test_mnist_rotated_in_a_gaussian_subspace(mnist_start: Path, tmp_path: Path) -> None:
    config = load_config(CONFIGS / "mnist-rotated.toml")
    config = replace(config, model=replace(config.model, weights=str(mnist_start), pretrain=None))
    metrics = one_round_metrics(config, tmp_path)
    assert mean(metrics, "accuracy") >= 0.72, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("rademacher", ["subspace.k=200"]),
        ("sjlt", ["subspace.k=500"]),
        ("srht", ["subspace.k=500"]),
        ("identity", ["subspace.k=26010", "precision.kind=diagonal"]),
    ],
)
def test_every_other_flat_subspace_runs_end_to_end_on_mnist(
    kind: str, settings: list[str], data_folder: Path, tmp_path: Path
) -> None:
    quick = [
        "model.pretrain.epochs=1",
        "data.public.rows=[[0, 5000]]",
        "data.private.rows=[[50000, 50640]]",
        "precision.samples=64",
        "privacy.units=640",
        "mechanism.step=0.01",
    ]
    config = load_config(CONFIGS / "mnist-rotated.toml", [*quick, f"subspace.kind={kind}", *settings])
    result = fitted(config, tmp_path / "run", 0)
    assert result.certificate["subspace"]["kind"] == kind
    assert result.certificate["epsilon"] <= 1
    assert set(result.metrics["after"]) == {"accuracy", "log_loss"}
    assert not np.array_equal(result.releases[0].theta, result.plan.state.theta)
