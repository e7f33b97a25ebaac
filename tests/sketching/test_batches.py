"""Sums of micro-batches on the grid: against units one at a time, and how far one unit can move them."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from layers_harness import CrossEntropy, clipped_sum, fast, random_records, whitening_for
from small_runs import Table, context_of, exact_norm, make_config, plan_of, random_table, sums_of, unit_vectors
from torch import nn

from distqexp.artefacts.plan import Plan
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.errors import UsageError
from distqexp.gradients.layers import block_layout
from distqexp.mechanism.grid import GridOptions, check_capacity, choose_grid
from distqexp.mechanism.rounding_slack import CANCELLATION, LARGEST_TERMS, BatchSums
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.sketching.choice import sketcher_of
from distqexp.sketching.integers import round_sum
from distqexp.sketching.sketcher import BatchSketcher

COUNT = 21


def run_on(folder: Path, model: str, adjacency: str = "zero-out", **mechanism: object) -> tuple[Config, Plan, Table]:
    """A config of single records and its plan; the private records are rather wild."""
    private, public = random_table(model, [1] * COUNT, seed=1), random_table(model, [1] * 12, seed=2)
    private.x[::3] *= 20
    private.write(folder / "private.h5")
    public.write(folder / "public.h5")
    config = make_config(
        folder,
        model,
        subspace={"kind": "kronecker-pca", "k_in": 4, "k_out": 3},
        precision={"kind": "kronecker"},
        privacy={"epsilon": 1.0, "delta": 1e-5, "units": 40, "adjacency": adjacency},
        mechanism={"clip": None, "clip_natural": 1.0} | mechanism,
    )
    config = single(config)
    return config, plan_of(config), private


def single(config: Config) -> Config:
    tree = config_to_tree(config)
    for data in (tree["data"]["public"], *tree["data"]["private"]):
        data["unit"] = None
    return config_from_tree(tree)


def sums_with(config: Config, plan: Plan, folder: Path, blank: np.ndarray | None = None) -> np.ndarray:
    data = config.data.private[0]
    if blank is not None:
        np.save(folder / "blank.npy", blank)
        data = replace(data, blank=str(folder / "blank.npy"))
    config = replace(config, data=replace(config.data, private=(data,)))
    context = context_of(config, plan)
    sketcher = sketcher_of(context, plan.state)
    assert isinstance(sketcher, BatchSketcher)
    return sum(sketcher.sketch(context.batches(piece)) for piece in range(len(context.pieces)))


@pytest.mark.parametrize("model", ["mlp", "cnn", "double"])
def test_the_integers_are_those_of_clipped_units_to_the_rounding_of_each_batch(model: str, tmp_path: Path) -> None:
    config, plan, _ = run_on(tmp_path, model)
    assert config.by_batch
    vectors, finite = unit_vectors(config, plan)
    assert finite.all()
    norms = np.linalg.norm(vectors, axis=1)
    clipped = vectors * np.minimum(1, plan.state.clip / norms)[:, None]
    assert (norms > plan.state.clip).sum() > 3
    batches = math.ceil(COUNT / config.engine.micro_batch)
    grid = plan.state.grid
    found = sums_of(config, plan, tmp_path / "sums")
    assert found.tolist() == sums_with(config, plan, tmp_path).tolist()
    # float32 products of the two ways differ in their last bits; double networks don't.
    tolerance = batches * 0.5 + (1e-9 if model == "double" else 1e-5) * COUNT * grid.clip_integer
    assert np.abs(found - clipped.sum(axis=0) / grid.step).max() <= tolerance
    assert np.abs(found).max() > 100 * batches


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_blanking_any_unit_moves_the_sum_by_at_most_the_sensitivity(model: str, tmp_path: Path) -> None:
    config, plan, _ = run_on(tmp_path, model)
    grid = plan.state.grid
    whole = sums_with(config, plan, tmp_path)
    moves = [
        exact_norm(whole - sums_with(config, plan, tmp_path, np.arange(COUNT) == unit))
        for unit in (range(COUNT) if model == "mlp" else range(0, COUNT, 4))
    ]
    assert max(moves) <= grid.sensitivity**2
    assert max(moves) > (0.98 * grid.clip_integer) ** 2
    assert grid.sensitivity < 1.005 * grid.clip_integer  # the slack costs next to nothing


def test_a_clip_a_tenth_too_loose_would_be_caught_here(tmp_path: Path) -> None:
    config, plan, _ = run_on(tmp_path, "mlp")
    leaky = replace(plan, state=replace(plan.state, clip=1.1 * plan.state.clip))
    whole = sums_with(config, leaky, tmp_path)
    moves = [exact_norm(whole - sums_with(config, leaky, tmp_path, np.arange(COUNT) == unit)) for unit in range(9)]
    assert max(moves) > plan.state.grid.sensitivity**2


@pytest.mark.slow
def test_replacing_a_unit_moves_the_sum_by_at_most_the_doubled_sensitivity(tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, "mlp", adjacency="replace-one")
    grid = plan.state.grid
    assert config.by_batch
    assert 2 * grid.clip_integer < grid.sensitivity < 2.01 * grid.clip_integer
    whole = sums_with(config, plan, tmp_path)
    moves = []
    for unit in range(0, COUNT, 2):
        for scale in (1.0, -1.0, -1e30, 0.0):
            other = Table(table.x.copy(), table.y.copy(), table.u)
            other.x[unit] *= scale
            other.y[unit] = (other.y[unit] + 1) % 3
            other.write(tmp_path / "private.h5")
            moves.append(exact_norm(whole - sums_with(config, plan, tmp_path)))
    assert (1.3 * grid.clip_integer) ** 2 < max(moves) <= grid.sensitivity**2


def test_the_noise_is_calibrated_to_the_sensitivity_and_the_certificate_of_a_run_says_so(tmp_path: Path) -> None:
    _, plan, _ = run_on(tmp_path, "mlp")
    grid = plan.state.grid
    assert Fraction(grid.sensitivity, grid.sigma) <= Fraction(plan.calibration.mu_round)
    assert Fraction(grid.sensitivity, grid.sigma - 1) > Fraction(plan.calibration.mu_round)
    assert grid.mu > grid.clip_integer / grid.sigma


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("k", [1, 1000, 10**6])
def test_the_slack_is_the_formula_of_the_proof(factor: int, k: int) -> None:
    clip, exponent, count = 0.3, -30, 64
    steps = Fraction(clip) * 2**30
    unit = Fraction(1, 2**53)
    gamma = LARGEST_TERMS * unit / (1 - LARGEST_TERMS * unit)
    needed = factor * steps * (1 + Fraction(1, 2**30)) + 2 * count * int(CANCELLATION) * steps * gamma
    slack = BatchSums(count, k).slack(clip, exponent, factor)
    integers = factor * math.floor(steps) + slack
    assert needed + Fraction(math.sqrt(k)) <= integers <= needed + Fraction(math.sqrt(k)) + factor + 3
    grid = choose_grid(
        clip, 1.0, 2**20, "replace-one" if factor == 2 else "zero-out", GridOptions(batches=BatchSums(count, k))
    )
    assert grid.sensitivity - factor * grid.clip_integer == BatchSums(count, k).slack(clip, grid.exponent, factor)


def test_a_batch_too_large_for_float64_is_refused() -> None:
    batches = BatchSums(2**24, 10)
    grid = choose_grid(1.0, 1e-3, 2**35, "zero-out", GridOptions(batches=batches))
    with pytest.raises(UsageError, match=r"engine.micro_batch: 16777216 units"):
        check_capacity(grid, 10, 1, batches)
    check_capacity(grid, 10, 1, BatchSums(64, 10))


class Cancelling(nn.Module):
    """One linear layer used twice, so that a record's two terms can cancel: outputs W (a + b) with gradients of either sign."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 20, bias=False, dtype=torch.float64)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        steps = self.layer(records[:, :, :30])  # (B, L, 20)
        return (steps * records[:, :, 30:]).sum(dim=1)


