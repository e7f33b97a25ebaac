"""Calibration of the noise of every round to a target (epsilon, delta). All quantities are public.

Every figure errs on the safe side: the privacy loss that is recomputed from the releases never exceeds the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from scipy.optimize import brentq

from distqexp.errors import UsageError
from distqexp.kinds import Noise
from distqexp.privacy import discrete_slack, gdp, noise_shares, pure, zcdp
from distqexp.privacy.events import GaussianRelease, cost
from distqexp.privacy.rounding import exp_above
from distqexp.privacy.sampled import COARSE
from distqexp.privacy.search import last_holding, next_number

SLACK_SHARE = 1e-3
"""The share of delta that is set aside for the difference between discrete and rounded Gaussian noise."""

RESOLUTION = 1024
"""The clip is at least about RESOLUTION * sqrt(k) grid steps, so that rounding to the grid costs no accuracy."""

FAILURE_SHARE = 1e-6
"""The share of delta that pays for the chance that a sampled round's work tells how many units take part."""

SHARES_SHARE = 1e-6
"""The share of delta that pays for the distance between noise in shares and one draw, far more than it takes."""

MARGIN = 1e-9
"""The relative margin on delta, above the rounding errors of composition and of the curves."""

FINEST = 2.0**29
"""The most grid steps of a clip that the slack of discrete noise may ask for; beyond, zCDP gives the noise, which needs no slack."""

SMALLEST_MU = 1e-100
"""The smallest mu of a round: from here on its square loses no digits."""


@dataclass(frozen=True)
class Calibration:
    """Noise that meets a target.

    With delta 0, ``mu_round`` and ``mu_total`` are the upper bounds that ``epsilon_round`` implies; the clip and the radius
    may give less.

    Attributes:
        mu_total: The Gaussian-DP parameter of all rounds that a unit takes part in; with sampled rounds, of all rounds with
            the coins left aside.
        mu_round: The Gaussian-DP parameter of one round.
        sigma_minimum: The smallest allowed standard deviation of the noise in grid steps. It keeps the grid fine against
            the clip and, for discrete noise, the slack within its share.
        slack_delta: The part of delta that is set aside for the discreteness of the noise; 0 for continuous noise, and where zCDP
            gives the guarantee of discrete noise.
        epsilon_round: The pure epsilon of one round, where delta is 0; else None.
    """

    mu_total: float
    mu_round: float
    sigma_minimum: int
    slack_delta: float
    epsilon_round: float | None = None


class Sampling(NamedTuple):
    """How units are sampled.

    Attributes:
        rate: The probability with which a unit takes part in a round.
        guess: Where to look first for the mu of a round; the result is the same without it.
    """

    rate: float = 1.0
    guess: float | None = None


EVERYBODY = Sampling()
"""No sampling: every unit takes part."""


def calibrate(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    k: int,
    noise: Noise,
    sampling: Sampling = EVERYBODY,
    shares: int = 1,
) -> Calibration:
    """Calibrate the noise of equal releases that together are (epsilon, delta)-DP.

    Args:
        epsilon: The target epsilon.
        delta: The target delta, strictly between 0 and 1.
        rounds: The number of rounds that a unit takes part in; with disjoint parts of the units, the rounds of one part.
        k: The number of coordinates of a release.
        noise: "discrete" or "gaussian".
        sampling: How units are sampled for each round.
        shares: How many shares are the discrete noise together; 1: it is one draw.

    Raises:
        UsageError: A value is out of range.
    """
    _require_target(epsilon, rounds, k)
    if not 0 < delta < 1:
        raise UsageError(f"privacy.delta: found {delta!r}; expected a number strictly between 0 and 1")
    if noise not in list(Noise):
        raise UsageError(f"mechanism.noise: found {noise!r}; expected discrete or gaussian")
    slack = SLACK_SHARE * delta if noise == Noise.DISCRETE else 0.0
    failure = FAILURE_SHARE * delta if sampling.rate < 1 else 0.0
    of_shares = SHARES_SHARE * delta if shares > 1 else 0.0
    target = (delta - slack - failure - of_shares) * (1 - MARGIN)
    mu_total = gdp.mu(epsilon, target)
    mu_round = mu_total / math.sqrt(rounds)
    while rounds * Fraction(mu_round) ** 2 > Fraction(mu_total) ** 2:
        mu_round = math.nextafter(mu_round, 0.0)
    if sampling.rate < 1:
        mu_round = _sampled_mu(mu_round, epsilon, target, rounds, sampling)
        mu_total = mu_round * math.sqrt(rounds)
    least = _smallest_sigma_in_shares(epsilon, of_shares, rounds, k, shares) if shares > 1 else 1
    smallest_sigma = max(sigma_minimum(mu_round, k), least)
    if noise == Noise.DISCRETE:
        log_variation = (math.log(slack) if slack > 0 else -math.inf) - epsilon - math.log1p(math.exp(-epsilon))
        by_slack = 0 if log_variation < -700 else discrete_slack.smallest_sigma(k, rounds, math.exp(log_variation))
        if by_slack == 0 or by_slack * mu_round > FINEST:
            by_zcdp = _by_zcdp(epsilon, target, rounds, k)
            return replace(by_zcdp, sigma_minimum=max(by_zcdp.sigma_minimum, least))
        smallest_sigma = max(smallest_sigma, by_slack)
    if smallest_sigma > discrete_slack.LARGEST_SIGMA:
        raise UsageError(
            f"privacy.epsilon: found {epsilon!r} with delta {delta!r}, which {rounds} rounds of {k} coordinates reach with noise of "
            f"{float(smallest_sigma):.3g} grid steps; expected at most 2^62: raise epsilon, or lower k or rounds"
        )
    return Calibration(mu_total, mu_round, smallest_sigma, slack)


