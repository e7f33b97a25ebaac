"""Targets of regressions in units of their public moments, and models that speak in the targets' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distqexp
from distqexp.api import Plan
from distqexp.live import Fitted
from distqexp.problem.schema import Schema
from distqexp.problem.target_scaling import outputs_in_own_units
from distqexp.stages.verify import verify_paths

pytestmark = pytest.mark.process  # a small process watches over the scratch folder

random = np.random.default_rng(5)
FEATURES = random.normal(size=(900, 4)).astype(np.float32)
TARGETS = (FEATURES @ [[1.0], [-0.5], [0.3], [0.0]] + 0.3 * random.normal(size=(900, 1)))[:, 0].astype(np.float32)


def parts(targets: Any) -> dict[str, Any]:
    """Private, public and evaluation records with these targets."""
    return {
        "private": (FEATURES[:500], targets[:500]),
        "public": (FEATURES[500:600], targets[500:600]),
        "evaluation": (FEATURES[600:], targets[600:]),
    }


def fitted(module: nn.Module, targets: Any, **more: Any) -> Fitted:
    """A seeded fit of these targets."""
    settings = {"mechanism.rounds": 3, **more.pop("settings", {})}
    return distqexp.fit(
        module, **parts(targets), epsilon=8.0, delta=1e-5, loss="mean-squared-error", population=more.pop("name", "scaling"),
        insecure_noise_seed=1, settings=settings, callback=lambda event: None, **more,
    )  # fmt: skip


def network(outputs: int = 1, *last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs), *last)


@pytest.mark.parametrize(("mean", "scale"), [(1e6, 1e5), (-3e-5, 1e-6)])
def test_a_fit_is_the_same_in_any_units_of_the_targets(mean: float, scale: float) -> None:
    plain = fitted(network(), TARGETS, name="plain")
    wild = fitted(network(), (mean + scale * TARGETS.astype(np.float64)).astype(np.float64), name="wild")
    expected = mean + scale * plain.predict(FEATURES[600:])
    assert np.abs(wild.predict(FEATURES[600:]) - expected).max() < 2e-3 * scale
    for when in ("before", "after"):
        errors = wild.metrics[when]["mean_squared_error"], scale**2 * plain.metrics[when]["mean_squared_error"]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert wild.metrics["after"]["mean_squared_error"] < 0.5 * wild.metrics["before"]["mean_squared_error"]


def test_the_exported_model_and_the_metrics_speak_in_the_targets_own_units(tmp_path: Path) -> None:
    targets = 50 + 20 * TARGETS
    result = fitted(network(), targets, out=tmp_path / "run")
    errors = (result.predict(FEATURES[600:]).reshape(-1) - targets[600:]) ** 2
    assert errors.mean() == pytest.approx(result.metrics["after"]["mean_squared_error"], rel=1e-5)
    outputs = result.model(torch.from_numpy(FEATURES[600:])).detach().numpy()
    assert np.array_equal(outputs.reshape(-1), result.predict(FEATURES[600:]).reshape(-1))
    plan = Plan.read(tmp_path / "run" / "plan.h5")
    assert plan.schema.target_head == "2"
    assert plan.schema.target_means[0] == pytest.approx(targets[500:600].mean(), rel=1e-6)
    assert plan.schema.target_scales[0] == pytest.approx(targets[500:600].std(), rel=1e-6)
    assert [line for line in verify_paths([tmp_path / "run"]) if "its tensors are those of the last release" in line]
    residuals = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))["evaluation"]["after"]
    assert residuals["loss"]["mean"] == pytest.approx(result.metrics["after"]["mean_squared_error"])


def test_a_start_in_the_targets_own_units_stays_what_it_is() -> None:
    """A model that knows the targets already is taken by its own word, and its first figures are its own."""
    targets, module = 50 + 20 * TARGETS, nn.Linear(4, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[18.0, -8.0, 4.0, 1.0]]))
        module.bias.fill_(48.0)
    own = ((module(torch.from_numpy(FEATURES[600:])).detach().numpy()[:, 0] - targets[600:]) ** 2).mean()
    result = fitted(module, targets)
    assert result.metrics["before"]["mean_squared_error"] == pytest.approx(own, rel=1e-5)
    assert result.metrics["after"]["mean_squared_error"] < own


def test_several_targets_have_a_scale_each() -> None:
    both = np.stack([1e4 * TARGETS, 1e-4 * TARGETS - 7], axis=1)
    result = fitted(network(2), both)
    errors = ((result.predict(FEATURES[600:]) - both[600:]) ** 2).mean(axis=0) / both[600:].var(axis=0)
    assert errors.max() < 0.5


@pytest.mark.parametrize(
    "case", ["switched off", "no linear layer last", "frozen head", "shared head", "head without a bias"]
)
def test_targets_stay_as_they_are_where_outputs_can_t_be_turned_back(tmp_path: Path, case: str) -> None:
    settings: dict[str, Any] = {}
    module = network()
    if case == "switched off":
        settings = {"model.scale_targets": False}
    elif case == "no linear layer last":
        module = network(1, nn.Softplus())
    elif case == "frozen head":
        module[2].weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    elif case == "shared head":
        module = SharedHead()
    else:
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1, bias=False))
    result = fitted(module, 3 + 2 * TARGETS, settings=settings, out=tmp_path / "run")
    schema = Plan.read(tmp_path / "run" / "plan.h5").schema
    assert (schema.target_means, schema.target_scales, schema.target_head) == ((), (), None)
    errors = (result.predict(FEATURES[600:]).reshape(-1) - (3 + 2 * TARGETS[600:])) ** 2
    assert errors.mean() == pytest.approx(result.metrics["after"]["mean_squared_error"], rel=1e-5)


class SharedHead(nn.Module):
    """A last layer that is also the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(inputs.sum(dim=1, keepdim=True))))


def test_no_records_at_all_are_scaled_too() -> None:
    schema = Schema("mean-squared-error", False, ("a",), target_means=(1.0,), target_scales=(2.0,), target_head="head")
    assert schema.targets(np.zeros((0,))).shape == (0,)
    assert schema.targets(np.zeros((0, 1))).shape == (0, 1)
    assert outputs_in_own_units(schema, torch.zeros(0, 1)).shape == (0, 1)
    assert schema.targets(np.array([5.0])).tolist() == [2.0]
    assert outputs_in_own_units(schema, torch.tensor([2.0])).tolist() == [5.0]
