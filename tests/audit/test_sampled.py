"""The audit of sampled rounds: sound coins pass at a false-alarm rate of 1e-6, planted faults of coins and noise are caught."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from run_harness import Commands, overrides
from scipy.stats import norm
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.plan import Plan
from distqexp.audit import sampled
from distqexp.audit.bounds import curve_of, excess, fewest_misses
from distqexp.audit.command import audit_plan
from distqexp.audit.guessing import judge
from distqexp.audit.sampled import APART, ONCE, REPEATED, SampledClaim, SampledFinding, audit_sampled
from distqexp.errors import UsageError
from distqexp.mechanism.coins import toss_coins, toss_insecure_coins
from distqexp.mechanism.grid import Grid, GridOptions, choose_grid
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.events import GaussianRelease, cost
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.sampled import joint_rate
from distqexp.stages import sampling as run_coins

SAMPLING, ROUNDS, DRAWS, DELTA = 0.25, 4, 100_000, 1e-5
GRID = choose_grid(0.7, 1.5, 4096, "zero-out")
RULE = ReleaseRule(1, GRID, "discrete")

Coins = Callable[[int, float, int, int, str], NDArray[np.bool_]]

FAULTY: dict[str, Coins] = {
    "a fifth too often": lambda units, q, seed, round, shard: toss_insecure_coins(units, 1.2 * q, seed, round, shard),
    "once for all rounds": lambda units, q, seed, _, shard: toss_insecure_coins(units, q, seed, 0, shard),
    "repeated in every run": lambda units, q, _, round, shard: toss_insecure_coins(units, q, 1, round, shard),
}


def claim_of(grid: Grid = GRID, runs: int = 1, rounds: int = ROUNDS) -> SampledClaim:
    rate = joint_rate(SAMPLING, grid.sensitivity_factor)
    event = GaussianRelease(grid.mu, 1, float(grid.sigma), rate)
    return SampledClaim(SAMPLING, cost([event] * (rounds * runs)).guarantee(), DELTA, runs)


def audited(runs: int = 1, seed: int | None = 1, rule: ReleaseRule = RULE, draws: int = DRAWS) -> SampledFinding:
    return audit_sampled([rule] * ROUNDS, claim_of(runs=runs), draws, seed)


def plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Put faulty coins in the place of seeded ones, in the audit and in a run."""
    monkeypatch.setattr(sampled, "toss_insecure_coins", FAULTY[fault])
    monkeypatch.setattr(run_coins, "toss_insecure_coins", FAULTY[fault])


def sampled_plan(folder: Path) -> Plan:
    """Four rounds at a large epsilon, so that mu is large and few draws tell much."""
    random_table("logistic", [1] * 8, seed=2).write(folder / "public.h5")
    mechanism = {"rounds": ROUNDS, "sampling": SAMPLING}
    return plan_of(make_config(folder, "logistic", mechanism=mechanism, privacy={"epsilon": 12.0}))


# --- sound coins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_sound_coins_pass(runs: int, seed: int) -> None:
    """Each fails with probability 1e-6 at most, over seeds; these were not chosen."""
    found = audited(runs, seed)
    assert found.holds
    assert found.epsilon <= found.claimed_epsilon
    assert (found.rounds, found.runs, found.draws) == (ROUNDS, runs, DRAWS)


def test_real_coins_and_continuous_noise_pass() -> None:
    """Real entropy: false-alarm rate 1e-6."""
    assert audited(seed=None, rule=ReleaseRule(1, GRID, "gaussian"), draws=20_000).holds


def test_the_curve_is_found_out_almost_whole() -> None:
    """What is found of sound rounds beats the curve of rounds with 0.85 of their mu."""
    less = replace(
        claim_of(), guarantee=cost([GaussianRelease(0.85 * GRID.mu, 1, None, SAMPLING)] * ROUNDS).guarantee()
    )
    assert not audit_sampled([RULE] * ROUNDS, less, DRAWS, 1).holds


def test_a_unit_at_two_shards_has_a_coin_at_each() -> None:
    grid = choose_grid(0.7, 2.0, 4096, "zero-out", GridOptions(presence=2))
    rule = ReleaseRule(1, grid, "discrete")
    assert audit_sampled([rule] * 2, claim_of(grid, rounds=2), DRAWS, 1).holds
    once = sampled._times(DRAWS, 2, SAMPLING, 1, 0)
    shares = np.bincount(once, minlength=3) / DRAWS
    np.testing.assert_allclose(shares, [0.5625, 0.375, 0.0625], atol=5 * 0.5 / math.sqrt(DRAWS))


