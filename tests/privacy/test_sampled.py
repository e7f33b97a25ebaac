"""The accounting of sampled rounds, against integrals of the worst pair and figures that were found independently."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, norm

from distqexp.kinds import Adjacency, Noise
from distqexp.privacy.calibration import FAILURE_SHARE, SLACK_SHARE, Sampling, calibrate
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease, cost, of_group, worst_cost
from distqexp.privacy.expenses import Charge, expenses
from distqexp.privacy.sampled import SampledRelease, SampledReleases, joint_rate

EPSILONS = (0.0, 0.1, 0.5, 1.0, 3.0)
KINDS = [(0.5, 0.1), (1.0, 0.25), (2.0, 0.02), (0.2, 0.5), (4.0, 0.3)]


def one_round(mu: float, rate: float, epsilons: NDArray[np.float64], present_first: bool) -> NDArray[np.float64]:
    """The hockey-stick divergence of one round's pair in one order, in closed form, at real epsilons of both signs."""
    ratio = np.exp(epsilons if present_first else -epsilons)
    inside = ratio > 1 - rate
    threshold = np.log(np.where(inside, ratio - (1 - rate), 1.0) / rate) / mu + mu / 2
    if present_first:
        threshold = np.where(inside, threshold, -np.inf)
        present = (1 - rate) * norm.sf(threshold) + rate * norm.sf(threshold - mu)
        return present - np.exp(epsilons) * norm.sf(threshold)
    threshold = np.where(inside, threshold, -np.inf)
    present = (1 - rate) * norm.cdf(threshold) + rate * norm.cdf(threshold - mu)
    return norm.cdf(threshold) - np.exp(epsilons) * present


def by_integration(laws: list[tuple[float, float]], epsilon: float) -> float:
    """The larger of the two divergences of one round, or of two, by an integral over the release of the first."""
    (mu, rate), last = laws[0], laws[-1]
    if len(laws) == 1:
        return max(float(one_round(mu, rate, np.array([epsilon]), order)[0]) for order in (True, False))
    x = np.linspace(-14.0, 14.0 + mu, 400_001)
    none = norm.pdf(x)
    present = (1 - rate) * none + rate * norm.pdf(x, mu)
    loss = np.log((1 - rate) + rate * np.exp(mu * x - mu**2 / 2))
    return max(
        float(np.trapezoid(present * one_round(*last, epsilon - loss, True), x)),
        float(np.trapezoid(none * one_round(*last, epsilon + loss, False), x)),
    )


