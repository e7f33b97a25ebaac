"""Audit of the draw: many releases on two neighbouring sums, through the code that releases, told apart by the likelihood ratio.

The two sums differ by one unit at its worst: its integers use up the whole clip. Half of the draws choose a threshold, the other half
count its errors, so that the bounds are honest. Finding nothing proves nothing: see ``CAVEATS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distqexp.audit.bounds import FAILURE, epsilon_below, mu_below, rate_above
from distqexp.errors import UsageError
from distqexp.mechanism.diagnostics import SUMS
from distqexp.mechanism.randomness import SeededRandomness, SystemRandomness
from distqexp.mechanism.rule import ReleaseRule, released_point

FloatArray = NDArray[np.float64]
IntegerArray = NDArray[np.int64]

THRESHOLDS = 400
"""Thresholds that are compared on the first half of the draws."""

FEWEST_DRAWS = 1000

CAVEATS = (
    "An audit gives a lower bound: a mechanism that passes may still give away more than was found, up to its claim or beyond.",
    "This one looks at the draw alone. Whether sketches depend on single units to the last bit, timing, memory and files are not in it.",
    "The two datasets are the worst that the proofs know; a worse pair that they overlook would not be found.",
)


@dataclass(frozen=True)
class Unit:
    """What one unit adds to the sums: linear (k,), in grid steps, and one curvature factor (k,), in its grid's steps."""

    name: str
    linear: IntegerArray
    factor: IntegerArray

    def sums(self, rule: ReleaseRule, times: int) -> IntegerArray:
        """The sums (width,) of a dataset that holds this unit alone, so many times over; below 0: its gradient turned around."""
        if rule.factors is None:
            return times * self.linear
        gram = np.outer(self.factor, self.factor)[np.triu_indices(rule.k)]
        return np.concatenate([times * self.linear, abs(times) * gram])

    def score(self, rule: ReleaseRule, points: FloatArray, low: int, high: int) -> FloatArray:
        """Logarithm of the likelihood ratio of ``high`` times the unit to ``low`` times, at points (n, k), up to a constant."""
        cost = (high - low) * (points @ (self.linear * rule.grid.step))
        if rule.factors is not None:
            cost = cost + (abs(high) - abs(low)) * np.square(points @ (self.factor * rule.factors.step)) / 2.0
        return -cost / rule.grid.temperature


@dataclass(frozen=True)
class Finding:
    """What the draws on one pair of datasets show. Every figure is public: no record enters an audit.

    mu: at least so much was given away, up to FAILURE; claimed_mu: by the claim. epsilon: the same at the claim's delta.
    false_positive, false_negative: bounds of the error rates at the chosen threshold. holds: whether the claim survives.
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


def worst_units(rule: ReleaseRule) -> list[Unit]:
    """Units that use up the clip: by gradient alone, and with private curvature by curvature alone and by half of each."""
    clip, none = _longest(rule), np.zeros(rule.k, dtype=np.int64)
    first = none.copy()
    first[0] = 1
    units = [Unit("gradient", clip * first, none)]
    if rule.factors is not None:
        for name, share in (("curvature", 1.0), ("gradient and curvature", 0.5)):
            entry = math.isqrt(int(share * rule.factors.largest_trace))
            left = max(0, clip - math.ceil(rule.factors.price * entry**2))
            units.append(Unit(name, (left if share < 1 else 0) * first, entry * first))
    return units


def _longest(rule: ReleaseRule) -> int:
    """The clip; with diagnostics the length of a unit's whole vector: noise is alike in every direction, so turned into one."""
    grid = rule.grid
    return math.isqrt(grid.clip_integer**2 + SUMS * grid.counter**2)


def audit_sampler(
    rules: Sequence[ReleaseRule], claimed_mu: float, delta: float, draws: int, seed: int | None = None
) -> list[Finding]:
    """Audit the releases of ``rules``, one a round that a unit takes part in, against ``claimed_mu`` for all of them together.

    ``draws`` of every round on either dataset. From the operating system's entropy; from a seed in tests. Raises UsageError.
    """
    if not rules or draws < FEWEST_DRAWS:
        raise UsageError(
            f"audit: found {len(rules)} rounds, {draws} draws; expected one or more, {FEWEST_DRAWS} or more"
        )
    if len({(rule.factors is None, rule.radius is None) for rule in rules}) > 1:
        raise UsageError("audit: rounds of different mechanisms; expected one: audit them apart")
    found = []
    for number, unit in enumerate(worst_units(rules[0])):
        scores: list[list[FloatArray]] = [[], []]
        for round, rule in enumerate(rules):
            own = worst_units(rule)[number]
            # One unit for another moves the sums twice as far: from minus the unit to the unit. So it is in more shards than one.
            factor = rule.grid.sensitivity_factor
            low, high = -(factor // 2), factor - factor // 2
            for side, times in enumerate((low, high)):
                points = draw_points(rule, own.sums(rule, times), draws, None if seed is None else seed + side, round)
                scores[side].append(own.score(rule, points, low, high))
        without, with_unit = (np.sum(side, axis=0) for side in scores)
        found.append(_judged(unit.name, without, with_unit, len(rules), claimed_mu, delta))
    return found


def draw_points(rule: ReleaseRule, sums: IntegerArray, count: int, seed: int | None, round: int) -> FloatArray:
    """``count`` released points (count, k), by the rule itself."""
    if rule.independent:
        # Noise is independent from coordinate to coordinate: one wide release is many narrow ones.
        wide, many = replace(rule, k=rule.k * count), np.tile(sums, count)
        return released_point(wide.released(many, wide.draw(many, seed, round)), rule.grid).reshape(count, rule.k)
    found, draw = np.empty((count, rule.k)), rule.point_sampler(sums)  # one law, whose factorisation all draws share
    system = SystemRandomness()
    for number in range(count):
        drawn = draw(system if seed is None else SeededRandomness(seed + 2 * number, round))
        found[number] = released_point(rule.released(sums, drawn), rule.grid)
    return found


def _judged(
    pair: str, without: FloatArray, with_unit: FloatArray, rounds: int, claimed_mu: float, delta: float
) -> Finding:
    half = len(without) // 2
    failure = FAILURE / 2  # of each of the two bounds
    candidates = np.quantile(
        np.concatenate([without[:half], with_unit[:half]]), np.linspace(0, 1, THRESHOLDS + 2)[1:-1]
    )

    def bounds(threshold: float, part: slice) -> tuple[float, float]:
        a, b = without[part], with_unit[part]
        positives, negatives = int((a > threshold).sum()), int((b <= threshold).sum())
        return rate_above(positives, len(a), failure), rate_above(negatives, len(b), failure)

    chosen = max((float(value) for value in candidates), key=lambda value: mu_below(*bounds(value, slice(half))))
    false_positive, false_negative = bounds(chosen, slice(half, None))
    return Finding(
        pair=pair, draws=len(without), rounds=rounds, claimed_mu=claimed_mu, mu=mu_below(false_positive, false_negative),
        epsilon=epsilon_below(false_positive, false_negative, delta), false_positive=false_positive,
        false_negative=false_negative,
    )  # fmt: skip
