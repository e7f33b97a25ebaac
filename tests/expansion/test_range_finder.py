"""The subspace of public gradients, against numpy's dense singular value decomposition of all of them; stored, sent, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_harness import QUICK, seeded_serial_run, settings
from numpy.typing import NDArray
from run_harness import Commands
from same_bytes import PUBLIC_PCA
from sketching_oracle import dense_matrix
from small_runs import Table, context_of, make_config, plan_of, random_table, unit_vectors

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.expansion.range_products import RangeSums
from distqexp.expansion.source import curvature_source, public_source
from distqexp.expansion.state import next_state
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.geometry.subspaces.public_pca import (
    OVERSAMPLING,
    POWER_ITERATIONS,
    PublicPcaSubspace,
    gaussian_rows,
    leading_basis,
    orthonormal,
    range_width,
    stored_basis,
)
from distqexp.gradients.labels import label_noise
from distqexp.gradients.setup import build_network, subspace_of
from distqexp.gradients.worker import Worker
from distqexp.problem.losses import get_loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from tests.support.states import states_of_run

SIZES = [1, 2, 1, 11, 1, 3] * 8


def tables(folder: Path, seed: int = 4, sizes: list[int] = SIZES) -> None:
    """Public records whose features have scales far apart, so that the gradients' spectrum has gaps; private ones."""
    table = random_table("double", sizes, seed)
    Table((table.x * 4.0 ** -np.arange(6)).astype(np.float32), table.y, table.u).write(folder / "public.h5")
    random_table("double", [1, 3, 1, 2], seed + 1).write(folder / "private.h5")


def config_of(folder: Path, k: int = 4, *, samples: int = 500, public: bool = True, **sections: Any) -> Config:
    kinds: dict[str, dict[str, Any]] = {
        "subspace": {"kind": "public-pca", "k": k},
        "precision": {"kind": "dense", "samples": samples},
        "engine": {"micro_batch": 32},
    }
    merged = kinds | {name: {**kinds.get(name, {}), **values} for name, values in sections.items()}
    return make_config(folder, "double", public=public, **merged)


def public_gradients(config: Config, plan: Plan, own_labels: bool = False) -> NDArray[np.float64]:
    """G (d, n): one backward pass a record, in float64, at labels drawn from the model or at the records' own."""
    assert config.data.public is not None
    network, loss = build_network(config), get_loss(config.model.loss)
    network.load_state(plan.weights)
    source = public_source(config, config.data.public, plan.schema)
    records = source.open(plan.schema, 0).read(source.slots.rows)
    noise = label_noise(config.subspace.seed, 0, 0, len(records), 1)
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    columns = []
    for slot in range(len(records)):
        outputs = network.module(records.inputs[slot : slot + 1].double())
        drawn = loss.sample(outputs.detach(), noise[slot : slot + 1])
        value = loss.value(outputs, records.targets[slot : slot + 1] if own_labels else drawn).sum()
        columns.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)]).numpy())
    return np.stack(columns, axis=1)


def sine(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """The sine of the largest angle between two subspaces of one dimension, given by orthonormal columns."""
    return float(np.linalg.norm(found - wanted @ (wanted.T @ found), 2))


def state_at(config: Config, plan: Plan, theta: NDArray[np.float64], round: int, previous: RoundState) -> RoundState:
    return next_state(
        worker=Worker(config, plan.schema, plan.weights), calibration=plan.calibration, theta=theta,
        round=round, source=curvature_source(config, config.data.public, plan.schema, round),
        engine=SerialEngine(), previous=previous,
    )  # fmt: skip


# --- the basis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 9, 20])
def test_the_basis_is_that_of_a_dense_decomposition(k: int, tmp_path: Path) -> None:
    tables(tmp_path)
    config = config_of(tmp_path, k)
    plan = plan_of(config)
    basis = plan.state.subspace["basis"]
    assert basis.shape == (43, k)
    assert np.abs(basis.T @ basis - np.eye(k)).max() < 1e-12
    assert (np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0) > 0).all()
    gradients = public_gradients(config, plan)
    left, values, _ = np.linalg.svd(gradients, full_matrices=False)
    best = float(np.square(values[:k]).sum())
    energy = float(np.square(basis.T @ gradients).sum())
    assert 0.99 * best <= energy <= best * (1 + 1e-12)
    # Halko, Martinsson, Tropp 2011: the error shrinks with the power 2 q + 1 = 5 of the ratio behind the oversampling.
    assert values[k] / values[k - 1] < 0.98
    assert sine(basis, left[:, :k]) < 1e-4
    # What a wrong basis would show: the gradients at the records' own labels, or no power iterations and no oversampling.
    own = np.linalg.svd(public_gradients(config, plan, own_labels=True), full_matrices=False)[0][:, :k]
    assert sine(own, left[:, :k]) > 1e-3
    crude = np.linalg.qr(gradients @ gaussian_rows(0, 0, 0, gradients.shape[1], k))[0]
    assert sine(crude, left[:, :k]) > 1e-3


