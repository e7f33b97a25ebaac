"""The clip and the integer grid against adversarial vectors: the norm bound is a fact about integers, always."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distqexp.errors import UsageError
from distqexp.mechanism.grid import LARGEST_CLIP_INTEGER
from distqexp.sketching.clip import clip_units
from distqexp.sketching.integers import round_to_grid

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # a warning would tell of the data

WIDTH = 24
HUGE = [1e38, 3.5e38, 1e154, 1.4e154, 1e200, 1.7e308, math.inf, math.nan]
NASTY = [0.0, -0.0, 5e-324, 1e-310, 2.3e-308, 1e-160, 2.0**53 + 1, 2.0**62, 2.0**63, *HUGE]
STEPS = [1.0, 2.0**-20, 2.0**-500, 2.0**450]


def exact_norm(row: np.ndarray) -> int:
    """The squared norm in Python's own integers, which don't wrap."""
    return sum(int(x) ** 2 for x in row)


def rows_of(step: float) -> st.SearchStrategy[np.ndarray]:
    """Rows of one width: anything at all, nasty values, values on and beside half steps, many equal ones."""
    signed = st.sampled_from([x for value in NASTY for x in (value, -value)])
    halves = st.builds(
        lambda i, tilt, sign: sign * (i + 0.5) * step * (1 + tilt * 2.0**-52),
        st.integers(0, 3), st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 1]),
    )  # fmt: skip
    entries = st.one_of(st.floats(width=64), signed, halves, st.floats(-4, 4).map(lambda x: x * step))
    mixed = st.lists(entries, min_size=WIDTH, max_size=WIDTH)
    constant = st.one_of(halves, signed).map(lambda x: [x] * WIDTH)
    return st.lists(st.one_of(mixed, constant), min_size=1, max_size=4).map(np.array)


vectors_and_steps = st.sampled_from(STEPS).flatmap(lambda step: st.tuples(rows_of(step), st.just(step)))
clip_integers = st.one_of(st.integers(1, 20), st.sampled_from([1000, 2**20, LARGEST_CLIP_INTEGER]))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(vectors_and_steps, clip_integers)
@example((np.full((1, WIDTH), 0.5), 1.0), 2)  # ties to even: all zeros
@example((np.full((1, WIDTH), 1.5), 1.0), 8)  # ties upwards: from inside to over the bound
@example((np.full((2, WIDTH), 1.7e308), 2.0**-500), LARGEST_CLIP_INTEGER)  # infinite once scaled
@example((np.full((1, WIDTH), 2.0**30), 1.0), LARGEST_CLIP_INTEGER)  # squares that would wrap if summed in int64
def test_every_row_is_within_the_bound_and_on_its_own(case: tuple[np.ndarray, float], clip_integer: int) -> None:
    vectors, step = case
    before = vectors.copy()
    found = round_to_grid(vectors, step, clip_integer)
    assert found.dtype == np.int64
    assert found.shape == vectors.shape
    assert np.array_equal(vectors, before, equal_nan=True)
    for row, integers in zip(vectors, found, strict=True):
        assert exact_norm(integers) <= clip_integer**2
        assert np.array_equal(round_to_grid(row[None], step, clip_integer)[0], integers)
        if not np.isfinite(row).all():
            assert not integers.any()
            continue
        assert np.all((np.sign(integers) == 0) | (np.sign(integers) == np.sign(row)))
        if max(abs(row)) < 2.0**40 * step:
            nearest = [round(x / step) for x in row.tolist()]  # x / step is exact: step is a power of two
            if sum(i * i for i in nearest) <= clip_integer**2:
                assert integers.tolist() == nearest  # exact when inside
        with np.errstate(over="ignore"):
            assert np.all(np.abs(integers) <= np.abs(row / step) + 0.5)  # never stretched
    reversed_rows = round_to_grid(vectors[::-1].copy(), step, clip_integer)[::-1]
    assert np.array_equal(reversed_rows, found)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(vectors_and_steps, st.floats(1e-3, 1e3), st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_clipped_row_is_short_and_on_its_own(case: tuple[np.ndarray, float], size: float, marks: list[bool]) -> None:
    vectors, step = case
    clip = size * step
    finite = np.array(marks[: len(vectors)])
    found = clip_units(vectors, finite, clip)
    assert np.isfinite(found).all()
    for row, mark, clipped in zip(vectors, finite, found, strict=True):
        alone = clip_units(row[None], np.array([mark]), clip)[0]
        assert alone.tobytes() == clipped.tobytes()
        norm = math.hypot(*(clipped / step)) * step
        assert norm <= clip * (1 + 1e-12)
        with np.errstate(over="ignore"):
            whole = float(np.sqrt(np.square(row).sum()))
        if not mark or not math.isfinite(whole):
            assert not clipped.any()
        elif whole <= clip:
            assert clipped.tobytes() == row.tobytes()  # inside: not a bit is changed
        elif step == 1.0:  # where squares neither vanish nor overflow
            np.testing.assert_allclose(clipped, row * (clip / math.hypot(*row)), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("clip_integer", [1, 5, 40, 1024])
def test_random_vectors_at_the_bound_lose_at_most_a_step_a_coordinate(clip_integer: int) -> None:
    """The common case: norm C exactly, so that rounding goes over in half of the rows."""
    random = np.random.default_rng(clip_integer)
    vectors = random.normal(size=(400, 30))
    vectors *= (clip_integer / np.linalg.norm(vectors, axis=1))[:, None]
    found = round_to_grid(vectors, 1.0, clip_integer)
    assert all(exact_norm(row) <= clip_integer**2 for row in found)
    assert np.abs(found - vectors).max() <= 1
    plain = np.rint(vectors).astype(np.int64)
    over = np.array([exact_norm(row) > clip_integer**2 for row in plain])
    assert np.array_equal(found[~over], plain[~over])
    if clip_integer >= 40:
        assert 100 < over.sum() < 300  # the check has work to do, on about half of the rows
    assert np.all(np.abs(found[over]) <= np.abs(vectors[over]))


def test_rows_that_rounding_alone_pushes_over_are_not_stretched_to_the_bound() -> None:
    """Norm 50 before rounding, 57 after, the bound between them: truncated, with the long coordinate as it is."""
    row = np.full((1, 401), 1.5000001)
    row[0, 0] = 40.25
    assert round_to_grid(row, 1.0, 55)[0].tolist() == [40] + [1] * 400


def test_long_rows_neither_wrap_nor_depend_on_their_place() -> None:
    """More coordinates than numpy's buffers, each as large as allowed: 10,000 * 2^60 wraps int64 many times."""
    random = np.random.default_rng(0)
    for k in (8191, 8193, 10_000, 30_001):
        vectors = random.normal(size=(7, k)) * np.array([1e-3, 1, 1, 50, 1e30, 1e300, 1])[:, None]
        vectors[2] = 2.0**30
        finite = np.ones(7, dtype=np.bool_)
        clipped = clip_units(vectors, finite, 60.0)
        integers = round_to_grid(vectors, 2.0**-24, LARGEST_CLIP_INTEGER)
        assert all(exact_norm(row) <= LARGEST_CLIP_INTEGER**2 for row in integers)
        for i in range(7):
            assert clip_units(vectors[i : i + 1], finite[:1], 60.0)[0].tobytes() == clipped[i].tobytes()
            assert np.array_equal(round_to_grid(vectors[i : i + 1], 2.0**-24, LARGEST_CLIP_INTEGER)[0], integers[i])
        assert np.array_equal(clip_units(vectors[::-1].copy(), finite, 60.0)[::-1], clipped)


