"""What follows from a config and a clip: planning computes it, and reading a plan or a release computes it again.

Nothing here depends on data: the config, the number of coordinates and the clip fix the noise, the grid and the forecast
to the last integer.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.kinds import Noise
from distqexp.mechanism.diagnostics import SUMS
from distqexp.mechanism.factor_grid import RESOLUTION, FactorGrid, choose_factor_grid
from distqexp.mechanism.forecast import excess_bound, expected_excess, expected_excess_in_ball, sampling_excess
from distqexp.mechanism.grid import (
    LARGEST_CLIP_INTEGER,
    Grid,
    GridOptions,
    check_capacity,
    check_trust_radius,
    choose_grid,
    pure_mu,
    with_pure_noise,
)
from distqexp.mechanism.rounding_slack import BatchSums
from distqexp.privacy.calibration import (
    FAILURE_SHARE,
    Calibration,
    Sampling,
    calibrate,
    calibrate_pure,
    sigma_minimum,
)
from distqexp.privacy.sampled import joint_rate

NOISE_COST = 0.2
"""What the noise of all rounds may cost by its forecast, in units of the loss a record, where the number of directions is chosen."""


def coordinates_of(config: Config, k: int) -> int:
    """Return how many numbers a round of ``k`` coordinates releases: the diagnostics, where shared, add theirs."""
    return k + SUMS if config.diagnostics.share else k


def derived_calibration(config: Config, k: int, guess: float | None = None) -> Calibration:
    """Calibrate the noise of the config's rounds, each of ``k`` coordinates.

    ``guess`` is where to look first for the mu of a sampled round; the result is the same without it.
    """
    privacy, mechanism = config.privacy, config.mechanism
    # A unit at several shards has a coin at each.
    rate = joint_rate(mechanism.sampling, privacy.presence)
    sampling = Sampling(rate, guess if mechanism.sampled else None)
    coordinates = coordinates_of(config, k)
    return _calibration(
        privacy.epsilon, privacy.delta, mechanism.passes, coordinates, mechanism.noise, sampling, config.noise_shares
    )


def step_shrinkage(config: Config, calibration: Calibration, k: int) -> float:
    """Return the factor by which noise shrinks every step, above 0 and at most 1 (docs/method.md).

    A sum of n clipped gradients is at most n C long, and its noise about sqrt(k) C / mu. On a quadratic the best step of such a
    noisy gradient is at most 1 / (1 + k / (n mu)^2) times the best one without noise. Under replace-one the noise is twice that; a
    unit at several shards may add as much to the sum as to the noise, which leaves the quotient.
    """
    mechanism = config.mechanism
    if not mechanism.shrink or mechanism.trust_radius is not None:
        return 1.0
    return 1.0 / (1.0 + k / _signal(config, calibration) ** 2)


def noise_budget(config: Config, calibration: Calibration, k: int, cost: float = NOISE_COST) -> float:
    """Return the largest ``clip_natural`` for which noise costs at most ``cost`` by its forecast (docs/method.md).

    In coordinates in which curvature and damping are the identity, a round's noise has standard deviation s c / (n mu), with step s and
    clip c. R rounds raise the quadratic of the loss by at most R k (s c / (n mu))^2 / 2; later rounds undo hardly anything of it
    where most gradients are clipped. With momentum m the step counts s / (1 - m).
    """
    mechanism = config.mechanism
    step = max(mechanism.step, mechanism.final_step or 0.0) / (1.0 - mechanism.momentum)
    return _signal(config, calibration) / step * math.sqrt(2.0 * cost / (k * mechanism.rounds))


def noise_ratio(config: Config, calibration: Calibration, k: int) -> float:
    """Return how long a round's noise in ``k`` coordinates is, relative to the longest that a sum of clipped gradients can be."""
    return math.sqrt(k) / _signal(config, calibration)


def _signal(config: Config, calibration: Calibration) -> float:
    """Return how far a round's sum can be from zero at most, in standard deviations of a coordinate's noise."""
    return config.units_in_a_round * calibration.mu_round / config.privacy.adjacency.sensitivity_factor


def derived_step(config: Config, calibration: Calibration, k: int, round: int) -> float:
    """Return the step of a round of ``k`` coordinates, shrunk with the noise."""
    return config.mechanism.step_of(round) * step_shrinkage(config, calibration, k)


