"""Private diagnostics: three sums that ride behind the gradient's, under the same noise. All quantities here are public.

A unit adds ``counter`` grid steps for being there, as many if it was clipped, and a share of as many for its loss. Its whole
vector, (k + 3,), is then at most sqrt(clip_integer^2 + 3 counter^2) long, and noise for that length covers everything that is
released (docs/proofs/gaussian.md). ``share`` is that of the three in the squared length: their share of mu^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUMS = 3
"""Units that were clipped, losses, units."""


@dataclass(frozen=True)
class Diagnostics:
    """Estimates from three noisy sums: public, paid for with the round. Each with the standard deviation of its noise.

    units: that are there with a finite gradient (of the round's part alone, where the plan has parts). clipped: the share of
    them whose gradient was longer than the clip. loss: the mean over units of a unit's mean loss, cut off at the largest that counts.
    The latter two are None where the noise hides how many units there are.
    """

    units: float
    units_deviation: float
    clipped: float | None
    clipped_deviation: float | None
    loss: float | None
    loss_deviation: float | None

    def line(self) -> str:
        """For people."""
        count = f"{self.units:,.0f} +- {self.units_deviation:,.0f} units"
        if self.clipped is None or self.loss is None:
            return f"{count}; too few beside the noise to tell more"
        return (
            f"{count}, {100 * self.clipped:.1f} +- {100 * (self.clipped_deviation or 0):.1f} % clipped, "
            f"mean loss {self.loss:.4g} +- {self.loss_deviation or 0:.2g}"
        )


def counter_of(clip_integer: int, share: float) -> int:
    """What one counts, in grid steps, so that three counts are at most ``share`` of the squared length; 0 for share 0."""
    return math.floor(clip_integer * math.sqrt(share / (1 - share) / SUMS))


def unit_length(clip_integer: int, counter: int) -> int:
    """How long a unit's vector with its counts is at most, in grid steps, rounded upwards; the clip itself without counts."""
    square = clip_integer**2 + SUMS * counter**2
    return math.isqrt(square - 1) + 1


def estimates(noisy: NDArray[np.int64], counter: int, sigma: int, largest_loss: float) -> Diagnostics:
    """What three noisy sums (3,), in grid steps, say: post-processing of a release, free."""
    clipped, loss, units = (float(value) / counter for value in noisy)
    deviation = sigma / counter
    if units < 2 * deviation:
        return Diagnostics(units, deviation, None, None, None, None)
    share, mean = min(max(clipped / units, 0.0), 1.0), min(max(loss / units, 0.0), 1.0)
    # To first order: the noises of numerator and denominator are independent.
    return Diagnostics(
        units, deviation,
        share, deviation / units * math.hypot(1, share),
        largest_loss * mean, largest_loss * deviation / units * math.hypot(1, mean),
    )  # fmt: skip