def cancelling_records(size: float) -> Records:
    """Record 4: terms of ``size`` that cancel. Every other one has a gradient well below the clip."""
    generator = torch.Generator().manual_seed(5)
    inputs = 1e-3 * torch.randn((8, 2, 50), generator=generator, dtype=torch.float64)
    inputs[4, 1, :30] = inputs[4, 0, :30]
    inputs[4, 0, 30:] = size * torch.randn(20, generator=generator, dtype=torch.float64)
    inputs[4, 1, 30:] = -inputs[4, 0, 30:]
    targets = torch.zeros(8, dtype=torch.int64)
    return Records(inputs, targets, torch.ones(8, dtype=torch.bool))


def moved(size: float, cancellation: float) -> float:
    """How far record 4 moves the sum, in clips; its own gradient is next to nothing."""
    torch.manual_seed(3)
    network = Network(Cancelling())
    gradients = fast(network, CrossEntropy(), whitening_for(block_layout(network), None), 8)
    records, clip = cancelling_records(size), 1e-3
    blank = Records(records.inputs.clone(), records.targets, records.present.clone())
    blank.present[4] = False
    whole, without = (clipped_sum(gradients, some, clip, cancellation, LARGEST_TERMS) for some in (records, blank))
    return float(np.linalg.norm(whole - without)) / clip


