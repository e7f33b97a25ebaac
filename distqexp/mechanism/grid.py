"""The integer grid that units' vectors are rounded to, and the noise that goes with it. All quantities are public.

A unit's clipped vector becomes an integer vector of norm at most ``clip_integer`` = floor(C / h), in steps of h, a
power of two. Sums of such vectors are exact in int64 in any order. Gaussian noise of ``sigma`` grid steps a
coordinate makes the release mu-GDP with mu = (factor * clip_integer + slack) / sigma. The factor is 2 where one unit may
be replaced by another and 1 where it may only vanish or appear, times the number of shards at which it may be present. The
slack is 0 except where sums of micro-batches are rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from distqexp.errors import UsageError
from distqexp.kinds import Adjacency
from distqexp.mechanism.diagnostics import counter_of, unit_length
from distqexp.mechanism.rounding_slack import BatchSums

CAPACITY = 2**62
"""Sums stay below this magnitude, so that sums plus noise fit in int64."""

LARGEST_CLIP_INTEGER = 2**30
"""The largest clip in grid steps that sketches use: its square is safe in int64."""

LARGEST_SIGMA = 2**53
"""The largest noise: float64 holds every integer up to this one, and sums with noise of this size fit in int64."""

SLOTS_PER_UNIT = 1000
"""The grid must have room for this many slots for every nominal unit."""

LARGEST_PRESENCE = 1024
"""The largest number of shards at which a unit may be present."""


@dataclass(frozen=True)
class Grid:
    """The grid of a round's sums, with the clip and the noise in grid steps.

    Attributes:
        step: The grid step h, a power of two, in whitened units.
        clip_integer: The clip in grid steps, floor(C / h).
        sigma: The standard deviation of the noise, in grid steps.
        sensitivity_factor: 1 or 2, as the adjacency says, times the presence.
        slack: How far a unit moves the integers beyond sensitivity_factor * unit_length, where sums of micro-batches are rounded.
        counter: How many grid steps stand for one in the sums of ``mechanism.diagnostics``; 0 without them.
    """

    step: float
    clip_integer: int
    sigma: int
    sensitivity_factor: int = 1
    slack: int = 0
    counter: int = 0

    def __post_init__(self) -> None:
        if not (self.step > 0 and math.isfinite(self.step) and math.frexp(self.step)[0] == 0.5):
            raise UsageError(f"grid step: found {self.step!r}; expected a power of two")
        for name, value in (("clip", self.clip_integer), ("sigma", self.sigma)):
            if not 1 <= value <= CAPACITY:
                raise UsageError(f"grid {name}: found {value!r} steps; expected 1 to 2^62")
        if not 1 <= self.sensitivity_factor <= 2 * LARGEST_PRESENCE:
            raise UsageError(
                f"grid sensitivity factor: found {self.sensitivity_factor!r}; expected 1 to {2 * LARGEST_PRESENCE}"
            )
        if not 0 <= self.slack <= CAPACITY:
            raise UsageError(f"grid slack: found {self.slack!r} steps; expected 0 to 2^62")
        if not 0 <= self.counter <= self.clip_integer:
            raise UsageError(f"grid counter: found {self.counter!r} steps; expected 0 to the clip, {self.clip_integer}")

    @property
    def unit_length(self) -> int:
        """The largest length of a unit's integer vector with its diagnostic counts; without them it is the clip."""
        return unit_length(self.clip_integer, self.counter)

    @property
    def sensitivity(self) -> int:
        """The largest distance by which one unit moves the integer sum, in Euclidean norm: C_eff / h."""
        return self.sensitivity_factor * self.unit_length + self.slack

    @property
    def mu(self) -> float:
        """The Gaussian-DP parameter of one release, rounded upwards to a float."""
        exact = Fraction(self.sensitivity, self.sigma)
        nearest = float(exact)
        return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)

    @property
    def temperature(self) -> float:
        """T = (sigma h)^2, in squared whitened units: the release has density proportional to exp(utility / T)."""
        return (self.sigma * self.step) ** 2

    @property
    def exponent(self) -> int:
        """The exponent of the step: h = 2^exponent."""
        return math.frexp(self.step)[1] - 1


