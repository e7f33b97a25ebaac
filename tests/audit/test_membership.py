"""Membership inference on exported models: rates against a slow count, bounds of the claim, and a model that remembers its members."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.stats import binom
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.plan import Plan
from distqexp.audit.guessing import judge
from distqexp.audit.membership import (
    CONFIDENCE,
    FALSE_POSITIVES,
    allowed_rate,
    attack_lines,
    loss_scores,
    measure_attack,
)
from distqexp.audit.roc import plot_attacks
from distqexp.errors import UsageError
from distqexp.privacy import gdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.problem.records import Records
from distqexp.stages.export import fine_tuned_network


def test_rates_are_those_of_a_slow_count() -> None:
    random = np.random.default_rng(2)
    included = random.random(900) < 0.4
    scores = np.round(random.normal(size=900) + 0.8 * included, 2)  # with ties
    members, others = scores[included], scores[~included]
    found = measure_attack("loss", scores, included, 1.0, 1e-5)
    wins = sum((member > others).sum() + (member == others).sum() / 2 for member in members)
    assert found.area == pytest.approx(wins / (len(members) * len(others)))
    curve = [((others >= value).mean(), (members >= value).mean()) for value in scores]
    assert found.advantage == pytest.approx(max(true - false for false, true in curve))
    assert (found.members, found.non_members) == (len(members), len(others))
    assert [point.target for point in found.points] == list(FALSE_POSITIVES)
    for point in found.points:
        strict = [((others > value).sum(), (members > value).sum()) for value in scores]
        best = max(true for false, true in strict if false <= point.target * len(others))
        assert point.true_positives == best
        assert point.false_positives <= point.target * len(others)
        tail = (1 - CONFIDENCE) / 2
        assert binom.cdf(best, len(members), point.highest) == pytest.approx(tail)
        assert binom.sf(best - 1, len(members), point.lowest) == pytest.approx(tail)
    assert "area" in attack_lines([found])[0]


def test_a_score_the_wrong_way_round_has_no_advantage_and_one_side_alone_is_refused() -> None:
    included = np.arange(100) < 50
    found = measure_attack("loss", np.arange(100.0), included, 1.0, 1e-5)
    assert (found.area, found.advantage) == (0.0, 0.0)
    assert [(point.true_positives, point.lowest) for point in found.points] == [(0, 0.0), (0, 0.0)]
    with pytest.raises(UsageError, match="all candidates are members, or none"):
        measure_attack("loss", np.arange(5.0), np.ones(5, dtype=np.bool_), 1.0, 1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0, 2000.0])
def test_what_the_claim_allows(epsilon: float) -> None:
    delta = 1e-3
    rates = np.linspace(0, 1, 1001)
    allowed = np.array([allowed_rate(float(rate), epsilon, delta) for rate in rates])
    assert (allowed >= rates - 1e-12).all()
    assert (np.diff(allowed) >= -1e-12).all()
    assert allowed[0] == pytest.approx(delta if epsilon < 700 else 1.0, rel=1e-6, abs=1e-9) or epsilon > 700
    assert allowed[-1] == 1.0
    advantage = measure_attack("loss", np.arange(4.0), np.arange(4) % 2 == 0, epsilon, delta).allowed_advantage
    if epsilon < 700:
        assert advantage == pytest.approx((math.exp(epsilon) - 1 + 2 * delta) / (math.exp(epsilon) + 1))
        assert (allowed - rates).max() == pytest.approx(advantage, abs=2e-3)
    else:
        assert advantage == 1.0


def test_gaussian_rates_stay_within_what_their_epsilon_allows() -> None:
    mu, delta = 0.8, 1e-4
    epsilon = gdp.epsilon(delta, mu)
    for rate in (1e-4, 1e-3, 0.01, 0.3, 0.9):
        true = float(torch.special.ndtr(torch.special.ndtri(torch.tensor(rate, dtype=torch.float64)) + mu))
        assert true <= allowed_rate(rate, epsilon, delta)


def test_a_model_that_remembers_its_members_is_found(tmp_path: Path) -> None:
    """An mlp trained to the last digit on half of 160 units of random labels; judged against a claim of mu = 0.2."""
    plan, records, unit = random_units(tmp_path)
    included = np.random.default_rng(9).random(160) < 0.5
    network = fine_tuned_network(plan, plan.state.theta)
    write_weights(network.module, tmp_path / "before.safetensors")
    mine = torch.from_numpy(included[unit])
    optimiser = torch.optim.Adam(network.module.parameters(), lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network.module(records.inputs[mine]), records.targets[mine])
        loss.backward()
        optimiser.step()
    write_weights(network.module, tmp_path / "after.safetensors")
    scores = loss_scores(plan, tmp_path / "before.safetensors", tmp_path / "after.safetensors", records, unit)
    claim = Guarantee(0.2, 0.0, 0.02)
    assert set(scores) == {"loss", "loss since pretraining"}
    for name, values in scores.items():
        found = measure_attack(name, values, included, 0.5, 1e-5)
        assert found.area > 0.9
        assert found.advantage > found.allowed_advantage
        assert not judge(name, values, included, claim, 1e-5, 1e-6).holds
    still = loss_scores(plan, tmp_path / "before.safetensors", tmp_path / "before.safetensors", records, unit)
    assert (still["loss since pretraining"] == 0).all()
    assert judge("loss", still["loss"], included, claim, 1e-5, 1e-6).holds
    sides = {name: (values[included], values[~included]) for name, values in scores.items()}
    assert plot_attacks(sides, 0.5, 1e-5).startswith(b"\x89PNG")


def test_the_loss_of_a_unit_is_the_mean_over_its_records_that_are_there(tmp_path: Path) -> None:
    plan, records, unit = random_units(tmp_path)
    present = torch.ones(len(records), dtype=torch.bool)
    present[unit == 3] = False
    present[int(np.flatnonzero(unit == 5)[0])] = False
    records = Records(records.inputs, records.targets, present)
    network = fine_tuned_network(plan, plan.state.theta)
    path = tmp_path / "weights.safetensors"
    write_weights(network.module, path)
    found = -loss_scores(plan, path, path, records, unit)["loss"]
    for number in range(160):
        rows = [row for row in np.flatnonzero(unit == number) if present[row]]
        single = [
            torch.nn.functional.cross_entropy(network.module(records.inputs[[row]]), records.targets[[row]]).item()
            for row in rows
        ]
        assert math.isnan(found[number]) if number == 3 else found[number] == pytest.approx(np.mean(single), rel=1e-5)


def random_units(folder: Path) -> tuple[Plan, Records, np.ndarray]:
    """160 units of two records each, with random labels, and the plan of an mlp."""
    random_table("mlp", [1] * 20, seed=1).write(folder / "public.h5")
    plan = plan_of(make_config(folder, "mlp", model={"args": {"inputs": 6, "outputs": 3, "hidden": [256]}}))
    table = random_table("mlp", [2] * 160, seed=4)
    order = np.argsort(table.u, kind="stable")
    present = torch.ones(len(order), dtype=torch.bool)
    return plan, Records(torch.from_numpy(table.x[order]), torch.from_numpy(table.y[order]), present), table.u[order]


def write_weights(module: torch.nn.Module, path: Path) -> None:
    safetensors.torch.save_file({name: value.detach().clone() for name, value in module.state_dict().items()}, path)
