"""Layer by layer through the stages: second moments with sampled labels, stored factors, whole runs, refreshes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sketching_oracle import dense_matrix
from small_runs import Table, make_config, plan_of, random_table, unit_integers, unit_vectors, with_blank

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.expansion.source import public_source
from distqexp.expansion.state import next_state
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace
from distqexp.gradients.labels import label_noise
from distqexp.gradients.setup import blocks_of, build_network, subspace_of
from distqexp.gradients.worker import Worker
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network

SIZES = [1, 3, 1, 2, 11, 1, 4, 1]
STEP, UNITS, DAMPING = 0.7, 40, 0.2
SIDES = {"k_in": 3, "k_out": 2}


def config_of(folder: Path, subspace: str, precision: str = "kronecker", refresh: int = 1, rounds: int = 1) -> Config:
    return make_config(
        folder,
        "double",
        subspace={"kind": subspace} | ({} if subspace == "identity" else SIDES),
        precision={"kind": precision, "damping": DAMPING, "reference": "mean", "floor": 0.0, "refresh": refresh},
        privacy={"units": UNITS},
        mechanism={"step": STEP, "clip": None, "clip_quantile": 0.6, "rounds": rounds, "shrink": False},
    )


def state_at(
    config: Config, plan: Plan, theta: NDArray[np.float64], round: int, previous: RoundState | None = None
) -> RoundState:
    source = public_source(config, config.data.public, plan.schema) if config.data.public else None
    return next_state(
        worker=Worker(config, plan.schema, plan.weights), calibration=plan.calibration, theta=theta,
        round=round, source=source, engine=SerialEngine(), previous=previous,
    )  # fmt: skip


def subspace_at(plan: Plan, state: RoundState) -> KroneckerSubspace:
    blocks = blocks_of(plan.config, build_network(plan.config))
    found = subspace_of(plan.config, plan.d, plan.k, state.round, blocks, state.subspace)
    assert isinstance(found, KroneckerSubspace)
    return found


def stored_a(state: RoundState, k: int) -> NDArray[np.float64]:
    precision = precision_from_arrays("kronecker", k, dict(state.precision))
    inverse = precision.whiten(torch.eye(k, dtype=torch.float64)).numpy().T
    return np.linalg.inv(inverse.T @ inverse)


# --- labels drawn from the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cross-entropy", "binary-cross-entropy", "mean-squared-error"])
def test_gradients_at_sampled_targets_have_mean_zero_and_the_hessian_as_moment(name: str) -> None:
    """200,000 draws, at most 12 figures. False alarm 12 * 2e-9: each within 6 of its own standard errors."""
    loss, count = get_loss(name), 200_000
    row = torch.tensor([[0.3, -1.2, 2.0]] if name != "binary-cross-entropy" else [[-0.8]], dtype=torch.float64)
    outputs = row.repeat(count, 1).requires_grad_()
    noise = label_noise(3, 1, 5, count, loss.noise_width(outputs))
    targets = loss.sample(outputs.detach(), noise)
    (gradient,) = torch.autograd.grad(loss.value(outputs, targets).sum(), outputs)
    factor = loss.hessian_factor(row)[0]
    expected = factor @ factor.T
    width = row.shape[1]
    figures = [(gradient[:, i], 0.0) for i in range(width)]
    figures += [(gradient[:, i] * gradient[:, j], float(expected[i, j])) for i in range(width) for j in range(i + 1)]
    for draws, mean in figures:
        assert abs(float(draws.mean()) - mean) < 6 * float(draws.std()) / math.sqrt(count)


def test_sampled_targets_have_the_types_that_the_losses_take() -> None:
    noise = torch.tensor([[0.999999999], [1e-10]], dtype=torch.float64)
    classes = get_loss("cross-entropy").sample(torch.zeros(2, 4), noise)
    assert (classes.dtype, classes.tolist()) == (torch.int64, [3, 0])
    binary = get_loss("binary-cross-entropy").sample(torch.zeros(2, 1), noise)
    assert (binary.dtype, binary.tolist()) == (torch.float32, [0.0, 1.0])
    squares = get_loss("mean-squared-error")
    assert squares.noise_width(torch.zeros(2, 3)) == 3
    assert squares.sample(torch.zeros(2, 3), torch.full((2, 3), 0.5, dtype=torch.float64)).tolist() == [[0.0] * 3] * 2
    certain = torch.tensor([[0.0, 800.0, 0.0]]).repeat(2, 1)
    assert get_loss("cross-entropy").sample(certain, noise).tolist() == [1, 1]


def test_label_noise_is_a_function_of_the_slot() -> None:
    whole = label_noise(1, 2, 0, 40, 3)
    assert torch.equal(label_noise(1, 2, 17, 5, 3), whole[17:22])
    assert not torch.equal(label_noise(1, 3, 0, 40, 3), whole)
    assert not torch.equal(label_noise(2, 2, 0, 40, 3), whole)
    assert bool(((whole > 0) & (whole < 1)).all())


# --- the public state --------------------------------------------------------------------------------------------


def layer_factors(network: Network, x: torch.Tensor, loss: Loss, noise: torch.Tensor) -> list[tuple[Any, Any]]:
    """Of one record through linear layers: (e, a) of each, gradient of its output and its input with a one, at a drawn label."""
    outputs, inputs = [], []
    for layer in network.module:  # type: ignore[union-attr]  # a Sequential
        if isinstance(layer, torch.nn.Linear):
            inputs.append(np.append(x.detach().numpy().ravel(), 1.0))
        x = layer(x)
        if isinstance(layer, torch.nn.Linear):
            outputs.append(x)
    found = torch.autograd.grad(loss.value(x, loss.sample(x.detach(), noise)).sum(), outputs)
    return [(e.numpy().ravel(), a) for e, a in zip(found, inputs, strict=True)]


def oracle_a(config: Config, plan: Plan, state: RoundState) -> NDArray[np.float64]:
    """A from one backward pass a record at the same drawn labels, and explicit Kronecker products."""
    assert config.data.public is not None
    network, loss = build_network(config), get_loss(config.model.loss)
    network.load(state.theta)
    source = public_source(config, config.data.public, plan.schema)
    table = random_table("double", SIZES, seed=3)
    noise = label_noise(config.subspace.seed, state.round, 0, source.slots.slots, 1)
    subspace = subspace_at(plan, state)
    sums: dict[tuple[int, str], Any] = {}
    for slot, row in enumerate(source.slots.rows):
        x = torch.tensor(table.x[row : row + 1]).double()
        for i, (e, a) in enumerate(layer_factors(network, x, loss, noise[slot : slot + 1])):
            if config.subspace.kind == "kronecker":
                e, a = subspace.factors[i].row[0] @ e, subspace.factors[i].column[0] @ a
            for side, value in (("row", np.outer(e, e)), ("column", np.outer(a, a)), ("energy", (e @ e) * (a @ a))):
                sums[i, side] = sums.get((i, side), 0.0) + value
    parts = []
    for i in range(len(subspace.blocks)):
        s, a = sums[i, "row"], sums[i, "column"]
        product = sums[i, "energy"] / source.slots.units / (np.trace(s) * np.trace(a))
        if config.subspace.kind == "kronecker-pca":
            factor = subspace.factors[i]
            s, a = (m if r is None else r[0] @ m @ r[0].T for m, r in ((s, factor.row), (a, factor.column)))
        s, a = (m + math.sqrt(DAMPING) * np.trace(m) / len(m) * np.eye(len(m)) for m in (s, a))
        parts.append(UNITS / STEP * product * np.kron(s, a))
    whole, at = np.zeros((plan.k, plan.k)), 0
    for part in parts:
        whole[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "kronecker", "kronecker-pca"])
def test_precision_and_clip_equal_plain_differentiation(kind: str, tmp_path: Path) -> None:
    table = random_table("double", SIZES, seed=3)
    table.write(tmp_path / "public.h5")
    table.write(tmp_path / "private.h5")
    config = config_of(tmp_path, kind)
    plan = plan_of(config)
    later = plan.state.theta + np.random.default_rng(1).normal(size=plan.d) * 0.3
    for round, theta in enumerate((plan.state.theta, later)):
        state = state_at(config, plan, theta, round)
        a = oracle_a(config, plan, state)
        np.testing.assert_allclose(stored_a(state, plan.k), a, rtol=1e-8, atol=1e-9 * np.abs(a).max())
    assert state_at(config, plan, plan.state.theta, 0).identity() == plan.state.identity()
    # The private units' vectors in the plan's coordinates: L^{-1} P^T (sum of gradients), here of the public table.
    vectors, finite = unit_vectors(config, plan)
    assert finite.all()
    norms = np.linalg.norm(vectors, axis=1)
    assert plan.state.clip == pytest.approx(float(np.quantile(norms, 0.6, method="higher")), rel=1e-12)
    p = dense_matrix(subspace_at(plan, plan.state))
    factor = np.linalg.cholesky(oracle_a(config, plan, plan.state))
    network, loss = build_network(config), get_loss("cross-entropy")
    network.load_state(plan.weights)
    first = np.flatnonzero(table.u == table.u[0])
    value = loss.value(network.module(torch.tensor(table.x[first]).double()), torch.tensor(table.y[first])).sum()
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]).numpy()
    np.testing.assert_allclose(vectors[0], np.linalg.solve(factor, p.T @ gradient), rtol=1e-7, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["identity", "diagonal", "dense"])
@pytest.mark.parametrize("kind", ["kronecker", "kronecker-pca"])
def test_other_precisions_work_in_kronecker_subspaces(kind: str, precision: str, tmp_path: Path) -> None:
    table = random_table("double", SIZES, seed=5)
    table.write(tmp_path / "public.h5")
    table.write(tmp_path / "private.h5")
    config = config_of(tmp_path, kind, precision)
    plan = plan_of(config)
    vectors, finite = unit_vectors(config, plan)
    assert finite.all()
    norms = np.linalg.norm(vectors, axis=1)
    assert plan.state.clip == pytest.approx(float(np.quantile(norms, 0.6, method="higher")), rel=1e-12)
    assert bool(plan.state.subspace) == (kind == "kronecker-pca")
    assert len(plan.state.precision) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "kronecker", "kronecker-pca"])
def test_blanking_units_of_a_convolutional_network_changes_no_bit_of_the_others(kind: str, tmp_path: Path) -> None:
    sizes = [1, 2, 1, 9, 1, 3, 1, 1, 1]
    table = random_table("cnn", sizes, seed=6)
    table.write(tmp_path / "public.h5")
    table.write(tmp_path / "private.h5")
    config = make_config(
        tmp_path,
        "cnn",
        subspace={"kind": kind} | ({} if kind == "identity" else {"k_in": 6, "k_out": 4}),
        precision={"kind": "kronecker", "damping": 0.3},
        mechanism={"clip": None, "clip_quantile": 0.5},
    )
    plan = plan_of(config)
    whole = unit_integers(config, plan)
    assert len(whole) == len(sizes)
    order = list(dict.fromkeys(table.u.tolist()))
    gone = [1, 4, 5]
    np.save(tmp_path / "blank.npy", np.isin(table.u, [order[i] for i in gone]))
    blanked = unit_integers(with_blank(config, tmp_path / "blank.npy"), plan)
    assert not blanked[gone].any()
    assert whole[gone].any()
    stay = np.setdiff1d(np.arange(len(sizes)), gone)
    assert np.array_equal(blanked[stay], whole[stay])


def test_a_kept_precision_follows_the_step(tmp_path: Path) -> None:
    random_table("double", SIZES, seed=13).write(tmp_path / "public.h5")
    config = config_of(tmp_path, "kronecker-pca", refresh=2, rounds=2)
    config = replace(config, mechanism=replace(config.mechanism, final_step=4 * STEP))
    plan = plan_of(config)
    kept = state_at(config, plan, plan.state.theta, 1, plan.state)
    anew = state_at(config, plan, plan.state.theta, 1)
    a = stored_a(plan.state, plan.k)
    np.testing.assert_allclose(stored_a(kept, plan.k), a / 4, rtol=1e-9, atol=1e-9 * np.abs(a).max())
    assert kept.clip == pytest.approx(2 * plan.state.clip, rel=1e-12)
    assert np.trace(stored_a(anew, plan.k)) == pytest.approx(np.trace(a) / 4, rel=0.5)  # other labels were drawn


def test_the_micro_batch_changes_the_state_by_rounding_only(tmp_path: Path) -> None:
    random_table("double", SIZES, seed=8).write(tmp_path / "public.h5")
    config = config_of(tmp_path, "kronecker")
    states = [plan_of(replace(config, engine=replace(config.engine, micro_batch=size))).state for size in (1, 8, 64)]
    for state in states[1:]:
        assert state.clip == pytest.approx(states[0].clip, rel=1e-10)
        for name, array in state.precision.items():
            np.testing.assert_allclose(array, states[0].precision[name], rtol=1e-8, atol=1e-10)


def test_plans_and_releases_carry_the_factors(tmp_path: Path) -> None:
    random_table("double", SIZES, seed=9).write(tmp_path / "public.h5")
    plan = plan_of(config_of(tmp_path, "kronecker-pca"))
    plan.write(tmp_path / "plan.h5")
    again = Plan.read(tmp_path / "plan.h5")
    assert again.plan_id == plan.plan_id
    assert sorted(again.state.subspace) == sorted(plan.state.subspace) != []
    for name, array in plan.state.subspace.items():
        assert again.state.subspace[name].tobytes() == array.tobytes()
    assert again.state.identity() == plan.state.identity()
    other = dict(plan.state.subspace)
    other["row/0000"] = -other["row/0000"]
    assert replace(plan.state, subspace=other).identity() != plan.state.identity()
    random_plan = plan_of(config_of(tmp_path, "kronecker"))
    assert random_plan.state.subspace == {}
    with pytest.raises(FileContentError, match="subspace kronecker"):
        subspace_at(plan, replace(plan.state, subspace={}))


def test_kept_rounds_read_no_public_record_and_refreshed_ones_do(tmp_path: Path) -> None:
    random_table("double", SIZES, seed=10).write(tmp_path / "public.h5")
    for kind in ("kronecker", "kronecker-pca"):
        config = config_of(tmp_path, kind, refresh=2, rounds=4)
        plan = plan_of(config)
        theta = plan.state.theta + 0.1
        kept = state_at(replace(config, data=replace(config.data, public=None)), plan, theta, 1, plan.state)
        anew = state_at(config, plan, theta, 2, kept)
        assert (kept.round, anew.round) == (1, 2)
        assert kept.theta.tobytes() == theta.tobytes()
        assert kept.clip == plan.state.clip != anew.clip
        assert all(np.array_equal(kept.precision[name], array) for name, array in plan.state.precision.items())
        assert not np.array_equal(anew.precision["row/0000"], kept.precision["row/0000"])
        bases = [dense_matrix(subspace_at(plan, state)) for state in (plan.state, kept, anew)]
        assert np.array_equal(bases[0], bases[1])
        assert not np.array_equal(bases[1], bases[2])


def test_a_flat_subspace_is_kept_with_the_precision_in_its_coordinates(tmp_path: Path) -> None:
    random_table("double", SIZES, seed=11).write(tmp_path / "public.h5")
    config = make_config(
        tmp_path,
        "double",
        subspace={"kind": "gaussian", "k": 4},
        precision={"kind": "dense", "refresh": 3},
        mechanism={"rounds": 6},
    )
    bases = [dense_matrix(subspace_of(config, 43, 4, r)) for r in range(6)]
    assert [np.array_equal(a, b) for a, b in itertools.pairwise(bases)] == [True, True, False, True, True]
    every = replace(config, precision=replace(config.precision, refresh=1))
    assert not np.array_equal(dense_matrix(subspace_of(every, 43, 4, 0)), dense_matrix(subspace_of(every, 43, 4, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kronecker", "kronecker-pca"])
def test_where_public_gradients_vanish_the_previous_state_is_kept(kind: str, tmp_path: Path) -> None:
    random_table("double", SIZES, seed=12).write(tmp_path / "public.h5")
    config = config_of(tmp_path, kind)
    plan = plan_of(config)
    for theta in (np.full(plan.d, np.nan), plan.state.theta * 1e12):
        kept = state_at(config, plan, theta, 1, plan.state)
        assert kept.clip == plan.state.clip or np.isfinite(theta).all()  # at finite parameters norms may be of use
        for mine, theirs in ((kept.precision, plan.state.precision), (kept.subspace, plan.state.subspace)):
            assert sorted(mine) == sorted(theirs)
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
        with pytest.raises(UsageError, match=r"check data\.public"):
            state_at(config, plan, theta, 1)


# --- the config --------------------------------------------------------------------------------------------------

REFUSED = [
    ({"subspace": {"kind": "kronecker"}}, "subspace.k_in: found None; expected 1 or more, for kronecker"),
    ({"subspace": {"kind": "kronecker-pca", "k_in": 3}}, "subspace.k_out: found None"),
    ({"subspace": {"kind": "kronecker", "k_in": 0, "k_out": 2}}, "subspace.k_in: found 0"),
    ({"subspace": {"kind": "kronecker", "k": 5, **SIDES}}, "subspace.k: found 5; expected no k for kronecker"),
    ({"subspace": {"kind": "gaussian", "k": 5, "k_in": 3}}, "subspace.k_in: found 3; expected none for gaussian"),
    ({"subspace": {"k_out": 3}}, "subspace.k_out: found 3; expected none for identity"),
    (
        {"subspace": {"kind": "sjlt", "k": 5}, "precision": {"kind": "kronecker"}},
        "precision.kind: found 'kronecker'; expected identity, diagonal or dense for subspace.kind = sjlt",
    ),
    ({"precision": {"refresh": 0}}, "precision.refresh: found 0; expected 1 or more"),
]


@pytest.mark.parametrize(("sections", "words"), REFUSED)
def test_settings_that_do_not_go_together_are_refused(sections: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make_config(tmp_path, "double", **sections)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"precision": {"kind": "kronecker"}}, "data.public for the curvature"),
        ({"subspace": {"kind": "kronecker-pca", **SIDES}}, "data.public for the second moments, or kind = kronecker"),
    ],
)
def test_what_needs_public_data_says_so(sections: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        make_config(tmp_path, "double", public=False, **sections)
    made = make_config(tmp_path, "double", public=False, subspace={"kind": "kronecker", **SIDES})
    assert config_from_tree(config_to_tree(made)) == made
    assert made.by_blocks


def test_a_random_kronecker_subspace_needs_no_public_data(tmp_path: Path) -> None:
    Table(np.zeros((3, 6), dtype=np.float32), np.zeros(3, dtype=np.int64), np.arange(3)).write(tmp_path / "private.h5")
    config = make_config(tmp_path, "double", public=False, subspace={"kind": "kronecker", **SIDES})
    plan = plan_of(config)
    assert plan.k == 2 * 3 + 2 * 3
    assert plan.d == 43
