"""The chain of releases: each builds on the state that the one before it left, and the first on the plan's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from distqexp.arrays import FloatArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import refuse_unlike
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.precisions import rescaled_arrays
from distqexp.gradients.worker import Worker
from distqexp.stages.release import completed_release, parameters_after

TOLERANCE = 1e-6
"""Relative to the move: sums on another processor or library differ by far less. The parameters are public either way."""


def check_chain(
    plan: Plan,
    releases: Sequence[Release],
    *,
    built: bool = True,
    worker: Worker | None = None,
    complete: Callable[[RoundState, Release], RoundState | None] | None = None,
) -> list[int]:
    """Refuse releases of rounds 0, 1, ... unless each builds on the one before it and all have the same noise seed, or none.

    Args:
        plan: The plan that all of them belong to.
        releases: The releases, in the order of their rounds.
        built: Whether the plan's model may be built here; if not, the parameters are not held against the noisy sums.
        worker: A worker on the plan; a new one when None.
        complete: Returns the state after a release that left it out, given the state before it; None where that can't be had.

    Returns:
        The rounds whose parameters were not held against their noisy sums, because nothing here gives the state before them.

    Raises:
        FileContentError: A release is missing, doesn't follow from the one before it, or has other noise.
    """
    worker = worker or Worker.of_plan(plan)
    state: RoundState | None = plan.state
    unchecked: list[int] = []
    for number, release in enumerate(releases):
        if release.round != number or (number and releases[number - 1].next_header is None):
            raise FileContentError(f"release: round {release.round}; expected round {number}: give every release once")
        if state is not None:
            check_follows(plan, state, release, built=built, worker=worker)
        else:
            check_rules_follow(releases[number - 1], release)
        unchecked += [number] if state is None or not built else []
        if release.noise_seed != releases[0].noise_seed:
            raise FileContentError(
                f"release of round {number}: noise seed {release.noise_seed}; round 0 has {releases[0].noise_seed}: "
                "seeded and private rounds don't go together; give the releases of one run"
            )
        before, state = state, release.next_state
        if state is None and before is not None and complete is not None and number + 1 < len(releases):
            state = complete(before, release)
    return unchecked


def completed_chain(
    plan: Plan,
    releases: Sequence[Release],
    worker: Worker,
    complete: Callable[[RoundState, Release], RoundState | None] | None = None,
) -> list[Release]:
    """Return releases of rounds 0, 1, ... with the parameters that the files of a plan with named weights leave out.

    Those after a release that left its state out stay lacking where ``complete``, as in ``check_chain``, does not give it. The releases
    of any other plan are returned as they are.
    """
    state, chain = plan.state if plan.named else None, list(releases)
    for number, release in enumerate(chain):
        if state is None:
            break
        chain[number] = completed_release(plan, state, release, worker)
        before, state = state, chain[number].next_state
        if state is None and complete is not None and number + 1 < len(chain):
            state = complete(before, chain[number])
    return chain


def check_rules_follow(before: Release, release: Release) -> None:
    """Refuse (FileContentError) a release whose clip and grid are not those that the release ``before`` it left for it."""
    refuse_unlike(f"release of round {release.round}: used", dict(release.state_header), dict(before.next_header or {}))


def check_follows(
    plan: Plan, before: RoundState, release: Release, *, built: bool = True, worker: Worker | None = None
) -> None:
    """Refuse (FileContentError) a release unless it builds on ``before`` and its parameters follow from its noisy sums.

    ``built`` and ``worker`` are as in ``check_chain``.
    """
    where = f"release of round {release.round}"
    refuse_unlike(f"{where}: used", dict(release.state_header), before.header())
    if built and not release.named:  # else they are computed from the sums, by the same steps
        theta = parameters_after(plan, before, release, worker)
        _refuse_far(f"{where}: theta", release.theta, theta, before.theta)
    successor = release.next_state
    if successor is None or release.lacking:
        return
    if successor.velocity is not None and not _same(successor.velocity, release.theta - before.theta):
        raise _other_numbers(f"{where}: next.velocity", "the move of this round")
    if plan.config.refresh_round(successor.round) == successor.round:
        return
    mechanism = plan.config.mechanism
    ratio = mechanism.step_of(successor.round) / mechanism.step_of(before.round)
    precision = rescaled_arrays(plan.config.precision.kind, dict(before.precision), ratio)
    for kind, actual, expected in (
        ("precision", successor.precision, precision),
        ("subspace", successor.subspace, before.subspace),
    ):
        if set(actual) != set(expected) or not all(_near(actual[name], expected[name]) for name in expected):
            raise _other_numbers(f"{where}: next.{kind}", "that of this round, which is kept (precision.refresh)")


def refuse_other_noise(release: Release, seed: int | None) -> None:
    """Refuse to draw the round after ``release`` with other noise than it had: ``seed``, or None for real noise.

    Raises UsageError.
    """
    if release.noise_seed != seed:
        raise UsageError(
            f"--insecure-noise-seed: found {seed}; round {release.round} was released with {release.noise_seed}: go on with "
            "the same, or start anew from the plan"
        )


def refuse_test_noise(release: Release, seed: int | None) -> None:
    """Refuse (FileContentError) to sketch private records on top of a release marked NOT PRIVATE, except in its own test run.

    ``seed`` is this site's noise seed, None outside test runs. The mark is the coordinator's word: without signatures, nobody
    can tell a mark that was removed from one that never stood there.
    """
    release_seed = release.noise_seed
    if release_seed is not None and seed is None:
        raise FileContentError(
            f"release of round {release.round}: NOT PRIVATE, its noise came from the seed {release_seed}; expected one drawn from real "
            f"entropy: nothing is sketched for it (a test run on made-up records: --insecure-noise-seed {release_seed})"
        )
    if release_seed != seed:
        raise FileContentError(
            f"release of round {release.round}: noise seed {release_seed}; --insecure-noise-seed says {seed}: give the releases of one run"
        )


def _refuse_far(where: str, actual: FloatArray, expected: FloatArray, start: FloatArray) -> None:
    """Refuse vectors that differ by more than TOLERANCE of the move from ``start`` to ``expected``."""
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(expected)
        move, size = (
            np.abs(expected - start)[finite].max(initial=0.0),
            np.abs(start)[np.isfinite(start)].max(initial=0.0),
        )
        near = np.abs(actual - expected) <= TOLERANCE * (move + TOLERANCE * size)
    # A run that noise drove out of float64's range is finished all the same.
    if not (near | (~finite & ~np.isfinite(actual))).all():
        worst = int(np.argmin(near))
        raise FileContentError(
            f"{where}[{worst}]: {float(actual[worst])!r}; its noisy sums give {float(expected[worst])!r}: "
            "the file was changed: get it again"
        )


def _same(actual: FloatArray, expected: FloatArray) -> bool:
    return np.array_equal(actual, expected, equal_nan=True)


def _near(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> bool:
    return actual.shape == expected.shape and bool(np.allclose(actual, expected, rtol=1e-12, atol=0.0))


def _other_numbers(where: str, expected: str) -> FileContentError:
    return FileContentError(f"{where}: other numbers; expected {expected}: the file was changed: get it again")
