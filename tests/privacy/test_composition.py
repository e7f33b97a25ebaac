"""Gaussian and pure releases together: never understated, against integration, enumeration and other accountants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from accounting import compose, delta_of_mixture, delta_of_mu, delta_of_rho
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.privacy import pld
from distqexp.privacy import pure as conversions
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease, cost, of_group, worst_cost
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.pld import MixedReleases

HARD = 50.0
"""A mu so large that a bounded release is no better than its epsilon says."""


def pure(*epsilons: float) -> list[Event]:
    return [BoundedRelease(HARD, epsilon) for epsilon in epsilons]


def gaussian(*mus: float) -> list[Event]:
    return [GaussianRelease(mu, 10) for mu in mus]


def delta_by_integration(epsilon: float, mu: float, epsilons: Sequence[float]) -> float:
    """The worst pairs themselves: every pattern of the responses, and densities integrated by Simpson's rule."""
    x, step = np.linspace(-14, 14 + mu, 40_001, retstep=True)
    weights = np.full(len(x), 2.0)
    weights[1::2], weights[[0, -1]] = 4.0, 1.0
    p, q = (np.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (mu, 0.0))
    total = 0.0
    for truths in itertools.product((True, False), repeat=len(epsilons)):
        one = math.prod(math.exp(e * t) / (1 + math.exp(e)) for e, t in zip(epsilons, truths, strict=True))
        other = math.prod(math.exp(e * (not t)) / (1 + math.exp(e)) for e, t in zip(epsilons, truths, strict=True))
        total += float(np.dot(weights, np.maximum(0, one * p - math.exp(epsilon) * other * q))) * step / 3
    return total


LISTS = [
    (gaussian(0.5), pure(0.4)),
    (gaussian(0.2, 0.3), pure(1.0, 1.0, 1.0)),
    (gaussian(1.0), pure(0.1, 0.25, 0.7, 1.3)),
    (gaussian(0.05), pure(0.01, 0.02)),
    (gaussian(2.0), pure(3.0)),
]


def check_against_integration(composed: Callable[[list[Event]], Guarantee]) -> None:
    for gaussians, pures in LISTS:
        guarantee = composed([*gaussians, *pures])
        mu = math.sqrt(sum(event.mu**2 for event in gaussians))
        epsilons = [event.epsilon for event in pures if isinstance(event, BoundedRelease)]
        for epsilon in (0.0, 0.01, 0.3 * sum(epsilons), sum(epsilons), sum(epsilons) + mu, sum(epsilons) + 3 * mu):
            exact = delta_by_integration(epsilon, mu, epsilons)
            assert exact * (1 - 1e-6) <= guarantee.delta(epsilon), "understated"
            assert guarantee.delta(epsilon) <= exact * 1.01 + 1e-12, "within a percent"


def test_mixed_releases_against_numerical_integration() -> None:
    check_against_integration(compose)


