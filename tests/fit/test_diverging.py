"""A run that noise drives away: its public curvature vanishes, yet the budget it spent buys an exported model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from run_harness import Commands, overrides, table_tree, write_task

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release

ROUNDS = 6


def test_a_diverged_run_keeps_its_last_useful_precision_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path, table_tree(mechanism={"rounds": ROUNDS, "clip": 0.5, "step": 1e9}))
    out = tmp_path / "run"
    outcome = Commands(capsys).fit(
        task, "--out", out, "--insecure-noise-seed", "1", *overrides("precision.damping=0.0")
    )
    assert outcome.code == 0, outcome.err
    plan = Plan.read(out / "plan.h5")
    states = [plan.state]
    for round in range(ROUNDS - 1):
        state = Release.read(out / f"release-{round:03d}.h5", plan).next_state
        assert state is not None
        states.append(state)
    kept = [
        np.array_equal(before.precision["inverse_factor"], after.precision["inverse_factor"])
        for before, after in itertools.pairwise(states)
    ]
    assert any(kept), "this run was meant to diverge"
    assert all(np.isfinite(state.precision["inverse_factor"]).all() for state in states)
    assert (out / "certificate.json").exists()


def test_a_joint_precision_keeps_such_a_run_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Along directions of known curvature a round goes as far as Newton's method, however long the step."""
    task = write_task(tmp_path, table_tree(mechanism={"rounds": ROUNDS, "clip": 0.5, "step": 1e9}))
    out = tmp_path / "run"
    joint = overrides("precision.kind=kronecker-joint", "precision.damping=0.1")
    outcome = Commands(capsys).fit(task, "--out", out, "--insecure-noise-seed", "1", *joint)
    assert outcome.code == 0, outcome.err
    plan = Plan.read(out / "plan.h5")
    for round in range(ROUNDS - 1):
        state = Release.read(out / f"release-{round:03d}.h5", plan).next_state
        assert state is not None
        assert np.abs(state.theta).max() < 100
        assert all(np.isfinite(array).all() for array in state.precision.values())
