"""Public arrays that a newcomer passes as they are: targets and features far from 1, NaN, no public records at all."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distqexp
from distqexp.errors import UsageError

pytestmark = pytest.mark.process
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(600, 4))
TARGETS = 5e4 + 1e4 * (INPUTS @ [1.0, -0.5, 0.3, 0.2] + 0.1 * RNG.normal(size=600))
GROUPS = itertools.count()
LABELS = (INPUTS[:, 0] > 0).astype(int)


class Parameters(nn.Module):
    """A linear model without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.weight).sum(dim=1, keepdim=True) + self.bias


def fit(model: nn.Module, inputs: Any, targets: Any, public: Any, **options: Any) -> distqexp.Fitted:
    torch.manual_seed(0)
    return distqexp.fit(
        model, (inputs[:500], targets[:500]), public=public, evaluation=(inputs[500:], targets[500:]), epsilon=4.0, delta=1e-4,
        insecure_noise_seed=1, callback=lambda _: None, population=f"group {next(GROUPS)}", **options,
    )  # fmt: skip


def test_a_bare_linear_layer_learns_targets_of_any_scale(own_ledger: object) -> None:
    public = (INPUTS[500:], TARGETS[500:])
    result = fit(nn.Linear(4, 1), INPUTS, TARGETS, public, loss="mean-squared-error")
    assert result.metrics["after"]["mean_squared_error"] < 0.2 * TARGETS[500:].var()
    assert result.warnings == ()
    assert abs(float(np.mean(result.predict(INPUTS[500:]))) - 5e4) < 5e3


@pytest.mark.parametrize("public", [True, False])
def test_targets_that_nothing_scales_are_warned_of(public: bool, own_ledger: object) -> None:
    pair = (INPUTS[500:], TARGETS[500:]) if public else None
    model = Parameters() if public else nn.Linear(4, 1)
    result = fit(model, INPUTS, TARGETS, pair, loss="mean-squared-error")
    words = "doesn't end in a trained torch.nn.Linear" if public else "public: not given; targets are taken as they are"
    assert [line for line in result.warnings if words in line]


def test_features_far_from_one_are_warned_of(own_ledger: object, capsys: pytest.CaptureFixture[str]) -> None:
    wild = INPUTS * 60 + 100
    words = "in size; modules expect about 1: standardise=True scales features by public moments"
    for standardise in (None, True):
        result = fit(nn.Linear(4, 2), wild, LABELS, (wild[500:], LABELS[500:]), standardise=standardise)
        said = [*result.warnings, *capsys.readouterr().err.splitlines()]
        assert any(words in line for line in said) == (standardise is None)
    assert result.metrics["after"]["accuracy"] > 0.8
    fit(nn.Linear(4, 2), INPUTS, LABELS, (INPUTS[500:], LABELS[500:]))
    assert words not in capsys.readouterr().err


def test_public_records_that_are_all_of_no_use_are_refused(own_ledger: object) -> None:
    public = INPUTS[500:].copy()
    public[:, 1] = np.nan
    with pytest.raises(UsageError, match="of its features, in every record; expected finite numbers"):
        fit(nn.Linear(4, 2), INPUTS, LABELS, (public, LABELS[500:]))
    public = INPUTS[500:].copy()
    public[3, 1] = np.inf
    result = fit(nn.Linear(4, 2), INPUTS, LABELS, (public, LABELS[500:]))
    assert [line for line in result.warnings if "1 of 100 records have such an entry" in line]


def test_a_notebook_sees_the_arguments() -> None:
    assert {"fit", "load_model", "api"} <= set(dir(distqexp))
    assert distqexp.api.fit
    signature = inspect.signature(distqexp.fit)
    assert list(signature.parameters)[:4] == ["model", "private", "epsilon", "delta"]
    with pytest.raises(TypeError, match=r"expected the records as one: fit\(model, \(X, y\)"):
        distqexp.fit(nn.Linear(4, 2), INPUTS, LABELS, epsilon=1.0, delta=1e-5)
