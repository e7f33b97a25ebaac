"""How far one unit moves the integers where sums of micro-batches are rounded, not units. All quantities are public.

The proof is docs/proofs/batches.md. With C the clip, h the grid step, n the units of a micro-batch, N the terms summed
for a coordinate and u = 2^-53, a unit that vanishes moves the integers by at most

    C (1 + 2^-30) / h + sqrt(k) + 2 n kappa C gamma_N / h,      gamma_N = N u / (1 - N u),

in Euclidean norm: its own clipped vector, one grid step a coordinate for the rounding of the sum, and what it may do to the
rounding errors of its neighbours' sum. The last bound needs the second clip, of the sizes of a unit's terms to kappa C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

CANCELLATION = 1024.0
"""kappa: a unit's terms may be this many times the clip before they cancel."""

LARGEST_TERMS = 2**22
"""N: a coordinate of a micro-batch's sum has at most this many terms (records times positions)."""

LARGEST_BATCH_SUM = 2**53
"""A micro-batch's sum stays below this many grid steps: float64 holds every integer below it."""

_TINY = Fraction(1, 2**30)  # covers the rounding of the weights w_j, and underflow


@dataclass(frozen=True)
class BatchSums:
    """Sums of ``micro_batch`` units of ``k`` coordinates each, in float64, that are rounded to the grid as a whole."""

    micro_batch: int
    k: int

    def slack(self, clip: float, exponent: int, factor: int) -> int:
        """Bound how far a unit moves the integers beyond ``factor`` floor(C/h), in steps of h = 2^exponent, rounded upwards."""
        steps = Fraction(clip) / Fraction(2) ** exponent
        roundoff = Fraction(LARGEST_TERMS, 2**53 - LARGEST_TERMS)
        slack = factor * _TINY * steps + 2 * self.micro_batch * Fraction(CANCELLATION) * steps * roundoff
        # floor(C/h) is less than one step below C/h, and isqrt is less than one below the root.
        return factor + math.ceil(slack) + math.isqrt(self.k) + 1

    def fits(self, clip_integer: int, slack: int) -> bool:
        """Whether float64 holds the sum of a micro-batch exactly to a grid step."""
        return self.micro_batch * (clip_integer + slack) < LARGEST_BATCH_SUM
