"""The sensitivity of the pooled integers, and that a unit's integers depend on that unit alone, through real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    Table,
    context_of,
    exact_norm,
    first_appearance,
    make_config,
    plan_of,
    random_table,
    sums_of,
    unit_integers,
    unit_vectors,
    with_blank,
)

from distqexp.artefacts.plan import Plan
from distqexp.config import Config, load_config

# Units of one record and of many, larger than the micro-batch of 8, more than one piece.
SIZES = [1, 1, 3, 2, 1, 11, 1, 4, 8, 1, 1, 17, 2, 1, 1, 1, 5, 1, 1, 2, 1, 1, 1, 1, 3, 1, 1, 1]
FEW = [1, 3, 1, 9, 2, 1, 1, 4, 1, 1]
GEOMETRY = {
    "logistic": {"precision": {"kind": "dense"}, "mechanism": {"clip": None, "clip_quantile": 0.3}},
    "mlp": {
        "subspace": {"kind": "gaussian", "k": 20},
        "precision": {"kind": "dense"},
        "mechanism": {"clip": None, "clip_quantile": 0.3},
    },
    "double": {"subspace": {"kind": "rademacher", "k": 12}, "precision": {"kind": "diagonal"}},
    "cnn": {"subspace": {"kind": "srht", "k": 30}, "mechanism": {"clip": None, "clip_quantile": 0.3}},
}


def run_on(folder: Path, model: str, adjacency: str = "zero-out") -> tuple[Config, Plan, Table]:
    """A config and a plan on random files, the private ones rather wild."""
    sizes = FEW if model == "cnn" else SIZES
    private, public = random_table(model, sizes, seed=1), random_table(model, [1, 2, 3] * 4, seed=2)
    private.x[::3] *= 20
    private.write(folder / "private.h5")
    public.write(folder / "public.h5")
    privacy = {"epsilon": 1.0, "delta": 1e-5, "units": 40, "adjacency": adjacency}
    config = make_config(folder, model, privacy=privacy, **GEOMETRY[model])
    return config, plan_of(config), private


def blanked(config: Config, folder: Path, mask: np.ndarray) -> Config:
    np.save(folder / "blank.npy", mask)
    return with_blank(config, folder / "blank.npy")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
def test_blanking_any_unit_moves_the_sum_by_at_most_the_clip(model: str, tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, model)
    whole, clip_integer = unit_integers(config, plan), plan.state.grid.clip_integer
    total = sums_of(config, plan, tmp_path / "whole")
    assert total.tolist() == whole.sum(axis=0).tolist()
    moves = []
    order = first_appearance(table.u)
    for unit in order if model != "cnn" else order[:4]:
        without = unit_integers(blanked(config, tmp_path, table.u == unit), plan)
        moves.append(exact_norm(total - without.sum(axis=0)))
        assert not without[order.index(unit)].any()
        others = np.arange(len(order)) != order.index(unit)
        assert np.array_equal(without[others], whole[others])
    assert max(moves) <= clip_integer**2
    assert max(moves) > 0.98 * clip_integer**2  # clipped units use the bound up to rounding


def test_the_sketch_stage_itself_moves_by_at_most_the_clip(tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, "mlp")
    total = sums_of(config, plan, tmp_path / "whole")
    for unit in (5, 11, 0):  # two that are larger than a micro-batch, and one record
        found = sums_of(blanked(config, tmp_path, table.u == unit), plan, tmp_path / f"without-{unit}")
        assert 0 < exact_norm(total - found) <= plan.state.grid.clip_integer**2


@pytest.mark.slow
def test_blanking_one_record_of_a_unit_moves_it_by_at_most_two_clips_and_no_other(tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, "mlp")
    whole = unit_integers(config, plan)
    order = first_appearance(table.u)
    for row in range(0, len(table.u), 5):
        found = unit_integers(blanked(config, tmp_path, np.arange(len(table.u)) == row), plan)
        changed = np.flatnonzero((found != whole).any(axis=1)).tolist()
        assert changed in ([], [order.index(int(table.u[row]))])
        assert exact_norm((found - whole).sum(axis=0)) <= (2 * plan.state.grid.clip_integer) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["double"])
def test_adding_or_removing_a_unit_moves_the_sum_by_at_most_the_clip(model: str, tmp_path: Path) -> None:
    """All later slots shift. In float64, as the last bits of a gradient may depend on the slot it sits in."""
    config, plan, table = run_on(tmp_path, model, adjacency="add-remove")
    total, clip_integer = sums_of(config, plan, tmp_path / "whole"), plan.state.grid.clip_integer
    by_unit = dict(zip(first_appearance(table.u), unit_integers(config, plan), strict=True))
    moves = []
    for unit in by_unit:
        rest = table.without(unit)
        rest.write(tmp_path / "private.h5")
        without = unit_integers(config, plan)
        for name, integers in zip(first_appearance(rest.u), without, strict=True):
            assert np.array_equal(integers, by_unit[name])
        moves.append(exact_norm(total - without.sum(axis=0)))
    assert 0.98 * clip_integer**2 < max(moves) <= clip_integer**2
    random = np.random.default_rng(3)
    stranger = Table(random.normal(size=(6, 6)).astype(np.float32) * 1e4, np.array([0, 1, 2, 0, 1, 2]), np.full(6, 99))
    Table(*(np.concatenate(pair) for pair in zip(vars(table).values(), vars(stranger).values(), strict=True))).write(
        tmp_path / "private.h5"
    )
    assert 0 < exact_norm(sums_of(config, plan, tmp_path / "more") - total) <= clip_integer**2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
def test_replacing_a_unit_moves_the_sum_by_at_most_two_clips(model: str, tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, model, adjacency="replace-one")
    grid = plan.state.grid
    assert grid.mu == pytest.approx(2 * grid.clip_integer / grid.sigma, rel=1e-12)
    total = unit_integers(config, plan).sum(axis=0)
    classes = int(table.y.max()) + 1
    moves = []
    for unit in range(0, len(set(table.u.tolist())), 2 if model != "cnn" else 3):
        mine = table.u == unit
        for scale in (1.0, -1.0, -1e30, 0.0):  # zero, mirrored, huge: whatever the other person is like
            other = Table(table.x.copy(), table.y.copy(), table.u)
            other.x[mine] *= scale
            other.y[mine] = (other.y[mine] + 1) % classes
            other.write(tmp_path / "private.h5")
            moves.append(exact_norm(unit_integers(config, plan).sum(axis=0) - total))
    assert max(moves) <= (2 * grid.clip_integer) ** 2
    assert max(moves) > (1.3 * grid.clip_integer) ** 2  # one clip would not have been enough


def test_a_tenth_too_loose_a_clip_would_be_caught_here(tmp_path: Path) -> None:
    """The check of this file applied to a sketcher whose clip and grid bound are planted 10 % too large."""
    config, plan, table = run_on(tmp_path, "mlp")
    grid = plan.state.grid
    leaky = replace(
        plan.state, clip=1.1 * plan.state.clip, grid=replace(grid, clip_integer=int(1.1 * grid.clip_integer))
    )
    whole = unit_integers(config, plan, leaky)
    moves = []
    for unit in first_appearance(table.u)[:8]:
        without = unit_integers(blanked(config, tmp_path, table.u == unit), plan, leaky)
        moves.append(exact_norm((whole - without).sum(axis=0)))
    assert max(moves) > grid.clip_integer**2


# --- a unit's integers depend on that unit alone ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
def test_blanking_random_records_changes_no_bit_of_another_unit(model: str, tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, model)
    vectors, _ = unit_vectors(config, plan)
    integers = unit_integers(config, plan)
    random = np.random.default_rng(5)
    order = np.array(first_appearance(table.u))
    for share in (0.1, 0.5, 0.9):
        mask = random.random(len(table.u)) < share
        config_blank = blanked(config, tmp_path, mask)
        untouched = ~np.isin(order, table.u[mask])
        assert untouched.any()
        assert unit_vectors(config_blank, plan)[0][untouched].tobytes() == vectors[untouched].tobytes()
        assert np.array_equal(unit_integers(config_blank, plan)[untouched], integers[untouched])


@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
def test_wild_neighbours_change_no_bit_of_a_unit(model: str, tmp_path: Path) -> None:
    config, plan, table = run_on(tmp_path, model)
    vectors, _ = unit_vectors(config, plan)
    order = np.array(first_appearance(table.u))
    wild = np.isin(table.u, order[::2])
    for scale in (1e3, 1e30, 3e38):
        other = Table(table.x.copy(), table.y.copy(), table.u)
        with np.errstate(over="ignore"):
            other.x[wild] *= np.float32(scale)  # the last one makes infinities, too
        other.y[wild] = (other.y[wild] + 1) % (int(table.y.max()) + 1)
        other.write(tmp_path / "private.h5")
        assert unit_vectors(config, plan)[0][1::2].tobytes() == vectors[1::2].tobytes()


@pytest.mark.parametrize("model", ["logistic", "mlp", "cnn"])
def test_units_that_change_places_keep_their_integers(model: str, tmp_path: Path) -> None:
    """Units of equal size swap slots, within a piece and across pieces: the map from slots to sizes stays."""
    config, plan, table = run_on(tmp_path, model)
    integers = dict(zip(first_appearance(table.u), unit_integers(config, plan), strict=True))
    pieces = len(context_of(config, plan).pieces)
    assert pieces >= 3
    sizes = np.bincount(table.u)
    random = np.random.default_rng(6)
    rename = np.arange(len(sizes))
    for size in set(sizes.tolist()):
        same = np.flatnonzero(sizes == size)
        rename[same] = random.permutation(same)
    assert (rename != np.arange(len(sizes))).sum() > len(sizes) / 3
    x, y = np.empty_like(table.x), np.empty_like(table.y)
    for unit, other in enumerate(rename):
        x[table.u == unit], y[table.u == unit] = table.x[table.u == other], table.y[table.u == other]
    Table(x, y, table.u).write(tmp_path / "private.h5")
    for unit, found in zip(first_appearance(table.u), unit_integers(config, plan), strict=True):
        assert np.array_equal(found, integers[int(rename[unit])])


@pytest.mark.slow
def test_blanking_half_of_the_digits_changes_no_bit_of_the_others(tmp_path: Path) -> None:
    """The default task at its real size: 800 images, k = 650, a dense precision, micro-batches of 64."""
    config = load_config()
    plan = plan_of(config)
    vectors, _ = unit_vectors(config, plan)
    integers = unit_integers(config, plan)
    clip_integer = plan.state.grid.clip_integer
    assert all(exact_norm(row) <= clip_integer**2 for row in integers)
    mask = np.random.default_rng(8).random(1797) < 0.5
    half = blanked(config, tmp_path, mask)
    rows = mask[597:1397]
    assert unit_vectors(half, plan)[0][~rows].tobytes() == vectors[~rows].tobytes()
    found = unit_integers(half, plan)
    assert np.array_equal(found[~rows], integers[~rows])
    assert not found[rows].any()
    total = integers.sum(axis=0)
    for row in range(0, 800, 100):
        only = blanked(config, tmp_path, np.arange(1797) == 597 + row)
        assert exact_norm(total - unit_integers(only, plan).sum(axis=0)) <= clip_integer**2