def test_a_pure_release_that_is_left_out_is_noticed() -> None:
    with pytest.raises(AssertionError, match="understated"):
        check_against_integration(lambda events: compose(events[:-1]))
    with pytest.raises(AssertionError, match="understated"):
        check_against_integration(lambda events: compose([e for e in events if isinstance(e, GaussianRelease)]))


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("rounds", [1, 2, 5, 30])
def test_equal_pure_releases_compose_optimally(epsilon: float, rounds: int) -> None:
    """Kairouz, Oh and Viswanath 2015, theorem 3.3: the exact region of ``rounds`` epsilon-DP mechanisms."""
    guarantee = compose(pure(epsilon), times=rounds)
    for i in range(1, rounds // 2 + 1):
        terms = [
            math.comb(rounds, j) * (math.exp((rounds - j) * epsilon) - math.exp((rounds - 2 * i + j) * epsilon))
            for j in range(i)
        ]
        exact = sum(terms) / (1 + math.exp(epsilon)) ** rounds
        found = guarantee.delta((rounds - 2 * i) * epsilon)
        assert exact * (1 - 1e-9) <= found <= exact * (1 + 1e-6)
    assert guarantee.pure == guarantee.epsilon(0.0) >= rounds * epsilon * (1 - 1e-15)
    assert guarantee.delta(guarantee.pure) == 0.0 < guarantee.delta(guarantee.pure * (1 - 1e-6))


@given(
    epsilons=st.lists(st.floats(0.01, 3), min_size=2, max_size=7),
    share=st.floats(0, 0.95),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_unequal_pure_releases_against_enumeration(epsilons: list[float], share: float) -> None:
    epsilon = share * sum(epsilons)
    exact = 0.0
    for signs in itertools.product((1, -1), repeat=len(epsilons)):
        probability = math.prod(1 / (1 + math.exp(-s * e)) for s, e in zip(signs, epsilons, strict=True))
        loss = sum(s * e for s, e in zip(signs, epsilons, strict=True))
        exact += probability * max(0.0, -math.expm1(epsilon - loss))
    found = delta_of_mixture(MixedReleases(0.0, tuple(epsilons)), epsilon)
    assert exact <= found * (1 + 1e-12)
    coarse = 0.5 * 1.1 * sum(epsilons) / pld.CELLS * len(epsilons)  # what rounding up to steps adds to the epsilons
    assert found <= exact + coarse + 1e-12
    assert compose(pure(*epsilons)).delta(epsilon) <= found * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("mu", "epsilons"), [(0.7, (0.5,)), (0.3, (1.0, 1.0)), (1.0, (0.2, 0.9, 1.7))])
def test_dp_accounting_brackets_the_mixed_curve(mu: float, epsilons: tuple[float, ...]) -> None:
    bounds = []
    for pessimistic in (True, False):
        composed = privacy_loss_distribution.from_gaussian_mechanism(
            1 / mu, pessimistic_estimate=pessimistic, value_discretization_interval=1e-4
        )
        for epsilon in epsilons:
            one = privacy_loss_distribution.from_randomized_response(
                2 / (1 + math.exp(epsilon)), 2, pessimistic_estimate=pessimistic, value_discretization_interval=1e-4
            )
            composed = composed.compose(one)
        bounds.append(composed)
    guarantee = compose([*gaussian(mu), *pure(*epsilons)])
    for delta in (1e-8, 1e-4, 1e-2):
        above, below = (bound.get_epsilon_for_delta(delta) for bound in bounds)
        assert below - 1e-6 <= guarantee.epsilon(delta) <= above * 1.005 + 1e-3


def truncated(mean: float, radius: float, cells: int) -> NDArray[np.float64]:
    """The law of N(mean, 1) restricted to the ball of the radius, in one dimension, in cells (temperature 1)."""
    edges = np.linspace(-radius, radius, 40 * cells + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    masses = np.exp(-((middles - mean) ** 2) / 2).reshape(cells, 40).sum(axis=1)
    return np.asarray(masses / masses.sum())


@pytest.mark.parametrize(("clip", "radius"), [(0.5, 0.4), (0.5, 2.0), (2.0, 0.25), (1.0, 1.0)])
def test_real_truncated_releases_are_never_worse_than_stated(clip: float, radius: float) -> None:
    """Two truncated Gaussian releases and one Gaussian one, every outcome in cells, which is post-processing."""
    event = BoundedRelease(clip, 2 * clip * radius)
    x = np.linspace(-8, 8, 161)
    rounds = [tuple(truncated(mean, radius, 60) for mean in (clip, 0.0))] * 2
    rounds.append(tuple(np.exp(-((x - m) ** 2) / 2) / np.exp(-((x - m) ** 2) / 2).sum() for m in (0.3, 0.0)))
    p, q = (np.einsum("i,j,k->ijk", *(laws[side] for laws in rounds)) for side in (0, 1))
    guarantee = compose([event, event, GaussianRelease(0.3, 1)])
    for one, other in ((p, q), (q, p)):
        for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0):
            true = float(np.maximum(0, one - math.exp(epsilon) * other).sum())
            assert true <= guarantee.delta(epsilon) * (1 + 1e-9)


EVENTS: list[list[Event]] = [
    gaussian(0.3),
    [GaussianRelease(0.3, 1000, 4096.0)],
    pure(0.2),
    [BoundedRelease(0.1, 0.5, 20)],
    [BoundedRelease(0.1, 0.5), BoundedRelease(0.4, 0.05), GaussianRelease(0.2, 7, 2.0**20), *pure(0.3)],
]


@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("times", [0, 1, 2, 7])
def test_a_count_is_so_many_composes(events: list[Event], times: int) -> None:
    counted, listed = compose(events, times=times), compose(events * times)
    for name in ("mu", "total_variation", "rho", "pure"):
        assert getattr(counted, name) == pytest.approx(getattr(listed, name), rel=1e-14)
    for epsilon in (0.0, 0.2, 1.0, 3.0):
        assert counted.delta(epsilon) == pytest.approx(listed.delta(epsilon), rel=1e-11, abs=1e-300)
    assert compose(reversed(events * times)).delta(0.5) == pytest.approx(listed.delta(0.5), rel=1e-11)


@pytest.mark.parametrize("events", EVENTS)
def test_what_is_reported_is_the_smallest_true_statement_and_never_rises(events: list[Event]) -> None:
    guarantee = compose(events, times=4)
    grid = [0.05 * step for step in range(200)]
    deltas = [guarantee.delta(epsilon) for epsilon in grid]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(deltas))
    assert all(d <= delta_of_rho(e, guarantee.rho) for e, d in zip(grid, deltas, strict=True))
    if guarantee.total_variation == 0:
        assert all(d <= delta_of_mu(e, guarantee.mu) for e, d in zip(grid, deltas, strict=True))
    for delta in (1e-12, 1e-5, 1e-2):
        epsilon = guarantee.epsilon(delta)
        assert guarantee.delta(epsilon) <= delta
        assert guarantee.delta(epsilon * (1 - 1e-7)) > delta * (1 - 1e-4) or epsilon == guarantee.pure


