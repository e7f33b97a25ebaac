"""Private diagnostics: three counts a unit, under the same noise as the gradient, inside the same guarantee."""

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
from fit_harness import QUICK
from scipy.stats import chi2
from small_runs import Table, context_of, exact_norm, make_config, plan_of, random_table, sums_of, with_blank

from distqexp.api import export, fit, load_config, plan, pool, release, sketch
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release, diagnostics_of
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.errors import UsageError
from distqexp.mechanism.diagnostics import SUMS, counter_of, estimates, unit_length
from distqexp.mechanism.grid import GridOptions, choose_grid

SIZES = [1, 3, 1, 2, 5, 1, 4]
LARGEST = 1.5
SHARE = 0.2


def told_config(folder: Path, model: str, sizes: list[int], **sections: Any) -> tuple[Config, Table]:
    """A config with diagnostics on rather wild records."""
    table = random_table(model, sizes, seed=1)
    table.x[::2] *= 20
    table.write(folder / "private.h5")
    random_table(model, sizes, seed=2).write(folder / "public.h5")
    return make_config(folder, model, diagnostics={"share": SHARE, "largest_loss": LARGEST}, **sections), table


def digits_config(*more: str) -> Config:
    """The embedded task, small."""
    return load_config(None, [*QUICK, *more])


def by_batches(config: Config) -> Config:
    """The same with single records as units, layer by layer."""
    tree = config_to_tree(config)
    for data in (tree["data"]["public"], *tree["data"]["private"]):
        data["unit"] = None
    tree["subspace"] |= {"kind": "kronecker-pca", "k": None, "k_in": 4, "k_out": 3}
    tree["precision"]["kind"] = "kronecker"
    return config_from_tree(tree)


def slow_counts(config: Config, made: Plan) -> list[list[float]]:
    """Clipped or not, loss share, 1: of every unit, a record at a time, from autograd alone."""
    context = context_of(config, made)
    network, loss, found = context.network, context.loss, []
    (source,) = context.sources
    records = context.datasets[0].read(source.slots.rows)
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    for unit in range(source.slots.units):
        total, losses = torch.zeros(made.d, dtype=torch.float64), []
        for slot in np.flatnonzero(source.slots.unit == unit):
            value = loss.value(network.module(network.prepare(records.inputs[[slot]])), records.targets[[slot]])[0]
            total += torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters)]).double()
            losses.append(min(float(value.detach()), LARGEST))
        projected = context.subspace.project(total[None])
        whitened = projected if context.precision is None else context.precision.whiten(projected)
        norm = float(whitened.norm())
        found.append([float(norm > made.state.clip), sum(losses) / len(losses) / LARGEST, 1.0])
    return found


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_counts_take_their_share_of_the_length_and_no_more(share: float) -> None:
    clip = 10**6
    counter = counter_of(clip, share)
    length = unit_length(clip, counter)
    assert SUMS * counter**2 <= share * length**2
    assert SUMS * (counter + 1) ** 2 > share * (length - 1) ** 2 * (1 - 1e-5)
    assert (length - 1) ** 2 < clip**2 + SUMS * counter**2 <= length**2
    assert (counter_of(clip, 0.0), unit_length(clip, 0)) == (0, clip)


@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one"])
def test_the_grid_pays_for_the_counts(adjacency: str) -> None:
    bare = choose_grid(0.3, 0.2, 5000, adjacency)
    grid = choose_grid(0.3, 0.2, 5000, adjacency, GridOptions(exponent=bare.exponent, diagnostics=SHARE))
    factor = 2 if adjacency == "replace-one" else 1
    longest = math.sqrt(grid.clip_integer**2 + SUMS * grid.counter**2)
    assert grid.clip_integer == bare.clip_integer
    assert grid.sensitivity >= factor * longest
    assert grid.mu <= 0.2
    assert grid.mu == pytest.approx(0.2, rel=1e-4)
    # The gradient alone has the rest of mu^2, so that its noise grows by that much.
    assert grid.sigma / bare.sigma == pytest.approx(1 / math.sqrt(1 - SHARE), rel=1e-3)
    # With the noise of a run without diagnostics, or a tenth less than this, more would be spent than is said.
    assert Fraction(grid.sensitivity, bare.sigma) > Fraction(2, 10)
    assert replace(grid, sigma=int(0.9 * grid.sigma)).mu > 0.2


