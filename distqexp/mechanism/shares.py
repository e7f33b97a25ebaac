"""Noise in shares, in whole grid steps: what a site draws and adds to its sums, and the sum of what the sites hand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from distqexp.arrays import IntegerArray
from distqexp.errors import UsageError
from distqexp.mechanism.noise import draw_discrete
from distqexp.mechanism.rule import add_noise


class DrawRule(Protocol):
    """What is drawn for sums that were paid for, and what is handed on: a ``ReleaseRule``, or one of this file."""

    def draw(self, sums: IntegerArray, noise_seed: int | None, round: int) -> npt.NDArray[Any]:
        """Draw what is stored before it is used, int64 (k,), or what it follows from, uint8 (33,)."""

    def noisy_sums(self, sums: IntegerArray, draw: npt.NDArray[Any]) -> IntegerArray:
        """Return what is handed on, int64 (k,)."""


@dataclass(frozen=True)
class NoiseShare:
    """The law of a site's share of a round's noise. Public.

    Attributes:
        k: The number of coordinates.
        sigma: The standard deviation of the share, in grid steps, a whole number.
    """

    k: int
    sigma: int

    def draw(self, sums: IntegerArray, noise_seed: int | None, round: int) -> IntegerArray:
        """Draw the share, int64 (k,), from the operating system's entropy; private, also from the other sites.

        Raises UsageError for a seed, from which every site would draw the same, and for sums (private) of another type or shape.
        """
        if noise_seed is not None:
            raise UsageError(f"noise seed: found {noise_seed}; expected none: every site would draw the same share")
        if sums.dtype != np.int64 or sums.shape != (self.k,):
            raise UsageError(f"sums: found {sums.dtype} {sums.shape}; expected int64 ({self.k},)")
        return draw_discrete(self.k, self.sigma)

    def noisy_sums(self, sums: IntegerArray, draw: IntegerArray) -> IntegerArray:
        """Return the sums with the share, int64 (k,), modulo 2^64: private, as long as they are one site's."""
        return add_noise(sums, draw)


class SumOfShares:
    """The release of sums that hold their noise already: nothing is drawn."""

    def draw(self, sums: IntegerArray, noise_seed: int | None, round: int) -> IntegerArray:
        """Return zeros (k,)."""
        return np.zeros_like(sums)

    def noisy_sums(self, sums: IntegerArray, draw: IntegerArray) -> IntegerArray:
        """Return the sums as they are, int64 (k,)."""
        return sums
