"""Audit of sampled rounds: many releases with and without a unit that joins each round by a secret coin of its own.

The coins are tossed by the code that a run tosses them by, and the draw is a run's own. What is claimed is a whole curve of epsilons and
deltas, and each of its points is tested. Half of the draws choose a score and a threshold, the other half count its errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.audit.bounds import FAILURE, curve_of, epsilon_below, excess, rate_above
from distqexp.audit.sampler import Unit, check_draws, draw_points, worst_units
from distqexp.errors import UsageError
from distqexp.mechanism.coins import toss_coins, toss_insecure_coins
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.guarantee import Guarantee

LEVELS = np.unique(
    np.concatenate([np.linspace(0, 1, 402)[1:-1], np.geomspace(1e-6, 0.1, 101), 1 - np.geomspace(1e-6, 0.1, 101)])
)
"""The quantiles of a score, over both datasets, that are compared on the first half of the draws; there are more near either end."""

APART = "each round's coin for itself"
ONCE = "one coin for all rounds"
REPEATED = "the same coins in every run"


@dataclass(frozen=True)
class SampledClaim:
    """What is claimed of sampled rounds.

    Attributes:
        sampling: The probability of each coin.
        guarantee: The guarantee of all rounds of all runs together.
        delta: The delta of the epsilon to be reported.
        runs: How many runs there are, of the same rounds each.
    """

    sampling: float
    guarantee: Guarantee
    delta: float
    runs: int = 1


@dataclass(frozen=True)
class SampledFinding:
    """What the draws on one pair of datasets show. Every figure is public, because no record enters an audit.

    Attributes:
        pair: The unit that the datasets differ by, in words.
        draws: The number of releases of each round on either dataset.
        rounds: The number of rounds of a run.
        runs: The number of runs.
        sampling: The claimed probability with which the unit joins a round.
        score: What the chosen score takes the coins to be.
        claimed_epsilon: The claim for all rounds together, at the claim's delta.
        epsilon: The mechanism gives away at least this epsilon at that delta, but for a probability of FAILURE.
        excess: By how much its errors are too rare for the claim, at the point of the curve where they are rarest; at most 0 unless the
            claim is wrong, but for the same probability.
        excess_at: The epsilon of that point.
        false_positive: A bound on the false positive rate at the chosen threshold.
        false_negative: A bound on the false negative rate there.
    """

    pair: str
    draws: int
    rounds: int
    runs: int
    sampling: float
    score: str
    claimed_epsilon: float
    epsilon: float
    excess: float
    excess_at: float
    false_positive: float
    false_negative: float

    @property
    def holds(self) -> bool:
        """Whether no point of the claimed curve is refuted."""
        return self.excess <= 0

    @property
    def words(self) -> str:
        """What was found beside what is claimed."""
        point = (
            ""
            if self.holds
            else f" (refuted at epsilon {self.excess_at:.4g}, by {self.excess:.3g}; score: {self.score})"
        )
        return (
            f"at least epsilon {self.epsilon:.4g} was found; epsilon {self.claimed_epsilon:.4g} is claimed, "
            f"and delta at every other epsilon{point}"
        )

    @property
    def label(self) -> str:
        """What the point in the plot is called."""
        return f"{self.pair}: epsilon at least {self.epsilon:.3g}"


def audit_sampled(
    rules: Sequence[ReleaseRule], claim: SampledClaim, draws: int, noise_seed: int | None = None
) -> SampledFinding:
    """Audit the releases of several sampled rounds against one claim for all of them together.

    Args:
        rules: The rule of each round of a run.
        claim: The claim.
        draws: How many releases of each round to draw on either dataset.
        noise_seed: The seed of noise and coins, for tests; they come from the operating system's entropy when None.

    Raises:
        UsageError: There are no rounds or runs, too few draws, or rounds with a trust region.
    """
    check_draws(rules, draws)
    if claim.runs < 1:
        raise UsageError(f"audit: found {claim.runs} runs; expected one or more")
    if not all(rule.independent for rule in rules):
        raise UsageError(
            "mechanism.sampling: sampled rounds with a trust region; expected none: its accounting has no samples"
        )
    without, with_unit = (_side(rules, claim, draws, noise_seed, joins=joins) for joins in (False, True))
    return _judge(worst_units(rules[0])[0].name, without, with_unit, len(rules), claim)


def _side(
    rules: Sequence[ReleaseRule], claim: SampledClaim, draws: int, noise_seed: int | None, *, joins: bool
) -> dict[str, FloatArray]:
    """Release every round of every run on one dataset, and return each score of each draw, (draws,), by its name."""
    apart, together = np.zeros(draws), _Evidence(draws)
    by_round = [_Evidence(draws) for _ in rules] if claim.runs > 1 else []
    for run in range(claim.runs):
        coin_seed = None if noise_seed is None else noise_seed + run
        for round, rule in enumerate(rules):
            unit, shards = worst_units(rule)[0], rule.grid.sensitivity_factor
            times = np.zeros(draws, dtype=np.int64)
            if joins:
                times = _times(draws, shards, claim.sampling, coin_seed, round)
            seed = None if noise_seed is None else noise_seed + int(joins)
            points = draw_points(rule, times[:, None] * unit.linear, draws, seed, run * len(rules) + round)
            evidence = _Evidence.of(rule, unit, points)
            apart += evidence.mixture(shards, claim.sampling)
            together.add(evidence)
            if by_round:
                by_round[round].add(evidence)
    shards = rules[0].grid.sensitivity_factor
    scores = {APART: apart, ONCE: together.mixture(shards, claim.sampling)}
    if by_round:
        scores[REPEATED] = np.sum([evidence.mixture(shards, claim.sampling) for evidence in by_round], axis=0)
    return scores


def _times(draws: int, shards: int, sampling: float, noise_seed: int | None, round: int) -> IntegerArray:
    """Toss the coins of one round by a run's own code, each draw standing for a unit; return how often the unit joins, (draws,).

    A unit that is present at several shards has a coin at each.
    """
    times = np.zeros(draws, dtype=np.int64)
    for shard in range(shards):
        if noise_seed is None:
            times += toss_coins(draws, sampling)
        else:
            times += toss_insecure_coins(draws, sampling, noise_seed, round, str(shard))
    return times


class _Evidence:
    """What releases say of a unit whose number of copies is the same in all of them.

    The logarithm of the likelihood ratio of ``times`` copies to none is times * linear - times^2 * square.
    """

    def __init__(self, draws: int) -> None:
        self.linear: FloatArray = np.zeros(draws)
        self.square = 0.0

    @staticmethod
    def of(rule: ReleaseRule, unit: Unit, points: FloatArray) -> _Evidence:
        """Return the evidence of one round's points, (draws, k)."""
        evidence = _Evidence(len(points))
        evidence.linear = unit.score(rule, points, 0, 1)
        evidence.square = float(np.square(unit.linear / rule.grid.sigma).sum()) / 2
        return evidence

    def add(self, other: _Evidence) -> None:
        """Add another round's."""
        self.linear += other.linear
        self.square += other.square

    def mixture(self, shards: int, sampling: float) -> FloatArray:
        """Return the log-likelihood ratio of a unit with so many coins to no unit: for one coin log(1 - q + q e^ratio)."""
        total = np.full(len(self.linear), -np.inf)
        for times in range(shards + 1):
            weight = float(binom.logpmf(times, shards, sampling))
            total = np.logaddexp(total, weight + times * self.linear - times**2 * self.square)
        return total


