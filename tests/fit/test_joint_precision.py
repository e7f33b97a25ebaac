"""The joint precision through the stages: its law against plain differentiation, its gradients, and runs with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_runs import context_of, make_config, plan_of, random_table, unit_integers, with_blank

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.expansion import across
from distqexp.expansion.source import public_source
from distqexp.expansion.state import next_state
from distqexp.geometry.precisions import blocks_only, leading_curvature, precision_from_arrays
from distqexp.gradients.labels import label_noise
from distqexp.gradients.setup import build_network
from distqexp.gradients.worker import Worker
from distqexp.problem.losses import get_loss

SIZES = [1, 3, 1, 2, 11, 1, 4, 1]
STEP, UNITS = 0.7, 40
HALF = 2e-3
"""Directions are rounded to half precision: eleven bits."""


def config_of(folder: Path, model: str = "double", directions: int = 64, **sections: Any) -> Config:
    mechanism = {"step": STEP, "clip": None, "clip_natural": 3.0, "shrink": False}
    return make_config(
        folder,
        model,
        subspace={"kind": "identity"},
        precision={"kind": "kronecker-joint", "damping": 0.2, "directions": directions} | sections.pop("precision", {}),
        privacy={"units": UNITS},
        mechanism=mechanism | sections.pop("mechanism", {}),
        **sections,
    )


def write_tables(folder: Path, model: str, seed: int) -> None:
    table = random_table(model, SIZES, seed=seed)
    table.write(folder / "public.h5")
    table.write(folder / "private.h5")


def matrix_of(kind: str, arrays: Any, k: int) -> NDArray[np.float64]:
    """A of stored arrays, from L^{-1} as a matrix."""
    inverse = precision_from_arrays(kind, k, dict(arrays)).whiten(torch.eye(k, dtype=torch.float64)).numpy().T
    return np.linalg.inv(inverse.T @ inverse)


def public_gradients(config: Config, plan: Plan, state: RoundState) -> NDArray[np.float64]:
    """The gradient of every public unit at the drawn labels, (units, d), from one backward pass a record."""
    assert config.data.public is not None
    network, loss = build_network(config), get_loss(config.model.loss)
    network.load(state.theta)
    source = public_source(config, config.data.public, plan.schema)
    table = random_table("double", SIZES, seed=3)
    noise = label_noise(config.subspace.seed, state.round, 0, source.slots.slots, 1)
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    found = np.zeros((source.slots.units, plan.d))
    for slot, row in enumerate(source.slots.rows):
        outputs = network.module(torch.tensor(table.x[row : row + 1]).double())
        value = loss.value(outputs, loss.sample(outputs.detach(), noise[slot : slot + 1])).sum()
        gradient = torch.autograd.grad(value, parameters)
        found[source.slots.unit[slot]] += torch.cat([g.reshape(-1) for g in gradient]).numpy()
    return found


def in_blocks(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors in the order of the parameters as coordinates: each layer's weights row by row, with the bias as a last column."""
    first, second = np.split(vectors, [28], axis=1)
    parts = []
    for part, rows, columns in ((first, 4, 6), (second, 3, 4)):
        weights, bias = np.split(part, [rows * columns], axis=1)
        parts.append(
            np.concatenate([weights.reshape(-1, rows, columns), bias[:, :, None]], axis=2).reshape(len(part), -1)
        )
    return np.concatenate(parts, axis=1)


def test_the_precision_is_that_of_the_blocks_and_the_public_curvature_of_the_whole_network(tmp_path: Path) -> None:
    write_tables(tmp_path, "double", seed=3)
    config = config_of(tmp_path)
    plan = plan_of(config)
    blocks = matrix_of("kronecker", blocks_only(plan.state.precision), plan.k)
    gradients = in_blocks(public_gradients(config, plan, plan.state))
    expected = blocks + UNITS * gradients.T @ gradients / len(gradients)
    found = matrix_of("kronecker-joint", plan.state.precision, plan.k)
    np.testing.assert_allclose(found, expected, rtol=0, atol=HALF * np.abs(expected).max())
    assert np.abs(found - blocks).max() > 0.1 * np.abs(expected).max()


def test_few_directions_are_the_leading_ones(tmp_path: Path) -> None:
    write_tables(tmp_path, "double", seed=3)
    every, few = (plan_of(config_of(tmp_path, directions=count)).state.precision for count in (64, 2))
    assert few["directions"].shape == (2, 43)
    assert len(every["values"]) > 4
    np.testing.assert_allclose(few["values"], every["values"][:2], rtol=1e-6)
    assert (np.diff(every["values"]) <= 0).all()
    np.testing.assert_allclose(every["directions"] @ every["directions"].T, np.eye(len(every["values"])), atol=HALF)


@pytest.mark.parametrize("model", ["double", "cnn"])
def test_layers_give_what_differentiation_gives(model: str, tmp_path: Path) -> None:
    write_tables(tmp_path, model, seed=4)
    config = config_of(tmp_path, model)
    plan = plan_of(config)
    context = context_of(config, plan)
    assert type(context.gradients).__name__ == "AcrossGradients"
    for piece in range(len(context.pieces)):
        fast, finite = context.gradients.of_piece(context.batches(piece))
        slow, _ = context.whole_gradients.of_piece(context.batches(piece))
        assert finite.all()
        np.testing.assert_allclose(fast, slow, rtol=1e-4 if model == "cnn" else 1e-9, atol=1e-5 * np.abs(slow).max())
    y = np.random.default_rng(0).normal(size=plan.k)
    assert context.precision is not None
    back = context.precision.unwhiten(y)
    g = np.random.default_rng(1).normal(size=(3, plan.k))
    np.testing.assert_allclose(context.precision.whiten(torch.tensor(g)).numpy() @ y, g @ back, rtol=1e-9)


