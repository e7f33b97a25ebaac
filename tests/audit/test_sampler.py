"""The audit of the draw: sound mechanisms pass and are found out almost to their claim, planted faults fail."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_harness import Commands
from scipy.stats import binom, norm
from small_runs import make_config, plan_of, random_table

from distqexp.audit.bounds import epsilon_below, mu_below, rate_above
from distqexp.audit.command import audit_plan
from distqexp.audit.sampler import FAILURE, Finding, audit_sampler, draw_points, worst_units
from distqexp.errors import UsageError
from distqexp.mechanism.factor_grid import choose_factor_grid
from distqexp.mechanism.grid import Grid, choose_grid
from distqexp.mechanism.rule import ReleaseRule

MECHANISMS = ["discrete", "gaussian", "replace-one", "ball", "private curvature"]


def rule_of(mechanism: str, mu: float) -> ReleaseRule:
    """One coordinate of noise, or a ball of two whose radius is about the spread of the noise."""
    grid = choose_grid(0.7, mu, 4096, "replace-one" if mechanism == "replace-one" else "zero-out")
    if mechanism in ("discrete", "gaussian", "replace-one"):
        return ReleaseRule(1, grid, "gaussian" if mechanism == "gaussian" else "discrete")
    radius = 2.0 * math.sqrt(grid.temperature)
    factors = choose_factor_grid(grid, radius, 2, 1, 100, 8) if mechanism == "private curvature" else None
    return ReleaseRule(2, grid, "gaussian", radius, factors)


def audited(rule: ReleaseRule, claimed: Grid, draws: int, seed: int | None, rounds: int = 1) -> list[Finding]:
    return audit_sampler([rule] * rounds, math.sqrt(rounds) * claimed.mu, 1e-5, draws, seed)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("mu", [1.0, 3.0])
def test_sound_mechanisms_pass(mechanism: str, mu: float) -> None:
    """Real entropy: each pair of datasets fails with probability 1e-6 at most."""
    rule = rule_of(mechanism, mu)
    findings = audited(rule, rule.grid, 40_000 if rule.independent else 4_000, None)
    assert findings[0].pair == "gradient"
    assert len(findings) == (3 if mechanism == "private curvature" else 1)
    assert all(finding.holds for finding in findings)
    assert all(0 <= finding.mu <= mu for finding in findings)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("mu", [1.0, 3.0])
def test_sound_mechanisms_are_found_out_almost_to_their_claim(mechanism: str, mu: float) -> None:
    """A fixed seed: what an audit finds depends on where its first draws put the threshold."""
    rule = rule_of(mechanism, mu)
    findings = audited(rule, rule.grid, 40_000 if rule.independent else 4_000, 1)
    # Truncation leaves less to find.
    least = 0.85 * rule.grid.mu if rule.independent else 0.1 * mu
    assert least <= max(finding.mu for finding in findings) <= mu


@pytest.mark.slow
def test_a_small_mu_is_found_almost_whole_with_many_draws() -> None:
    rule = rule_of("discrete", 0.25)
    (finding,) = audited(rule, rule.grid, 500_000, 1)
    assert 0.85 * rule.grid.mu <= finding.mu <= rule.grid.mu


@pytest.mark.parametrize("noise", ["discrete", "gaussian"])
def test_planted_faults_are_caught(noise: str) -> None:
    rule = rule_of(noise, 1.0)
    claimed = rule.grid
    draws = 120_000
    less_noise = replace(rule, grid=replace(claimed, sigma=int(0.9 * claimed.sigma)))
    loose_clip = replace(rule, grid=replace(claimed, clip_integer=int(1.1 * claimed.clip_integer)))
    assert audited(rule, claimed, draws, 1)[0].holds
    assert not audited(less_noise, claimed, draws, 1)[0].holds
    assert not audited(loose_clip, claimed, draws, 1)[0].holds
    uncharged = audit_sampler([rule, rule], claimed.mu, 1e-5, draws, 1)
    assert not uncharged[0].holds
    assert audited(rule, claimed, draws, 1, rounds=2)[0].holds


def test_bounds_are_those_of_the_binomial_law() -> None:
    for count, trials in ((0, 50), (3, 100), (99, 100)):
        bound = rate_above(count, trials, 1e-3)
        assert binom.cdf(count, trials, bound) == pytest.approx(1e-3, rel=1e-6)
    assert rate_above(7, 7, 1e-6) == 1.0
    with pytest.raises(UsageError, match="audit: found 8 of 7"):
        rate_above(8, 7, 1e-6)


def test_rates_on_the_gaussian_curve_give_its_mu_and_epsilon() -> None:
    for mu in (0.25, 1.0, 3.0):
        positive = norm.sf(0.3)
        assert mu_below(positive, norm.cdf(0.3 - mu)) == pytest.approx(mu)
    assert mu_below(0.7, 0.6) == 0.0
    assert epsilon_below(0.01, 0.2, 0.0) == pytest.approx(math.log(80))
    assert epsilon_below(0.01, 0.2, 0.1) == pytest.approx(math.log(70))
    assert epsilon_below(0.5, 0.5, 1e-5) == 0.0
    assert FAILURE <= 1e-6


def test_worst_units_use_up_the_clip() -> None:
    rule = rule_of("private curvature", 1.0)
    assert rule.factors is not None
    for unit in worst_units(rule):
        trace = int(np.square(unit.factor).sum())
        cost = int(np.abs(unit.linear).sum()) + rule.factors.price * trace
        assert trace <= rule.factors.largest_trace
        assert 0.999 * rule.grid.clip_integer <= cost <= rule.grid.clip_integer
        assert unit.sums(rule, 0).tolist() == [0] * rule.width


def test_wide_draws_are_many_narrow_ones() -> None:
    rule = rule_of("discrete", 1.0)
    points = draw_points(rule, np.array([500], dtype=np.int64), 50_000, 3, 0)
    assert points.shape == (50_000, 1)
    spread = rule.grid.sigma * rule.grid.step
    assert abs(points.mean() + 500 * rule.grid.step) < 5 * spread / math.sqrt(50_000)
    assert abs(points.std() / spread - 1) < 0.02


def test_too_few_draws_and_mixed_rounds_are_refused() -> None:
    rule = rule_of("discrete", 1.0)
    with pytest.raises(UsageError, match="1000 or more"):
        audit_sampler([rule], 1.0, 1e-5, 10)
    with pytest.raises(UsageError, match="different mechanisms"):
        audit_sampler([rule, rule_of("ball", 1.0)], 1.0, 1e-5, 1000)


def test_the_command_audits_a_plan_and_reads_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_ledger: Path
) -> None:
    random_table("logistic", [1] * 8, seed=1).write(tmp_path / "private.h5")
    random_table("logistic", [1] * 8, seed=2).write(tmp_path / "public.h5")
    plan = plan_of(make_config(tmp_path, "logistic", mechanism={"rounds": 2}))
    plan.write(tmp_path / "plan.h5")
    (tmp_path / "private.h5").unlink()
    run = Commands(capsys)
    outcome = run.done("audit", tmp_path / "plan.h5", "--out", tmp_path / "audit", "--draws", "20000", "--json")
    tree = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert json.loads(outcome.out.splitlines()[-1]) == tree
    assert tree["holds"] is True
    assert tree["plan_id"] == plan.plan_id
    (finding,) = tree["findings"]
    assert finding["rounds"] == 2
    assert finding["claimed_mu"] == pytest.approx(plan.calibration.mu_total, rel=1e-3)
    assert "lower bound" in outcome.out
    assert (tmp_path / "audit" / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert not own_ledger.exists()
    run.distqexp("audit", tmp_path / "plan.h5", "--out", tmp_path / "audit", "--draws", "5").refused(2, "1000 or more")


def test_a_plan_that_claims_too_little_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    random_table("logistic", [1] * 8, seed=2).write(tmp_path / "public.h5")
    plan = plan_of(make_config(tmp_path, "logistic"))
    weak = ReleaseRule(1, replace(plan.state.grid, sigma=plan.state.grid.sigma // 3), "discrete")
    plan.write(tmp_path / "plan.h5")
    monkeypatch.setattr("distqexp.artefacts.plan.Plan.rule", lambda self, state: weak)
    assert not audit_plan(plan, 20_000, noise_seed=1).holds
    outcome = Commands(capsys).distqexp("audit", tmp_path / "plan.h5", "--out", tmp_path / "out", "--draws", "20000")
    assert outcome.code == 1
    assert "THE CLAIM IS WRONG" in outcome.out
