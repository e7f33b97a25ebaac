"""Intervals in closed form, at 95 %: for shares, means, areas under a ROC curve, and differences on the same records."""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.959963984540054
"""The 97.5 % point of the normal law."""


class Interval(NamedTuple):
    """An estimate with an interval around it.

    Attributes:
        value: The estimate.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the estimate is apart from 0 by more than the interval."""
        return self.low > 0 or self.high < 0


def of_share(hits: int, tries: int) -> Interval:
    """Return the share of hits with Wilson's score interval; of no tries nothing is known: 0 to 1.

    Raises:
        ValueError: There are more hits than tries, or fewer than none.
    """
    if not 0 <= hits <= tries:
        raise ValueError(f"hits: found {hits} of {tries}; expected 0 to {tries}")
    if tries == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, weight = hits / tries, Z**2 / tries
    centre = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / tries + weight / (4 * tries))
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def of_mean(mean: float, deviation: float, count: int) -> Interval:
    """Return a mean with its normal interval; ``deviation`` is the standard deviation of one value."""
    half = Z * deviation / math.sqrt(count) if count else math.inf
    return Interval(mean, mean - half, mean + half)


def of_area(area: float, positives: int, negatives: int) -> Interval:
    """Return an area under a ROC curve with the interval of Hanley and McNeil (1982)."""
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (positives - 1) * (first - area**2) + (negatives - 1) * (second - area**2)
    half = Z * math.sqrt(max(variance, 0.0) / (positives * negatives))
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def of_change(gained: int, lost: int, tries: int) -> Interval:
    """Return the change of a share on the same records, with the normal interval for paired shares.

    Args:
        gained: How many records became hits.
        lost: How many were hits and are none any more.
        tries: How many records there are.
    """
    if tries == 0:
        return Interval(math.nan, -1.0, 1.0)
    change = (gained - lost) / tries
    half = Z * math.sqrt(max(gained + lost - (gained - lost) ** 2 / tries, 0.0)) / tries
    return Interval(change, max(-1.0, change - half), min(1.0, change + half))
