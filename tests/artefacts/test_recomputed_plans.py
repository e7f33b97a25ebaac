"""Every field of a plan, changed by hand with its identity made right again: refused, or certified with no less than the truth."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from forgery import (
    KINDS,
    certified_epsilon,
    changed_arrays,
    changed_trees,
    check_guarantee,
    make_plan,
    true_epsilon,
)
from numpy.typing import NDArray

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.restoring import with_file_errors
from distqexp.errors import FileContentError, UsageError
from distqexp.stages.built import check_geometry
from distqexp.storage.canonical import plan_identity
from distqexp.storage.content import read_content
from distqexp.storage.hdf5 import write_file

FIGURES = ("calibration", "state", "forecast", "shards", "d", "k")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    return {kind: make_plan(tmp_path_factory.mktemp("plan"), kind)[1] for kind in KINDS}


def outcome(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Restore as a reader does: refused in the proper way, or accepted with a guarantee that is checked."""
    try:
        plan = with_file_errors(Path("plan.h5"), lambda: Plan.restore(header, arrays))
        with_file_errors(Path("plan.h5"), lambda: check_geometry(plan, plan.state, "state"))
    except FileContentError:
        return "refused"
    check_guarantee(plan, header, [header["state"]])
    return "accepted"


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_plan_is_accepted(plans: dict[str, Plan], kind: str) -> None:
    plan = plans[kind]
    assert outcome(plan.header(), plan.arrays()) == "accepted"
    assert Plan.restore(plan.header(), plan.arrays()).plan_id == plan.plan_id
    # The oracle is no loose one: what is certified is hardly more.
    states = [{**plan.state.header(), "round": round} for round in range(plan.config.mechanism.rounds)]
    assert certified_epsilon(plan, states) <= 1.02 * true_epsilon(plan.header()["config"], plan.k, states)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_of_the_header_is_the_configs_own(plans: dict[str, Plan], kind: str) -> None:
    plan, found = plans[kind], Counter[str]()
    for name, header in changed_trees(plan.header(), FIGURES):
        said = outcome(header, plan.arrays())
        found[said] += 1
        # Last bits of what a library computes may differ, and no more: the grid follows from the stored figure.
        assert said == "refused" or name.startswith(("calibration.", "forecast.", "state.clip")), name
    assert found["refused"] > 250
    assert found["accepted"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_of_the_config_counts(plans: dict[str, Plan], kind: str) -> None:
    plan, found = plans[kind], Counter[str]()
    sections = ("privacy", "mechanism", "diagnostics", "engine", "subspace", "precision", "augment")
    for _, config in changed_trees(plan.header()["config"], sections):
        found[outcome({**plan.header(), "config": config}, plan.arrays())] += 1
    assert found["refused"] > 400


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["discrete", "batch"])
def test_the_other_rules_too(plans: dict[str, Plan], kind: str) -> None:
    plan, found = plans[kind], Counter[str]()
    header = plan.header()
    for _, config in changed_trees(header["config"], ("model", "data", "output", "tune")):
        found[outcome({**header, "config": config}, plan.arrays())] += 1
    for _, changed in changed_trees(header, ("schema",)):
        found[outcome(changed, plan.arrays())] += 1
    assert found["refused"] > 500


@pytest.mark.parametrize("kind", KINDS)
def test_every_array(plans: dict[str, Plan], kind: str) -> None:
    plan, found = plans[kind], Counter[str]()
    for _, arrays in changed_arrays(plan.arrays()):
        found[outcome(plan.header(), arrays)] += 1
    assert found["refused"] > 20


FORGED = {
    "clip of a million": ("discrete", {"clip": 5e4}, "state.clip"),
    "integer clip": ("discrete", {"clip_integer": 10**6}, "state.grid.clip_integer"),
    "slack 0": ("batch", {"slack": 0}, "state.grid.slack"),
    "factor 1 under replace-one": ("replace-one", {"sensitivity_factor": 1}, "state.grid.sensitivity_factor"),
    "factor 1 at three sites": ("presence", {"sensitivity_factor": 1}, "state.grid.sensitivity_factor"),
    "sigma 3": ("discrete", {"sigma": 3}, "state.grid.sigma"),
    "sigma 2^53": ("discrete", {"sigma": 2**53}, "state.grid.sigma"),
    "no counters": ("diagnostics", {"counter": 0}, "state.grid.counter"),
    "a coarser step": ("gaussian", {"step": 0.5}, "state.grid.step"),
    "curvature for free": ("ball", {"price": 1e-9}, "state.factors.price"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused_by_its_field_with_both_values(
    plans: dict[str, Plan], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, change, field = FORGED[name]
    plan = plans[kind]
    header = copy.deepcopy(plan.header())
    state = header["state"]
    for key, value in change.items():
        part = state if key in state else state["grid"] if key in state["grid"] else state["factors"]
        found, part[key] = part[key], value
    path = tmp_path / "plan.h5"
    identity = plan_identity(header, plan.arrays())
    write_file(path, kind="plan", plan_id=identity, header=header, arrays=plan.arrays(), private=False)
    monkeypatch.setattr("distqexp.storage.hdf5.read_confined", read_content)
    with pytest.raises(FileContentError) as refusal:
        Plan.read(path)
    assert field in str(refusal.value)
    for value in (found, *change.values()):
        assert repr(value) in str(refusal.value)


def test_mu_above_what_the_budget_allows_with_noise_to_match(plans: dict[str, Plan]) -> None:
    """A forger who keeps everything consistent: calibration, sigma and forecast of five times the budget, at the same epsilon."""
    plan = plans["discrete"]
    header = copy.deepcopy(plan.header())
    for name in ("mu_total", "mu_round"):
        header["calibration"][name] *= 5
    header["state"]["grid"]["sigma"] //= 5
    for name in ("expected", "bound"):
        header["forecast"][name] /= 25
    with pytest.raises((FileContentError, UsageError), match=r"calibration\.mu_total"):
        Plan.restore(header, plan.arrays())
