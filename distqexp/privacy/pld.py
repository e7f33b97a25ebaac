"""The privacy loss of Gaussian and pure releases together.

N(0, 1) against N(mu, 1) is the worst case of all that is mu-GDP, randomised response the worst of what is epsilon-DP:
its loss is +epsilon with probability e^epsilon / (1 + e^epsilon), else -epsilon. Independent copies of these pairs are
the worst case of adaptive rounds (docs/proofs/composition.md), and their losses add up. With p the probabilities
of the total loss of the responses,

    delta(epsilon) = sum over losses l of p(l) delta_GDP(epsilon - l; mu):

a finite sum of positive terms, so no transform, no cut tails, and nothing lost to cancellation at a small delta. The one
approximation is on the safe side: epsilons that have no common divisor are rounded up to multiples of a step. All
quantities are public.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from distqexp.privacy import gdp
from distqexp.privacy.search import last_holding

MARGIN = 1e-9
"""Relative margin added to delta, above the rounding errors of the sum."""

FLOOR = 1e-250
"""Absolute margin added to delta, above what underflow can lose."""

ROUNDING = 1e-14
"""Relative margin on losses, above the rounding errors of their sums and differences."""

CELLS = 1024
"""How many steps the epsilons together may be; more only where there are more responses than that."""

MOST_RESPONSES = 4096
"""Longer lists are left to the other statements: the sum takes time quadratic in the number of responses."""


@dataclass(frozen=True)
class Mixed:
    """A mu-GDP release (none for mu = 0) and pure releases of ``epsilons`` (one or more), together."""

    mu: float
    epsilons: tuple[float, ...]

    def delta(self, epsilon: float) -> float:
        """A delta, at most 1, at ``epsilon`` >= 0: the smallest, rounded upwards."""
        losses, masses = self._law
        gaps = epsilon - losses - ROUNDING * (epsilon + np.abs(losses))
        return min(1.0, float(np.dot(masses, gdp.deltas(gaps, self.mu))) * (1 + MARGIN) + FLOOR)

    def lowest(self, total_variation: float) -> float:
        """Where delta(epsilon) + (1 + e^epsilon) total_variation is smallest, about; infinity when it only falls."""
        losses, masses = self._law
        if total_variation == 0 or self.mu == 0:
            return math.inf

        def falls(epsilon: float) -> bool:  # the probability of a loss above epsilon, on the other dataset
            tails = ndtr(-(epsilon - losses) / self.mu - self.mu / 2)
            return float(np.dot(masses[::-1], tails)) > total_variation

        if not falls(0.0):
            return 0.0
        high = 1.0
        while falls(high):
            high *= 2
        return last_holding(falls, inside=0.0, outside=high)

    @cached_property
    def _law(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The total loss of the responses, falling from the sum of all epsilons, and its probabilities."""
        step, multiples = _common_step(np.array(self.epsilons))
        masses = np.ones(1)
        for multiple in multiples:
            grown = np.zeros(len(masses) + multiple)
            grown[: len(masses)] = expit(multiple * step) * masses
            grown[multiple:] += expit(-multiple * step) * masses
            masses = grown
        return step * (multiples.sum() - 2.0 * np.arange(len(masses))), masses


def _common_step(epsilons: NDArray[np.float64]) -> tuple[float, NDArray[np.int64]]:
    """A step, and for each epsilon a whole number of steps that is at least it; of all few steps the tightest."""
    largest, most = float(epsilons.max()), max(CELLS, len(epsilons))
    best: tuple[float, float, NDArray[np.int64]] | None = None
    for divisor in range(1, most + 1):
        step = largest / divisor
        # The allowance keeps exact multiples what they are; the step grows by more than it.
        multiples = np.maximum(1, np.ceil(epsilons / step * (1 - 1e-13))).astype(np.int64)
        step *= 1 + 1e-12
        if multiples.sum() > most:
            break
        excess = float(np.sum(multiples * step - epsilons))
        if best is None or excess < best[0]:
            best = (excess, step, multiples)
    if best is None:  # the first divisor makes one step of each
        raise ValueError(f"{len(epsilons)} epsilons; expected one or more, finite and above 0")
    return best[1], best[2]
