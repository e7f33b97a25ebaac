"""The public half of a round against automatic differentiation: precision, clip quantile, grid, choice of units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from sketching_oracle import dense_matrix
from small_runs import Table, first_appearance, make_config, plan_of, random_table

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.expansion.source import public_source
from distqexp.expansion.state import next_state
from distqexp.gradients.setup import build_network, subspace_of
from distqexp.gradients.worker import Worker
from distqexp.mechanism.grid import choose_grid
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network

SIZES = [1, 3, 1, 2, 11, 1, 4, 1]
STEP, UNITS, DAMPING = 0.7, 40, 0.2


def config_of(folder: Path, model: str, subspace: str, precision: str, **mechanism: Any) -> Config:
    return make_config(
        folder,
        model,
        subspace={"kind": subspace} | ({} if subspace == "identity" else {"k": 6}),
        precision={"kind": precision, "damping": DAMPING, "reference": "mean"},
        privacy={"units": UNITS},
        mechanism={"step": STEP, "clip": None, "clip_quantile": 0.6, "shrink": False, **mechanism},
    )


def state_at(config: Config, plan: Plan, theta: NDArray[np.float64], round: int) -> RoundState:
    """What the real stage computes at ``theta``."""
    source = public_source(config, config.data.public, plan.schema) if config.data.public else None
    return next_state(
        worker=Worker(config, plan.schema, plan.weights), calibration=plan.calibration, theta=theta,
        round=round, source=source, engine=SerialEngine(),
    )  # fmt: skip


def network_at(config: Config, theta: NDArray[np.float64]) -> tuple[Network, Loss]:
    network = build_network(config)
    network.load(theta)
    return network, get_loss(config.model.loss)


def loss_at(network: Network, loss: Loss, theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return loss.value(network.functional(network.split(theta), x), y).sum()


def tensors(table: Table, row: int, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.tensor(table.y[row : row + 1])
    return torch.tensor(table.x[row : row + 1]).double(), y.double() if loss == "binary-cross-entropy" else y


def gauss_newton(config: Config, theta: NDArray[np.float64], table: Table) -> NDArray[np.float64]:
    """Sum over records of J^T Lambda J, (d, d), Jacobian and Hessian in the outputs by automatic differentiation."""
    network, loss = network_at(config, theta)
    at = torch.from_numpy(theta)
    total = torch.zeros(len(theta), len(theta), dtype=torch.float64)
    for row in range(len(table.y)):
        x, y = tensors(table, row, loss.name)
        jacobian = torch.autograd.functional.jacobian(
            lambda t, x=x: network.functional(network.split(t), x).squeeze(0), at
        )
        outputs = network.functional(network.split(at), x).squeeze(0)
        hessian = torch.autograd.functional.hessian(lambda o, y=y: loss.value(o[None], y).sum(), outputs)
        total += jacobian.T @ hessian.reshape(len(outputs), len(outputs)) @ jacobian
    return total.numpy()


def full_hessian(config: Config, theta: NDArray[np.float64], table: Table) -> NDArray[np.float64]:
    """The Hessian of the summed loss in theta: for a linear model the same thing."""
    network, loss = network_at(config, theta)
    parts = [
        torch.autograd.functional.hessian(lambda t, x=x, y=y: loss_at(network, loss, t, x, y), torch.from_numpy(theta))
        for x, y in (tensors(table, row, loss.name) for row in range(len(table.y)))
    ]
    return torch.stack(parts).sum(dim=0).numpy()


def stored_a(state: RoundState, k: int) -> NDArray[np.float64]:
    """A from the stored inverse factor, and that the factor is a lower triangle."""
    stored = state.precision["inverse_factor"]
    inverse = stored if stored.ndim == 2 else np.diag(np.broadcast_to(stored, (k,)))
    assert np.array_equal(inverse, np.tril(inverse))
    return np.linalg.inv(inverse.T @ inverse)


def expected_a(curvature: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    k = len(curvature)
    if kind == "identity":
        return UNITS / STEP * np.eye(k)
    if kind == "diagonal":
        curvature = np.diag(np.diag(curvature))
    return UNITS / STEP * (curvature + DAMPING * np.linalg.eigvalsh(curvature).mean() * np.eye(k))


def whitened_norms(
    config: Config, theta: NDArray[np.float64], table: Table, matrix: NDArray[np.float64], a: NDArray[np.float64]
) -> list[float]:
    """||L^{-1} P^T sum of gradients|| of every unit, by plain differentiation and a triangular solve."""
    network, loss = network_at(config, theta)
    factor, norms = np.linalg.cholesky(a), []
    for unit in first_appearance(table.u):
        total = np.zeros(len(theta))
        for row in np.flatnonzero(table.u == unit):
            at = torch.from_numpy(theta).requires_grad_()
            (gradient,) = torch.autograd.grad(loss_at(network, loss, at, *tensors(table, int(row), loss.name)), at)
            total += gradient.numpy()
        norms.append(float(np.linalg.norm(solve_triangular(factor, matrix.T @ total, lower=True))))
    return norms


CASES = [
    (model, subspace, precision)
    for model, subspace in [
        ("double", "identity"),
        ("double", "gaussian"),
        ("double", "srht"),
        ("double logistic", "sjlt"),
    ]
    for precision in ("identity", "diagonal", "dense")
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "subspace", "precision"), CASES)
def test_precision_and_clip_equal_automatic_differentiation(
    model: str, subspace: str, precision: str, tmp_path: Path
) -> None:
    """A = (units / step) (mean per unit of P^T GGN P + damping * mean eigenvalue * I); C the quantile of norms."""
    table = random_table(model, SIZES, seed=3)
    table.write(tmp_path / "public.h5")
    config = config_of(tmp_path, model, subspace, precision)
    plan = plan_of(config)
    later = plan.state.theta + np.random.default_rng(1).normal(size=plan.d) * 0.3
    for round, theta in enumerate((plan.state.theta, later)):
        state = state_at(config, plan, theta, round)
        matrix = dense_matrix(subspace_of(config, plan.d, plan.k, round))
        curvature = matrix.T @ gauss_newton(config, theta, table) @ matrix / len(SIZES)
        a = expected_a(curvature, precision)
        np.testing.assert_allclose(stored_a(state, plan.k), a, rtol=1e-8, atol=1e-9 * np.abs(a).max())
        norms = whitened_norms(config, theta, table, matrix, a)
        assert state.clip == pytest.approx(float(np.quantile(norms, 0.6, method="higher")), rel=1e-9)
        assert state.grid == choose_grid(
            state.clip, plan.calibration.mu_round, plan.calibration.sigma_minimum, "zero-out"
        )
        assert state.grid.clip_integer == int(state.clip / state.grid.step)
        assert state.round == round
        assert state.theta.tobytes() == theta.tobytes()
    first = state_at(config, plan, plan.state.theta, 0)
    assert first.identity() == plan.state.identity()  # the plan's own state, computed again


def test_for_a_linear_model_the_curvature_is_the_hessian(tmp_path: Path) -> None:
    table = random_table("double logistic", SIZES, seed=4)
    table.write(tmp_path / "public.h5")
    config = config_of(tmp_path, "double logistic", "identity", "dense")
    plan = plan_of(config)
    a = expected_a(full_hessian(config, plan.state.theta, table) / len(SIZES), "dense")
    np.testing.assert_allclose(stored_a(plan.state, plan.k), a, rtol=1e-9, atol=1e-9 * np.abs(a).max())


def test_the_mean_is_per_unit_not_per_record(tmp_path: Path) -> None:
    """A file of 24 records in 8 units against the same records as 24 units: a third of the curvature per unit."""
    table = random_table("double", SIZES, seed=5)
    traces = []
    for units in (table.u, np.arange(len(table.u))):
        Table(table.x, table.y, units).write(tmp_path / "public.h5")
        plan = plan_of(config_of(tmp_path, "double", "identity", "diagonal"))
        traces.append(np.trace(stored_a(plan.state, plan.k)))
    assert traces[0] / traces[1] == pytest.approx(len(table.u) / len(SIZES), rel=1e-9)


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.99, 1.0])
def test_every_quantile_is_numpys_on_public_norms(quantile: float, tmp_path: Path) -> None:
    table = random_table("double", SIZES * 3, seed=6)
    table.write(tmp_path / "public.h5")
    config = config_of(tmp_path, "double", "rademacher", "identity", clip_quantile=quantile)
    plan = plan_of(config)
    matrix = dense_matrix(subspace_of(config, plan.d, plan.k, 0))
    norms = whitened_norms(config, plan.state.theta, table, matrix, np.eye(plan.k) * UNITS / STEP)
    assert plan.state.clip == pytest.approx(float(np.quantile(norms, quantile, method="higher")), rel=1e-9)


def test_the_number_of_samples_takes_whole_units_spread_over_the_file(tmp_path: Path) -> None:
    table = random_table("double", [2] * 30, seed=7)
    table.write(tmp_path / "public.h5")
    config = config_of(tmp_path, "double", "identity", "dense")
    config = replace(config, precision=replace(config.precision, samples=20))
    plan = plan_of(config)
    assert config.data.public is not None
    source = public_source(config, config.data.public, plan.schema)
    order = first_appearance(table.u)
    chosen = [order[i * 30 // 10] for i in range(10)]
    keep = np.isin(table.u, chosen)
    assert sorted(source.slots.rows.tolist()) == np.flatnonzero(keep).tolist()
    kept = Table(table.x[keep], table.y[keep], table.u[keep])
    a = expected_a(gauss_newton(config, plan.state.theta, kept) / 10, "dense")
    np.testing.assert_allclose(stored_a(plan.state, plan.k), a, rtol=1e-8, atol=1e-9 * np.abs(a).max())
    matrix = np.eye(plan.d)
    norms = whitened_norms(config, plan.state.theta, kept, matrix, a)
    assert plan.state.clip == pytest.approx(float(np.quantile(norms, 0.6, method="higher")), rel=1e-8)


def test_every_round_takes_other_public_records(tmp_path: Path) -> None:
    table = random_table("double", [2] * 30, seed=7)
    table.write(tmp_path / "public.h5")
    config = config_of(tmp_path, "double", "identity", "dense")
    config = replace(config, precision=replace(config.precision, samples=20))
    plan, public = plan_of(config), config.data.public
    assert public is not None
    found = [set(public_source(config, public, plan.schema, r).slots.rows.tolist()) for r in range(4)]
    assert [len(rows) for rows in found] == [20] * 4
    assert set().union(*found[:3]) == set(range(60))
    assert found[3] == found[0]
    everything = replace(config, precision=replace(config.precision, samples=1000))
    assert all(len(public_source(everything, public, plan.schema, r).slots.rows) == 60 for r in (0, 1))


@pytest.mark.parametrize("how", ["not finite", "blank"])
def test_absent_public_records_count_nowhere(how: str, tmp_path: Path) -> None:
    table = random_table("double", SIZES, seed=21)
    order = first_appearance(table.u)
    # All records of two units, and one of a third.
    gone = np.isin(table.u, [order[1], order[3]])
    gone[np.flatnonzero(table.u == order[4])[0]] = True
    kept = Table(table.x[~gone], table.y[~gone], table.u[~gone])
    config = config_of(tmp_path, "double", "gaussian", "dense")
    kept.write(tmp_path / "public.h5")
    expected = plan_of(config).state
    assert config.data.public is not None
    public = config.data.public
    if how == "blank":
        np.save(tmp_path / "blank.npy", gone)
        public = replace(public, blank=str(tmp_path / "blank.npy"))
    else:
        table.x[gone, 0] = np.inf
    table.write(tmp_path / "public.h5")
    found = plan_of(replace(config, data=replace(config.data, public=public))).state
    assert found.clip == pytest.approx(expected.clip, rel=1e-9)
    np.testing.assert_allclose(
        found.precision["inverse_factor"], expected.precision["inverse_factor"], rtol=1e-8, atol=1e-12
    )


def test_public_records_of_which_none_is_usable_are_refused(tmp_path: Path) -> None:
    table = random_table("double", SIZES, seed=22)
    table.x[:, 0] = np.inf
    table.write(tmp_path / "public.h5")
    with pytest.raises(UsageError, match="none of the records chosen for the curvature is usable"):
        plan_of(config_of(tmp_path, "double", "gaussian", "dense"))


def test_the_micro_batch_changes_the_public_state_by_rounding_only(tmp_path: Path) -> None:
    random_table("double", SIZES, seed=8).write(tmp_path / "public.h5")
    config = config_of(tmp_path, "double", "gaussian", "dense")
    states = [plan_of(replace(config, engine=replace(config.engine, micro_batch=size))).state for size in (1, 3, 8, 64)]
    for state in states[1:]:
        assert state.clip == pytest.approx(states[0].clip, rel=1e-12)
        np.testing.assert_allclose(
            state.precision["inverse_factor"], states[0].precision["inverse_factor"], rtol=1e-9, atol=1e-12
        )


def test_the_public_state_reads_no_private_record(tmp_path: Path) -> None:
    """There is no private file at all, and the plan is made."""
    random_table("double", SIZES, seed=9).write(tmp_path / "public.h5")
    plan = plan_of(config_of(tmp_path, "double", "identity", "dense"))
    assert not (tmp_path / "private.h5").exists()
    assert plan.k == plan.d


def test_a_clip_quantile_of_nothing_is_refused(tmp_path: Path) -> None:
    """Usable public records whose gradients are all zero, behind saturated units, give no clip and no curvature."""
    table = random_table("double", SIZES, seed=10)
    table.x[:] = 1e9 * np.sign(table.x)
    table.write(tmp_path / "public.h5")
    with pytest.raises(UsageError, match="clip_quantile: the quantile of public norms is 0"):
        plan_of(first_layer_only(config_of(tmp_path, "double", "identity", "identity")))
    with pytest.raises(UsageError, match=r"raise precision.damping"):
        plan_of(first_layer_only(config_of(tmp_path, "double", "identity", "dense")))


def first_layer_only(config: Config) -> Config:
    """The config with the hidden layer's parameters alone to train."""
    first = build_network(config).names_shapes[0][0].rpartition(".")[0]
    return replace(config, model=replace(config.model, trainable=(f"{first}.*",)))