def test_terms_that_cancel_cannot_erase_the_neighbours() -> None:
    """Against the bound of the proof with the true number of terms, 8 records of 2 positions; here kappa decides."""
    slack = 2 * 8 * CANCELLATION * 16 * 2.0**-53
    for size in (1.0, 1e4, 1e9, 1e14, 1e30, 1e100):
        assert moved(size, CANCELLATION) <= slack
    assert moved(1e14, 1e300) > 3 * slack  # without the second clip


def test_an_underflowing_factor_cannot_hide_a_gradient() -> None:
    """Squares of 1e-170 are zero in float64: by them alone the record's norm would be 0, and 1e130 would come in."""
    torch.manual_seed(3)
    network = Network(nn.Linear(3, 2, bias=False, dtype=torch.float64))
    blocks = block_layout(network)
    whitening = whitening_for(blocks, None)
    whitening[0] = replace(whitening[0], row=whitening[0].row * 1e-170, column=whitening[0].column * 1e150)
    gradients = fast(network, CrossEntropy(), whitening, 4)
    records = random_records((3,), 2, 4)
    vectors, _ = gradients.of_piece([(records, np.arange(4))])
    assert np.linalg.norm(vectors, axis=1).min() > 1e-25
    found = clipped_sum(gradients, records, 1e-30, CANCELLATION)
    assert np.linalg.norm(found) <= 4e-30 * (1 + 1e-9)


def test_sums_out_of_range_are_never_cast() -> None:
    assert round_sum(np.array([0.75, -3.2]), 0.5).tolist() == [2, -6]
    for value in (np.nan, np.inf, 2.0**60):
        with pytest.raises(ArithmeticError):
            round_sum(np.array([value]), 1.0)


def test_units_of_several_records_and_coming_and_going_ones_are_rounded_one_by_one(tmp_path: Path) -> None:
    config, _, _ = run_on(tmp_path, "mlp")
    tree = config_to_tree(config)
    tree["data"]["private"][0]["unit"] = "u"
    assert not config_from_tree(tree).by_batch
    tree["mechanism"]["rounding"] = "batch"
    with pytest.raises(UsageError, match=r"mechanism.rounding: found 'batch'"):
        config_from_tree(tree)
    tree = config_to_tree(config)
    tree["privacy"]["adjacency"] = "add-remove"
    assert not config_from_tree(tree).by_batch
    tree["mechanism"]["rounding"] = "batch"
    with pytest.raises(UsageError, match="add-remove"):
        config_from_tree(tree)
    tree["mechanism"]["rounding"] = "unit"
    assert plan_of(config_from_tree(tree)).state.grid.slack == 0
