"""The truncated Gaussian against plain rejection and exact laws; with planted faults, which the same tests reject.

Every draw is seeded. Were it not, all tests of laws on this page together would raise a false alarm with probability below 1e-6:
each Kolmogorov-Smirnov test has level ALARM, and there are fewer than 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest, truncnorm

from distqexp.errors import UsageError
from distqexp.mechanism import truncated
from distqexp.mechanism import truncated_far as spherical
from distqexp.mechanism.randomness import SeededRandomness, SystemRandomness
from distqexp.mechanism.truncated import draw_truncated, truncated_sampler
from distqexp.mechanism.truncated_far import SphericalEnvelope

ALARM = 1e-9
TEMPERATURE = 0.7

FloatArray = NDArray[np.float64]


class Counting(SeededRandomness):
    """Counts the normal numbers drawn."""

    count = 0

    def normal(self, count: int) -> FloatArray:
        self.count += count
        return super().normal(count)


def quadratic(k: int, where: float, radius: float) -> tuple[FloatArray, FloatArray]:
    """B (k, k), far from diagonal, and s (k,) with the Gaussian's mean at ``where`` radii."""
    generator = np.random.default_rng(k)
    factor = generator.standard_normal((k, k))
    curvature = np.eye(k) + factor.T @ factor
    mean = generator.standard_normal(k)
    mean *= where * radius / np.linalg.norm(mean)
    return curvature, -curvature @ mean


def plain_rejection(curvature: FloatArray, linear: FloatArray, temperature: float, radius: float) -> FloatArray:
    """100,000 draws of the law itself: of the Gaussian until it falls inside."""
    generator = np.random.default_rng(0)
    factor = np.linalg.cholesky(temperature * np.linalg.inv(curvature))
    mean = -np.linalg.solve(curvature, linear)
    found: list[FloatArray] = []
    while sum(map(len, found)) < 100_000:
        tries = mean + generator.standard_normal((200_000, len(linear))) @ factor.T
        found.append(tries[np.linalg.norm(tries, axis=1) <= radius])
    return np.concatenate(found)[:100_000]


def draws(curvature: FloatArray | None, linear: FloatArray, radius: float, count: int, **changes: Any) -> FloatArray:
    randomness = SeededRandomness(5, 0)
    temperature = changes.get("temperature", TEMPERATURE)
    draw = truncated_sampler(curvature, linear, temperature, radius)  # what the draws share is worked out once
    return np.stack([draw(randomness) for _ in range(count)])


def smallest_p(found: FloatArray, expected: FloatArray) -> float:
    """Of Kolmogorov and Smirnov, over every coordinate and the radius."""
    pairs = [*zip(found.T, expected.T, strict=True), (np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1))]
    return min(float(kstest(a, b).pvalue) for a, b in pairs)