def derived_clip(config: Config, calibration: Calibration, k: int, round: int) -> float | None:
    """Return the clip C of a round of ``k`` coordinates, in whitened units; None when it is a quantile of public norms."""
    mechanism = config.mechanism
    clip = mechanism.clip_of(round, config.privacy.units)
    if clip is None or mechanism.clip_natural is None:
        return clip
    return clip * math.sqrt(step_shrinkage(config, calibration, k))


def sample_failure(config: Config) -> float:
    """Return the chance, in one round and shard, that a sample needs more work than is set aside for it; 0 without samples."""
    if not config.mechanism.sampled:
        return 0.0
    return FAILURE_SHARE * config.privacy.delta / config.mechanism.rounds / len(config.shards)


@functools.lru_cache(64)  # Checking a chain of files asks for the same calibration again and again.
def _calibration(
    epsilon: float, delta: float, rounds: int, coordinates: int, noise: Noise, sampling: Sampling, shares: int
) -> Calibration:
    if delta == 0:
        return calibrate_pure(epsilon=epsilon, rounds=rounds, k=coordinates)
    return calibrate(
        epsilon=epsilon, delta=delta, rounds=rounds, k=coordinates, noise=noise, sampling=sampling, shares=shares
    )


def derived_grid(config: Config, calibration: Calibration, clip: float, k: int) -> Grid:
    """Return the grid of a round with this clip: its integer clip, its sensitivity (factor, slack, counter) and sigma.

    Raises UsageError when the sums would overflow.
    """
    batches = BatchSums(config.engine.micro_batch, k) if config.by_batch else None
    grid = _grid(config, calibration, clip, k, batches)
    check_capacity(grid, k, config.privacy.units, batches)
    if config.mechanism.trust_radius is not None:
        check_trust_radius(grid, config.mechanism.trust_radius)
    if grid.clip_integer > LARGEST_CLIP_INTEGER:
        raise UsageError(
            f"grid overflow: the clip is {grid.clip_integer} grid steps; expected at most 2^30; lower epsilon or rounds, "
            "raise delta, or leave mechanism.grid out"
        )
    return grid


def derived_factor_grid(config: Config, grid: Grid, k: int, curvature_rows: int) -> FactorGrid | None:
    """Return the grid of the units' curvature factors, or None where the curvature is public.

    A record has one factor for each of the ``curvature_rows`` of the loss's curvature and each of its views.
    """
    trust_radius = config.mechanism.trust_radius
    if not config.private_curvature or trust_radius is None:
        return None
    rows = curvature_rows * config.augment.views
    return choose_factor_grid(grid, trust_radius, k, rows, config.privacy.units, config.engine.micro_batch)


def most_curvature_rows(config: Config, grid: Grid, k: int, step: float) -> int:
    """Return the largest number of curvature rows that a factor grid of this step can be for, or 0 where it fits none."""
    trust_radius = config.mechanism.trust_radius
    if trust_radius is None or not (step > 0 and math.isfinite(step)):
        return 0
    clip = Fraction(grid.clip_integer) * Fraction(grid.step)
    return math.floor(clip / (Fraction(trust_radius) * RESOLUTION * k * Fraction(step) ** 2)) // config.augment.views


def derived_forecast(config: Config, grid: Grid, k: int) -> dict[str, float]:
    """Forecast how far above the minimum of its quadratic a release on ``grid`` will be."""
    temperature = grid.temperature
    if config.mechanism.trust_radius is not None:
        return {"expected": expected_excess_in_ball(temperature, k)}
    failure = 1e-3
    forecast = {
        "expected": expected_excess(temperature, k),
        "bound": excess_bound(temperature, k, failure),
        "failure_probability": failure,
    }
    if not config.mechanism.sampled:
        return forecast
    clip = grid.clip_integer * grid.step
    return forecast | {"sampling": sampling_excess(clip, config.privacy.units, config.mechanism.sampling)}


def _grid(config: Config, calibration: Calibration, clip: float, k: int, batches: BatchSums | None) -> Grid:
    adjacency, presence, exponent = config.privacy.adjacency, config.privacy.presence, config.mechanism.grid
    trust_radius, epsilon = config.mechanism.trust_radius, calibration.epsilon_round
    if epsilon is None or trust_radius is None:
        options = GridOptions(exponent, batches, presence, config.diagnostics.share)
        return choose_grid(clip, calibration.mu_round, calibration.sigma_minimum, adjacency, options)
    mu = pure_mu(clip, trust_radius, epsilon, adjacency, presence)
    grid = choose_grid(clip, mu, sigma_minimum(mu, k), adjacency, GridOptions(exponent, batches, presence))
    return with_pure_noise(grid, trust_radius, epsilon)
