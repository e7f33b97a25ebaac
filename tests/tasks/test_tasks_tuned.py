"""The configs of configs/mnist at their real size. Fewer noise draws than scripts/frontier.py, to save time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitted_tasks import CONFIGS, fitted_for_seeds

from distqexp.api import load_config
from distqexp.config import Config
from distqexp.tuning.roles import assign_roles

ALL = {"k_in": 1024, "k_out": 1024}


def mnist(
    name: str,
    start: Path,
    *,
    folder: str = "mnist",
    precision: dict[str, Any] | None = None,
    subspace: dict[str, Any] | None = None,
    **mechanism: Any,
) -> Config:
    config = load_config(CONFIGS / folder / f"tuned-{name}.toml")
    return replace(
        config,
        model=replace(config.model, weights=str(start), pretrain=None),
        precision=replace(config.precision, **precision or {}),
        subspace=replace(config.subspace, **subspace or {}),
        mechanism=replace(config.mechanism, **mechanism),
    )


def mean_accuracy(config: Config, folder: Path, seeds: int) -> float:
    results = fitted_for_seeds(config, folder, range(seeds))
    assert all(result.certificate["epsilon"] <= config.privacy.epsilon for result in results)
    rounded = "per unit" if config.mechanism.sampled else "per micro-batch"
    assert all(result.certificate["sums"]["rounded"] == rounded for result in results)
    return float(np.mean([result.metrics["after"]["accuracy"] for result in results]))


@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize("name", ["icu", "mnist-new-classes"])
def test_settings_are_chosen_on_public_records(name: str) -> None:
    """What is tuned is what ships, and records that play private ones differ from the reference as private ones do."""
    config, shipped = load_config(CONFIGS / name / "tune.toml"), load_config(CONFIGS / name / "tuned-eps1.toml")
    assert (config.model, config.subspace, config.data.private) == (
        shipped.model,
        shipped.subspace,
        shipped.data.private,
    )
    assert config.tune is not None
    assert shipped.mechanism.step in config.tune.step
    roles = assign_roles(config)
    if name == "icu":
        assert len(roles.stand_ins) == 3  # three units, none of which is in the reference
        assert roles.units + roles.test_units == 4000 - config.precision.samples
        return
    public = [data.where for data in (roles.reference, *roles.stand_ins, *roles.test)]
    assert public == ["label < 3", "label < 5", "label < 5"]
    ends = [max(last for _, last in data.rows or ()) for data in (roles.reference, *roles.stand_ins, *roles.test)]
    assert ends[0] <= 40000 < ends[1] <= 45000 < ends[2] <= 50000  # all in data.public's rows


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("eps0.5", 0.93)])
def test_twenty_passes(name: str, accuracy: float, mnist_start: Path, tmp_path: Path) -> None:
    config = mnist(name, mnist_start)
    assert config.mechanism.passes <= 20
    assert mean_accuracy(config, tmp_path, 1) >= accuracy


@pytest.mark.slow
def test_views_of_the_private_images(mnist_start: Path, tmp_path: Path) -> None:
    """Half the rounds of the config, to save time."""
    config = mnist("eps1", mnist_start, folder="mnist-views", rounds=10, final_step=None, warmup=1)
    assert config.augment.views == 4
    assert mean_accuracy(config, tmp_path, 1) >= 0.945


@pytest.mark.slow
def test_six_rounds_of_samples(mnist_start: Path, tmp_path: Path) -> None:
    config = mnist("eps1", mnist_start, folder="mnist-fast")
    assert config.mechanism.sampled
    assert config.mechanism.work == 0.75
    assert mean_accuracy(config, tmp_path, 2) >= 0.935


@pytest.mark.slow
def test_ten_passes(mnist_start: Path, tmp_path: Path) -> None:
    config = mnist("eps1", mnist_start, rounds=10, final_step=None, warmup=1, precision={"samples": 2000})
    assert mean_accuracy(config, tmp_path, 1) >= 0.94


@pytest.mark.slow
def test_one_round(mnist_start: Path, tmp_path: Path) -> None:
    config = mnist(
        "eps1",
        mnist_start,
        rounds=1,
        step=4.0,
        final_step=None,
        warmup=0,
        momentum=0.0,
        precision={"damping": 0.05},
        subspace=ALL,
    )
    assert mean_accuracy(config, tmp_path, 2) >= 0.80


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("eps1", 0.935), ("eps8", 0.92)])
def test_the_work_of_one_pass(name: str, accuracy: float, mnist_start: Path, tmp_path: Path) -> None:
    config = mnist(name, mnist_start, folder="mnist-one-pass")
    assert config.mechanism.work == 1
    assert mean_accuracy(config, tmp_path, 2) >= accuracy
