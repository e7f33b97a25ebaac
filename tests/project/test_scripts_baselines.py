"""The baselines of scripts/frontier.py: their privacy against formulas of another origin, their limits against known ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mpi_harness import REPOSITORY
from scipy.integrate import trapezoid
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from distqexp.arrays import FloatArray

if TYPE_CHECKING:
    from benchmarks.linear import LinearTask
    from benchmarks.objective import Perturbation

EPSILON, DELTA = 1.0, 1e-4


@pytest.fixture(autouse=True)
def _scripts_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("opacus")
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def table(n: int = 400, d: int = 4, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Features and labels of a logistic model with a slope of one."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((n, d))
    labels = (generator.random(n) < 1 / (1 + np.exp(-features.sum(axis=1)))).astype(float)
    return features, labels


def task(seed: int = 0) -> LinearTask:
    from benchmarks.linear import LinearTask

    features, labels = table(seed=seed)
    public, public_labels = table(200, seed=seed + 1)
    return LinearTask(features, labels, 3 * public, public_labels, np.full(4, 0.1))


def loss(v: FloatArray, features: FloatArray, labels: FloatArray) -> float:
    return float(np.logaddexp(0.0, (1 - 2 * labels) * (features @ v)).sum())


def gauss_delta(epsilon: float, mu: float) -> float:
    """The textbook curve, in plain floating point."""
    return float(norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2))


def make_perturbation(clip: float, bound: float, regularisation: float) -> Perturbation:
    from benchmarks.objective import Perturbation

    return Perturbation(clip, bound, regularisation)


def test_the_delta_of_objective_perturbation_is_the_closed_form_and_its_noise_inverts_it() -> None:
    chosen = make_perturbation(2.0, 2.0, 10.0)
    # Features of norm 2: gradients of norm 2 at most, curvature 2^2 / 4 = 1, so log(1 + 1/10) of epsilon is gone.
    assert chosen.delta(EPSILON, 5.0) == pytest.approx(gauss_delta(EPSILON - math.log(1.1), 2.0 / 5.0), rel=1e-6)
    deviation = chosen.deviation(EPSILON, DELTA)
    assert deviation is not None
    assert chosen.delta(EPSILON, deviation) == pytest.approx(DELTA, rel=1e-6)
    assert chosen.delta(EPSILON, deviation) <= DELTA
    assert make_perturbation(2.0, 2.0, 0.5).deviation(EPSILON, DELTA) is None, "log(1 + 2) is above epsilon"


@pytest.mark.parametrize("clip", [0.2, 0.7, 1.0, 1.6, 2.0])
def test_no_clipped_record_is_more_curved_than_the_bound(clip: float) -> None:
    slopes, lengths = np.meshgrid(np.linspace(1e-3, 1 - 1e-3, 999), np.linspace(1e-2, 2.0, 200))
    allowed = slopes * lengths <= clip
    largest = float((slopes * (1 - slopes) * lengths**2)[allowed].max())
    bound = make_perturbation(clip, 2.0, 1.0).curvature_bound
    assert largest <= bound <= largest * 1.01


def densities(
    points: FloatArray, rows: list[tuple[float, float]], deviation: float, weight: float, clip: float
) -> FloatArray:
    """Of the released minimum in one dimension at some points, for rows of (feature, label)."""
    gradient, curvature = weight * points, np.full_like(points, weight)
    for feature, label in rows:
        slope, steepest = expit((1 - 2 * label) * feature * points), min(1.0, clip / abs(feature))
        gradient = gradient + (1 - 2 * label) * feature * np.minimum(slope, steepest)
        curvature = curvature + np.where(slope < steepest, slope * (1 - slope) * feature**2, 0.0)
    return np.asarray(norm.pdf(gradient, scale=deviation) * curvature)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize(("deviation", "rows"), [(3.0, [(1.0, 0.0), (-2.0, 1.0), (0.5, 1.0)]), (60.0, [])])
def test_the_claimed_delta_bounds_the_densities_of_one_dimension(
    label: float, deviation: float, rows: list[tuple[float, float]]
) -> None:
    """Integrate by how much the density of one dataset exceeds e^epsilon times that of its neighbour, in both orders."""
    clip, weight = 1.2, 2.0
    chosen = make_perturbation(clip, 2.0, weight)
    points = np.linspace(-8 * deviation, 8 * deviation, 400_001)
    both = [densities(points, which, deviation, weight, clip) for which in ([*rows, (2.0, label)], rows)]

    def excess(epsilon: float, first: int) -> float:
        return float(trapezoid(np.maximum(0.0, both[first] - math.exp(epsilon) * both[1 - first]), points))

    for first in (0, 1):
        assert trapezoid(both[first], points) == pytest.approx(1, abs=1e-4)
        for epsilon in (chosen.shift, 0.6, 1.0):
            assert excess(epsilon, first) <= chosen.delta(epsilon, deviation) + 1e-8
    largest = max(excess(0.6, first) for first in (0, 1))
    assert largest >= gauss_delta(0.6, clip / deviation) * 0.99 - 1e-12, "all of mu is needed"
    if not rows:
        assert excess(0.2, 0) > 100 * gauss_delta(0.2, clip / deviation), "the determinant's part of epsilon is needed"


def test_the_minimum_is_that_of_another_solver_with_and_without_a_clip() -> None:
    from benchmarks.linear import clip_rows
    from benchmarks.objective import PRECISION, minimise

    features, labels = table()
    features = clip_rows(features, 2.0)
    assert np.linalg.norm(features, axis=1).max() <= 2.0 + 1e-12
    tilt, start = np.array([3.0, -1.0, 0.0, 20.0]), np.full(4, 0.2)
    for clip in (2.0, 0.5):
        chosen = make_perturbation(clip, 2.0, 7.0)

        def value(v: FloatArray, clip: float = clip) -> float:
            t = (1 - 2 * labels) * (features @ v)
            steepest = np.minimum(1 - 1e-12, clip / np.linalg.norm(features, axis=1))
            until = np.minimum(t, np.log(steepest / (1 - steepest)))
            pieces = np.logaddexp(0, until) + steepest * (t - until)
            return float(pieces.sum() + 3.5 * np.square(v - start).sum() + tilt @ v)

        found, left = minimise(features, labels, chosen, tilt, start)
        theirs = minimize(value, start, method="BFGS", options={"gtol": 1e-7})
        np.testing.assert_allclose(found, theirs.x, atol=1e-5)
        assert left <= PRECISION * np.linalg.norm(tilt)


def test_objective_perturbation_has_the_noise_of_its_settings_and_whitens_by_public_records_alone() -> None:
    from benchmarks.objective import objective_theta

    setting = {"damping": 0.1, "bound": 1.0, "clip": 0.5, "regularisation": 1.0}
    one = task()
    found = objective_theta(one, setting, EPSILON, DELTA, 0)
    assert found is not None
    theta, facts = found
    white = one.whitened(0.1)
    curvature = white.norm**2 * 0.25
    shift = math.log1p(curvature / (white.curvature * 400))
    assert gauss_delta(EPSILON - shift, 0.5 * white.norm / facts["deviation"]) == pytest.approx(DELTA, rel=1e-6)
    whitened = one.public_features @ white.matrix
    shares = 1 / (1 + np.exp(-one.public_features @ one.start))
    hessian = (whitened * (shares * (1 - shares))[:, None]).T @ whitened / len(whitened) / white.curvature
    inverse = np.linalg.inv(white.matrix @ white.matrix)
    np.testing.assert_allclose(hessian, np.eye(4) - 0.1 * np.linalg.inv(inverse), atol=1e-9)
    np.testing.assert_allclose(white.matrix @ white.start, one.start)
    assert not np.allclose(theta, one.start)
    again = objective_theta(one, setting, EPSILON, DELTA, 1)
    assert again is not None
    assert not np.allclose(theta, again[0])
    assert objective_theta(one, setting | {"regularisation": 1e-4}, EPSILON, DELTA, 0) is None


def test_newton_without_noise_or_clip_is_newton() -> None:
    from benchmarks.newton import Steps, newton

    features, labels = table()
    optimum = minimize(loss, np.zeros(4), args=(features, labels), method="BFGS", options={"gtol": 1e-8}).x
    free = Steps(steps=8, clip=math.inf, hessian_clip=math.inf, floor=0.0)
    np.testing.assert_allclose(newton(features, labels, np.zeros(4), free, (0.0, 0.0), 0), optimum, atol=1e-5)
    one = newton(features, labels, np.zeros(4), free._replace(steps=1), (0.0, 0.0), 0)
    np.testing.assert_allclose(one, np.linalg.solve(features.T @ features / 4, features.T @ (labels - 0.5)), rtol=1e-9)
    floored = newton(features, labels, np.zeros(4), free._replace(steps=1, floor=1e6), (0.0, 0.0), 0)
    np.testing.assert_allclose(floored, features.T @ (labels - 0.5) / 1e6, rtol=1e-9)


def test_newton_clips_the_gradient_and_the_hessian_of_each_record() -> None:
    from benchmarks.newton import Steps, newton

    features, labels = np.array([[8.0, 0.0], [0.0, 1.0]]), np.zeros(2)
    chosen = Steps(steps=1, clip=0.25, hessian_clip=0.125, floor=1e-9)
    # Gradients (4, 0) and (0, 0.5) become 0.25 long; Hessians 16 and 0.25 become 0.125.
    moved = newton(features, labels, np.zeros(2), chosen, (0.0, 0.0), 0)
    np.testing.assert_allclose(moved, [-0.25 / 0.125, -0.25 / 0.125])


def test_the_noise_of_newton_composes_to_the_target() -> None:
    from benchmarks.newton import Steps, deviations, newton_theta, symmetric_noise

    chosen = Steps(steps=3, clip=2.0, hessian_clip=5.0, floor=1.0)
    gradient, hessian = deviations(chosen, 0.4, 0.3)
    assert 3 * (2.0 / gradient) ** 2 == pytest.approx(0.7 * 0.4**2)
    assert 3 * (5.0 / hessian) ** 2 == pytest.approx(0.3 * 0.4**2)
    setting = {"damping": 1.0, "clip": 1.0, "hessian_clip": 0.5, "floor": 1.0, "steps": 2, "share": 0.1}
    one = task()
    theta, facts = newton_theta(one, setting, EPSILON, DELTA, 0)
    white = one.whitened(1.0)
    clips = white.gradient_norm, 0.5 * white.hessian_norm
    squares = [2 * (clip / deviation) ** 2 for clip, deviation in zip(clips, facts["deviations"], strict=True)]
    assert gauss_delta(EPSILON, math.sqrt(sum(squares))) == pytest.approx(DELTA, rel=1e-6)
    assert theta.shape == (4,)
    draws = np.array([symmetric_noise(3, 2.0, np.random.default_rng(seed)) for seed in range(4000)])
    np.testing.assert_array_equal(draws, draws.transpose(0, 2, 1))
    # With the off-diagonal entries times sqrt(2), the Frobenius norm is Euclidean and each coordinate has variance 2^2.
    np.testing.assert_allclose(draws.var(axis=0), np.where(np.eye(3) > 0, 4.0, 2.0), rtol=0.1)


def test_the_noise_of_opacus_and_of_gradient_descent() -> None:
    """Without sampling, Opacus' accountant and Gaussian DP agree; the noise of descent is the closed form's."""
    from benchmarks.training import noise_multiplier

    steps = 4
    found = noise_multiplier(EPSILON, DELTA, 1.0, steps)
    assert gauss_delta(EPSILON, math.sqrt(steps) / found) <= DELTA * 1.01
    assert gauss_delta(EPSILON, math.sqrt(steps) / (found * 0.98)) > DELTA


class Plain:
    """The part of a problem that training uses, with a module that records what is fed to it."""

    def __init__(self, features: FloatArray, labels: FloatArray) -> None:
        from distqexp.problem.losses import get_loss
        from distqexp.problem.records import Records

        targets = torch.from_numpy(labels).float()
        self.private = self.public = Records(
            torch.from_numpy(features).float(), targets, torch.ones(len(labels), dtype=torch.bool)
        )
        self.loss, self.delta = get_loss("binary-cross-entropy"), DELTA

    def module(self) -> torch.nn.Module:
        layer = torch.nn.Linear(self.private.inputs.shape[1], 1, bias=False)
        torch.nn.init.zeros_(layer.weight)
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    def metrics(self, module: torch.nn.Module) -> dict[str, Any]:
        return {"weight": next(module.parameters()).detach().double().numpy().reshape(-1)}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_gradient_descent_adds_the_exact_noise_times_the_clip_and_averages() -> None:
    from benchmarks.training import train_opacus

    features, labels = np.zeros((50, 3000)), np.zeros(50)
    features[:, 0] = 8.0
    problem: Any = Plain(features, labels)
    setting = {
        "optimiser": "sgd", "momentum": 0.0, "batch": 50, "epochs": 1, "clip": 0.25, "learning_rate": 2.0, "noise": "gdp",
    }  # fmt: skip
    result = train_opacus(problem, setting, EPSILON, 0)
    noise = result["noise_multiplier"]
    assert gauss_delta(EPSILON, 1 / noise) == pytest.approx(DELTA, rel=1e-6)
    weight = result["metrics"]["weight"]
    assert weight[1:].std() == pytest.approx(2.0 * 0.25 * noise / 50, rel=0.1)
    assert weight[0] == pytest.approx(-2.0 * 0.25, abs=4 * 2.0 * 0.25 * noise / 50), "each gradient is clipped to 0.25"


def digits(*overrides: str) -> Any:
    from distqexp.api import load_config

    return load_config(REPOSITORY / "configs" / "digits.toml", ["model.pretrain.epochs=20", *overrides])


def test_public_data_alone_learns_the_shift_that_the_config_assumes(tmp_path: Path) -> None:
    from benchmarks.problems import Start
    from benchmarks.public import COPIES, assumed_angles, distinct_angles, pretrained_on_turned, turned_records

    overrides = ["model.pretrain.epochs=20"]
    config = digits()
    assert assumed_angles(config) == (30.0, 30.0), "that of the rehearsals"
    wide = digits("precision.rotate=[0, 60]")
    assert assumed_angles(wide) == (0.0, 60.0), "that of the curvature comes first"
    assert distinct_angles([config, wide, config]) == [(0.0, 60.0), (30.0, 30.0)]
    records = turned_records(wide, (0.0, 60.0))
    assert len(records.targets) == COPIES * 597
    assert not torch.equal(records.inputs[:597], records.inputs[597:1194])
    problem = Start(REPOSITORY / "configs" / "digits.toml", overrides, tmp_path).problem()
    before, after = (
        problem.metrics(module)["accuracy"] for module in (problem.module(), pretrained_on_turned(config, (30.0, 30.0)))
    )
    assert before is not None
    assert after is not None
    assert after > before + 0.2
    still = pretrained_on_turned(config, (0.0, 0.0))
    assert problem.metrics(still)["accuracy"] == pytest.approx(before, abs=0.05), "upright images teach no turn"


def test_only_a_linear_model_with_one_logit_is_a_linear_task(tmp_path: Path) -> None:
    from benchmarks.linear import linear_task
    from benchmarks.problems import Start

    digits_problem = Start(REPOSITORY / "configs" / "digits.toml", ["model.pretrain.epochs=1"], tmp_path).problem()
    assert linear_task(digits_problem) is None, "ten logits"
    features, labels = table()
    problem: Any = Plain(features, labels)
    problem.config = SimpleNamespace(model=SimpleNamespace(loss="binary-cross-entropy"))
    found = linear_task(problem)
    assert found is not None
    np.testing.assert_array_equal(found.features, features.astype(np.float32))
    np.testing.assert_array_equal(found.start, np.zeros(4))
    problem.module = lambda: torch.nn.Sequential(torch.nn.Linear(4, 1))
    with_bias = linear_task(problem)
    assert with_bias is not None
    assert with_bias.features.shape == (400, 5)
    np.testing.assert_array_equal(with_bias.features[:, 4], np.ones(400))
    problem.module = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    assert linear_task(problem) is None, "two layers"
