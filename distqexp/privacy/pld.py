"""The privacy loss of Gaussian and pure releases together.

N(0, 1) against N(mu, 1) is the worst case of all that is mu-GDP, randomised response the worst of what is epsilon-DP:
its loss is +epsilon with probability e^epsilon / (1 + e^epsilon), else -epsilon. Independent copies of these pairs are
the worst case of adaptive rounds (docs/proofs/composition.md), and their losses add up. With p the probabilities
of the total loss of the responses,

    delta(epsilon) = sum over losses l of p(l) delta_GDP(epsilon - l; mu):

a finite sum of positive terms, so no transform, no cut tails, and nothing lost to cancellation at a small delta. The one
approximation is on the safe side: epsilons are rounded up to multiples of a step, or to the largest of them. Both ways give
more for a longer list and for larger figures, whatever they are. All quantities are public.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from distqexp.privacy import gdp
from distqexp.privacy.rounding import above, exp_above, raised, settled
from distqexp.privacy.search import last_holding

MARGIN = 1e-9
"""Relative margin added to delta, above the rounding errors of the sum."""

FLOOR = 1e-250
"""Absolute margin added to delta, above what underflow can lose."""

ROUNDING = 1e-14
"""Relative margin on losses, above the rounding errors of their sums and differences."""

CELLS = 1024
"""The epsilons together are more than twice and at most four times so many steps, and another one for each."""

MOST_RESPONSES = 4096
"""Longer lists are left to the other statements: the sum takes time quadratic in the number of responses."""

LARGEST_TOTAL = 1e300
"""So are epsilons that are together above this."""

COARSE = 16
"""Significant bits of the epsilons among which ``Law.lowest`` chooses: few, so that a lowest point keeps its place."""


@dataclass(frozen=True)
class Law:
    """A mu-GDP release (none for mu = 0) together with responses of which ``masses`` are the chances of the total ``losses``."""

    mu: float
    losses: NDArray[np.float64]
    masses: NDArray[np.float64]

    def delta(self, epsilon: float) -> float:
        """A delta, at most 1, at ``epsilon`` >= 0: the smallest, rounded upwards."""
        gaps = epsilon - self.losses - ROUNDING * (epsilon + np.abs(self.losses))
        return min(1.0, float(np.dot(self.masses, gdp.deltas(gaps, self.mu))) * (1 + MARGIN) + FLOOR)

    def log_delta(self, epsilon: float) -> float:
        """Natural logarithm of ``delta(epsilon)``."""
        return raised(math.log(self.delta(epsilon)))

    def lowest(self, total_variation: float) -> float:
        """Where delta(epsilon) + (1 + e^epsilon) total_variation still falls, and at the next epsilon of 16 bits no more."""

        def falls(epsilon: float) -> bool:  # the probability of a loss above epsilon, on the other dataset
            gaps = epsilon - self.losses
            tails = gaps < 0 if self.mu == 0 else ndtr(-gaps / self.mu - self.mu / 2)
            return float(np.dot(self.masses[::-1], tails)) > total_variation

        if not falls(0.0):
            return 0.0
        high = 1.0
        while falls(high):
            high *= 4
        return last_holding(falls, inside=0.0, outside=high, bits=COARSE)


@dataclass(frozen=True)
class Mixed:
    """A mu-GDP release (none for mu = 0) and pure releases of ``epsilons`` (one or more), together."""

    mu: float
    epsilons: tuple[float, ...]

    def delta(self, epsilon: float) -> float:
        """A delta, at most 1, at ``epsilon`` >= 0: the smallest, rounded upwards."""
        return exp_above(settled(min(law.log_delta(epsilon) for law in self.laws)))

    @cached_property
    def laws(self) -> tuple[Law, Law]:
        """Two ways of rounding up: all epsilons to the largest, which is exact where they are equal, and each to a step.

        The step is a power of two, the larger the larger their sum, so that what rises never falls to a finer step.
        """
        # Their sum is exact or rounded by a hair, and a power of two from the exponent of a float.
        total = math.fsum(self.epsilons)
        step = math.ldexp(1.0, max(math.frexp(total / (2 * CELLS))[1] - 1, -1000))
        multiples = np.maximum(1, np.ceil(np.array(self.epsilons) / step)).astype(np.int64)
        largest = above(max(self.epsilons))
        return (
            _law(self.mu, largest, np.ones(len(multiples), dtype=np.int64)),
            _law(self.mu, step, np.sort(multiples)),
        )


def _law(mu: float, step: float, multiples: NDArray[np.int64]) -> Law:
    """The total loss of responses of ``multiples`` steps each, falling from the sum of them, and its probabilities."""
    parts = []
    for multiple, count in zip(*np.unique(multiples, return_counts=True), strict=True):
        one = np.zeros(multiple + 1)
        one[0], one[-1] = expit(multiple * step), expit(-multiple * step)
        parts.append(_power(one, int(count)))
    while len(parts) > 1:
        pairs = [np.convolve(first, second) for first, second in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    [masses] = parts
    return Law(mu, step * (multiples.sum() - 2.0 * np.arange(len(masses))), masses)


def _power(masses: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The law of the sum of ``count`` independent losses of one law."""
    if count == 1:
        return masses
    half = _power(masses, count // 2)
    both = np.convolve(half, half)
    return np.convolve(both, masses) if count % 2 else both