def force(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Tilted or spherical, wherever the mean is; "chosen": as the forecast says."""
    if way != "chosen":
        monkeypatch.setattr(truncated, "MARGIN", 2.0)  # never inside
        monkeypatch.setattr(truncated, "_tries_allowed", lambda _: math.inf if way == "tilted" else 0.0)


CASES = [
    pytest.param(k, where, radius, id=f"k={k}, mean at {where} R, R={radius}")
    for k, where, radius in (
        (2, 0.3, 3.0), (2, 1.0, 1.0), (2, 2.0, 0.7), (5, 0.0, 0.6), (5, 0.3, 3.0), (5, 1.0, 1.5), (5, 1.6, 1.0)
    )
]  # fmt: skip


# --- the law -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("k", "where", "radius"), CASES)
def test_the_law_is_that_of_plain_rejection(
    k: int, where: float, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    curvature, linear = quadratic(k, where, radius)
    expected = plain_rejection(curvature, linear, TEMPERATURE, radius)
    for way in ("chosen", "tilted", "spherical"):
        with monkeypatch.context() as patch:
            force(patch, way)
            assert smallest_p(draws(curvature, linear, radius, 5_000), expected) > ALARM, way


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "where", "radius", "count"), [(2, 0.3, 3.0, 16_000), (5, 1.0, 1.5, 5_000), (5, 1.6, 1.0, 5_000)]
)
def test_a_scale_of_nine_tenths_is_rejected(k: int, where: float, radius: float, count: int) -> None:
    curvature, linear = quadratic(k, where, radius)
    expected = plain_rejection(curvature, linear, TEMPERATURE, radius)
    right, wrong = (draws(curvature, linear, radius, count, temperature=c * TEMPERATURE) for c in (1.0, 0.81))
    assert smallest_p(right, expected) > ALARM
    assert smallest_p(wrong, expected) < ALARM


Proposal = Callable[[FloatArray], tuple[FloatArray, FloatArray]]


def forced(
    monkeypatch: pytest.MonkeyPatch, way: str, where: float, radius: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A quadratic of five coordinates, B and s, drawn by one way from now on, and draws of its law by plain rejection."""
    curvature, linear = quadratic(5, where, radius)
    expected = plain_rejection(curvature, linear, TEMPERATURE, radius)
    force(monkeypatch, way)
    return curvature, linear, expected


def with_chances(propose: Proposal, change: Callable[[FloatArray], FloatArray]) -> Proposal:
    def changed(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
        points, chances = propose(normal)
        return points, change(chances)

    return changed


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0.0, 0.5, 2.0])
def test_another_slope_of_the_tilted_acceptance_is_rejected(fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance left out (but the ball kept), half and twice as steep as the proposal asks for."""
    curvature, linear, expected = forced(monkeypatch, "tilted", 1.6, 1.0)
    right = truncated._tilted_proposal

    def wrong(chances: FloatArray) -> FloatArray:
        return np.where(chances > -np.inf, fault * np.maximum(chances, -1e300), -np.inf)

    monkeypatch.setattr(truncated, "_tilted_proposal", lambda scaled, nu: with_chances(right(scaled, nu), wrong))
    assert smallest_p(draws(curvature, linear, 1.0, 10_000), expected) < ALARM


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0.0, 0.5])
def test_another_acceptance_on_the_sphere_is_rejected(fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    curvature, linear, expected = forced(monkeypatch, "spherical", 1.0, 1.5)
    right = SphericalEnvelope.propose
    monkeypatch.setattr(
        SphericalEnvelope,
        "propose",
        lambda self, normal: with_chances(lambda n: right(self, n), lambda c: fault * c)(normal),
    )
    assert smallest_p(draws(curvature, linear, 1.5, 10_000), expected) < ALARM


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_every_multiplier_gives_the_same_law(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    curvature, linear, expected = forced(monkeypatch, "tilted", 1.6, 1.0)
    right = truncated._multiplier
    monkeypatch.setattr(truncated, "_multiplier", lambda scaled: factor * right(scaled))
    assert smallest_p(draws(curvature, linear, 1.0, 6_000), expected) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_every_shift_of_the_sphere_gives_the_same_law(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    curvature, linear, expected = forced(monkeypatch, "spherical", 1.6, 1.0)
    best = spherical.brentq
    monkeypatch.setattr(spherical, "brentq", lambda *arguments: best(*arguments) + math.log(factor))
    assert smallest_p(draws(curvature, linear, 1.0, 6_000), expected) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("where", [0.4, 1.0, 2.0])
def test_no_curvature_is_the_identity(where: float) -> None:
    linear = np.array([0.6, -0.8, 0.0]) * where
    expected = plain_rejection(np.eye(3), linear, TEMPERATURE, 1.0)
    for curvature in (None, np.eye(3)):
        assert smallest_p(draws(curvature, linear, 1.0, 6_000), expected) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("linear", [0.0, 0.5, -3.0, 12.0])
@pytest.mark.parametrize("way", ["chosen", "tilted", "spherical"])
def test_one_coordinate_has_the_exact_law(linear: float, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, way)
    radius, precision = 1.3, 2.0
    mean, scale = -linear / precision, math.sqrt(TEMPERATURE / precision)
    law = truncnorm((-radius - mean) / scale, (radius - mean) / scale, loc=mean, scale=scale)
    found = draws(np.array([[precision]]), np.array([linear]), radius, 6_000)[:, 0]
    assert kstest(found, law.cdf).pvalue > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_three_coordinates_far_outside_have_the_exact_law(size: float) -> None:
    """Along the mean's direction, where plain rejection would never end: the density of t is known up to its integral."""
    linear = size * np.array([2.0, -1.0, 2.0]) / 3.0
    found = draws(None, linear, 1.0, 12_000)
    depth = np.linspace(0.0, 60.0 * TEMPERATURE / size, 400_001)  # 1 - t; nothing visible lies deeper
    along = 1.0 - depth
    density = np.exp(-depth * size / TEMPERATURE + (1.0 - along**2) / (2.0 * TEMPERATURE))
    density *= -np.expm1(-depth * (1.0 + along) / (2.0 * TEMPERATURE))
    below = np.cumsum((density[1:] + density[:-1]) / 2.0)
    found_depth = 1.0 + found @ linear / size
    assert kstest(found_depth, lambda x: np.interp(x, depth[1:], below / below[-1])).pvalue > ALARM
    assert kstest(found_depth * 0.9, lambda x: np.interp(x, depth[1:], below / below[-1])).pvalue < ALARM


@pytest.mark.slow
def test_the_law_holds_with_the_randomness_of_the_system() -> None:
    """False alarm 1e-8: three tests of level 3e-9."""
    curvature, linear = quadratic(2, 1.0, 1.0)
    expected = plain_rejection(curvature, linear, TEMPERATURE, 1.0)
    randomness = SystemRandomness()
    found = np.stack([draw_truncated(curvature, linear, TEMPERATURE, 1.0, randomness) for _ in range(6_000)])
    assert smallest_p(found, expected) > 3e-9


# --- the envelope ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concentration", [0.0, 0.01, 1.0, 30.0])
def test_the_acceptance_on_the_sphere_is_law_over_proposal(concentration: float) -> None:
    """Against dense float64: the logarithms differ by one constant, and it is such that none exceeds 0."""
    generator = np.random.default_rng(3)
    precision, direction = np.geomspace(0.1, 200.0, 6), generator.standard_normal(6)
    direction /= np.linalg.norm(direction)
    envelope = SphericalEnvelope.choose(precision, direction, concentration)
    points, chances = envelope.propose(generator.standard_normal((500, 8)))
    assert np.allclose(np.linalg.norm(points, axis=1), 1.0, atol=1e-14)
    bound = envelope.bound
    tilt = concentration * math.tanh(concentration * bound.tangent) / bound.tangent
    omega = np.diag(bound.diagonal) - tilt * np.outer(envelope.direction, envelope.direction)
    law = -0.5 * np.square(points[:, :6]) @ precision + np.log(np.cosh(concentration * points[:, :6] @ direction))
    proposal = -4.0 * np.log(np.einsum("ni,ij,nj->n", points, omega, points))
    assert np.ptp(chances - (law - proposal)) < 1e-10
    assert chances.max() <= 1e-12
    assert np.linalg.slogdet(omega)[1] == pytest.approx(np.log(bound.diagonal).sum() + math.log(bound.determinant))
    assert np.trace(np.linalg.inv(omega)) == pytest.approx(bound.trace, rel=1e-9)
    assert bound.trace == pytest.approx(1.0, abs=1e-6)


def test_proposals_on_the_sphere_are_directions_of_the_stated_gaussian() -> None:
    """The linear map is a square root of Omega^{-1}, to rounding."""
    envelope = SphericalEnvelope.choose(np.array([0.5, 3.0, 40.0]), np.array([0.6, 0.0, 0.8]), 12.0)
    bound = envelope.bound
    tilt = 12.0 * math.tanh(12.0 * bound.tangent) / bound.tangent
    omega = np.diag(bound.diagonal) - tilt * np.outer(envelope.direction, envelope.direction)
    normal = np.random.default_rng(0).standard_normal((50, 5))
    points, _ = envelope.propose(normal)
    scale = np.diag(bound.diagonal**-0.5)
    axis = scale @ envelope.direction / math.sqrt(bound.inner)
    root = scale @ (np.eye(5) + (bound.determinant**-0.5 - 1.0) * np.outer(axis, axis))
    assert np.allclose(root @ root.T, np.linalg.inv(omega), rtol=1e-9)
    vectors = normal @ root.T
    assert np.allclose(points, vectors / np.linalg.norm(vectors, axis=1)[:, None], rtol=1e-9)


# --- the cost ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("k", [1_000, 4_096])
@pytest.mark.parametrize("spectrum", ["identity", "few large", "wide"])
def test_tries_stay_below_two_hundred_on_average(k: int, spectrum: str) -> None:
    """Inside, at the boundary and far outside; 400 a little outside, where eigenvalues that differ 10^4 times cost more. All tries
    that are drawn count, those thrown away included."""
    values = {
        "identity": np.ones(k),
        "few large": np.concatenate([np.ones(k - 20), np.geomspace(10.0, 1e4, 20)]),
        "wide": np.geomspace(1.0, 1e3, k),
    }[spectrum]
    mean = np.random.default_rng(k).standard_normal(k)
    mean /= np.linalg.norm(mean)
    for radius in (0.05 * math.sqrt(k), 0.5 * math.sqrt(k), 2.0 * math.sqrt(k)):
        for where, most in ((0.0, 200), (0.5, 200), (1.0, 200), (1.3, 400), (3.0, 400), (100.0, 200), (1e9, 200)):
            randomness = Counting(k, 0)
            for _ in range(12):
                truncated._diagonal_sampler(values, -values * mean * where * radius, 1.0, radius)(randomness)
            assert randomness.count / 12 / k <= most, (radius, where)


def test_a_dense_curvature_takes_as_few_tries() -> None:
    k, radius = 1_000, 3.0
    factor = np.random.default_rng(1).standard_normal((200, k))
    curvature = np.eye(k) + factor.T @ factor
    for where in (0.1, 1.0, 50.0):
        randomness = Counting(k, 1)
        point = draw_truncated(curvature, np.full(k, where * radius / math.sqrt(k)), 1.0, radius, randomness)
        assert in_ball(point, radius)
        assert randomness.count / k <= 500  # a single draw


# --- extremes ----------------------------------------------------------------------------------------------


def in_ball(point: FloatArray, radius: float) -> bool:
    """Exactly, in rational arithmetic."""
    return sum(Fraction(float(x)) ** 2 for x in point) <= Fraction(radius) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(("k", "where", "radius"), CASES)
def test_every_draw_lies_in_the_ball_exactly(k: int, where: float, radius: float) -> None:
    curvature, linear = quadratic(k, where, radius)
    assert all(in_ball(point, radius) for point in draws(curvature, linear * 1e9, radius, 300))
    assert all(in_ball(point, radius) for point in draws(curvature, linear, radius, 300))


exponents = st.floats(-270, 270)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.one_of(st.none(), st.floats(-20, 250)),
    exponents,
    exponents,
    st.floats(-300, 300),
    st.integers(0, 2**32),
)
def test_every_size_ends_in_the_ball(
    k: int, curvature: float | None, pull: float, radius: float, temperature: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((1 + seed % 3, k))
    dense = None if curvature is None else np.eye(k) + factor.T @ factor * 10.0**curvature
    linear = generator.standard_normal(k) * 10.0**pull
    point = draw_truncated(dense, linear, 10.0**temperature, 10.0**radius, SeededRandomness(seed, 0))
    assert point.shape == (k,)
    assert point.dtype == np.float64
    assert in_ball(point, 10.0**radius)


@pytest.mark.parametrize("gap", [-1e-6, -1e-9, -1e-13, -1e-15, 0.0, 2.0**-53, 1e-9])
@pytest.mark.parametrize("temperature", [1e-300, 1e-60, 1e-25, 1e-12])
def test_cold_draws_with_the_mean_on_the_boundary_end(gap: float, temperature: float) -> None:
    values, mean = np.array([1.0, 7.0, 300.0, 300.0]), np.array([0.5, 0.5, -0.5, 0.5]) * (1.0 + gap)
    for seed in range(5):
        point = draw_truncated(np.diag(values), -values * mean, temperature, 1.0, SeededRandomness(seed, 0))
        assert in_ball(point, 1.0)
        assert np.linalg.norm(point - mean) <= 1e-4


def test_eigenvalues_below_one_count_as_rounding() -> None:
    linear = np.array([0.7])
    expected = draw_truncated(None, linear, 1.0, 1.0, SeededRandomness(2, 0))
    for value in (1.0 - 1e-9, 0.0, -1e-12):
        assert draw_truncated(np.array([[value]]), linear, 1.0, 1.0, SeededRandomness(2, 0)) == expected


def test_arguments_out_of_range_are_refused() -> None:
    linear, randomness = np.zeros(2), SeededRandomness(0, 0)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="temperature: found"):
            draw_truncated(None, linear, temperature, 1.0, randomness)
    for radius in (0.0, -1.0, math.inf, math.nan, 1e-300):
        with pytest.raises(UsageError, match=r"mechanism.trust_radius: found"):
            draw_truncated(None, linear, 1.0, radius, randomness)
    for curvature, wrong in ((None, np.zeros((2, 1))), (np.eye(3), linear), (None, np.zeros(0))):
        with pytest.raises(UsageError, match="quadratic: found s"):
            draw_truncated(curvature, wrong, 1.0, 1.0, randomness)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -123.456e280])
def test_sums_that_are_not_finite_are_refused_without_their_values(bad: float) -> None:
    for curvature, linear in (
        (np.eye(2), np.array([7.25, bad])),
        (np.array([[7.25, bad], [bad, 1.0]]), np.ones(2)),
    ):
        with pytest.raises(UsageError, match="quadratic: found sums") as caught:
            draw_truncated(curvature, linear, 1.0, 1.0, SeededRandomness(0, 0))
        assert "7.25" not in str(caught.value)
        assert "123" not in str(caught.value)
