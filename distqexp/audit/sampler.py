"""Audit of the draw: many releases of two neighbouring sums, by the code that releases, told apart by the likelihood ratio.

The two sums differ by one worst-case unit, whose integers use up the whole clip. Half of the draws choose a threshold, the other half
count its errors, so that the bounds are honest. Finding nothing proves nothing: see ``CAVEATS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.audit.bounds import FAILURE, epsilon_below, mu_below, rate_above
from distqexp.errors import UsageError
from distqexp.mechanism.diagnostics import SUMS
from distqexp.mechanism.randomness import SeededRandomness, SystemRandomness
from distqexp.mechanism.rule import ReleaseRule, released_point

THRESHOLDS = 400
"""The number of thresholds that are compared on the first half of the draws."""

FEWEST_DRAWS = 1000

CAVEATS = (
    "An audit gives a lower bound: a mechanism that passes may still give away more than was found, up to its claim or beyond.",
    "This one looks at the draw alone. Whether sketches depend on single units to the last bit, timing, memory and files are not in it.",
    "The two datasets are the worst that the proofs know; a worse pair that they overlook would not be found.",
)


@dataclass(frozen=True)
class Unit:
    """What one unit adds to the sums.

    Attributes:
        name: What uses up its clip, in words.
        linear: Its gradient, (k,), in grid steps.
        factor: Its one curvature factor, (k,), in steps of the factors' grid.
    """

    name: str
    linear: IntegerArray
    factor: IntegerArray

    def sums(self, rule: ReleaseRule, times: int) -> IntegerArray:
        """Return the sums (width,) of a dataset that holds this unit alone, ``times`` times; below 0 with its gradient negated."""
        if rule.factors is None:
            return times * self.linear
        gram = np.outer(self.factor, self.factor)[np.triu_indices(rule.k)]
        return np.concatenate([times * self.linear, abs(times) * gram])

    def score(self, rule: ReleaseRule, points: FloatArray, low: int, high: int) -> FloatArray:
        """Compare two datasets, of ``low`` and of ``high`` times the unit, at released points.

        Args:
            rule: The rule that released the points.
            points: The points, (n, k).
            low: How often one dataset holds the unit.
            high: How often the other does.

        Returns:
            The logarithm of the likelihood ratio of ``high`` to ``low``, (n,), up to a constant.
        """
        cost = (high - low) * (points @ (self.linear * rule.grid.step))
        if rule.factors is not None:
            cost = cost + (abs(high) - abs(low)) * np.square(points @ (self.factor * rule.factors.step)) / 2.0
        return -cost / rule.grid.temperature


@dataclass(frozen=True)
class Finding:
    """What the draws on one pair of datasets show. Every figure is public, because no record enters an audit.

    Attributes:
        pair: The unit that the datasets differ by, in words.
        draws: The number of releases of each round on either dataset.
        rounds: The number of rounds.
        claimed_mu: The claim for all rounds together.
        mu: The mechanism gives away at least this mu, but for a probability of FAILURE.
        epsilon: It gives away at least this epsilon at the claim's delta, but for the same probability.
        false_positive: A bound on the false positive rate at the chosen threshold.
        false_negative: A bound on the false negative rate there.
    """

    pair: str
    draws: int
    rounds: int
    claimed_mu: float
    mu: float
    epsilon: float
    false_positive: float
    false_negative: float

    @property
    def holds(self) -> bool:
        """Whether nothing was found beyond the claim."""
        return self.mu <= self.claimed_mu

    @property
    def words(self) -> str:
        """What was found beside what is claimed."""
        return (
            f"at least mu {self.mu:.4g} and epsilon {self.epsilon:.4g} were found; mu {self.claimed_mu:.4g} is claimed"
        )

    @property
    def label(self) -> str:
        """What the point in the plot is called."""
        return f"{self.pair}: mu at least {self.mu:.3g}"


def worst_units(rule: ReleaseRule) -> list[Unit]:
    """Make units that use up the clip: by gradient alone, and with private curvature by curvature alone and by half of each."""
    clip, none = _longest(rule), np.zeros(rule.k, dtype=np.int64)
    first = none.copy()
    first[0] = 1
    units = [Unit("gradient", clip * first, none)]
    if rule.factors is not None:
        for name, share in (("curvature", 1.0), ("gradient and curvature", 0.5)):
            entry = math.isqrt(int(share * rule.factors.largest_trace))
            remainder = max(0, clip - math.ceil(rule.factors.price * entry**2))
            units.append(Unit(name, (remainder if share < 1 else 0) * first, entry * first))
    return units


def _longest(rule: ReleaseRule) -> int:
    """Return the clip; with diagnostics the length of a unit's whole vector, as if it were all gradient: noise has no direction."""
    grid = rule.grid
    return math.isqrt(grid.clip_integer**2 + SUMS * grid.counter**2)


