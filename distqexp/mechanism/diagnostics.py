"""Private diagnostics: three sums that are appended to the gradient's and get the same noise.

All quantities in this file are public. A unit adds ``counter`` grid steps for being present, ``counter`` more if it was
clipped, and a fraction of ``counter`` for its loss. Its whole vector, (k + 3,), is then at most
sqrt(clip_integer^2 + 3 counter^2) long, and noise for that length covers everything that is released
(docs/proofs/gaussian.md). ``share`` is the part of the squared length that the three sums take, and so their part of mu^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distqexp.arrays import IntegerArray

SUMS = 3
"""The number of diagnostic sums: clipped units, losses and units, in this order."""


@dataclass(frozen=True)
class Diagnostics:
    """Estimates from three noisy sums, each with the standard deviation of its noise. Public, and paid for with the round.

    ``clipped``, ``loss`` and their deviations are None where the noise hides how many units there are.

    Attributes:
        units: How many units are present with a finite gradient (of the round's part alone, where the plan has parts; an estimate
            from the sample, where a round has one).
        units_deviation: The standard deviation of the noise in ``units``, and of the sample.
        clipped: The share of these units whose gradient was longer than the clip.
        clipped_deviation: The standard deviation of the noise in ``clipped``.
        loss: The mean over units of a unit's mean loss, cut off at the largest loss that counts.
        loss_deviation: The standard deviation of the noise in ``loss``.
    """

    units: float
    units_deviation: float
    clipped: float | None
    clipped_deviation: float | None
    loss: float | None
    loss_deviation: float | None

    def line(self) -> str:
        """Describe the estimates in one line for people."""
        count = f"{self.units:,.0f} +- {self.units_deviation:,.0f} units"
        if self.clipped is None or self.loss is None:
            return f"{count}; too few beside the noise to tell more"
        return (
            f"{count}, {100 * self.clipped:.1f} +- {100 * (self.clipped_deviation or 0):.1f} % clipped, "
            f"mean loss {self.loss:.4g} +- {self.loss_deviation or 0:.2g}"
        )


def counter_of(clip_integer: int, share: float) -> int:
    """Return how many grid steps stand for one, so that three counts take at most ``share`` of the squared length.

    The counter is 0 where ``share`` is 0.
    """
    return math.floor(clip_integer * math.sqrt(share / (1 - share) / SUMS))


def unit_length(clip_integer: int, counter: int) -> int:
    """Bound the length of a unit's vector with its counts, in grid steps, rounded upwards; without counts it is the clip."""
    square = clip_integer**2 + SUMS * counter**2
    return math.isqrt(square - 1) + 1


def estimates(
    noisy_sums: IntegerArray, counter: int, sigma: float, largest_loss: float, sampling: float = 1.0
) -> Diagnostics:
    """Turn the three noisy sums of a release into estimates. This is post-processing and costs no privacy.

    Args:
        noisy_sums: The noisy sums (3,), in grid steps.
        counter: How many grid steps stand for one.
        sigma: The standard deviation of the noise, in grid steps.
        largest_loss: The largest loss that counts.
        sampling: The probability with which a unit took part.
    """
    clipped_units, total_loss, units = (float(value) / counter for value in noisy_sums)
    deviation = sigma / counter
    all_units = units / sampling
    all_deviation = math.hypot(deviation, math.sqrt(max(units, 0.0) * (1 - sampling))) / sampling
    if units < 2 * deviation:
        return Diagnostics(all_units, all_deviation, None, None, None, None)
    share, mean = min(max(clipped_units / units, 0.0), 1.0), min(max(total_loss / units, 0.0), 1.0)
    # The deviations hold to first order: the noises of numerator and denominator are independent.
    return Diagnostics(
        all_units, all_deviation,
        share, deviation / units * math.hypot(1, share),
        largest_loss * mean, largest_loss * deviation / units * math.hypot(1, mean),
    )  # fmt: skip