@pytest.mark.parametrize("kind", ["units", "batches"])
def test_the_counts_are_those_of_one_unit_after_another(kind: str, tmp_path: Path) -> None:
    sizes = [1] * 21 if kind == "batches" else SIZES
    config, _ = told_config(tmp_path, "double", sizes)
    config = by_batches(config) if kind == "batches" else config
    assert config.by_batch == (kind == "batches")
    made = plan_of(config)
    middle = float(np.mean(np.sort(_norms(config, made))[len(sizes) // 2 : len(sizes) // 2 + 2]))
    config = config_from_tree(_with(config_to_tree(config), mechanism={"clip": middle}))
    made = plan_of(config)
    expected = np.array(slow_counts(config, made))
    assert 0 < expected[:, 0].sum() < len(sizes)
    assert 0 < (expected[:, 1] == 1.0).sum() < len(sizes)
    sums = sums_of(config, made, tmp_path / "sums")
    assert sums.shape == (made.k + SUMS,)
    counts = sums[made.k :]
    counter = made.state.grid.counter
    assert counts[0] == counter * expected[:, 0].sum()
    assert counts[2] == counter * len(sizes)
    assert abs(counts[1] - counter * expected[:, 1].sum()) <= len(sizes)
    told = estimates(counts, counter, 1, LARGEST)
    assert told.units == len(sizes)
    assert told.loss == pytest.approx(LARGEST * expected[:, 1].mean(), rel=1e-3)
    assert told.clipped == pytest.approx(expected[:, 0].mean(), rel=1e-3)


def _norms(config: Config, made: Plan) -> list[float]:
    context = context_of(config, made)
    vectors = [context.gradients.of_piece(context.batches(i))[0] for i in range(len(context.pieces))]
    return [float(norm) for norm in np.linalg.norm(np.concatenate(vectors), axis=1)]


def _with(tree: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return tree | {name: tree[name] | values for name, values in sections.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["units", "batches"])
@pytest.mark.parametrize("model", ["mlp", "logistic"])
def test_a_unit_moves_all_that_is_summed_by_at_most_the_sensitivity(kind: str, model: str, tmp_path: Path) -> None:
    sizes = [1] * 9 if kind == "batches" else SIZES
    config, table = told_config(tmp_path, model, sizes, mechanism={"clip": 0.01})
    config = by_batches(config) if kind == "batches" else config
    made = plan_of(config)
    grid, whole = made.state.grid, sums_of(config, made, tmp_path / "whole")
    moves = []
    for unit in range(len(sizes)):
        np.save(tmp_path / "blank.npy", table.u == unit)
        rest = sums_of(with_blank(config, tmp_path / "blank.npy"), made, tmp_path / f"{unit}")
        moves.append(exact_norm(whole - rest))
        assert whole[-1] - rest[-1] == grid.counter
    assert max(moves) <= grid.sensitivity**2
    # It goes to the bound: a clipped unit with the largest loss. Noise for the clip alone would be too small.
    assert max(moves) > (0.97 * grid.unit_length) ** 2
    if kind == "units":
        assert max(moves) > grid.clip_integer**2


def test_blank_units_and_units_that_are_not_finite_count_for_nothing(tmp_path: Path) -> None:
    config, table = told_config(tmp_path, "mlp", SIZES)
    made = plan_of(config)
    counter = made.state.grid.counter
    np.save(tmp_path / "blank.npy", np.isin(table.u, [1, 4]))
    blank = with_blank(config, tmp_path / "blank.npy")
    assert sums_of(blank, made, tmp_path / "blank")[-1] == counter * (len(SIZES) - 2)
    np.save(tmp_path / "all.npy", np.ones(len(table.u), dtype=bool))
    nobody = sums_of(with_blank(config, tmp_path / "all.npy"), made, tmp_path / "nobody")
    assert not nobody.any()
    # Finite in float32, but the hidden unit with the largest weights overflows.
    weights = next(array for array in made.weights.values() if array.shape == (8, 6))
    largest = weights[np.abs(weights).sum(axis=1).argmax()]
    table.x[np.flatnonzero(table.u == 2)[0]] = 3.4e38 * np.sign(largest)
    table.write(tmp_path / "private.h5")
    assert sums_of(config, made, tmp_path / "huge")[-1] == counter * (len(SIZES) - 1)


def test_the_noise_of_the_counts_has_the_law_that_is_told() -> None:
    """Chi-square on 30,000 released counts: false-alarm rate 1e-6; noise a tenth smaller is rejected."""
    from distqexp.mechanism.noise import draw_insecure

    grid = choose_grid(0.3, 0.2, 5000, "zero-out", GridOptions(diagnostics=SHARE))
    draws = 10_000
    for scale, accepted in ((1.0, True), (0.9, False)):
        noise = draw_insecure(SUMS * draws, scale * grid.sigma, noise_seed=5, round=0, noise="discrete").reshape(
            draws, SUMS
        )
        counts = noise + np.array([0, 0, 700 * grid.counter])
        told = [estimates(row, grid.counter, grid.sigma, LARGEST) for row in counts]
        square = sum(((one.units - 700) / one.units_deviation) ** 2 for one in told)
        low, high = chi2.ppf([5e-7, 1 - 5e-7], draws)
        assert (low <= square <= high) == accepted
        ratios = np.array([[one.clipped, one.loss] for one in told if one.clipped is not None], dtype=float)
        assert len(ratios) == draws
        assert (ratios >= 0).all()
        assert (ratios[:, 1] <= LARGEST).all()


def test_too_few_units_beside_the_noise_tell_their_noisy_count_alone() -> None:
    told = estimates(np.array([50, 10, 100]), counter=100, sigma=80, largest_loss=2.0)
    assert (told.units, told.units_deviation, told.clipped, told.loss) == (1.0, 0.8, None, None)
    assert "too few" in told.line()
    one = estimates(np.array([50, -10, 10_000]), counter=100, sigma=80, largest_loss=2.0)
    assert (one.clipped, one.loss) == (0.005, 0.0)
    assert one.clipped_deviation == pytest.approx(0.008, rel=1e-3)
    assert one.loss_deviation == pytest.approx(0.016, rel=1e-3)


def test_a_run_tells_within_its_budget(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = digits_config("mechanism.rounds=2", f"diagnostics.share={SHARE}", "privacy.epsilon=8")
    result = fit(config, tmp_path / "run", insecure_noise_seed=1)
    assert result is not None
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert certificate["epsilon"] <= 8
    told = certificate["diagnostics"]
    assert told["share"] == SHARE
    assert [entry["round"] for entry in told["rounds"]] == [0, 1]
    for number, entry in enumerate(told["rounds"]):
        assert abs(entry["units"] - config.privacy.units) < 6 * entry["units_deviation"]
        assert 0 <= entry["clipped"] <= 1
        assert 0 <= entry["loss"] <= config.diagnostics.largest_loss
        stored = Release.read(tmp_path / "run" / f"release-{number:03d}.h5", result.plan)
        assert stored.noisy_sums.shape == (result.plan.k + SUMS,)
        found = diagnostics_of(result.plan, stored)
        assert found is not None
        assert found.line() in capfd.readouterr().err or number == 1
    assert any("those under diagnostics" in line for line in certificate["not_covered"])
    mu = math.sqrt(sum(entry["mu"] ** 2 for entry in certificate["rounds"]))
    assert mu <= result.plan.calibration.mu_total
    # What a round is charged covers gradient and counts together.
    for entry in certificate["rounds"]:
        assert entry["sensitivity"] >= entry["clip"] / math.sqrt(1 - SHARE) * 0.999


@pytest.mark.slow
def test_without_a_share_nothing_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = fit(digits_config(), tmp_path / "run", insecure_noise_seed=1)
    assert result is not None
    assert result.certificate["diagnostics"] is None
    assert result.releases[0].noisy_sums.shape == (result.plan.k,)
    assert "units," not in capfd.readouterr().err


@pytest.mark.slow
def test_by_hand_as_in_one_run(tmp_path: Path) -> None:
    config = digits_config(f"diagnostics.share={SHARE}", "mechanism.rounds=1")
    result = fit(config, tmp_path / "run", insecure_noise_seed=1)
    assert result is not None
    plan(config, tmp_path / "plan.h5")
    sketch(tmp_path / "plan.h5", None, tmp_path / "site.h5", ledger=tmp_path / "site.sqlite")
    pool(tmp_path / "plan.h5", [tmp_path / "site.h5"], tmp_path / "quadratic.h5")
    curator = tmp_path / "curator.sqlite"
    made = release(
        tmp_path / "plan.h5", tmp_path / "quadratic.h5", tmp_path / "release.h5", insecure_noise_seed=1, ledger=curator
    )
    assert made.noisy_sums.tolist() == result.releases[0].noisy_sums.tolist()
    certificate, _ = export(tmp_path / "plan.h5", [tmp_path / "release.h5"], tmp_path / "model", ledger=curator)
    assert certificate["diagnostics"] == result.certificate["diagnostics"]


def test_refusals(tmp_path: Path) -> None:
    for overrides, message in (
        (["diagnostics.share=0.6"], "diagnostics.share: found 0.6; expected 0, or 0.001 to 0.5"),
        (["diagnostics.share=1e-4"], "diagnostics.share"),
        (["diagnostics.share=0.1", "diagnostics.largest_loss=0"], "diagnostics.largest_loss: found 0"),
        (
            ["diagnostics.share=0.1", "mechanism.trust_radius=3", 'mechanism.noise="gaussian"'],
            "0 with mechanism.trust_radius",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            digits_config(*overrides)
