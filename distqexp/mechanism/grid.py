"""The integer grid that units' vectors are rounded to, and the noise that goes with it. All quantities are public.

A unit's clipped vector becomes an integer vector of norm at most ``clip_integer`` = floor(C / h), in steps of h, a
power of two. Sums of such vectors are exact in int64 in any order. Gaussian noise of ``sigma`` grid steps a
coordinate makes the release mu-GDP with mu = (factor * clip_integer + slack) / sigma: the factor is 2 where one unit may
be replaced by another, 1 where it may only vanish or appear, times the number of shards that it may be present at; the
slack is 0 but where sums of micro-batches are rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from distqexp.errors import UsageError
from distqexp.mechanism.diagnostics import counter_of, unit_length
from distqexp.mechanism.rounding_slack import BatchSums

CAPACITY = 2**62
"""Sums stay below this magnitude, so that sums plus noise fit in int64."""

LARGEST_CLIP_INTEGER = 2**30
"""Its square is safe in int64."""

LARGEST_SIGMA = 2**53
"""A float64 holds every integer up to this one, and noise of this size leaves int64 untouched."""

SLOTS_PER_UNIT = 1000
"""The grid must have room for so many slots for every nominal unit."""

LARGEST_PRESENCE = 1024
"""At so many shards a unit may be present, at most."""

SENSITIVITY_FACTORS = {"zero-out": 1, "add-remove": 1, "replace-one": 2}


@dataclass(frozen=True)
class Grid:
    """Grid step ``step`` = h (a power of two), clip and noise in grid steps, and the sensitivity factor: 1 or 2, times presence.

    slack: how far a unit moves the integers beyond sensitivity_factor * unit_length, where sums are rounded.
    counter: what one counts in each of the sums of ``mechanism.diagnostics`` that ride behind the gradient's; 0 without them.
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
        """How long a unit's integer vector is at most, its counts for diagnostics included: the clip without them."""
        return unit_length(self.clip_integer, self.counter)

    @property
    def sensitivity(self) -> int:
        """How far one unit moves the integer sum at most, in Euclidean norm: C_eff / h."""
        return self.sensitivity_factor * self.unit_length + self.slack

    @property
    def mu(self) -> float:
        """Gaussian-DP parameter of one release, rounded upwards to a float."""
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


def choose_grid(
    clip: float,
    mu_round: float,
    sigma_minimum: int,
    adjacency: str,
    exponent: int | None = None,
    batches: BatchSums | None = None,
    presence: int = 1,
    diagnostics: float = 0.0,
) -> Grid:
    """The coarsest grid on which ``mu_round`` needs noise of at least ``sigma_minimum`` steps for the clip alone.

    ``clip`` is C in whitened units. The grid's mu never exceeds ``mu_round``. With ``exponent`` the step is
    2^exponent. ``batches``: where sums of micro-batches are rounded. ``presence``: at so many shards a unit may be.
    ``diagnostics``: the share of mu^2 that pays for them. Raises UsageError when no such grid exists.
    """
    if not (clip > 0 and math.isfinite(clip)):
        raise UsageError(f"mechanism.clip: found {clip!r}; expected a finite number above 0")
    if not (mu_round > 0 and math.isfinite(mu_round)):
        raise UsageError(f"mu of a round: found {mu_round!r}; expected a finite number above 0")
    if sigma_minimum < 1:
        raise UsageError(f"smallest sigma: found {sigma_minimum!r}; expected 1 or more")
    if adjacency not in SENSITIVITY_FACTORS:
        raise UsageError(f"privacy.adjacency: found {adjacency!r}; expected one of {', '.join(SENSITIVITY_FACTORS)}")
    factor = presence * SENSITIVITY_FACTORS[adjacency]
    coarsest = math.frexp(clip)[1] - 1  # 2^coarsest <= clip: a clip of at least one step
    while _sigma(clip, mu_round, factor, coarsest, diagnostics) < sigma_minimum:
        coarsest -= 1
    if exponent is not None and exponent > coarsest:
        raise UsageError(f"mechanism.grid: found {exponent}; expected {coarsest} or less for this clip and budget")
    chosen = coarsest if exponent is None else exponent
    if _clip_integer(clip, chosen) > CAPACITY:
        raise UsageError(
            f"grid overflow: the clip {clip!r} is more than 2^62 steps of 2^{chosen}; expected at most 2^62; raise privacy.epsilon, or "
            "leave mechanism.grid out"
        )
    slack = presence * batches.slack(clip, chosen, SENSITIVITY_FACTORS[adjacency]) if batches else 0
    sigma = _sigma(clip, mu_round, factor, chosen, diagnostics, slack)
    if sigma > LARGEST_SIGMA:
        raise UsageError(
            f"grid overflow: noise of 2^{sigma.bit_length() - 1} steps of 2^{chosen} or more; expected at most 2^53; "
            "lower epsilon, k or rounds, raise delta, or leave mechanism.grid out"
        )
    if not -500 <= chosen <= 450:
        raise UsageError(f"mechanism.clip: found {clip!r}; expected a size that float64 can square (grid 2^{chosen})")
    clip_integer = _clip_integer(clip, chosen)
    counter = counter_of(clip_integer, diagnostics)
    return Grid(math.ldexp(1.0, chosen), clip_integer, sigma, factor, slack, counter)