def test_parameters_add_up_each_with_the_smaller_figure() -> None:
    loose, tight = BoundedRelease(0.6, 5.0), BoundedRelease(7.0, 0.1)
    guarantee = compose([GaussianRelease(0.3, 5), loose, tight])
    assert guarantee.mu == pytest.approx(math.sqrt(0.3**2 + 0.6**2 + conversions.mu(0.1) ** 2), rel=1e-12)
    assert guarantee.rho == pytest.approx(0.3**2 / 2 + 0.6**2 / 2 + 0.1 * math.tanh(0.05), rel=1e-12)
    assert compose([loose, tight]).pure == pytest.approx(5.1, rel=1e-15)


def test_every_release_is_counted_once_whatever_its_figures() -> None:
    """Which way a release counts must not hang on its figures: then a larger mu could make a smaller delta."""
    events = [BoundedRelease(0.1 * n, epsilon) for n, epsilon in enumerate((9.0, 2.0, 0.7, 0.31, 0.05, 0.5), start=1)]
    guarantee = compose([GaussianRelease(0.3, 5), *events])
    [mixed] = guarantee.mixed_releases
    assert sorted(mixed.epsilons) == sorted(event.epsilon for event in events)
    assert mixed.mu == pytest.approx(0.3, rel=1e-12)
    smaller = [min(event.mu, conversions.mu(event.epsilon)) ** 2 for event in events]
    assert guarantee.mu == pytest.approx(math.sqrt(0.3**2 + sum(smaller)), rel=1e-12)
    for law in mixed.laws:
        assert float(law.masses.sum()) == pytest.approx(1, rel=1e-12)
        assert max(law.losses) >= sum(mixed.epsilons)


