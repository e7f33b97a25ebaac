"""The privacy loss of Gaussian and pure releases together. All quantities are public.

N(0, 1) against N(mu, 1) is the worst case of every mu-GDP mechanism, and randomised response that of every epsilon-DP mechanism:
its loss is +epsilon with probability e^epsilon / (1 + e^epsilon), else -epsilon. Independent copies of these pairs are
the worst case of adaptive rounds (docs/proofs/composition.md), and their losses add up. With p the probabilities
of the total loss of the responses,

    delta(epsilon) = sum over losses l of p(l) delta_GDP(epsilon - l; mu):

a finite sum of positive terms, which needs no transform, cuts no tails, and loses nothing to cancellation at a small delta.
The one approximation is on the safe side: epsilons are rounded up to multiples of a step, or to the largest of them. Both
ways give a larger delta for a longer list and for larger epsilons, whatever they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit, ndtr

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.privacy import gdp
from distqexp.privacy.rounding import above, with_margin
from distqexp.privacy.search import last_holding

MARGIN = 1e-9
"""The relative margin added to delta, above the rounding errors of the sum."""

FLOOR = 1e-250
"""The absolute margin added to delta, above what underflow can lose."""

ROUNDING = 1e-14
"""The relative margin on losses, above the rounding errors of their sums and differences."""

CELLS = 1024
"""The sum of the epsilons is more than twice and at most four times this many steps, plus one step for each."""

MOST_RESPONSES = 4096
"""The longest list for which the sum is computed: its time is quadratic in the number of responses."""

LARGEST_TOTAL = 1e300
"""The sum is not computed either for epsilons whose total is at least this."""

COARSE = 16
"""The significant bits of the epsilons among which ``Law.lowest`` chooses: few, so that a lowest point keeps its place."""


@dataclass(frozen=True)
class Law:
    """A mu-GDP release together with randomised responses.

    Attributes:
        mu: The parameter of the Gaussian release; 0 for none.
        losses: The possible total losses of the responses, falling.
        masses: The probabilities of these losses.
    """

    mu: float
    losses: FloatArray
    masses: FloatArray

    def delta(self, epsilon: float) -> float:
        """Return the smallest delta, at most 1, at ``epsilon`` >= 0, rounded upwards."""
        gaps = epsilon - self.losses - ROUNDING * (epsilon + np.abs(self.losses))
        return min(1.0, float(np.dot(self.masses, gdp.deltas(gaps, self.mu))) * (1 + MARGIN) + FLOOR)

    def log_delta(self, epsilon: float) -> float:
        """Return the natural logarithm of ``delta(epsilon)``."""
        return with_margin(math.log(self.delta(epsilon)))

    def lowest(self, total_variation: float) -> float:
        """Return the last epsilon of 16 bits at which delta(epsilon) + (1 + e^epsilon) total_variation still falls; 0 for none."""

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
class MixedReleases:
    """A Gaussian release and pure releases together.

    Attributes:
        mu: The parameter of the Gaussian release; 0 for none.
        epsilons: The epsilons of the pure releases, one or more.
    """

    mu: float
    epsilons: tuple[float, ...]

    @cached_property
    def laws(self) -> tuple[Law, Law]:
        """The laws by two ways of rounding epsilons up: all to the largest, or each to a multiple of a step.

        The first is exact where the epsilons are equal. The step is a power of two that grows with their sum, so that
        larger epsilons never meet a finer step.
        """
        # The sum is correctly rounded, and the exponent of a float gives a power of two.
        total = math.fsum(self.epsilons)
        step = math.ldexp(1.0, max(math.frexp(total / (2 * CELLS))[1] - 1, -1000))
        multiples = np.maximum(1, np.ceil(np.array(self.epsilons) / step)).astype(np.int64)
        largest = above(max(self.epsilons))
        return (
            _law(self.mu, largest, np.ones(len(multiples), dtype=np.int64)),
            _law(self.mu, step, np.sort(multiples)),
        )


def _law(mu: float, step: float, multiples: IntegerArray) -> Law:
    """Return the law of the total loss of responses of ``multiples`` steps each, with the losses falling."""
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


def _power(masses: FloatArray, count: int) -> FloatArray:
    """Return the probabilities of the sum of ``count`` independent losses of one law."""
    if count == 1:
        return masses
    half = _power(masses, count // 2)
    both = np.convolve(half, half)
    return np.convolve(both, masses) if count % 2 else both