def pure_mu(clip: float, radius: float, epsilon: float, adjacency: str, presence: int = 1) -> float:
    """About the mu of a release on the ball of ``radius`` whose pure epsilon, 2 C R / T, is ``epsilon``. Raises UsageError."""
    square = (
        Fraction(presence * SENSITIVITY_FACTORS[adjacency]) * Fraction(clip) * Fraction(epsilon) / Fraction(radius) / 2
    )
    if not 2.0**-900 <= square <= 2.0**900:
        raise UsageError(
            f"mechanism.trust_radius: found {radius!r} with clip {clip!r} and epsilon {epsilon!r} a round; expected sizes that go together "
            "in float64"
        )
    return math.sqrt(square)


def with_pure_noise(grid: Grid, radius: float, epsilon: float) -> Grid:
    """The grid with the smallest noise at which 2 C R / T is at most ``epsilon``: T = (sigma h)^2, exactly."""
    square = 2 * grid.sensitivity * Fraction(radius) / (Fraction(grid.step) * Fraction(epsilon))
    sigma = max(1, math.isqrt(math.ceil(square) - 1) + 1)
    if sigma > LARGEST_SIGMA:
        raise UsageError(
            f"grid overflow: noise of 2^{sigma.bit_length() - 1} steps or more; expected at most 2^53; raise privacy.epsilon"
        )
    return replace(grid, sigma=sigma)


def max_slots(grid: Grid, k: int) -> int:
    """How many slots of k coordinates can be summed before a coordinate might leave the range of int64."""
    return CAPACITY // (grid.clip_integer + grid.slack + math.isqrt(k) // 2 + 1)


def check_capacity(grid: Grid, k: int, units: int, batches: BatchSums | None = None) -> None:
    """Raise UsageError unless the grid holds the sums of SLOTS_PER_UNIT slots for each of ``units`` nominal units.

    Also unless float64 holds the sum of one micro-batch, where those are rounded (``batches``).
    """
    if batches is not None and not batches.fits(grid.clip_integer, grid.slack):
        raise UsageError(
            f"engine.micro_batch: {batches.micro_batch} units of {grid.clip_integer} grid steps; expected less than 2^53 steps "
            'together; lower engine.micro_batch, or set mechanism.rounding = "unit"'
        )
    found, expected = max_slots(grid, k), SLOTS_PER_UNIT * units
    if found < expected:
        raise UsageError(
            f"grid overflow: 2^{grid.exponent} steps hold the sum of {found} slots; expected {expected} "
            f"({SLOTS_PER_UNIT} a unit); lower epsilon, k or rounds, raise delta, or leave mechanism.grid out"
        )


def check_radius(grid: Grid, radius: float) -> None:
    """Raise UsageError unless every point of a ball of ``radius``, in grid steps, fits in int64.

    Before any draw: there, whether a point fits would depend on the data.
    """
    if not radius / grid.step < CAPACITY:
        raise UsageError(
            f"mechanism.trust_radius: found {radius!r}, which is {radius / grid.step:.3g} steps of 2^{grid.exponent}; expected less than "
            "2^62 steps: lower the radius, raise mechanism.clip, or leave mechanism.grid out"
        )


def _clip_integer(clip: float, exponent: int) -> int:
    """floor(clip / 2^exponent), exactly."""
    return math.floor(Fraction(clip) / Fraction(2) ** exponent)


def _sigma(clip: float, mu: float, factor: int, exponent: int, diagnostics: float, slack: int = 0) -> int:
    """The smallest integer sigma with (factor * unit_length + slack) / sigma <= mu, exactly."""
    clip_integer = _clip_integer(clip, exponent)
    length = unit_length(clip_integer, counter_of(clip_integer, diagnostics))
    return math.ceil((factor * length + slack) / Fraction(mu))