def test_a_slow_spectrum_keeps_its_energy() -> None:
    """The range finder's steps on a matrix in memory whose singular values fall like 1 / sqrt(i): no gap anywhere."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(n, 200)))[0] for n in (900, 300))
    values = 1.0 / np.sqrt(1.0 + np.arange(200))
    matrix = (left * values) @ right.T
    k = 60
    basis = orthonormal(matrix @ gaussian_rows(1, 2, 0, 300, k + OVERSAMPLING))
    for _ in range(POWER_ITERATIONS):
        basis = orthonormal(matrix @ orthonormal(matrix.T @ basis))
    found = leading_basis(basis, matrix.T @ basis, k)
    assert np.square(found.T @ matrix).sum() > 0.99 * np.square(values[:k]).sum()
    assert np.abs(found.T @ found - np.eye(k)).max() < 1e-12


def test_the_test_matrix_is_a_function_of_the_slot() -> None:
    whole = gaussian_rows(1, 2, 0, 40, 7)
    assert np.array_equal(gaussian_rows(1, 2, 17, 5, 7), whole[17:22])
    assert not np.array_equal(gaussian_rows(1, 3, 0, 40, 7), whole)
    assert not np.array_equal(gaussian_rows(2, 2, 0, 40, 7), whole)
    assert abs(float(whole.mean())) < 6 / np.sqrt(whole.size)  # false alarm 2e-9


def test_the_micro_batch_changes_the_basis_by_rounding_only(tmp_path: Path) -> None:
    tables(tmp_path)
    config = config_of(tmp_path)
    states = [plan_of(replace(config, engine=replace(config.engine, micro_batch=size))).state for size in (6, 32, 512)]
    for state in states[1:]:
        np.testing.assert_allclose(state.subspace["basis"], states[0].subspace["basis"], rtol=0, atol=1e-9)
    assert plan_of(config).state.identity() == states[1].identity()


def test_sums_over_records_leave_out_what_is_absent_or_not_finite() -> None:
    network, loss = Network(torch.nn.Linear(3, 2)), get_loss("cross-entropy")
    x = torch.randn((5, 3), generator=torch.Generator().manual_seed(0))
    good = torch.tensor([True, False, True, True, True])
    records = Records(torch.where(good[:, None], x, 0.0), torch.tensor([0, 1, 1, 0, 1]), good)
    records.inputs[3] = float("nan")
    sums = RangeSums(network=network, loss=loss, micro_batch=8)
    weights = np.random.default_rng(1).normal(size=(5, 4))
    basis = torch.linalg.qr(torch.randn((8, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    rows = []
    for i in (0, 2, 4):
        network.module.zero_grad()
        loss.value(network.module(x[i : i + 1]), records.targets[i : i + 1]).sum().backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in network.module.parameters() if p.grad is not None]).double())
    wanted = torch.stack(rows).numpy()
    np.testing.assert_allclose(sums.combine(records, weights).numpy(), wanted.T @ weights[[0, 2, 4]], atol=1e-6)
    found = sums.coefficients(records, basis)
    np.testing.assert_allclose(found[[0, 2, 4]], wanted @ basis.numpy(), atol=1e-6)
    assert not found[[1, 3]].any()


# --- the subspace ------------------------------------------------------------------------------------------------


def test_projection_and_lift_are_the_matrix_s_and_rows_do_not_meet() -> None:
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(37, 5)))[0]
    subspace = PublicPcaSubspace(basis)
    v = torch.randn((6, 37), generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(subspace.project(v).numpy(), v.double().numpy() @ basis, rtol=0, atol=1e-13)
    w = np.arange(5.0)
    np.testing.assert_allclose(subspace.lift(w), basis @ w, rtol=0, atol=1e-13)
    whole = subspace.project(v)
    blanked = v.clone()
    blanked[1], blanked[4] = 0.0, float("nan")
    again = subspace.project(blanked)
    assert torch.equal(again[[0, 2, 3, 5]], whole[[0, 2, 3, 5]])
    assert not again[1].any()
    assert again[4].isnan().all()
    with pytest.raises(UsageError, match=r"expected \(B, 37\)"):
        subspace.project(v[:, 1:])


def test_a_site_reads_the_basis_from_the_plan_and_needs_no_public_data(tmp_path: Path) -> None:
    tables(tmp_path)
    config = config_of(tmp_path)
    plan = plan_of(config)
    plan.write(tmp_path / "plan.h5")
    (tmp_path / "public.h5").unlink()
    received = Plan.read(tmp_path / "plan.h5")
    assert received.plan_id == plan.plan_id
    assert received.state.subspace["basis"].tobytes() == plan.state.subspace["basis"].tobytes()
    assert dense_matrix(context_of(config, received).subspace).tobytes() == plan.state.subspace["basis"].tobytes()
    vectors, finite = unit_vectors(config, received)
    assert finite.all()
    network, loss = build_network(config), get_loss("cross-entropy")
    network.load_state(plan.weights)
    records = context_of(config, received).datasets[0].read(np.arange(7))
    network_parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    table = random_table("double", [1, 3, 1, 2], 5)
    first = np.flatnonzero(table.u == table.u[0])
    value = loss.value(network.module(records.inputs[first].double()), records.targets[first]).sum()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, network_parameters)]).numpy()
    inverse = precision_from_arrays("dense", 4, dict(plan.state.precision)).whiten(torch.eye(4).double()).numpy().T
    np.testing.assert_allclose(vectors[0], inverse @ plan.state.subspace["basis"].T @ gradient, rtol=1e-9, atol=1e-12)
    turned = {"basis": -plan.state.subspace["basis"]}
    assert replace(plan.state, subspace=turned).identity() != plan.state.identity()


BASIS = np.linalg.qr(np.random.default_rng(6).normal(size=(9, 3)))[0]
PLANTED = [
    ({}, "0 arrays; expected basis"),
    ({"basis": BASIS, "row/0000": BASIS}, "2 arrays; expected basis and no other"),
    ({"basis": BASIS.T}, r"basis of shape \(3, 9\)"),
    ({"basis": BASIS.astype(np.float32)}, "of float32; expected"),
    ({"basis": 1.001 * BASIS}, "not of length 1"),
    ({"basis": BASIS * np.array([1.0, 0.0, 1.0])}, "not of length 1"),
    ({"basis": np.where(np.eye(9, 3) > 0, np.nan, BASIS)}, "not of length 1"),
    ({"basis": BASIS * 1e300}, "not of length 1"),
]


@pytest.mark.parametrize(("arrays", "words"), PLANTED)
def test_a_planted_basis_is_refused(arrays: dict[str, NDArray[Any]], words: str) -> None:
    assert stored_basis(9, 3, {"basis": BASIS}).k == 3
    with pytest.raises(FileContentError, match=words) as caught:
        stored_basis(9, 3, arrays)
    assert "\n" not in str(caught.value)


# --- rounds ------------------------------------------------------------------------------------------------------


def test_kept_rounds_read_no_public_record_and_refreshed_ones_do(tmp_path: Path) -> None:
    tables(tmp_path)
    config = config_of(tmp_path, precision={"refresh": 2}, mechanism={"rounds": 4})
    plan = plan_of(config)
    theta = plan.state.theta + 0.1
    blind = replace(config, data=replace(config.data, public=None))
    kept = state_at(blind, plan, theta, 1, plan.state)
    anew = state_at(config, plan, theta, 2, kept)
    assert kept.subspace["basis"].tobytes() == plan.state.subspace["basis"].tobytes()
    assert sine(anew.subspace["basis"], plan.state.subspace["basis"]) > 1e-3
    for round, state in ((1, kept), (2, anew)):
        p = dense_matrix(subspace_of(config, plan.d, plan.k, round, None, state.subspace))
        assert p.tobytes() == state.subspace["basis"].tobytes()


def test_where_public_gradients_vanish_the_previous_basis_is_kept(tmp_path: Path) -> None:
    tables(tmp_path)
    config = config_of(tmp_path)
    plan = plan_of(config)
    theta = np.full(plan.d, np.nan)
    kept = state_at(config, plan, theta, 1, plan.state)
    assert kept.subspace["basis"].tobytes() == plan.state.subspace["basis"].tobytes()
    # So it is where a round's public records are too few: here those of another file, after the budget of round 0 is spent.
    tables(tmp_path, sizes=[1, 1])
    assert (
        state_at(config, plan, plan.state.theta, 1, plan.state).subspace["basis"].tobytes()
        == kept.subspace["basis"].tobytes()
    )


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_can_not_be_is_refused_in_one_line(tmp_path: Path) -> None:
    tables(tmp_path, sizes=[1] * 12)
    refused = [
        ({"k": 30, "samples": 29}, "subspace.k: found 30; expected at most precision.samples = 29"),
        ({"k": 5, "public": False}, "subspace.kind: found 'public-pca'; expected data.public for the gradients"),
        ({"subspace": {"k": None}}, "subspace.k: found None; expected a dimension for public-pca"),
        ({"precision": {"kind": "kronecker"}}, "identity, diagonal or dense for subspace.kind = public-pca"),
        (
            {"k": 13},
            "k = 13, with 12 public records; expected at least k; raise precision.samples, or lower subspace.k",
        ),
        ({"k": 44}, "k = 44, with d = 43 trainable parameters"),
    ]
    for arguments, words in refused:
        with pytest.raises(UsageError) as caught:
            plan_of(config_of(tmp_path, **arguments))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_gradients_of_a_lower_rank_are_refused(tmp_path: Path) -> None:
    """One record thirty times: its gradient at each of the three labels, which add up to nothing under the model: rank 2."""
    table = random_table("double", [1] * 30, 8)
    Table(np.repeat(table.x[:1], 30, axis=0), table.y, table.u).write(tmp_path / "public.h5")
    with pytest.raises(UsageError, match="rank 2; expected at least k = 3"):
        plan_of(config_of(tmp_path, 3))
    assert plan_of(config_of(tmp_path, 2)).k == 2


def test_the_width_and_the_memory() -> None:
    assert range_width(1000, 50, 500) == 60
    assert range_width(1000, 50, 55) == range_width(55, 50, 500) == 55
    assert range_width(1000, 50, 500, memory=5 * 8 * 1000 * 60) == 60
    with pytest.raises(UsageError, match=r"d k = 1000 x 50 needs about .* GiB of memory; lower subspace.k"):
        range_width(1000, 50, 500, memory=5 * 8 * 1000 * 60 - 1)


def test_probes_take_the_place_of_public_data(tmp_path: Path) -> None:
    tables(tmp_path)
    config = config_of(
        tmp_path, public=False, precision={"source": "probes", "samples": 60}, data={"record_shape": [6]}
    )
    plan = plan_of(config)
    basis = plan.state.subspace["basis"]
    assert np.abs(basis.T @ basis - np.eye(4)).max() < 1e-12
    assert plan_of(config).state.identity() == plan.state.identity()


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serial run, the basis refreshed every second round."""
    return seeded_serial_run(tmp_path_factory.mktemp("serial"), (*QUICK, *PUBLIC_PCA))


