"""From a target (epsilon, delta) to the noise of every round, and back. All quantities are public.

Every figure errs on the safe side: what is spent, recomputed from the releases, never exceeds the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from distqexp.errors import UsageError
from distqexp.privacy import discrete_slack, gdp, pure
from distqexp.privacy.events import Release, compose

SLACK_SHARE = 1e-3
"""Share of delta set aside for the difference between discrete and rounded Gaussian noise."""

RESOLUTION = 1024
"""The clip is at least about RESOLUTION * sqrt(k) grid steps, so that rounding to the grid costs no accuracy."""

MARGIN = 1e-9
"""Relative margin on delta, above the rounding errors of composition and of the curves."""

SMALLEST_MU = 1e-100
"""Squares of a round's mu lose no digits from here on."""


@dataclass(frozen=True)
class Calibration:
    """Noise that meets a target.

    ``mu_total`` is the Gaussian-DP parameter of all rounds that a unit takes part in and ``mu_round`` one round's; ``sigma_minimum`` is the
    smallest allowed standard deviation of the noise in grid steps (it keeps the grid fine against the clip and, for
    discrete noise, the slack within its share); ``slack_delta`` is the part of delta set aside for the
    discreteness of the noise, 0 for continuous noise.

    ``epsilon_round``: with delta 0, the pure epsilon of one round; else None. ``mu_round`` and ``mu_total`` are then what it
    implies: upper bounds, as the clip and the radius may give less.
    """

    mu_total: float
    mu_round: float
    sigma_minimum: int
    slack_delta: float
    epsilon_round: float | None = None


def calibrate(*, epsilon: float, delta: float, rounds: int, k: int, noise: str) -> Calibration:
    """Noise of ``rounds`` equal releases of ``k`` coordinates that together are (epsilon, delta)-DP.

    ``rounds``: those that a unit takes part in; with rounds of disjoint parts of the units, one part's.
    ``noise`` is "discrete" or "gaussian". Raises UsageError for values out of range.
    """
    _require_target(epsilon, rounds, k)
    if not 0 < delta < 1:
        raise UsageError(f"privacy.delta: found {delta!r}; expected a number strictly between 0 and 1")
    if noise not in ("discrete", "gaussian"):
        raise UsageError(f"mechanism.noise: found {noise!r}; expected discrete or gaussian")
    slack = SLACK_SHARE * delta if noise == "discrete" else 0.0
    mu_total = gdp.mu(epsilon, (delta - slack) * (1 - MARGIN))
    mu_round = mu_total / math.sqrt(rounds)
    while rounds * Fraction(mu_round) ** 2 > Fraction(mu_total) ** 2:
        mu_round = math.nextafter(mu_round, 0.0)
    smallest = sigma_minimum(mu_round, k)
    if noise == "discrete":
        log_variation = (math.log(slack) if slack > 0 else -math.inf) - epsilon - math.log1p(math.exp(-epsilon))
        if log_variation < -700:
            raise UsageError(
                f"privacy.epsilon: found {epsilon!r}; discrete noise serves epsilon up to about 600, less at a delta of {delta!r}: "
                'lower epsilon, raise delta, or set mechanism.noise = "gaussian"'
            )
        smallest = max(smallest, discrete_slack.smallest_sigma(k, rounds, math.exp(log_variation)))
    if smallest > discrete_slack.LARGEST_SIGMA:
        remedy = 'raise delta, lower k or rounds, or set mechanism.noise = "gaussian"'
        raise UsageError(
            f"privacy.epsilon: found {epsilon!r} with delta {delta!r}, which {rounds} rounds of {k} coordinates reach with noise of "
            f"{float(smallest):.3g} grid steps; expected at most 2^62: "
            + (remedy if noise == "discrete" else "raise epsilon, or lower k or rounds")
        )
    return Calibration(mu_total, mu_round, smallest, slack)


def calibrate_pure(*, epsilon: float, rounds: int, k: int) -> Calibration:
    """The share of ``rounds`` equal bounded releases of ``k`` coordinates that together are (epsilon, 0)-DP.

    ``rounds`` as in ``calibrate``. The noise itself follows from the clip and the trust radius: temperature
    2 C_eff R / epsilon_round or more, see ``mechanism.grid.with_pure_noise``. Raises UsageError for values out of range.
    """
    _require_target(epsilon, rounds, k)
    epsilon_round = pure.round_epsilon(epsilon, rounds)
    if epsilon_round == 0:
        raise UsageError(f"privacy.epsilon: found {epsilon!r}; expected more than {rounds} rounds can share as floats")
    mu_round = pure.mu(epsilon_round)
    return Calibration(mu_round * math.sqrt(rounds), mu_round, sigma_minimum(mu_round, k), 0.0, epsilon_round)


def sigma_minimum(mu_round: float, k: int) -> int:
    """The smallest standard deviation, in grid steps, that keeps the grid fine against the clip. Raises UsageError."""
    if not mu_round >= SMALLEST_MU:
        raise UsageError(
            f"mu of a round: found {mu_round!r}; expected {SMALLEST_MU} or more: raise privacy.epsilon, or lower mechanism.rounds, or "
            "mechanism.trust_radius where there is one"
        )
    return math.ceil(RESOLUTION * math.sqrt(k) / mu_round)


def spent(events: Iterable[Release], epsilon: float) -> float:
    """The delta, at most 1, that the releases have together at ``epsilon``, slack of discrete noise included.

    0 for no releases; otherwise the smallest of the statements of ``Guarantee``.
    """
    return compose(events).delta(epsilon)


def spent_epsilon(events: Iterable[Release], delta: float) -> float:
    """An epsilon at which the releases have at most ``delta`` together: the smallest one, rounded upwards.

    ``delta`` 0: the pure epsilon, infinity where a release has none.
    """
    return compose(events).epsilon(delta)


def _require_target(epsilon: float, rounds: int, k: int) -> None:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise UsageError(f"privacy.epsilon: found {epsilon!r}; expected a finite number above 0")
    if rounds < 1 or k < 1:
        raise UsageError(f"rounds and k: found {rounds!r} and {k!r}; expected 1 or more of both")
