"""Release upon release: each builds on the state that the one before it left, from the plan to the last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import refuse_unlike
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.precisions import rescaled_arrays
from distqexp.gradients.worker import Worker
from distqexp.stages.release import moved_parameters

TOLERANCE = 1e-6
"""Relative to the move: sums of another processor or library differ by far less. The parameters are public either way."""


def check_chain(plan: Plan, releases: Sequence[Release], *, built: bool = True, worker: Worker | None = None) -> None:
    """Refuse (FileContentError) the releases of rounds 0, 1, ... unless each builds on the one before it, and all on one noise.

    built: whether the plan's model may be built here; without it the parameters are not held against the noisy sums.
    """
    worker = worker or Worker.of_plan(plan)
    state: RoundState | None = plan.state
    for number, release in enumerate(releases):
        if state is None or release.round != number:
            raise FileContentError(f"release: round {release.round}; expected round {number}: give every release once")
        check_follows(plan, state, release, built=built, worker=worker)
        if release.insecure_seed != releases[0].insecure_seed:
            raise FileContentError(
                f"release of round {number}: noise seed {release.insecure_seed}; round 0 has {releases[0].insecure_seed}: "
                "seeded and private rounds don't go together; give the releases of one run"
            )
        state = release.next_state


def check_follows(
    plan: Plan, before: RoundState, release: Release, *, built: bool = True, worker: Worker | None = None
) -> None:
    """Refuse (FileContentError) a release unless it builds on ``before``, and its parameters follow from its noisy sums."""
    where = f"release of round {release.round}"
    refuse_unlike(f"{where}: used", dict(release.used), before.header())
    if built:
        theta = moved_parameters(plan, before, release.noisy_sums, worker)
        _refuse_far(f"{where}: theta", release.theta, theta, before.theta)
    following = release.next_state
    if following is None:
        return
    if following.velocity is not None and not _same(following.velocity, release.theta - before.theta):
        raise _other(f"{where}: next.velocity", "the move of this round")
    if plan.config.precision.made_at(following.round) == following.round:
        return
    mechanism = plan.config.mechanism
    ratio = mechanism.step_of(following.round) / mechanism.step_of(before.round)
    kept = rescaled_arrays(plan.config.precision.kind, dict(before.precision), ratio)
    for kind, found, expected in (
        ("precision", following.precision, kept),
        ("subspace", following.subspace, before.subspace),
    ):
        if set(found) != set(expected) or not all(_near(found[name], expected[name]) for name in expected):
            raise _other(f"{where}: next.{kind}", "that of this round, which is kept (precision.refresh)")


def refuse_other_noise(release: Release, seed: int | None) -> None:
    """Refuse to draw the round after ``release`` from other noise than it had. Raises UsageError."""
    if release.insecure_seed != seed:
        raise UsageError(
            f"--insecure-noise-seed: found {seed}; round {release.round} was released with {release.insecure_seed}: go on with "
            "the same, or start anew from the plan"
        )


def refuse_test_noise(release: Release, seed: int | None) -> None:
    """Refuse (FileContentError) to sketch private records on top of a release marked NOT PRIVATE, unless in its own test run.

    The mark is the coordinator's word: without signatures, one that was taken out can't be told from one that never stood there.
    """
    found = release.insecure_seed
    if found is not None and seed is None:
        raise FileContentError(
            f"release of round {release.round}: NOT PRIVATE, its noise came from the seed {found}; expected one drawn from real entropy: "
            f"nothing is sketched for it (a test run on made-up records: --insecure-noise-seed {found})"
        )
    if found != seed:
        raise FileContentError(
            f"release of round {release.round}: noise seed {found}; --insecure-noise-seed says {seed}: give the releases of one run"
        )


def _refuse_far(
    where: str, found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], start: npt.NDArray[np.float64]
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(expected)
        move, size = (
            np.abs(expected - start)[finite].max(initial=0.0),
            np.abs(start)[np.isfinite(start)].max(initial=0.0),
        )
        near = np.abs(found - expected) <= TOLERANCE * (move + TOLERANCE * size)
    # A run that noise drove out of float64's range is finished all the same.
    if not (near | (~finite & ~np.isfinite(found))).all():
        worst = int(np.argmin(near))
        raise FileContentError(
            f"{where}[{worst}]: {float(found[worst])!r}; its noisy sums give {float(expected[worst])!r}: the file was changed: get it again"
        )


def _same(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> bool:
    return np.array_equal(found, expected, equal_nan=True)


def _near(found: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> bool:
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=1e-12, atol=0.0))


def _other(where: str, expected: str) -> FileContentError:
    return FileContentError(f"{where}: other numbers; expected {expected}: the file was changed: get it again")