@pytest.mark.parametrize(("mu", "rate"), KINDS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_one_round_is_the_worst_pair(mu: float, rate: float, epsilon: float) -> None:
    truth = by_integration([(mu, rate)], epsilon)
    delta = SampledReleases(0.0, (SampledRelease(mu, rate),)).delta(epsilon)
    assert truth * (1 - 1e-8) - 1e-12 <= delta <= truth * 1.001 + 1e-9


@pytest.mark.parametrize(("first", "second"), [(KINDS[0], KINDS[1]), (KINDS[1], KINDS[3]), (KINDS[2], KINDS[2])])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_two_rounds_are_the_product_of_two_pairs(
    first: tuple[float, float], second: tuple[float, float], epsilon: float
) -> None:
    truth = by_integration([first, second], epsilon)
    delta = SampledReleases(0.0, (SampledRelease(*first), SampledRelease(*second))).delta(epsilon)
    assert truth * (1 - 1e-8) - 1e-12 <= delta <= truth * 1.002 + 1e-9


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_round_for_everybody_beside_a_sampled_one(epsilon: float) -> None:
    truth = by_integration([(1.0, 0.25), (0.7, 1.0)], epsilon)
    delta = SampledReleases(0.7, (SampledRelease(1.0, 0.25),)).delta(epsilon)
    assert truth * (1 - 1e-8) - 1e-12 <= delta <= truth * 1.002 + 1e-9


@pytest.mark.parametrize(
    ("rate", "rounds", "delta", "epsilon", "mu", "of_parts"),
    [
        (1 / 20, 20, 2e-5, 1.0, 0.759, 0.280),
        (1 / 8, 8, 2e-5, 1.0, 0.550, 0.280),
        (1 / 4, 20, 2e-5, 1.0, 0.232, 0.125),
        (1 / 4, 80, 2e-5, 1.0, 0.123, 0.063),
        (1 / 8, 40, 1e-5, 1.0, 0.308, 0.120),
        (1 / 8, 40, 1e-5, 8.0, 1.183, 0.745),
        (1 / 8, 40, 2e-5, 8.0, 1.213, None),
    ],
)
def test_the_mu_of_a_round(
    rate: float, rounds: int, delta: float, epsilon: float, mu: float, of_parts: float | None
) -> None:
    """Figures of an independent search with dp-accounting, to three digits, beside those of as much work in disjoint parts."""
    given = {"epsilon": epsilon, "delta": delta, "k": 100, "noise": Noise.DISCRETE}
    calibration = calibrate(rounds=rounds, sampling=Sampling(rate), **given)
    assert calibration.mu_round == pytest.approx(mu, abs=6e-4)
    guessed = calibrate(rounds=rounds, sampling=Sampling(rate, calibration.mu_round), **given)
    assert guessed == calibration
    assert calibrate(rounds=rounds, sampling=Sampling(rate, 1.1 * calibration.mu_round), **given) == calibration
    if of_parts is not None:
        assert calibrate(rounds=round(rounds * rate), **given).mu_round == pytest.approx(of_parts, abs=6e-4)


def releases(mu: float, rate: float, count: int, sigma: float | None = None, failure: float = 0.0) -> list[Event]:
    return [GaussianRelease(mu, 100, sigma, rate, failure)] * count


@pytest.mark.parametrize(("rate", "rounds"), [(1 / 20, 20), (1 / 4, 20), (0.5, 3)])
def test_the_whole_target_is_kept_and_noise_a_tenth_too_small_breaks_it(rate: float, rounds: int) -> None:
    delta = 2e-5
    calibration = calibrate(
        epsilon=1.0, delta=delta, rounds=rounds, k=100, noise=Noise.DISCRETE, sampling=Sampling(rate)
    )
    sigma, failure = float(calibration.sigma_minimum), FAILURE_SHARE * delta / rounds
    kept = cost(releases(calibration.mu_round, rate, rounds, sigma, failure)).guarantee()
    assert 0.999 < kept.epsilon(delta) <= 1.0
    assert kept.delta(1.0) <= delta
    louder = cost(releases(calibration.mu_round / 0.9, rate, rounds, sigma, failure)).guarantee()
    assert louder.delta(1.0) > delta
    assert louder.epsilon(delta) > 1.05
    oftener = cost(releases(calibration.mu_round, 1.2 * rate, rounds, sigma, failure)).guarantee()
    assert oftener.delta(1.0) > delta


def test_the_central_limit_is_no_bound() -> None:
    """q sqrt(R (e^{mu^2} - 1)) allows mu 0.971 a round where the truth is 0.759."""
    assert cost(releases(0.971, 1 / 20, 20)).guarantee().epsilon(2e-5) > 1.25


def test_delta_rises_with_mu_with_the_rate_and_with_every_round() -> None:
    for lists in (
        [releases(mu, 0.1, 10) for mu in (0.1, 0.3, 0.5, 1.0, 2.0)],
        [releases(0.7, rate, 10) for rate in (0.01, 0.05, 0.2, 0.7, 1.0)],
        [releases(0.7, 0.1, count) for count in (1, 2, 3, 10, 11, 100)],
        [[*releases(0.7, 0.1, 10), *more] for more in ([], [GaussianRelease(1e-3, 1)], [BoundedRelease(0.5, 0.5)])],
    ):
        for less, more in pairwise(cost(events).guarantee() for events in lists):
            assert all(less.delta(epsilon) < more.delta(epsilon) for epsilon in EPSILONS)
            assert less.epsilon(1e-5) < more.epsilon(1e-5)


def test_a_sample_never_costs_more_than_everybody() -> None:
    for mu, rate in KINDS:
        sampled, whole = cost(releases(mu, rate, 5)).guarantee(), cost(releases(mu, 1.0, 5)).guarantee()
        assert (sampled.mu, sampled.rho, sampled.pure) == (whole.mu, whole.rho, whole.pure)
        assert all(sampled.delta(epsilon) <= whole.delta(epsilon) for epsilon in EPSILONS)


def test_failure_is_added_to_every_delta() -> None:
    plain, failing = (cost(releases(0.5, 0.1, 4, 1e6, failure)).guarantee() for failure in (0.0, 2.5e-7))
    for epsilon in EPSILONS:
        assert failing.delta(epsilon) == pytest.approx(plain.delta(epsilon) + 1e-6, rel=1e-9)
    assert failing.epsilon(1e-5) == pytest.approx(plain.epsilon(9e-6), rel=1e-6)
    assert failing.epsilon(9e-7) == math.inf


def test_discrete_noise_costs_its_slack_on_top() -> None:
    exact, discrete = (cost(releases(0.5, 0.1, 4, sigma)).guarantee() for sigma in (None, 50.0))
    assert discrete.total_variation == pytest.approx(math.sqrt(4 * 100 / 50.0**4 / 1152))
    for epsilon in (0.0, 0.1):
        slack = (1 + math.exp(epsilon)) * discrete.total_variation
        assert discrete.delta(epsilon) == pytest.approx(exact.delta(epsilon) + slack, rel=1e-6)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize(("mu", "rate"), KINDS[:3])
def test_a_group_has_a_coin_for_each_of_its_units(mu: float, rate: float, size: int) -> None:
    """The truth is a binomial mixture: as many of the units' clips as coins fall."""
    [event] = of_group([GaussianRelease(mu, 1, sampling=rate)], size)
    assert isinstance(event, GaussianRelease)
    assert event.sampling == pytest.approx(1 - (1 - rate) ** size, rel=1e-9)
    assert event.sampling == joint_rate(rate, size)
    x = np.linspace(-12.0, 12.0 + size * mu, 400_001)
    step = x[1] - x[0]
    none = norm.pdf(x) * step
    mixture = sum(binom.pmf(count, size, rate) * norm.pdf(x, count * mu) for count in range(size + 1)) * step
    bound = cost([event]).guarantee()
    for epsilon in EPSILONS:
        e = math.exp(epsilon)
        truth = max(np.maximum(mixture - e * none, 0).sum(), np.maximum(none - e * mixture, 0).sum())
        assert truth <= bound.delta(epsilon) * (1 + 1e-9)


def charge(round: int, adjacency: Adjacency, rate: float, role: str = "release") -> Charge:
    return Charge(f"{role}/plan/{round}", adjacency, GaussianRelease(0.5, 10, sampling=rate))


def test_books_of_two_adjacencies_count_without_the_coins() -> None:
    sampled = [charge(round, Adjacency.ZERO_OUT, 0.1) for round in range(4)]
    alone = expenses(sampled)
    assert [release.sampling for release in alone.sampled_releases] == [0.1] * 4
    mixed = expenses([*sampled, charge(9, Adjacency.REPLACE_ONE, 1.0)])
    assert mixed.sampled_releases == ()
    assert mixed.square == pytest.approx(4 * 1.0**2 + 0.5**2)


def test_sites_and_curator_of_one_release_count_once() -> None:
    roles = ("release", "site-a", "site-b")
    once = expenses([charge(round, Adjacency.ZERO_OUT, 0.1) for round in range(3)])
    assert expenses([charge(round, Adjacency.ZERO_OUT, 0.1, role) for round in range(3) for role in roles]) == once


def test_the_worst_of_two_costs_is_at_least_each() -> None:
    first, second = cost(releases(0.5, 0.1, 3)), cost([*releases(0.3, 0.2, 5), *releases(0.9, 0.05, 1)])
    worst = worst_cost([first, second])
    assert worst.sampled_releases == (
        SampledRelease(0.9, 0.2),
        *[SampledRelease(0.5, 0.2)] * 2,
        *[SampledRelease(0.3, 0.2)] * 3,
    )
    for item in (first, second):
        assert all(item.guarantee().delta(e) <= worst.guarantee().delta(e) for e in EPSILONS)


def test_small_deltas_fall_back_on_the_statements_without_coins() -> None:
    """The margin for the transforms is absolute: far below it the guarantee is that of everybody's rounds."""
    guarantee, whole = cost(releases(0.5, 0.1, 20)).guarantee(), cost(releases(0.5, 1.0, 20)).guarantee()
    assert guarantee.epsilon(1e-30) == pytest.approx(whole.epsilon(1e-30))
    assert guarantee.epsilon(1e-6) < 0.5 * whole.epsilon(1e-6)


def test_a_huge_mu_is_not_composed() -> None:
    guarantee, whole = cost(releases(60.0, 0.1, 4)).guarantee(), cost(releases(60.0, 1.0, 4)).guarantee()
    assert guarantee.epsilon(1e-5) == whole.epsilon(1e-5)


def test_the_slack_has_its_share() -> None:
    delta = 1e-5
    c = calibrate(epsilon=2.0, delta=delta, rounds=10, k=1000, noise=Noise.DISCRETE, sampling=Sampling(0.1))
    tv = cost([GaussianRelease(c.mu_round, 1000, float(c.sigma_minimum), 0.1)] * 10).guarantee().total_variation
    assert (1 + math.exp(2.0)) * tv <= SLACK_SHARE * delta
