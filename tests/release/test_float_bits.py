"""The low bits of a release, attacked: unrounded draws give their dataset away every time, releases no more than epsilon allows.

The attacker knows the sums of two neighbours and asks of which one the release is. Two attacks, neither of which looks at the law: the
uniform numbers of Box and Muller's map lie on a lattice (if they have 53 bits), and sigma times a float reaches some floats only.
Tests of releases use the system's entropy; each raises a false alarm with probability 2e-8 at most, all together below 1e-6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from small_runs import make_config, plan_of, random_table

from distqexp.api import fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.errors import FileContentError, UsageError
from distqexp.mechanism import truncated
from distqexp.mechanism.grid import Grid, choose_grid
from distqexp.mechanism.randomness import SystemRandomness
from distqexp.mechanism.rule import ReleaseRule
from distqexp.mechanism.truncated import draw_truncated
from distqexp.privacy.calibration import calibrate
from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file, write_file

EPSILON, DELTA, K = 0.05, 1e-9, 400
TRIALS = 200

FloatArray = NDArray[np.float64]
IntegerArray = NDArray[np.int64]
Score = Callable[[FloatArray, IntegerArray], float]


def calibrated() -> Grid:
    """For epsilon 0.05; sigma moved upwards to 1.4 times a power of two: at a power of two itself every float is reached."""
    calibration = calibrate(epsilon=EPSILON, delta=DELTA, rounds=1, k=K, noise="gaussian")
    grid = choose_grid(0.05, calibration.mu_round, calibration.sigma_minimum, "zero-out")
    return dataclasses.replace(grid, sigma=int(1.4 * 2 ** math.ceil(math.log2(grid.sigma))) + 1)


GRID = calibrated()


def neighbours() -> tuple[IntegerArray, IntegerArray]:
    """The sums of 60 units at the clip, and those without the last one."""
    vectors = np.random.default_rng(0).standard_normal((60, K))
    vectors *= 0.99 * GRID.clip_integer / np.linalg.norm(vectors, axis=1, keepdims=True)
    integers = np.rint(vectors).astype(np.int64)
    return integers.sum(axis=0), integers[:-1].sum(axis=0)


SUMS = neighbours()


def lattice_score(release: FloatArray, sums: IntegerArray) -> float:
    """How near the small implied uniform numbers 1 - exp(-r^2 / 2) are to multiples of 2^-53: their number if all are, 0 by chance."""
    noise = (release - sums) / GRID.sigma
    first, second = noise[: K // 2], noise[K // 2 :]
    uniform = -np.expm1(-(first**2 + second**2) / 2)
    steps = uniform[uniform < 0.08] * 2.0**53
    return float(np.cos(2 * np.pi * (steps - np.rint(steps))).sum())


def share_reached(noise: FloatArray, spread: float | FloatArray, exact: NDArray[np.bool_]) -> float:
    """The share of ``noise`` that is the spread times a float, of the entries that are known to the last bit."""
    near = noise / spread
    reached = np.zeros(len(noise), dtype=bool)
    for candidate in (near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf)):
        reached |= spread * candidate == noise
    return float(reached[exact].mean())


def exponents(values: FloatArray) -> IntegerArray:
    return np.frexp(values)[1].astype(np.int64)


def reach_score(release: FloatArray, sums: IntegerArray) -> float:
    """Of noise that was added to the sums."""
    noise = release - sums
    return share_reached(noise, float(GRID.sigma), exponents(noise) >= exponents(release))


def tilted_score(radius: float) -> Score:
    """Of a tilted Gaussian's points: mean and spread are recomputed from the candidate's sums."""

    def score(release: FloatArray, sums: IntegerArray) -> float:
        scaled = truncated._scale(np.ones(K), sums * GRID.step, GRID.temperature, radius)
        mean, variance = scaled.moments(truncated._multiplier(scaled))
        point = -release * GRID.step / radius
        noise = point - mean
        known = (exponents(noise) >= exponents(point)) & (exponents(noise) >= exponents(mean))
        return share_reached(noise, np.sqrt(variance), known)

    return score


def right_guesses(draw: Callable[[IntegerArray], NDArray[np.generic]], score: Score, seed: int) -> int:
    """Of TRIALS, by the larger score, with a coin where both are alike. The truth is another coin."""
    coins = np.random.default_rng(seed)
    right = 0
    for truth, coin in coins.integers(0, 2, size=(TRIALS, 2)):
        release = draw(SUMS[truth]).astype(np.float64)
        first, second = (score(release, sums) for sums in SUMS)
        right += int((coin if first == second else int(second > first)) == truth)
    return right


def most_allowed() -> int:
    """What (epsilon, delta) leaves to a guesser, and 1e-8 of chance."""
    return int(binom.isf(1e-8, TRIALS, (math.exp(EPSILON) + DELTA) / (1 + math.exp(EPSILON))))


def no_better_than_allowed(right: int) -> bool:
    """Neither the guesser nor who believes the opposite."""
    return TRIALS - most_allowed() <= right <= most_allowed()


def old_noise(generator: np.random.Generator) -> FloatArray:
    """Box and Muller's map of 53-bit uniform numbers, in float64."""
    uniform = generator.integers(0, 2**53, size=(2, K // 2)) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform[0]))
    return np.concatenate([radius * np.cos(2 * np.pi * uniform[1]), radius * np.sin(2 * np.pi * uniform[1])])


RADII = {"inside": 2.0**12, "tilted": 2.0**4}
"""In units of the law's spread: so large that every draw is the Gaussian's own, or cutting into it."""


def ball(where: str) -> float:
    """The power of two nearest to it, in whitened units."""
    return 2.0 ** round(math.log2(RADII[where] * GRID.sigma * GRID.step))


def unrounded_point(where: str) -> Callable[[IntegerArray], FloatArray]:
    """What the sampler gives before it is rounded."""
    return lambda sums: (
        -draw_truncated(None, sums * GRID.step, GRID.temperature, ball(where), SystemRandomness()) / GRID.step
    )


def test_the_datasets_are_neighbours_at_this_epsilon() -> None:
    assert np.linalg.norm(SUMS[0] - SUMS[1]) <= GRID.clip_integer
    assert 100 < most_allowed() < 150


def test_the_lattice_decides_unrounded_noise_every_time() -> None:
    generator = np.random.default_rng(1)
    assert right_guesses(lambda sums: sums + GRID.sigma * old_noise(generator), lattice_score, 2) == TRIALS


def test_the_reach_of_floats_decides_unrounded_noise_every_time() -> None:
    """Also where uniform numbers have 64 bits and lie on no lattice of 2^-53. With the right sums every entry is reached."""
    randomness = SystemRandomness()
    assert right_guesses(lambda sums: sums + GRID.sigma * randomness.normal(K), reach_score, 3) == TRIALS


@pytest.mark.parametrize("where", ["inside", "tilted"])
def test_the_reach_of_floats_decides_unrounded_points_every_time(where: str) -> None:
    score = reach_score if where == "inside" else tilted_score(ball(where))
    assert right_guesses(unrounded_point(where), score, 4) == TRIALS


@pytest.mark.parametrize("attack", ["lattice", "reach"])
@pytest.mark.parametrize("rounded_by", ["the package", "hand"])
def test_rounded_noise_withstands_both(attack: str, rounded_by: str) -> None:
    """The package's releases; and the very draws that are decided above, rounded."""
    score = lattice_score if attack == "lattice" else reach_score
    rule, generator = ReleaseRule(K, GRID, "gaussian"), np.random.default_rng(1)

    def draw(sums: IntegerArray) -> NDArray[np.generic]:
        if rounded_by == "hand":
            return np.rint(sums + GRID.sigma * old_noise(generator))
        drawn = rule.draw(sums, None, 0)
        assert drawn.dtype == np.int64
        return rule.noisy_sums(sums, drawn)

    assert no_better_than_allowed(right_guesses(draw, score, 5))


@pytest.mark.parametrize("where", ["inside", "tilted"])
def test_rounded_points_withstand_it(where: str) -> None:
    rule = ReleaseRule(K, GRID, "gaussian", ball(where))
    score = reach_score if where == "inside" else tilted_score(ball(where))
    assert no_better_than_allowed(right_guesses(lambda sums: rule.noisy_sums(sums, rule.draw(sums, None, 0)), score, 6))


# --- whole runs --------------------------------------------------------------------------------------------


def run_files(folder: Path) -> None:
    random_table("logistic", [1] * 30, seed=1).write(folder / "private.h5")
    random_table("logistic", [1] * 30, seed=2).write(folder / "public.h5")


@pytest.mark.parametrize("ball_of", [None, 1.0])
def test_what_a_run_stores_and_releases_is_on_the_grid(
    ball_of: float | None, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    run_files(tmp_path)
    stored, sound = list[NDArray[np.generic]](), Ledger.persist_noise

    def persist(self: Ledger, reservation: object, noise: IntegerArray) -> None:
        stored.append(noise)
        sound(self, reservation, noise)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "persist_noise", persist)
    mechanism = {"clip": 0.05, "rounds": 2, "noise": "gaussian"} | ({"trust_radius": ball_of} if ball_of else {})
    result = fit(make_config(tmp_path, "logistic", mechanism=mechanism), tmp_path / "out")
    assert result is not None
    assert [array.dtype for array in stored] == [np.int64] * 2
    assert [release.noisy_sums.dtype for release in result.releases] == [np.int64] * 2
    noise = result.certificate["noise"]
    assert noise["kind"] == "gaussian"
    assert noise["rounded_to_grid"] is True
    if ball_of is None:
        assert noise["sampler_slack"] == 0.0
    else:
        k, steps = result.plan.k, [ball_of / release.state_header["grid"]["step"] for release in result.releases]
        assert noise["sampler_slack"] == pytest.approx(sum(2 * k * 64 * 2.0**-53 * radius for radius in steps))
        assert "don't include" in noise["meaning"]


def test_a_release_file_with_unrounded_sums_is_refused(tmp_path: Path, own_ledger: Path) -> None:

    run_files(tmp_path)
    result = fit(make_config(tmp_path, "logistic", mechanism={"clip": 0.05, "noise": "gaussian"}), tmp_path / "out")
    assert result is not None
    plan, path = Plan.read(tmp_path / "out" / "plan.h5"), tmp_path / "out" / "release-000.h5"
    file = read_file(path, kind="release", plan_id=plan.plan_id)
    arrays = dict(file.arrays) | {"noisy_sums": result.releases[0].noisy_sums + 0.25}
    write_file(
        tmp_path / "other.h5",
        kind="release",
        plan_id=plan.plan_id,
        header=dict(file.header),
        arrays=arrays,
        private=False,
    )
    Release.read(path, plan)
    with pytest.raises(FileContentError, match=r"noisy_sums: float64 \(7,\); .* int64 \(7,\)"):
        Release.read(tmp_path / "other.h5", plan)


def test_a_ball_beyond_int64_is_refused_when_the_plan_is_made(tmp_path: Path) -> None:

    run_files(tmp_path)
    config = make_config(tmp_path, "logistic", mechanism={"clip": 0.05, "noise": "gaussian", "trust_radius": 1e18})
    with pytest.raises(
        UsageError, match=r"mechanism\.trust_radius: found 1e\+18, which is .* steps of 2\^-\d+; expected less"
    ):
        plan_of(config)
