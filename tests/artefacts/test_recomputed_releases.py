"""Every field of a release, changed by hand: refused, or charged with no less than the truth; and what follows from the one before."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forgery import changed_arrays, changed_trees, check_guarantee, make_plan, releases_of
from numpy.typing import NDArray

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.restoring import with_file_errors
from distqexp.errors import FileContentError, UsageError
from distqexp.stages.built import check_geometry
from distqexp.stages.chain import check_chain, check_follows
from distqexp.storage.content import read_content
from distqexp.storage.hdf5 import write_file

KINDS = ("discrete", "batch", "ball", "diagnostics", "parts", "momentum")
Run = tuple[Plan, list[Release]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for kind in KINDS:
        config, plan = make_plan(tmp_path_factory.mktemp("run"), kind)
        found[kind] = plan, releases_of(config, plan)
    return found


def outcome(plan: Plan, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Restore as a reader does; what the next round would be charged is checked where the release is accepted."""
    try:
        release = with_file_errors(Path("release.h5"), lambda: Release.restore(plan, header, arrays))
        following = release.next_state
        if following is not None:
            with_file_errors(Path("release.h5"), lambda: check_geometry(plan, following, "next"))
    except FileContentError:
        return "refused"
    for state in [header["used"]] + ([header["next"]] if release.next_state else []):
        check_guarantee(plan, plan.header(), [state])
    return "accepted"


@pytest.mark.parametrize("kind", KINDS)
def test_honest_releases_are_accepted_and_build_upon_each_other(runs: dict[str, Run], kind: str) -> None:
    plan, releases = runs[kind]
    assert [outcome(plan, one.header(), one.arrays()) for one in releases] == ["accepted"] * len(releases)
    check_chain(plan, [Release.restore(plan, one.header(), one.arrays()) for one in releases])


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_header(runs: dict[str, Run], kind: str) -> None:
    plan, releases = runs[kind]
    for release in (releases[0], releases[-1]):
        found = Counter[str]()
        for name, header in changed_trees(release.header()):
            said = outcome(plan, header, release.arrays())
            found[said] += 1
            free = ("next.clip", "used.clip") if plan.config.mechanism.clip is None else ()
            near = ("next.clip", "used.clip") if release.round else ("next.clip",)
            assert said == "refused" or name.startswith(
                (*free, *near, "noise_seed", "everybody", "halvings", "kept")
            ), name
        assert found["refused"] > 100


@pytest.mark.parametrize("kind", KINDS)
def test_every_array(runs: dict[str, Run], kind: str) -> None:
    plan, releases = runs[kind]
    found = Counter(outcome(plan, releases[0].header(), arrays) for _, arrays in changed_arrays(releases[0].arrays()))
    assert found["refused"] > 15


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_follow_from_noisy_sums_and_moves_from_parameters(runs: dict[str, Run], kind: str) -> None:
    plan, releases = runs[kind]
    first = releases[0]
    state = first.next_state
    assert state is not None
    for at in (0, plan.d - 1):
        theta = first.theta.copy()
        theta[at] += 1e-3 * np.abs(first.theta - plan.state.theta).max()
        with pytest.raises(FileContentError, match=rf"theta\[{at}\].*its noisy sums give"):
            check_follows(plan, plan.state, replace(first, theta=theta, next_state=replace(state, theta=theta)))
    with pytest.raises(FileContentError, match=r"used\.clip|used\.round"):
        check_follows(plan, replace(plan.state, clip=plan.state.clip * 1.01), first)
    if state.velocity is not None:
        with pytest.raises(FileContentError, match=r"next\.velocity"):
            check_follows(plan, plan.state, replace(first, next_state=replace(state, velocity=state.velocity * 1.5)))
    if plan.config.precision.refresh > 1:
        other = {name: array * 1.01 for name, array in state.precision.items()}
        with pytest.raises(FileContentError, match=r"next\.precision"):
            check_follows(plan, plan.state, replace(first, next_state=replace(state, precision=other)))
    with pytest.raises(FileContentError, match=r"expected round|used"):
        check_chain(plan, releases[1:])


FORGED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sigma 2^53": ("discrete", "sigma", {"sigma": 2**53}),
    "slack 0": ("batch", "slack", {"slack": 0}),
    "factor 0.5": ("discrete", "sensitivity_factor", {"sensitivity_factor": 2}),
    "clip of one step": ("discrete", "clip_integer", {"clip_integer": 1}),
    "no counters": ("diagnostics", "counter", {"counter": 0}),
    "a finer step": ("parts", "step", {"step": 2.0**-40}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_release_is_refused_by_its_field_with_both_values(
    runs: dict[str, Run], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, field, change = FORGED[name]
    plan, releases = runs[kind]
    header = copy.deepcopy(releases[0].header())
    found = header["next"]["grid"][field]
    header["next"]["grid"] |= change
    path = tmp_path / "release.h5"
    write_file(
        path, kind="release", plan_id=plan.plan_id, header=header, arrays=releases[0].arrays(), private=False
    )  # fmt: skip
    monkeypatch.setattr("distqexp.storage.hdf5.read_confined", read_content)
    with pytest.raises(FileContentError) as refusal:
        Release.read(path, plan)
    for word in (f"next.grid.{field}", repr(found), repr(change[field])):
        assert word in str(refusal.value)


def test_a_consistent_forgery_of_clip_and_grid_is_held_against_the_config(runs: dict[str, Run]) -> None:
    """A clip a million times as long with integers and noise to match: only the config tells."""
    plan, releases = runs["discrete"]
    header = copy.deepcopy(releases[0].header())
    header["next"]["clip"] *= 2.0**20
    header["next"]["grid"]["step"] *= 2.0**20
    with pytest.raises((FileContentError, UsageError), match=r"next\.clip"):
        Release.restore(plan, header, releases[0].arrays())
