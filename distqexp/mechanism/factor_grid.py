"""The grid of curvature factors, which bounds a unit's Gram matrix in integers. All quantities are public.

With private curvature a unit has factors V, and its utility is -<g, y> - ||V y||^2 / 2 on the ball ||y|| <= R. V is rounded
to multiples of a step, a power of two, so that V^T V is an exact integer matrix in steps squared, and positive
semidefinite. The Lipschitz constant of the utility is at most ||g|| + R trace(V^T V); that is checked in integers, in steps
of the gradient's grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from distqexp.errors import UsageError
from distqexp.mechanism.grid import CAPACITY, SLOTS_PER_UNIT, Grid

RESOLUTION = 2**20
"""A unit's largest trace is this many steps squared for each entry of its factors, so that rounding costs no accuracy."""

EXACT = 2**53
"""Float64 holds every integer up to this one, so that it sums products of integer factors exactly."""


@dataclass(frozen=True)
class FactorGrid:
    """The step of the curvature factors, and what a unit's trace costs of the clip.

    Attributes:
        step: The step of the factors, a power of two.
        price: How many grid steps of the clip a trace of one step squared costs: R step^2 / h, rounded upwards.
        largest_trace: The largest trace that the clip allows, in steps squared.
    """

    step: float
    price: float
    largest_trace: int


def packed_size(k: int) -> int:
    """Return the number of entries of the upper triangle of a (k, k) matrix."""
    return k * (k + 1) // 2


def choose_factor_grid(grid: Grid, trust_radius: float, k: int, rows: int, units: int, micro_batch: int) -> FactorGrid:
    """Choose the coarsest step at which a unit's factors have their resolution.

    Args:
        grid: The grid of the gradient's sums.
        trust_radius: R.
        k: The number of coordinates of a factor.
        rows: The number of factors of a unit.
        units: The number of privacy units.
        micro_batch: The number of units that are summed at a time.

    Raises:
        UsageError: Sums over SLOTS_PER_UNIT slots for each of ``units``, or over a micro-batch, would not be exact.
    """
    if not (trust_radius > 0 and math.isfinite(trust_radius)):
        raise UsageError(f"mechanism.trust_radius: found {trust_radius!r}; expected a finite number above 0")
    clip = Fraction(grid.clip_integer) * Fraction(grid.step)
    finest = clip / (Fraction(trust_radius) * RESOLUTION * k * rows)  # the bound is on the step squared
    exponent = math.floor(math.log2(finest) / 2)
    if not -500 <= exponent <= 450:
        raise UsageError(
            f"mechanism.trust_radius: found {trust_radius!r}; expected a size that goes with the clip in float64 (grid 2^{exponent})"
        )
    square = Fraction(2) ** (2 * exponent)
    largest = math.floor(clip / (Fraction(trust_radius) * square))
    slots, exact = SLOTS_PER_UNIT * units * largest, micro_batch * largest
    if slots > CAPACITY or exact > EXACT:
        raise UsageError(
            f"grid overflow: curvature of up to {largest} steps a unit; expected 2^62 to hold {SLOTS_PER_UNIT} slots for each unit, "
            "2^53 a micro-batch; lower subspace.k, privacy.units or engine.micro_batch"
        )
    exact_price = Fraction(trust_radius) * square / Fraction(grid.step)
    price = float(exact_price)
    return FactorGrid(
        math.ldexp(1.0, exponent), price if Fraction(price) >= exact_price else math.nextafter(price, math.inf), largest
    )
