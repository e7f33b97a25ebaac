"""Private curvature and trust regions through the stages: integers against a slow oracle, bounds, the law, whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_harness import released
from run_harness import Commands
from same_bytes import PRIVATE_CURVATURE, TRUST_REGION
from scipy.stats import kstest, norm
from small_runs import Table, context_of, exact_norm, make_config, plan_of, random_table, sums_of, with_blank

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.gradients import autodiff as unit_gradients
from distqexp.gradients.context import RoundContext
from distqexp.gradients.joint import lipschitz_sizes
from distqexp.mechanism.factor_grid import FactorGrid, choose_factor_grid, packed_size
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.rule import ReleaseRule, released_point
from distqexp.privacy.events import BoundedRelease
from distqexp.sketching.choice import sketcher_of
from distqexp.sketching.curvature_sketcher import CurvatureSketcher
from distqexp.sketching.integers import norms_upwards, truncate_to_grid

SIZES = [1, 3, 1, 9, 2, 1, 11, 4, 1, 1]
RADIUS = 0.4
GEOMETRY: dict[str, dict[str, Any]] = {
    "logistic": {"precision": {"kind": "dense"}},
    "double": {"subspace": {"kind": "rademacher", "k": 12}, "precision": {"kind": "diagonal"}},
    "cnn": {"subspace": {"kind": "srht", "k": 9}},
    "mlp": {"subspace": {"kind": "kronecker-pca", "k_in": 3, "k_out": 2}, "precision": {"kind": "kronecker"}},
}
UPPER = np.triu_indices


def run_on(folder: Path, model: str, **mechanism: Any) -> tuple[Config, Plan, Table]:
    """A config with private curvature, its plan, and rather wild private records, units of one record and of many."""
    private, public = random_table(model, SIZES, seed=1), random_table(model, [1, 2, 3] * 4, seed=2)
    private.x[::3] *= 5
    private.write(folder / "private.h5")
    public.write(folder / "public.h5")
    settings = {
        "clip": None, "clip_quantile": 0.5, "curvature": "private", "trust_radius": RADIUS, "noise": "gaussian",
    } | mechanism  # fmt: skip
    config = make_config(folder, model, mechanism=settings, **GEOMETRY[model])
    return config, plan_of(config), private


def integers_of(config: Config, plan: Plan) -> tuple[np.ndarray, list[np.ndarray]]:
    """Every unit's gradient integers (units, k) and factor integers, a (rows, k) each."""
    context = context_of(config, plan)
    sketcher = sketcher_of(context, plan.state)
    assert isinstance(sketcher, CurvatureSketcher)
    linear, factors = [], []
    for piece in range(len(context.pieces)):
        vectors, rows, unit = sketcher.unit_integers(context.batches(piece))
        linear.append(vectors)
        factors += [rows[unit == number] for number in range(len(vectors))]
    return np.concatenate(linear), factors


def slow_units(context: RoundContext) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each unit's whitened gradient (k,) and Gauss-Newton matrix (k, k), by autograd, a record at a time, dense in float64."""
    network, loss, subspace, precision = context.network, context.loss, context.subspace, context.precision
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    slots = context.sources[0].slots
    for row, unit in zip(slots.rows, slots.unit, strict=True):
        records = context.datasets[0].read(np.array([row]))
        outputs = network.module(network.prepare(records.inputs))
        value = loss.value(outputs, records.targets).sum()
        gradient = flat(torch.autograd.grad(value, parameters, retain_graph=True))
        jacobian = torch.stack(
            [
                flat(torch.autograd.grad(outputs.flatten()[i], parameters, retain_graph=True))
                for i in range(outputs.numel())
            ]
        )
        hessian = torch.autograd.functional.hessian(
            lambda z, records=records: loss.value(z, records.targets).sum(), outputs.detach()
        ).reshape(outputs.numel(), outputs.numel())
        rows = precision.whiten(subspace.project(torch.cat([gradient[None], jacobian]).double())).numpy()
        found.setdefault(int(unit), []).append((rows[0], rows[1:].T @ hessian.double().numpy() @ rows[1:]))
    return [(sum(g for g, _ in unit), sum(h for _, h in unit)) for _, unit in sorted(found.items())]