class GridOptions(NamedTuple):
    """Public options that a grid depends on besides the clip and the noise.

    Attributes:
        exponent: The step is 2^exponent; None takes the coarsest step that is allowed.
        batches: The micro-batches, where their sums are rounded and not single units.
        presence: The number of shards at which a unit may be present.
        diagnostics: The share of mu^2 that pays for diagnostics.
    """

    exponent: int | None = None
    batches: BatchSums | None = None
    presence: int = 1
    diagnostics: float = 0.0


def choose_grid(
    clip: float,
    mu_round: float,
    sigma_minimum: int,
    adjacency: Adjacency,
    options: GridOptions | None = None,
) -> Grid:
    """Choose the coarsest grid on which ``mu_round`` needs noise of at least ``sigma_minimum`` steps for the clip alone.

    Args:
        clip: C, in whitened units.
        mu_round: The largest Gaussian-DP parameter of the release; the grid's mu never exceeds it.
        sigma_minimum: The smallest standard deviation of the noise, in grid steps.
        adjacency: What one unit more or less means.
        options: Further options; the defaults of GridOptions when None.

    Raises:
        UsageError: A value is out of range, or no such grid exists.
    """
    exponent, batches, presence, diagnostics = options or GridOptions()
    if not (clip > 0 and math.isfinite(clip)):
        raise UsageError(f"mechanism.clip: found {clip!r}; expected a finite number above 0")
    if not (mu_round > 0 and math.isfinite(mu_round)):
        raise UsageError(f"mu of a round: found {mu_round!r}; expected a finite number above 0")
    if sigma_minimum < 1:
        raise UsageError(f"smallest sigma: found {sigma_minimum!r}; expected 1 or more")
    if adjacency not in list(Adjacency):
        raise UsageError(f"privacy.adjacency: found {adjacency!r}; expected one of {', '.join(Adjacency)}")
    unit_factor = Adjacency(adjacency).sensitivity_factor
    factor = presence * unit_factor
    coarsest = math.frexp(clip)[1] - 1  # 2^coarsest <= clip: a clip of at least one step
    while _sigma(clip, mu_round, factor, coarsest, diagnostics) < sigma_minimum:
        coarsest -= 1
    if exponent is not None and exponent > coarsest:
        raise UsageError(f"mechanism.grid: found {exponent}; expected {coarsest} or less for this clip and budget")
    step_exponent = coarsest if exponent is None else exponent
    clip_integer = _clip_integer(clip, step_exponent)
    if clip_integer > CAPACITY:
        raise UsageError(
            f"grid overflow: the clip {clip!r} is more than 2^62 steps of 2^{step_exponent}; expected at most 2^62; "
            "raise privacy.epsilon, or leave mechanism.grid out"
        )
    slack = presence * batches.slack(clip, step_exponent, unit_factor) if batches else 0
    sigma = _sigma(clip, mu_round, factor, step_exponent, diagnostics, slack)
    if sigma > LARGEST_SIGMA:
        raise UsageError(
            f"grid overflow: noise of 2^{sigma.bit_length() - 1} steps of 2^{step_exponent} or more; expected at most 2^53; "
            "lower epsilon, k or rounds, raise delta, or leave mechanism.grid out"
        )
    if not -500 <= step_exponent <= 450:
        raise UsageError(
            f"mechanism.clip: found {clip!r}; expected a size that float64 can square (grid 2^{step_exponent})"
        )
    counter = counter_of(clip_integer, diagnostics)
    return Grid(math.ldexp(1.0, step_exponent), clip_integer, sigma, factor, slack, counter)