def test_blanking_units_changes_no_bit_of_the_others(tmp_path: Path) -> None:
    write_tables(tmp_path, "cnn", seed=6)
    config = config_of(tmp_path, "cnn")
    plan = plan_of(config)
    whole = unit_integers(config, plan)
    table = random_table("cnn", SIZES, seed=6)
    order = list(dict.fromkeys(table.u.tolist()))
    np.save(tmp_path / "blank.npy", np.isin(table.u, [order[i] for i in (1, 4)]))
    blanked = unit_integers(with_blank(config, tmp_path / "blank.npy"), plan)
    assert not blanked[[1, 4]].any()
    stay = np.setdiff1d(np.arange(len(SIZES)), [1, 4])
    assert whole[stay].any()
    assert np.array_equal(blanked[stay], whole[stay])


def test_a_kept_precision_has_the_curvature_that_it_had_and_another_step(tmp_path: Path) -> None:
    write_tables(tmp_path, "double", seed=3)
    config = config_of(tmp_path, precision={"refresh": 2}, mechanism={"rounds": 2, "final_step": 4 * STEP})
    plan = plan_of(config)
    source = public_source(config, config.data.public, plan.schema)  # type: ignore[arg-type]
    kept = next_state(
        worker=Worker(config, plan.schema, plan.weights), calibration=plan.calibration, theta=plan.state.theta, round=1,
        source=source, engine=SerialEngine(), previous=plan.state,
    )  # fmt: skip
    before, after = (matrix_of("kronecker-joint", state.precision, plan.k) for state in (plan.state, kept))
    blocks = matrix_of("kronecker", blocks_only(plan.state.precision), plan.k)
    np.testing.assert_allclose(after, before - 0.75 * blocks, rtol=0, atol=2 * HALF * np.abs(before).max())


@pytest.mark.parametrize("kind", ["kronecker", "kronecker-joint"])
def test_a_whole_step_is_as_long_as_the_network_allows_where_blocks_move_one_output(kind: str, tmp_path: Path) -> None:
    table = random_table("logistic", [1] * 400, seed=8)
    table.write(tmp_path / "public.h5")
    table.write(tmp_path / "private.h5")
    config = make_config(
        tmp_path, "logistic", subspace={"kind": "identity"},
        model={"factory": "sketching_oracle:side_by_side", "args": {}, "loss": "binary-cross-entropy"},
        precision={"kind": kind, "damping": 0.1}, privacy={"units": 400},
        mechanism={"clip": None, "clip_natural": 3.0, "shrink": False},
    )  # fmt: skip
    plan = plan_of(config)
    context = context_of(config, plan)
    vectors = np.concatenate(
        [context.whole_gradients.of_piece(context.batches(i))[0] for i in range(len(context.pieces))]
    )
    network = build_network(config)
    network.load(plan.state.theta)
    chance = torch.sigmoid(network.module(torch.tensor(table.x).double()))[:, 0].detach().numpy()
    # From gradients (p - y) J at the records' labels to the curvature p (1 - p) J^T J, next to A = I: a whole step goes this many
    # times as far as the network's quadratic says.
    jacobian = vectors * (np.sqrt(chance * (1 - chance)) / (chance - table.y))[:, None]
    largest = np.linalg.eigvalsh(jacobian.T @ jacobian)[-1]
    if kind == "kronecker":
        assert 5.0 < largest < 16.0
    else:
        assert largest < 2.0


def test_directions_of_another_size_are_refused(tmp_path: Path) -> None:
    write_tables(tmp_path, "double", seed=3)
    plan = plan_of(config_of(tmp_path))
    good = dict(plan.state.precision)
    changes: list[dict[str, NDArray[np.float64]]] = [
        {"values": good["values"][1:]},
        {"values": -good["values"]},
        {"directions": good["directions"][:, 1:]},
        {"directions": good["directions"] * np.nan},
    ]
    for change in changes:
        with pytest.raises(FileContentError, match="precision kronecker-joint: directions"):
            precision_from_arrays("kronecker-joint", plan.k, good | change)
    del good["values"]
    with pytest.raises(FileContentError, match="without directions and values"):
        precision_from_arrays("kronecker-joint", plan.k, good)


def test_more_gradients_than_the_root_can_hold_are_refused_when_the_plan_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tables(tmp_path, "double", seed=3)
    monkeypatch.setattr(across, "LARGEST", 43 * 8 - 1)
    with pytest.raises(
        UsageError, match=r"precision\.directions: 64 from 8 public units of 43 coordinates; expected at most 343"
    ):
        plan_of(config_of(tmp_path))


def test_gradients_of_a_run_that_diverged_end_nothing() -> None:
    """After rounds that were paid for nothing may refuse: what has no finite square counts as zero."""
    vectors = np.random.default_rng(0).normal(size=(12, 30))
    vectors[3, 2], vectors[7, 5] = 1e300, -1e150
    clean = vectors.copy()
    clean[[3, 7]] = 0.0
    found, expected = leading_curvature(vectors, 40.0, 5), leading_curvature(clean, 40.0, 5)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.isfinite(found[0]).all()
    none, values = leading_curvature(np.full((4, 3), 1e200), 40.0, 2)
    assert none.shape == (0, 3)
    assert values.shape == (0,)