def _judge(
    pair: str, without: dict[str, FloatArray], with_unit: dict[str, FloatArray], rounds: int, claim: SampledClaim
) -> SampledFinding:
    """Choose a score and a threshold on the first half of the draws, and bound its error rates on the second half.

    The second half sees one test alone, so there is nothing to be shared out between the scores.
    """
    draws = len(without[APART])
    first, second = slice(draws // 2), slice(draws // 2, None)
    claimed_epsilon = claim.guarantee.epsilon(claim.delta)
    epsilons, deltas = curve_of(claim.guarantee, claimed_epsilon)
    best = (-np.inf, APART, 0.0)
    for name, score in without.items():
        sides = score[first], with_unit[name][first]
        thresholds = np.quantile(np.concatenate(sides), LEVELS)
        margins = _margins(*sides, thresholds, epsilons, deltas)
        place = int(margins.argmax())
        best = max(best, (float(margins[place]), name, float(thresholds[place])))
    _, score_name, threshold = best
    a, b = without[score_name][second], with_unit[score_name][second]
    failure = FAILURE / 2  # of each of the two bounds
    false_positive = rate_above(int((a > threshold).sum()), len(a), failure)
    false_negative = rate_above(int((b <= threshold).sum()), len(b), failure)
    excesses = excess(false_positive, false_negative, epsilons, deltas)
    worst = int(excesses.argmax())
    return SampledFinding(
        pair=pair, draws=draws, rounds=rounds, runs=claim.runs, sampling=claim.sampling, score=score_name,
        claimed_epsilon=claimed_epsilon, epsilon=epsilon_below(false_positive, false_negative, claim.delta),
        excess=float(excesses[worst]), excess_at=float(epsilons[worst]), false_positive=false_positive,
        false_negative=false_negative,
    )  # fmt: skip


def _margins(
    without: FloatArray, with_unit: FloatArray, thresholds: FloatArray, epsilons: FloatArray, deltas: FloatArray
) -> FloatArray:
    """Return how clearly each threshold refutes a curve, (thresholds,): the largest excess, in units of what the bounds add to it."""
    positives = len(without) - np.searchsorted(np.sort(without), thresholds, side="right")
    negatives = np.searchsorted(np.sort(with_unit), thresholds, side="right")
    margins = np.empty(len(thresholds))
    for place, counts in enumerate(zip(positives, negatives, strict=True)):
        bounds = [
            rate_above(int(count), len(side), FAILURE / 2)
            for count, side in zip(counts, (without, with_unit), strict=True)
        ]
        rates = counts[0] / len(without), counts[1] / len(with_unit)
        wide = excess(bounds[0], bounds[1], epsilons, deltas)
        narrow = excess(rates[0], rates[1], epsilons, deltas)
        margins[place] = (wide / np.maximum(narrow - wide, 1e-12)).max()
    return margins