def test_bounds_out_of_range_are_refused() -> None:
    for clip_integer in (0, -1, LARGEST_CLIP_INTEGER + 1):
        with pytest.raises(UsageError, match=r"clip/step = .*expected 1 to 2\^30"):
            round_to_grid(np.zeros((1, 2)), 1.0, clip_integer)
    for clip in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="clip: found"):
            clip_units(np.zeros((1, 2)), np.ones(1, dtype=np.bool_), clip)


# --- sensitivity, and that a leak would be seen ----------------------------------------------------------------

Integers = Callable[[np.ndarray], np.ndarray]


def largest_move(integers_of: Integers, vectors: np.ndarray) -> int:
    """The largest squared distance between the integer sums with and without one unit, exactly."""
    whole = integers_of(vectors).sum(axis=0)
    without = (integers_of(np.delete(vectors, unit, axis=0)).sum(axis=0) for unit in range(len(vectors)))
    return max(exact_norm(whole - rest) for rest in without)


def units(seed: int) -> np.ndarray:
    """Units of all sizes around and far beyond the clip, 1."""
    random = np.random.default_rng(seed)
    return random.normal(size=(200, 15)) * np.exp(random.normal(size=(200, 1)) * 3)


def careful(clip: float, step: float, clip_integer: int) -> Integers:
    return lambda vectors: round_to_grid(
        clip_units(vectors, np.ones(len(vectors), dtype=np.bool_), clip), step, clip_integer
    )


@pytest.mark.parametrize("step", [2.0**-3, 2.0**-10, 2.0**-25])
def test_no_unit_moves_the_sum_by_more_than_the_bound(step: float) -> None:
    clip_integer = int(1.3 / step)
    for seed in range(3):
        move = largest_move(careful(1.3, step, clip_integer), units(seed))
        assert move <= clip_integer**2
        assert move >= 0.9 * clip_integer**2 or step == 2.0**-3  # and the bound is used, not dodged


@pytest.mark.parametrize("step", [2.0**-10, 2.0**-25])
def test_planted_leaks_are_caught(step: float) -> None:
    """A clip and a check that are a tenth too loose; rounding without a check; a check of floats before rounding."""
    clip_integer = int(1.3 / step)
    loose = careful(1.3 * 1.1, step, int(1.1 * clip_integer))
    assert largest_move(loose, units(0)) > clip_integer**2

    def unchecked(vectors: np.ndarray) -> np.ndarray:
        clipped = clip_units(vectors, np.ones(len(vectors), dtype=np.bool_), 1.3)
        return np.rint(clipped / step).astype(np.int64)

    assert largest_move(unchecked, units(0)) > clip_integer**2

    def record_by_record(vectors: np.ndarray) -> np.ndarray:
        halves = np.concatenate([vectors / 2, vectors / 2])  # a unit's two records, each clipped for itself
        return careful(1.3, step, clip_integer)(halves).reshape(2, *vectors.shape).sum(axis=0)

    assert largest_move(record_by_record, units(0)) > clip_integer**2


def test_the_integer_check_holds_whatever_the_clip_did() -> None:
    step = 2.0**-12
    clip_integer = int(1.3 / step)
    assert largest_move(careful(1.3 * 1.1, step, clip_integer), units(1)) <= clip_integer**2
    assert largest_move(careful(1e300, step, clip_integer), units(1)) <= clip_integer**2