def test_a_run_s_files_carry_the_basis_and_a_changed_one_is_refused(
    tmp_path: Path, serial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Commands(capsys)
    assert "state/subspace/basis: float64 (650, 20)" in run.done("inspect", serial / "plan.h5").out
    plan = Plan.read(serial / "plan.h5")
    _, kept, anew = states_of_run(serial)
    assert kept.subspace["basis"].tobytes() == plan.state.subspace["basis"].tobytes()
    assert sine(anew.subspace["basis"], kept.subspace["basis"]) > 1e-3
    content = bytearray((serial / "plan.h5").read_bytes())
    row = plan.state.subspace["basis"][300].tobytes()
    at = content.find(row)
    assert at > 0
    content[at] ^= 1
    (tmp_path / "plan.h5").write_bytes(content)
    run.distqexp("verify", tmp_path / "plan.h5").refused(3, "plan.h5")


@pytest.mark.slow
def test_a_run_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = settings(*PUBLIC_PCA[:1], "subspace.k=150", "privacy.epsilon=8", "mechanism.rounds=4")
    outcome = Commands(capsys).fit("--out", tmp_path / "run", "--insecure-noise-seed", "7", "--json", *words)
    assert outcome.code == 0, outcome.err
    metrics = json.loads(outcome.out.splitlines()[-1])["metrics"]
    assert metrics["after"]["accuracy"] > metrics["before"]["accuracy"] + 0.1