def test_only_gaussian_releases_need_no_losses() -> None:
    guarantee = compose([*gaussian(0.3, 0.4), GaussianRelease(1.2, 5)])
    assert guarantee.mixed_releases == ()
    assert guarantee.pure == math.inf == guarantee.epsilon(0.0)
    assert guarantee.delta(1.0) == delta_of_mu(1.0, guarantee.mu)


def test_slack_of_discrete_noise_is_added_to_the_losses() -> None:
    events: list[Event] = [GaussianRelease(0.3, 100, sigma=300.0), *pure(0.2, 0.2)]
    guarantee, smooth = compose(events), compose([*gaussian(0.3), *pure(0.2, 0.2)])
    for epsilon in (0.2, 0.7):
        slack = (1 + math.exp(epsilon)) * guarantee.total_variation
        assert slack > 1e-5 * smooth.delta(epsilon)
        assert guarantee.delta(epsilon) == pytest.approx(smooth.delta(epsilon) + slack, rel=1e-7)
    far = [guarantee.delta(epsilon) for epsilon in (3.0, 6.0, 12.0)]
    assert far == sorted(far, reverse=True)


def test_a_release_without_a_square_is_still_no_pure_one() -> None:
    assert compose([GaussianRelease(1e-200, 1), *pure(0.1)]).pure == math.inf


def test_each_position_of_the_worst_list_counts() -> None:
    costs = [cost([BoundedRelease(0.5, 0.3), BoundedRelease(0.1, 0.2)]), cost([BoundedRelease(0.2, 0.4)])]
    found = worst_cost(costs)
    assert found.bounded_releases == (BoundedRelease(0.5, 0.4), BoundedRelease(0.1, 0.2))
    for item in costs:
        for epsilon in (0.0, 0.1, 0.35):
            assert item.guarantee().delta(epsilon) <= found.guarantee().delta(epsilon)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_groups_multiply_both_figures(size: int) -> None:
    events: list[Event] = [GaussianRelease(0.3, 10, 4096.0), BoundedRelease(0.1, 0.2, 4)]
    assert of_group(events, size) == [
        replace(events[0], mu=size * 0.3),
        BoundedRelease(size * 0.1, size * 0.2, 4),
    ]
    grouped = compose(of_group(pure(0.2), size))
    assert grouped.pure == pytest.approx(size * 0.2)
    with pytest.raises(UsageError, match="size of a group: found 0"):
        of_group(events, 0)


def test_groups_obey_the_generic_group_bound() -> None:
    """What (epsilon, delta) alone gives for groups of m (Dwork and Roth 2014) is never better."""
    events: list[Event] = [*gaussian(0.3), BoundedRelease(0.2, 0.1)]
    for size in (2, 3):
        for epsilon in (0.05, 0.2, 0.5):
            generic = sum(math.exp(j * epsilon) for j in range(size)) * compose(events).delta(epsilon)
            assert compose(of_group(events, size)).delta(size * epsilon) <= generic * (1 + 1e-9)


def test_very_long_and_extreme_lists_stay_finite() -> None:
    for events in (pure(1e-9, 700.0), pure(800.0), [*gaussian(1e-7), *pure(1e-7)], pure(0.01) * 1500):
        guarantee = compose(events)
        for epsilon in (0.0, 1.0, 900.0):
            assert 0 <= guarantee.delta(epsilon) <= 1
        assert guarantee.epsilon(1e-6) <= guarantee.pure
    assert compose(pure(0.01), times=pld.MOST_RESPONSES + 1).mixed_releases == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "mu of a release: found 0.0"),
        ((1.0, 0.0), "epsilon of a release: found 0.0"),
        ((1.0, math.inf), "epsilon of a release: found inf"),
        ((math.nan, 1.0), "mu of a release: found nan"),
        ((1.0, 1.0, 0), "coordinates of a release: found 0"),
    ],
)
def test_impossible_bounded_releases_are_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BoundedRelease(*arguments)  # type: ignore[arg-type]