def flat(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic", "double", "mlp"])
def test_the_sums_are_those_of_the_clipped_units(model: str, tmp_path: Path) -> None:
    config, plan, _ = run_on(tmp_path, model)
    context = context_of(config, plan)
    grid, factors = plan.state.grid, plan.state.factors
    assert factors is not None
    bound = grid.clip_integer * grid.step
    linear, curvature, clipped = np.zeros(plan.k), np.zeros((plan.k, plan.k)), 0
    for gradient, hessian in slow_units(context):
        size = np.linalg.norm(gradient) + RADIUS * np.trace(hessian)
        share = min(1.0, bound / size)
        clipped += share < 1
        linear += share * gradient
        curvature += share * hessian
    assert 0 < clipped < len(SIZES)
    sums = sums_of(config, plan, tmp_path / "sums")
    assert sums.shape == (plan.width,) == (plan.k + packed_size(plan.k),)
    tolerance = 1e-4 if model == "mlp" else 2e-5  # float32 networks; truncation is a share of 1e-3 of an entry at most
    assert np.abs(sums[: plan.k] * grid.step - linear).max() <= len(SIZES) * (grid.step + tolerance * bound)
    found = np.zeros_like(curvature)
    found[UPPER(plan.k)] = sums[plan.k :] * factors.step**2
    expected = np.triu(curvature)
    assert np.abs(found - expected).max() <= (1e-2 if model == "mlp" else 3e-3) * np.abs(expected).max()
    assert np.abs(expected).max() * RADIUS > 0.05 * bound  # curvature takes a real part of the clip


@pytest.mark.parametrize("model", ["logistic", "double", "cnn", "mlp"])
def test_each_units_utility_is_lipschitz_in_its_integers(model: str, tmp_path: Path) -> None:
    config, plan, _ = run_on(tmp_path, model)
    grid, factors = plan.state.grid, plan.state.factors
    assert factors is not None
    linear, rows = integers_of(config, plan)
    costs = []
    for vector, own in zip(linear, rows, strict=True):
        trace = sum(int(x) ** 2 for x in own.flatten())
        # ||g|| + R trace in grid steps, exactly but for the root, which is rounded upwards.
        price = Fraction(RADIUS) * Fraction(factors.step) ** 2 / Fraction(grid.step)
        costs.append(math.isqrt(exact_norm(vector) - 1) + 1 + price * trace if vector.any() else price * trace)
    assert max(costs) <= grid.clip_integer
    assert max(costs) >= grid.clip_integer * Fraction(998, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic", "cnn"])
def test_blanking_a_unit_takes_out_what_it_had_brought_and_nothing_else(model: str, tmp_path: Path) -> None:
    config, plan, private = run_on(tmp_path, model)
    whole = sums_of(config, plan, tmp_path / "whole")
    linear, rows = integers_of(config, plan)
    first = list(dict.fromkeys(private.u.tolist()))
    for number in (0, 3, 6):
        np.save(tmp_path / "blank.npy", private.u == first[number])
        blanked = sums_of(with_blank(config, tmp_path / "blank.npy"), plan, tmp_path / f"blank-{number}")
        gram = (rows[number].T @ rows[number])[UPPER(plan.k)]
        assert (whole - blanked == np.concatenate([linear[number], gram])).all()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_unit_with_a_factor_that_is_not_finite_brings_nothing(
    bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plan, private = run_on(tmp_path, "logistic")
    before = sums_of(config, plan, tmp_path / "before")
    victim = np.flatnonzero(private.u == 3)[1]  # one record of several
    private.x[victim, 0] = 7.0
    private.write(tmp_path / "private.h5")
    whole = unit_gradients.loss_curvature_factors

    def spoiled(network: Any, loss: Any, inputs: torch.Tensor, **more: Any) -> torch.Tensor:
        factors = whole(network, loss, inputs, **more)
        factors[inputs[:, 0] == 7.0] = bad
        return factors

    monkeypatch.setattr(unit_gradients, "loss_curvature_factors", spoiled)
    found = sums_of(config, plan, tmp_path / "wild")
    np.save(tmp_path / "blank.npy", private.u == 3)
    assert (found == sums_of(with_blank(config, tmp_path / "blank.npy"), plan, tmp_path / "without")).all()
    assert (before != found).any()


def test_a_clip_that_leaks_shows(tmp_path: Path) -> None:
    """The planted fault: clipped by the gradient alone, a unit's curvature would take it over the bound."""
    config, plan, _ = run_on(tmp_path, "double")
    grid, factors = plan.state.grid, plan.state.factors
    assert factors is not None
    context = context_of(config, plan)
    bound = grid.clip_integer * grid.step
    over = []
    for gradient, hessian in slow_units(context):
        share = min(1.0, bound / np.linalg.norm(gradient))
        over.append(share * (np.linalg.norm(gradient) + RADIUS * np.trace(hessian)) > 1.05 * bound)
    assert sum(over) >= 3


def test_rows_count_for_their_units_in_order() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]])
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert lipschitz_sizes(vectors, rows, np.array([0, 0, 1]), 0.5).tolist() == [5 + 2.5, 1.0]