def audit_sampler(
    rules: Sequence[ReleaseRule], claimed_mu: float, delta: float, draws: int, noise_seed: int | None = None
) -> list[Finding]:
    """Audit the releases of several rounds against one claim for all of them together.

    Args:
        rules: The rule of each round that a unit takes part in.
        claimed_mu: The claim.
        delta: The delta of the epsilon to be bounded.
        draws: How many releases of each round to draw on either dataset.
        noise_seed: The seed of the noise, for tests; it comes from the operating system's entropy when None.

    Returns:
        A finding for each of the worst units.

    Raises:
        UsageError: There are no rounds, too few draws, or rounds of different mechanisms.
    """
    check_draws(rules, draws)
    if len({(rule.factors is None, rule.trust_radius is None) for rule in rules}) > 1:
        raise UsageError("audit: rounds of different mechanisms; expected one: audit them apart")
    findings = []
    for number, unit in enumerate(worst_units(rules[0])):
        scores: list[list[FloatArray]] = [[], []]
        for round, rule in enumerate(rules):
            own = worst_units(rule)[number]
            # Sums move twice as far where one unit replaces another: from minus the unit to the unit. Several shards count alike.
            factor = rule.grid.sensitivity_factor
            low, high = -(factor // 2), factor - factor // 2
            for side, times in enumerate((low, high)):
                seed = None if noise_seed is None else noise_seed + side
                points = draw_points(rule, own.sums(rule, times), draws, seed, round)
                scores[side].append(own.score(rule, points, low, high))
        without, with_unit = (np.sum(side, axis=0) for side in scores)
        findings.append(_judge(unit.name, without, with_unit, len(rules), claimed_mu, delta))
    return findings


def check_draws(rules: Sequence[ReleaseRule], draws: int) -> None:
    """Raise UsageError where there are no rounds or too few draws."""
    if not rules or draws < FEWEST_DRAWS:
        raise UsageError(
            f"audit: found {len(rules)} rounds, {draws} draws; expected one or more, {FEWEST_DRAWS} or more"
        )


def draw_points(rule: ReleaseRule, sums: IntegerArray, count: int, noise_seed: int | None, round: int) -> FloatArray:
    """Draw released points by the rule itself.

    Args:
        rule: The rule of the round.
        sums: The sums, (width,); where noise is independent of them also those of each draw, (count, width).
        count: How many points to draw.
        noise_seed: The seed of the noise; it comes from the operating system's entropy when None.
        round: The number of the round, from 0.

    Returns:
        The points, (count, k).
    """
    if rule.independent:
        # Noise is independent from coordinate to coordinate: one wide release is many narrow ones.
        wide, many = replace(rule, k=rule.k * count), np.broadcast_to(sums, (count, rule.k)).reshape(-1)
        noisy_sums = wide.noisy_sums(many, wide.draw(many, noise_seed, round))
        return released_point(noisy_sums, rule.grid).reshape(count, rule.k)
    points, sampler = (
        np.empty((count, rule.k)),
        rule.point_sampler(sums),
    )  # one law, whose factorisation all draws share
    system = SystemRandomness()
    for number in range(count):
        draw = sampler(system if noise_seed is None else SeededRandomness(noise_seed + 2 * number, round))
        points[number] = released_point(rule.noisy_sums(sums, draw), rule.grid)
    return points


def _judge(
    pair: str, without: FloatArray, with_unit: FloatArray, rounds: int, claimed_mu: float, delta: float
) -> Finding:
    """Choose a threshold of the scores on the first half of the draws, and bound its error rates on the second half."""
    half = len(without) // 2
    failure = FAILURE / 2  # of each of the two bounds
    candidates = np.quantile(
        np.concatenate([without[:half], with_unit[:half]]), np.linspace(0, 1, THRESHOLDS + 2)[1:-1]
    )

    def bounds(threshold: float, part: slice) -> tuple[float, float]:
        a, b = without[part], with_unit[part]
        positives, negatives = int((a > threshold).sum()), int((b <= threshold).sum())
        return rate_above(positives, len(a), failure), rate_above(negatives, len(b), failure)

    best = max((float(value) for value in candidates), key=lambda value: mu_below(*bounds(value, slice(half))))
    false_positive, false_negative = bounds(best, slice(half, None))
    return Finding(
        pair=pair, draws=len(without), rounds=rounds, claimed_mu=claimed_mu, mu=mu_below(false_positive, false_negative),
        epsilon=epsilon_below(false_positive, false_negative, delta), false_positive=false_positive,
        false_negative=false_negative,
    )  # fmt: skip
