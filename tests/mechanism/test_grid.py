"""The grid: a power of two, mu never above its budget, sigma never below its minimum, overflow refused."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqexp.errors import UsageError
from distqexp.mechanism.grid import (
    CAPACITY,
    Grid,
    GridOptions,
    check_capacity,
    choose_grid,
    max_slots,
    pure_mu,
    with_pure_noise,
)
from distqexp.mechanism.rounding_slack import BatchSums

GRIDS = {
    "clip": st.floats(-80, 80).map(math.exp),
    "mu": st.floats(math.log(1e-6), math.log(20)).map(math.exp),
    "sigma_minimum": st.floats(0, math.log(2**30)).map(lambda value: round(math.exp(value))),
    "adjacency": st.sampled_from(["zero-out", "add-remove", "replace-one"]),
}
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one"])
def test_presence_at_several_shards_multiplies_the_noise(adjacency: str) -> None:
    batches = BatchSums(64, 100)
    one, three = (
        choose_grid(1.0, 0.5, 2**20, adjacency, GridOptions(exponent=-22, batches=batches, presence=presence))
        for presence in (1, 3)
    )
    assert three.sensitivity == 3 * one.sensitivity
    assert three.clip_integer == one.clip_integer
    assert 3 * one.sigma - 3 <= three.sigma <= 3 * one.sigma
    assert three.mu <= 0.5
    assert pure_mu(1.0, 2.0, 0.3, adjacency, 3) == pytest.approx(math.sqrt(3) * pure_mu(1.0, 2.0, 0.3, adjacency))


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 30.0])
def test_pure_noise_is_the_smallest_that_keeps_epsilon(epsilon: float) -> None:
    grid = Grid(step=2.0**-12, clip_integer=50_000, sigma=10)
    found = with_pure_noise(grid, 1.7, epsilon)
    step = Fraction(grid.step)

    def spent(sigma: int) -> Fraction:
        return 2 * grid.sensitivity * step * Fraction(1.7) / (sigma * step) ** 2

    assert spent(found.sigma) <= Fraction(epsilon) < spent(found.sigma - 1)


@EXAMPLES
@given(**GRIDS)
def test_chosen_grid_keeps_every_promise(clip: float, mu: float, sigma_minimum: int, adjacency: str) -> None:
    grid = choose_grid(clip, mu, sigma_minimum, adjacency)
    step = Fraction(2) ** grid.exponent
    assert Fraction(grid.step) == step
    assert grid.clip_integer * step <= Fraction(clip) < (grid.clip_integer + 1) * step
    factor = 2 if adjacency == "replace-one" else 1
    assert grid.sensitivity_factor == factor
    exact = Fraction(factor * grid.clip_integer, grid.sigma)
    assert exact <= Fraction(grid.mu) <= Fraction(mu)
    assert Fraction(factor * grid.clip_integer, max(1, grid.sigma - 1)) > Fraction(mu) or grid.sigma == 1
    assert grid.sigma >= sigma_minimum
    assert grid.temperature == pytest.approx(float((grid.sigma * step) ** 2), rel=1e-15)


@EXAMPLES
@given(**GRIDS)
def test_no_coarser_grid_would_do(clip: float, mu: float, sigma_minimum: int, adjacency: str) -> None:
    grid = choose_grid(clip, mu, sigma_minimum, adjacency)
    coarser_clip = math.floor(Fraction(clip) / Fraction(2) ** (grid.exponent + 1))
    coarser_sigma = math.ceil(grid.sensitivity_factor * coarser_clip / Fraction(mu))
    assert coarser_clip < 1 or coarser_sigma < sigma_minimum


def test_a_given_exponent_is_used_or_refused() -> None:
    free = choose_grid(1.0, 0.5, 1000, "zero-out")
    finer = choose_grid(1.0, 0.5, 1000, "zero-out", GridOptions(exponent=free.exponent - 3))
    assert finer.step == free.step / 8
    assert finer.sigma == 8 * free.sigma
    with pytest.raises(UsageError, match=rf"mechanism.grid: found {free.exponent + 1}; expected {free.exponent} or"):
        choose_grid(1.0, 0.5, 1000, "zero-out", GridOptions(exponent=free.exponent + 1))


def test_replacing_a_unit_costs_twice_the_noise() -> None:
    one, two = (
        choose_grid(1.0, 0.5, 1000, adjacency, GridOptions(exponent=-12)) for adjacency in ("zero-out", "replace-one")
    )
    assert (one.sigma, two.sigma) == (2 * 4096, 4 * 4096)
    assert two.temperature == 4 * one.temperature
    assert one.mu == two.mu == 0.5


def test_capacity_counts_the_clip_and_the_rounding() -> None:
    grid = Grid(step=2.0**-10, clip_integer=1000, sigma=2000)
    for k in (1, 17, 10**6):
        slots = max_slots(grid, k)
        assert slots * (grid.clip_integer + math.sqrt(k) / 2) < CAPACITY
        assert slots * (grid.clip_integer + math.sqrt(k) / 2 + 2) > CAPACITY * 0.99
    check_capacity(grid, 17, units=10**9)
    units = max_slots(grid, 17) // 1000
    check_capacity(grid, 17, units)
    with pytest.raises(UsageError, match=r"grid overflow: 2\^-10 steps hold the sum of \d+ slots; expected \d+"):
        check_capacity(grid, 17, units + 1)


def test_noise_beyond_exact_integers_is_an_overflow() -> None:
    with pytest.raises(UsageError, match="grid overflow: noise of"):
        choose_grid(1.0, 0.5, 1000, "zero-out", GridOptions(exponent=-60))
    with pytest.raises(UsageError, match="grid overflow: noise of"):
        choose_grid(1.0, 0.5, 2**60, "zero-out")


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan, 1e-250, 1e250])
def test_clips_out_of_range_are_refused(clip: float) -> None:
    with pytest.raises(UsageError, match=r"mechanism.clip: found"):
        choose_grid(clip, 1.0, 1000, "zero-out")


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"mu of a round: found 0.0"):
        choose_grid(1.0, 0.0, 1000, "zero-out")
    with pytest.raises(UsageError, match="smallest sigma: found 0"):
        choose_grid(1.0, 1.0, 0, "zero-out")
    with pytest.raises(UsageError, match=r"privacy.adjacency: found 'bounded'"):
        choose_grid(1.0, 1.0, 1000, "bounded")


@pytest.mark.parametrize(
    "change",
    [{"step": 3.0}, {"step": 0.0}, {"step": math.inf}, {"clip_integer": 0}, {"sigma": 0}, {"sensitivity_factor": 0}],
)
def test_a_grid_from_elsewhere_is_checked(change: dict[str, float]) -> None:
    good = Grid(step=0.25, clip_integer=10, sigma=20)
    assert good.exponent == -2
    with pytest.raises(UsageError, match=r"grid .*: found"):
        dataclasses.replace(good, **change)  # type: ignore[arg-type]


def test_sizes_that_no_float_can_hold_together_are_refused_in_one_line() -> None:
    """A clip of the largest float on a fine grid, and clips and radii whose quotient leaves float64: errors, not tracebacks."""
    with pytest.raises(UsageError, match=r"grid overflow: the clip 1e\+308 is more than 2\^62 steps"):
        choose_grid(1e308, 1e-200, 1, "zero-out", GridOptions(exponent=-100, diagnostics=0.1))
    with pytest.raises(UsageError, match=r"mechanism\.trust_radius: found 1.79e"):
        pure_mu(5e-324, 1.79e161, 1e-3, "replace-one")
    with pytest.raises(UsageError, match="sizes that go together"):
        pure_mu(1e308, 1e-200, 1e12, "zero-out")