def test_truncation_never_lengthens_and_bounds_entries() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 20)) * np.exp(random.normal(size=(50, 1)) * 3)
    found = truncate_to_grid(vectors, 2.0**-8, 1 << 20)
    assert (np.abs(found) * 2.0**-8 <= np.abs(vectors)).all()
    assert (np.abs(vectors) - np.abs(found) * 2.0**-8 < 2.0**-8).all()
    wild = np.array([[np.nan, 1.0], [1e300, -1e300], [np.inf, 0.0], [0.4, -0.6]])
    assert truncate_to_grid(wild, 1.0, 7).tolist() == [[0, 0], [7, -7], [0, 0], [0, 0]]
    norms = norms_upwards(found)
    exact = [math.isqrt(exact_norm(row) - 1) + 1 if row.any() else 0 for row in found]
    assert all(0 <= bound - true <= 1 for bound, true in zip(norms.tolist(), exact, strict=True))


def test_factor_grids_are_fine_and_hold_their_sums() -> None:
    grid = Grid(step=2.0**-12, clip_integer=50_000, sigma=200_000)
    found = choose_factor_grid(grid, trust_radius=3.0, k=100, rows=10, units=5000, micro_batch=512)
    exact = Fraction(3) * Fraction(found.step) ** 2 / Fraction(grid.step)
    assert Fraction(found.price) >= exact >= Fraction(found.price) * (1 - Fraction(1, 2**50))
    assert exact * found.largest_trace <= grid.clip_integer < exact * (found.largest_trace + 1)
    assert 2**20 * 1000 <= found.largest_trace <= 2**22 * 1000
    with pytest.raises(UsageError, match="grid overflow"):
        choose_factor_grid(grid, trust_radius=3.0, k=4096, rows=10, units=2**40, micro_batch=512)
    with pytest.raises(UsageError, match="trust_radius"):
        choose_factor_grid(grid, trust_radius=math.inf, k=4, rows=1, units=5, micro_batch=5)


def rule_of(factors: bool, trust_radius: float | None = 50.0) -> tuple[ReleaseRule, np.ndarray]:
    """A rule at k = 2, far inside its ball, and sums with B = [[3, 1], [1, 2]], s = (0.5, -1)."""
    grid = Grid(step=2.0**-10, clip_integer=1024, sigma=2048)
    rule = ReleaseRule(2, grid, "gaussian", trust_radius, FactorGrid(2.0**-5, 1.0, 1 << 20) if factors else None)
    sums = [512, -1024] + ([2 * 1024, 1024, 1024] if factors else [])
    return rule, np.array(sums, dtype=np.int64)


@pytest.mark.slow
@pytest.mark.parametrize("factors", [False, True])
def test_the_released_point_has_the_law_of_the_quadratic(factors: bool) -> None:
    """Kolmogorov-Smirnov on both coordinates, 15,000 seeded draws each; false-alarm rate 1e-6 in all, were they not seeded."""
    rule, sums = rule_of(factors)
    curvature = np.array([[3.0, 1.0], [1.0, 2.0]]) if factors else np.eye(2)
    mean = -np.linalg.solve(curvature, [0.5, -1.0])
    spread = np.sqrt(rule.grid.temperature * np.diag(np.linalg.inv(curvature)))
    drawn = [rule.noisy_sums(sums, rule.draw(sums, seed, 0)) for seed in range(15_000)]
    points = np.array([released_point(one, rule.grid) for one in drawn])
    for i in range(2):
        assert kstest(points[:, i], norm(mean[i], spread[i]).cdf).pvalue > 5e-7
        assert kstest(points[:, i], norm(mean[i], 0.9 * spread[i]).cdf).pvalue < 5e-7


