"""Schedules of parts, steps and warm-up: what a config may ask for, and the precision that follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import (
    make_config,
    plan_of,
    random_table,
)

from distqexp.artefacts.state import RoundState
from distqexp.config import config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.stages import release as release_module
from distqexp.stages.release import Draw


def tree(**mechanism: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "distqexp.problem.models:logistic", "args": {"inputs": 64}, "loss": "cross-entropy"},
        "data": {"population": "p", "private": {"format": "digits"}},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 40},
        "mechanism": {"clip": 1.0} | mechanism,
    }


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rounds": 7, "parts": 2}, "mechanism.rounds: found 7; expected a multiple of mechanism.parts = 2"),
    ({"rounds": 1, "parts": 2}, "mechanism.rounds: found 1; expected a multiple"),
    ({"rounds": 4, "parts": 0}, "mechanism.parts: found 0; expected 1 to privacy.units"),
    ({"rounds": 82, "parts": 41}, "mechanism.parts: found 41; expected 1 to privacy.units"),
    ({"rounds": 2, "final_step": 0.0}, "mechanism.final_step: found 0.0"),
    ({"rounds": 2, "final_step": float("nan")}, "mechanism.final_step: found nan"),
    ({"rounds": 1, "final_step": 0.5}, "mechanism.final_step: found 0.5; expected mechanism.rounds of 2 or more"),
]


@pytest.mark.parametrize(("mechanism", "words"), REFUSED)
def test_schedules_that_make_no_sense(mechanism: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_from_tree(tree(**mechanism))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_add_remove_wants_ids() -> None:
    found = tree(rounds=4, parts=2)
    found["privacy"]["adjacency"] = "add-remove"
    with pytest.raises(UsageError, match=r"mechanism.parts: found 2; expected 1, or data.private.unit"):
        config_from_tree(found)
    assert config_from_tree({**found, "mechanism": {"clip": 1.0, "rounds": 4}}).mechanism.parts == 1


# --- the step --------------------------------------------------------------------------------------------------


def test_the_step_falls_geometrically_between_its_ends() -> None:
    mechanism = config_from_tree(tree(rounds=5, step=0.8, final_step=0.05)).mechanism
    steps = [mechanism.step_of(r) for r in range(5)]
    assert (steps[0], steps[-1]) == (0.8, 0.05)
    np.testing.assert_allclose(np.diff(np.log(steps)), np.log(0.05 / 0.8) / 4, rtol=1e-12)
    constant = config_from_tree(tree(rounds=5, step=0.8)).mechanism
    assert [constant.step_of(r) for r in range(5)] == [0.8] * 5
    assert config_from_tree(tree(step=0.8)).mechanism.step_of(0) == 0.8


def test_the_step_grows_while_a_run_warms_up() -> None:
    plain, warm = (
        config_from_tree(tree(rounds=6, step=0.8, final_step=0.1, warmup=rounds)).mechanism for rounds in (0, 3)
    )
    shares = [warm.step_of(r) / plain.step_of(r) for r in range(6)]
    np.testing.assert_allclose(shares, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1], rtol=1e-12)
    for warmup in (-1, 6):
        with pytest.raises(
            UsageError, match=rf"mechanism.warmup: found {warmup}; expected 0 or more, below mechanism.rounds"
        ):
            config_from_tree(tree(rounds=6, warmup=warmup))


@pytest.mark.parametrize("refresh", [1, 2])
@pytest.mark.parametrize("precision", ["identity", "diagonal"])
def test_a_precision_stands_for_the_units_of_a_part_at_the_step_of_its_round(
    precision: str, refresh: int, tmp_path: Path
) -> None:
    """A = (units / parts / step_r) (H + damping): against the plan without parts at step 1, in every round.

    The model doesn't move: all sums are zero and the noise of the seed is taken back.
    """
    steps = [0.8, 0.4, 0.2, 0.1]
    mechanism = {"rounds": 4, "parts": 2, "step": 0.8, "final_step": 0.1, "shrink": False}
    random_table("double", [1, 2] * 4, seed=2).write(tmp_path / "public.h5")
    sections = {"precision": {"kind": precision, "damping": 0.3, "refresh": refresh}, "privacy": {"units": 42}}
    config = make_config(tmp_path, "double", mechanism={"clip": 0.05} | mechanism, **sections)
    unit = plan_of(make_config(tmp_path, "double", mechanism={"clip": 0.05, "rounds": 2, "shrink": False}, **sections))
    plan = plan_of(config)
    state: RoundState | None = plan.state
    still = np.zeros(plan.k, dtype=np.int64)
    for step in steps:
        assert state is not None
        expected = unit.state.precision["inverse_factor"] * (2 * step) ** 0.5
        np.testing.assert_allclose(state.precision["inverse_factor"], expected, rtol=1e-12)
        state = release_module.make_release(plan, state, Draw(still, 1), config.data.public, SerialEngine()).next_state
    assert state is None