def pure_mu(clip: float, trust_radius: float, epsilon: float, adjacency: Adjacency, presence: int = 1) -> float:
    """Return approximately the mu of a release on the ball whose pure epsilon, 2 C R / T, is ``epsilon``.

    Args:
        clip: C, in whitened units.
        trust_radius: R, in whitened units.
        epsilon: The pure epsilon of one round.
        adjacency: What one unit more or less means.
        presence: The number of shards at which a unit may be present.

    Raises:
        UsageError: The sizes don't go together in float64.
    """
    square = (
        Fraction(presence * Adjacency(adjacency).sensitivity_factor)
        * Fraction(clip)
        * Fraction(epsilon)
        / Fraction(trust_radius)
        / 2
    )
    if not 2.0**-900 <= square <= 2.0**900:
        raise UsageError(
            f"mechanism.trust_radius: found {trust_radius!r} with clip {clip!r} and epsilon {epsilon!r} a round; "
            "expected sizes that go together in float64"
        )
    return math.sqrt(square)


def with_pure_noise(grid: Grid, trust_radius: float, epsilon: float) -> Grid:
    """Return the grid with the smallest noise at which 2 C R / T is at most ``epsilon``, exactly, with T = (sigma h)^2.

    Raises UsageError where that noise is too large.
    """
    square = 2 * grid.sensitivity * Fraction(trust_radius) / (Fraction(grid.step) * Fraction(epsilon))
    sigma = max(1, math.isqrt(math.ceil(square) - 1) + 1)
    if sigma > LARGEST_SIGMA:
        raise UsageError(
            f"grid overflow: noise of 2^{sigma.bit_length() - 1} steps or more; expected at most 2^53; raise privacy.epsilon"
        )
    return replace(grid, sigma=sigma)


def max_slots(grid: Grid, k: int) -> int:
    """Return how many slots of k coordinates can be summed before a coordinate might leave the range of int64."""
    return CAPACITY // (grid.clip_integer + grid.slack + math.isqrt(k) // 2 + 1)


def check_capacity(grid: Grid, k: int, units: int, batches: BatchSums | None = None) -> None:
    """Refuse a grid that could overflow.

    Args:
        grid: The grid.
        k: The number of coordinates.
        units: The nominal number of privacy units.
        batches: The micro-batches, where their sums are rounded.

    Raises:
        UsageError: The grid doesn't hold the sums of SLOTS_PER_UNIT slots for each unit, or float64 doesn't hold the sum of
            one micro-batch where those are rounded.
    """
    if batches is not None and not batches.fits(grid.clip_integer, grid.slack):
        raise UsageError(
            f"engine.micro_batch: {batches.micro_batch} units of {grid.clip_integer} grid steps; expected less than 2^53 steps "
            'together; lower engine.micro_batch, or set mechanism.rounding = "unit"'
        )
    slots, expected = max_slots(grid, k), SLOTS_PER_UNIT * units
    if slots < expected:
        raise UsageError(
            f"grid overflow: 2^{grid.exponent} steps hold the sum of {slots} slots; expected {expected} "
            f"({SLOTS_PER_UNIT} a unit); lower epsilon, k or rounds, raise delta, or leave mechanism.grid out"
        )


def check_trust_radius(grid: Grid, trust_radius: float) -> None:
    """Raise UsageError unless every point of the ball of ``trust_radius``, in grid steps, fits in int64.

    This is checked before any draw: at a draw, whether a point fits would depend on the data.
    """
    steps = trust_radius / grid.step
    if not steps < CAPACITY:
        raise UsageError(
            f"mechanism.trust_radius: found {trust_radius!r}, which is {steps:.3g} steps of "
            f"2^{grid.exponent}; expected less than 2^62 steps: lower the radius, raise mechanism.clip, or leave mechanism.grid out"
        )


def _clip_integer(clip: float, exponent: int) -> int:
    """Return floor(clip / 2^exponent), exactly."""
    return math.floor(Fraction(clip) / Fraction(2) ** exponent)


def _sigma(clip: float, mu: float, factor: int, exponent: int, diagnostics: float, slack: int = 0) -> int:
    """Return the smallest integer sigma with (factor * unit_length + slack) / sigma <= mu, exactly."""
    clip_integer = _clip_integer(clip, exponent)
    length = unit_length(clip_integer, counter_of(clip_integer, diagnostics))
    return math.ceil((factor * length + slack) / Fraction(mu))