def test_a_small_ball_holds_every_point() -> None:
    rule, sums = rule_of(True, trust_radius=0.5)
    points = np.array([released_point(rule.draw(sums, None, 0), rule.grid) for _ in range(200)])
    # Drawn inside the ball, then rounded: each of the two coordinates moves by half a step at most.
    assert (np.linalg.norm(points, axis=1) <= 0.5 + math.sqrt(2) / 2 * rule.grid.step).all()
    assert np.linalg.norm(points, axis=1).max() > 0.4


def test_rules_that_make_no_sense_are_refused() -> None:
    rule, sums = rule_of(True)
    with pytest.raises(UsageError, match=r"sums: found int64 \(2,\); expected int64 \(5,\)"):
        rule.draw(sums[:2], 0, 0)
    for changes, message in (({"noise": "discrete"}, "gaussian"), ({"trust_radius": None}, "trust_radius")):
        with pytest.raises(UsageError, match=message):
            replace(rule, **changes)


def fitted(run: Commands, out: Path, settings: tuple[str, ...], *more: str) -> dict[str, Any]:
    words = [word for setting in settings for word in ("--set", setting)]
    outcome = run.fit("--out", out, "--json", *words, *more)
    assert outcome.code == 0, outcome.err
    certificate: dict[str, Any] = json.loads((out / "certificate.json").read_text())
    return certificate


@pytest.mark.slow
def test_a_whole_run_with_private_curvature(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    certificate = fitted(run, tmp_path / "out", PRIVATE_CURVATURE)
    assert certificate["epsilon"] <= 1.0
    assert certificate["mechanism"] == "exponential mechanism, beta = 1 (private curvature), trust radius 3"
    assert certificate["noise"]["arithmetic"] == "idealised float64"
    assert certificate["pure_epsilon"] > certificate["epsilon"]  # true too, and of little use here
    plan = Plan.read(tmp_path / "out" / "plan.h5")
    quadratic = Quadratic.read(tmp_path / "out" / "quadratic-000.h5", plan)
    assert quadratic.sums.shape == (20 + 210,)
    event = plan.event(plan.state.grid)
    assert isinstance(event, BoundedRelease)
    temperature = plan.state.grid.temperature
    assert event.mu == pytest.approx(plan.state.grid.sensitivity * plan.state.grid.step / math.sqrt(temperature))
    assert event.epsilon == pytest.approx(2 * plan.state.grid.sensitivity * plan.state.grid.step * 3.0 / temperature)
    assert run.distqexp("verify", tmp_path / "out").code == 0


def test_pure_privacy_spends_exactly_its_epsilon(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    settings = (
        *TRUST_REGION,
        "privacy.delta=0",
        "privacy.epsilon=30",
        "mechanism.parts=3",
        "mechanism.trust_radius=0.5",
    )
    certificate = fitted(run, tmp_path / "out", settings)
    assert certificate["delta"] == 0.0
    assert certificate["epsilon"] == certificate["pure_epsilon"]
    assert 30 * (1 - 1e-4) < certificate["epsilon"] <= 30
    assert 0 < certificate["mu"] < 10
    for entry in certificate["rounds"]:
        assert 2 * entry["sensitivity"] * 0.5 / entry["temperature"] <= 30 * (1 + 1e-15)
    other = (*settings, "subspace.seed=1")  # another plan on the same people
    again = run.fit("--out", tmp_path / "again", *[word for setting in other for word in ("--set", setting)])
    again.refused(4, "budget")


@pytest.mark.slow
def test_a_seeded_run_repeats_itself_and_resumes(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    seeded = ("--insecure-noise-seed", "5")
    fitted(run, tmp_path / "one", PRIVATE_CURVATURE, *seeded)
    (tmp_path / "one" / "release-002.h5").unlink()
    expected = released(tmp_path / "one")
    fitted(run, tmp_path / "one", PRIVATE_CURVATURE, *seeded, "--resume")
    found = released(tmp_path / "one")
    del found["release-002.h5"]
    assert found == expected