def _by_zcdp(epsilon: float, delta: float, rounds: int, k: int) -> Calibration:
    """Calibrate discrete noise by its own zCDP, which is that of continuous noise: on any grid, at a somewhat smaller mu.

    The slack between discrete and continuous noise grows as e^epsilon, and the grid that makes up for it becomes finer than sums
    in int64 allow. The coins of sampled rounds are left aside.
    """
    rho = last_holding(lambda value: zcdp.epsilon(delta, value) <= epsilon, inside=0.0, outside=epsilon + 1.0)
    mu_total = math.sqrt(2.0 * rho) * (1 - MARGIN)
    mu_round = mu_total / math.sqrt(rounds) * (1 - MARGIN)
    return Calibration(mu_total, mu_round, max(sigma_minimum(mu_round, k), int(discrete_slack.SMALLEST_SIGMA)), 0.0)


def _smallest_sigma_in_shares(epsilon: float, share_of_delta: float, rounds: int, k: int, shares: int) -> int:
    """Return the sigma from which on noise in shares costs at most its share of delta, whichever curve gives the guarantee.

    The total variation D has to be at most e^(-2 epsilon) and (share / 2)^2: then (1 + e^epsilon) D and 2 sqrt(D) are within the share.
    """
    log_variation = min(2 * (math.log(share_of_delta / 2) if share_of_delta > 0 else -math.inf), -2 * epsilon) - 1e-9
    if log_variation < noise_shares.LEAST_LOG:
        raise UsageError(
            f"privacy.epsilon: found {epsilon!r} with mechanism.tolerated_sites; expected at most {-noise_shares.LEAST_LOG / 2:g}, and "
            "privacy.delta of 1e-140 or more: the distance of noise in shares is counted in floats"
        )
    return noise_shares.smallest_sigma(k, rounds, shares, log_variation)


def _sampled_mu(least: float, epsilon: float, delta: float, rounds: int, sampling: Sampling) -> float:
    """Return the largest mu of a sampled round, of 16 bits, at which all rounds have at most ``delta`` at ``epsilon``.

    ``least`` is the mu that serves without the coins; it is the result where no larger one does.
    """

    def excess(mu: float) -> float:
        releases = [GaussianRelease(mu=mu, coordinates=1, sampling=sampling.rate)] * rounds
        return cost(releases).guarantee().log_delta(epsilon)

    def holds(mu: float) -> bool:
        return exp_above(excess(mu)) <= delta

    guess = sampling.guess
    if guess is not None and guess > least and holds(guess) and not holds(next_number(guess, COARSE)):
        return guess
    low, high = least, 2 * least
    while holds(high):
        low, high = high, 2 * high
    # Where the smooth curve crosses the target is found in a few steps; which of the numbers beside it hold is then tried.
    target = math.log(delta)
    place = brentq(lambda log: excess(math.exp(log)) - target, math.log(low), math.log(high), xtol=1e-6)
    largest = next_number(math.exp(place), COARSE, steps=0)
    while largest > least and not holds(largest):
        largest = next_number(largest, COARSE, steps=-1)
    while holds(following := next_number(largest, COARSE)):
        largest = following
    return max(largest, least)


def calibrate_pure(*, epsilon: float, rounds: int, k: int) -> Calibration:
    """Calibrate one round's share of equal bounded releases that together are (epsilon, 0)-DP.

    The noise itself follows from the clip and the trust radius: the temperature is at least 2 C_eff R / epsilon_round, see
    ``mechanism.grid.with_pure_noise``.

    Args:
        epsilon: The target epsilon.
        rounds: The number of rounds that a unit takes part in, as in ``calibrate``.
        k: The number of coordinates of a release.

    Raises:
        UsageError: A value is out of range.
    """
    _require_target(epsilon, rounds, k)
    epsilon_round = pure.round_epsilon(epsilon, rounds)
    if epsilon_round == 0:
        raise UsageError(f"privacy.epsilon: found {epsilon!r}; expected more than {rounds} rounds can share as floats")
    mu_round = pure.mu(epsilon_round)
    return Calibration(mu_round * math.sqrt(rounds), mu_round, sigma_minimum(mu_round, k), 0.0, epsilon_round)


def sigma_minimum(mu_round: float, k: int) -> int:
    """Return the smallest standard deviation, in grid steps, that keeps the grid fine against the clip.

    Raises UsageError for a mu below SMALLEST_MU.
    """
    if not mu_round >= SMALLEST_MU:
        raise UsageError(
            f"mu of a round: found {mu_round!r}; expected {SMALLEST_MU} or more: raise privacy.epsilon, or lower mechanism.rounds, or "
            "mechanism.trust_radius where there is one"
        )
    return math.ceil(RESOLUTION * math.sqrt(k) / mu_round)


def _require_target(epsilon: float, rounds: int, k: int) -> None:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise UsageError(f"privacy.epsilon: found {epsilon!r}; expected a finite number above 0")
    if rounds < 1 or k < 1:
        raise UsageError(f"rounds and k: found {rounds!r} and {k!r}; expected 1 or more of both")