# --- planted faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "runs", "score"),
    [("a fifth too often", 1, APART), ("once for all rounds", 1, ONCE), ("repeated in every run", 2, REPEATED)],
)
def test_faulty_coins_are_caught(fault: str, runs: int, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sound coins of the same seed pass: the fault alone is what is caught."""
    assert audited(runs).holds
    plant(monkeypatch, fault)
    found = audited(runs)
    assert not found.holds
    assert found.score == score
    assert found.excess > 0.01


def test_coins_that_a_seed_repeats_are_sound_within_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "repeated in every run")
    assert audited(1).holds


def test_coins_of_the_operating_system_are_the_ones_that_are_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, float]] = []

    def too_often(units: int, q: float) -> NDArray[np.bool_]:
        calls.append((units, q))
        return toss_coins(units, 1.5 * q)

    assert sampled.toss_coins is run_coins.toss_coins
    assert sampled.toss_insecure_coins is run_coins.toss_insecure_coins
    monkeypatch.setattr(sampled, "toss_coins", too_often)
    assert not audited(seed=None, rule=ReleaseRule(1, GRID, "gaussian"), draws=40_000).holds
    assert calls == [(40_000, SAMPLING)] * ROUNDS


def test_noise_that_is_a_tenth_too_small_is_caught() -> None:
    assert not audited(rule=replace(RULE, grid=replace(GRID, sigma=int(0.9 * GRID.sigma)))).holds


# --- the rule of refutation --------------------------------------------------------------------------------------


def test_exact_error_rates_reach_the_curve_and_do_not_cross_it() -> None:
    """The best tests of (1 - q) N(0, 1) + q N(mu, 1) against N(0, 1) touch the curve of one sampled round."""
    mu = 1.5
    claim = cost([GaussianRelease(mu, 1, None, SAMPLING)]).guarantee()
    epsilons, deltas = curve_of(claim, 0.3, math.inf)
    assert 0.3 in epsilons
    assert np.isfinite(epsilons).all()
    points = np.linspace(-4, 6, 201)
    false_positives = norm.sf(points)
    false_negatives = (1 - SAMPLING) * norm.cdf(points) + SAMPLING * norm.cdf(points - mu)
    found = np.array(
        [excess(p, n, epsilons, deltas).max() for p, n in zip(false_positives, false_negatives, strict=True)]
    )
    assert (found <= 0).all()
    # The claim is symmetric. Beyond the point mu/2, where the ratio is 1, its curve is the line to the mirror image of these rates.
    middle = (points > mu / 2) & (false_positives > 0.01)
    assert found[middle].min() > -2e-3
    allowed = fewest_misses(false_positives, epsilons, deltas)
    assert (allowed <= false_negatives).all()
    np.testing.assert_allclose(allowed[middle], false_negatives[middle], atol=3e-3)


def test_the_rule_counts_both_ways_round() -> None:
    epsilons, deltas = np.array([0.0, 1.0]), np.array([0.5, 0.1])
    assert excess(0.1, 0.6, epsilons, deltas) == pytest.approx([-0.2, 0.3 - 0.1 * math.e])
    assert excess(0.6, 0.1, epsilons, deltas) == pytest.approx(excess(0.1, 0.6, epsilons, deltas))


def test_the_score_is_the_likelihood_ratio_of_the_mixture() -> None:
    evidence = sampled._Evidence(3)
    evidence.linear, evidence.square = np.array([-1.0, 0.5, 9.0]), 0.7
    full = evidence.linear - 0.7
    np.testing.assert_allclose(evidence.mixture(1, 0.2), np.log(0.8 + 0.2 * np.exp(full)))
    two = 0.64 + 0.32 * np.exp(full) + 0.04 * np.exp(2 * evidence.linear - 2.8)
    np.testing.assert_allclose(evidence.mixture(2, 0.2), np.log(two))


def test_what_can_not_be_audited_is_refused() -> None:
    with pytest.raises(UsageError, match="1000 or more"):
        audited(draws=10)
    with pytest.raises(UsageError, match="0 runs"):
        audit_sampled([RULE], replace(claim_of(), runs=0), 1000)
    ball = ReleaseRule(2, GRID, "gaussian", 2.0 * math.sqrt(GRID.temperature))
    with pytest.raises(UsageError, match="trust region"):
        audit_sampled([ball], claim_of(), 1000)


# --- plans and runs ----------------------------------------------------------------------------------------------


def test_the_command_audits_a_sampled_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_ledger: Path
) -> None:
    plan = sampled_plan(tmp_path)
    plan.write(tmp_path / "plan.h5")
    run = Commands(capsys)
    outcome = run.done("audit", tmp_path / "plan.h5", "--out", tmp_path / "audit", "--draws", "5000", "--json")
    tree = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert json.loads(outcome.out.splitlines()[-1]) == tree
    (finding,) = tree["findings"]
    assert tree["holds"] is finding["holds"] is True
    assert finding["claimed_epsilon"] == pytest.approx(plan.config.privacy.epsilon, rel=1e-3)
    assert finding["sampling"] == SAMPLING
    assert "probability 0.25" in outcome.out
    assert "coins of different units" in outcome.out
    assert (tmp_path / "audit" / "audit.png").read_bytes().startswith(b"\x89PNG")
    two = run.done("audit", tmp_path / "plan.h5", "--out", tmp_path / "two", "--draws", "5000", "--runs", "2")
    assert "2 runs" in two.out
    refused = run.distqexp("audit", "--out", tmp_path / "no", "--canaries", "40", "--runs", "2")
    refused.refused(2, "--runs", "makes one run")
    assert not own_ledger.exists()


def test_a_plan_of_faulty_coins_is_refuted_over_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sampled_plan(tmp_path)
    one, two = (audit_plan(plan, DRAWS, 1, runs) for runs in (1, 2))
    assert one.holds
    assert two.holds
    assert "2 runs" in two.mechanism
    assert isinstance(one.findings[0], SampledFinding)
    assert isinstance(two.findings[0], SampledFinding)
    assert two.findings[0].claimed_epsilon > one.findings[0].claimed_epsilon
    plant(monkeypatch, "repeated in every run")
    assert audit_plan(plan, DRAWS, 1).holds
    wrong = audit_plan(plan, DRAWS, 1, 2)
    assert not wrong.holds
    assert "THE CLAIM IS WRONG" in wrong.lines()[1]
    assert REPEATED in wrong.lines()[1]
    with pytest.raises(UsageError, match="0 runs"):
        audit_plan(plan, DRAWS, 1, 0)


def test_runs_of_a_plan_without_samples_are_audited_together(tmp_path: Path) -> None:
    random_table("logistic", [1] * 8, seed=2).write(tmp_path / "public.h5")
    plan = plan_of(make_config(tmp_path, "logistic"))
    (finding,) = audit_plan(plan, 20_000, 1, runs=3).findings
    assert not isinstance(finding, SampledFinding)
    assert finding.holds
    assert finding.rounds == 3 * plan.config.mechanism.passes
    assert finding.claimed_mu == pytest.approx(math.sqrt(3) * plan.calibration.mu_total, rel=1e-3)


def test_right_guesses_of_a_sampled_claim_are_judged_by_its_curve() -> None:
    """Without its coins the claim would allow all these guesses: its mu is 8, epsilon above 50."""
    claim = cost([GaussianRelease(0.5, 1, None, 0.01)] * 256).guarantee()
    coins = np.arange(400) % 2 == 0
    aside = Guarantee(claim.mu, 0.0, claim.mu**2 / 2)
    assert judge("sums", coins.astype(float), coins, aside, DELTA, 1e-6).holds
    assert not judge("sums", coins.astype(float), coins, claim, DELTA, 1e-6).holds
    guesses = np.random.default_rng(5).random(400)
    assert judge("sums", guesses, coins, claim, DELTA, 1e-6).holds


@pytest.mark.slow
def test_a_sampled_run_with_canaries_passes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_ledger: Path
) -> None:
    settings = overrides("mechanism.sampling=0.25", "mechanism.rounds=16", "model.pretrain.epochs=5")
    command = ["audit", "--canaries", "200", *settings, "--json", "--insecure-noise-seed", "7", "--out", tmp_path]
    outcome = Commands(capsys).done(*command)
    tree = json.loads((tmp_path / "audit-run.json").read_text())
    assert tree["holds"] is True
    assert tree["claim"]["sampling"] == 0.25
    assert tree["claim"]["epsilon"] == pytest.approx(1.0, rel=0.01)
    # Guesses are better than chance although the guesser doesn't know who joined: the average of the sums shows who was in.
    assert tree["canaries"]["correct"] > 0.5 * tree["canaries"]["guesses"]
    assert "left aside" in outcome.out
    assert not own_ledger.exists()
