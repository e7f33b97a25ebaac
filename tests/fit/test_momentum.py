"""Momentum of released points, and a clip that is the same in every round in natural units."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_harness import Commands, overrides
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.config import config_from_tree, config_to_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.stages.release import Draw, make_release, moved_parameters
from tests.support.states import states_of_run

MOMENTUM = 0.6
RUN = (
    "mechanism.rounds=3",
    "mechanism.guard=false",
    f"mechanism.momentum={MOMENTUM}",
    "model.pretrain.epochs=2",
    "precision.samples=50",
)


def releases(out: Path) -> tuple[Plan, list[Release]]:
    plan = Plan.read(out / "plan.h5")
    return plan, [Release.read(out / f"release-{r:03d}.h5", plan) for r in range(3)]


@pytest.mark.slow
def test_a_share_of_the_last_move_is_added_to_a_rounds_own(run: Commands, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run.fit("--out", str(out), "--insecure-noise-seed", "5", "--json", *overrides(*RUN)).code == 0
    plan, found = releases(out)
    states = states_of_run(out)
    thetas = [plan.state.theta, *(release.theta for release in found)]
    for r, (state, release) in enumerate(zip(states, found, strict=True)):
        own = moved_parameters(plan, dataclasses.replace(state, velocity=None), release.noisy_sums) - state.theta
        before = thetas[r] - thetas[r - 1] if r else np.zeros(plan.d)
        assert np.linalg.norm(own) > 0
        np.testing.assert_array_equal(release.theta, state.theta + own + MOMENTUM * before)
    # It is free: the same charges as without.
    plain = tmp_path / "plain"
    no_momentum = [*RUN[:1], *RUN[2:]]
    assert run.fit("--out", str(plain), "--insecure-noise-seed", "6", "--json", *overrides(*no_momentum)).code == 0
    one, two = (json.loads((folder / "certificate.json").read_bytes()) for folder in (out, plain))
    assert one["epsilon"] == pytest.approx(two["epsilon"], rel=1e-4)  # later clips, and so the grids, differ
    assert len(one["rounds"]) == len(two["rounds"]) == 3


@pytest.mark.slow
def test_a_resumed_run_has_the_same_momentum(run: Commands, tmp_path: Path) -> None:
    arguments = ["--insecure-noise-seed", "5", *overrides(*RUN)]
    assert run.fit("--out", str(tmp_path / "whole"), *arguments).code == 0
    assert run.fit("--out", str(tmp_path / "cut"), *arguments).code == 0
    for name in ("release-002.h5", "model.safetensors", "certificate.json"):
        (tmp_path / "cut" / name).unlink()
    assert run.fit("--out", str(tmp_path / "cut"), "--resume", *arguments).code == 0
    whole, cut = (releases(tmp_path / name)[1][-1].theta for name in ("whole", "cut"))
    np.testing.assert_array_equal(whole, cut)


@pytest.mark.parametrize("refresh", [1, 2])
def test_the_natural_clip_grows_with_the_root_of_the_step_alone(refresh: int, tmp_path: Path) -> None:
    random_table("double", [1, 2] * 4, seed=2).write(tmp_path / "public.h5")
    mechanism = {
        "clip": None,
        "clip_natural": 1.5,
        "rounds": 4,
        "parts": 2,
        "step": 0.8,
        "final_step": 0.1,
        "shrink": False,
    }
    config = make_config(
        tmp_path, "double", mechanism=mechanism, privacy={"units": 42}, precision={"kind": "dense", "refresh": refresh}
    )
    plan = plan_of(config)
    state: RoundState | None = plan.state
    rng = np.random.default_rng(0)
    for step in (0.8, 0.4, 0.2, 0.1):
        assert state is not None
        assert state.clip == pytest.approx(1.5 * (step * 2 / 42) ** 0.5, rel=1e-12)
        # In units whitened by curvature and damping alone it is 1.5: A = (units / parts / step) (H + damping).
        away = rng.integers(-(10**6), 10**6, plan.k)
        state = make_release(plan, state, Draw(away, 1), config.data.public, SerialEngine()).next_state
    assert state is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"clip_natural": 1.0}, "at most one of mechanism.clip, clip_quantile and clip_natural"),
    ({"clip": None, "clip_natural": 0.0}, "mechanism.clip_natural: found 0.0; expected a finite number above 0"),
    ({"clip": None, "clip_natural": float("inf")}, "mechanism.clip_natural: found inf"),
    ({"momentum": 1.0}, "mechanism.momentum: found 1.0; expected 0 or more, below 1"),
    ({"momentum": -0.1}, "mechanism.momentum: found -0.1"),
    ({"momentum": float("nan")}, "mechanism.momentum: found nan"),
]


@pytest.mark.parametrize(("mechanism", "words"), REFUSED)
def test_values_out_of_range(mechanism: dict[str, Any], words: str, tmp_path: Path) -> None:
    tree = config_to_tree(make_config(tmp_path, "mlp", public=False))
    tree["mechanism"] |= mechanism
    with pytest.raises(UsageError) as caught:
        config_from_tree(tree)
    assert words in str(caught.value)
