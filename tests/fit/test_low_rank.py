"""Runs of a text model with low-rank factors: what has no gradient yet stands still, and no run ends half-way on rounding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import ran
from numpy.typing import NDArray
from small_runs import plan_of
from token_files import LENGTH, factory, token_config, write_tokens

from distqexp.artefacts.plan import Plan
from distqexp.config import Config, config_from_tree
from distqexp.gradients.setup import build_network
from distqexp.stages.advice import warnings_of
from distqexp.stages.rounds import FitResult

pytest.importorskip("transformers")
pytest.importorskip("peft")

LORA = {"r": 2, "target_modules": ["query", "value"]}
KINDS = {"A": "lora_A", "B": "lora_B", "head": "classifier"}


def config_of(folder: Path, trainable: list[str], rounds: int, head: str | None) -> Config:
    write_tokens(folder / "private.h5", 40, 1)
    model = factory("BertForSequenceClassification", lora=LORA, pooling="mean", **({"head": head} if head else {}))
    tree: dict[str, Any] = token_config(
        folder,
        {**model, "trainable": trainable},
        privacy={"units": 40, "epsilon": 8.0},
        subspace={"kind": "identity", "k": None},
        precision={"kind": "kronecker", "source": "probes", "samples": 30},
        mechanism={"rounds": rounds, "clip": 0.3},
    )
    del tree["data"]["public"], tree["subspace"]["k"]
    tree["data"]["record_shape"] = [LENGTH]
    return config_from_tree(tree)


def run_of(folder: Path, trainable: list[str], rounds: int, head: str | None) -> FitResult:
    return ran(config_of(folder, trainable, rounds, head), folder / "out", insecure_noise_seed=3)


def moves_of(plan: Plan, before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, set[bool]]:
    """For each kind of parameters, whether its tensors moved."""
    moves: dict[str, set[bool]] = {kind: set() for kind in KINDS}
    at = 0
    for name, shape in build_network(plan.config).names_shapes:
        size = int(np.prod(shape))
        moved = bool((before[at : at + size] != after[at : at + size]).any())
        for kind, part in KINDS.items():
            if part in name:
                moves[kind].add(moved)
        at += size
    return moves


def test_blocks_wake_up_from_the_head_downwards(tmp_path: Path, own_ledger: Path) -> None:
    """Below a head of zeros nothing has a gradient, and no first factor has one while the second is zero."""
    result = run_of(tmp_path, ["*lora_*", "*classifier*"], rounds=3, head="zero")
    thetas = [result.plan.state.theta, *(release.theta for release in result.releases)]
    moves = [moves_of(result.plan, *pair) for pair in pairwise(thetas)]
    assert moves == [
        {"A": {False}, "B": {False}, "head": {True}},
        {"A": {False}, "B": {True}, "head": {True}},
        {"A": {True}, "B": {True}, "head": {True}},
    ]
    assert all(np.isfinite(theta).all() for theta in thetas)


def test_with_the_first_factors_frozen_all_blocks_move_from_the_start(tmp_path: Path, own_ledger: Path) -> None:
    result = run_of(tmp_path, ["*lora_B*", "*classifier*"], rounds=1, head=None)
    moves = moves_of(result.plan, result.plan.state.theta, result.releases[0].theta)
    assert moves == {"A": set(), "B": {True}, "head": {True}}


def test_random_tokens_for_several_layers_are_warned_of_before_anything_is_charged(tmp_path: Path) -> None:
    body, head = (
        warnings_of(plan_of(config_of(tmp_path, trainable, rounds=1, head=None)))
        for trainable in (["*lora_B*", "*classifier*"], ["*classifier*"])
    )
    assert [line for line in body if "random tokens" in line and "data.public" in line]
    assert not [line for line in head if "random tokens" in line]
