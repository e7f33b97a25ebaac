"""Rounds of parts by the real stages: whose units a round sees, what the run costs, and how it goes on after a kill."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting import compose
from kills import Killed, killing, leave_uncharged, noise_files, ran, rows_of
from laws import ALARM, NOISES, WIDE, draws, p_values
from numpy.typing import NDArray
from small_runs import (
    Table,
    context_of,
    first_appearance,
    make_config,
    plan_of,
    random_table,
    sums_of,
    unit_integers,
    with_blank,
)

from distqexp.api import fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config
from distqexp.config.sections import MechanismConfig
from distqexp.engines.serial import SerialEngine
from distqexp.errors import BudgetError
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy import gdp
from distqexp.privacy.expenses import Part
from distqexp.privacy.ledger import Ledger
from distqexp.problem.dataset import Dataset
from distqexp.problem.slots import partition_by_id
from distqexp.stages import rounds as fit_module
from distqexp.stages import sketch as sketch_stage
from distqexp.stages.charging import Charging, check_budget
from distqexp.stages.plan import describe_plan
from distqexp.stages.release import draw_release
from distqexp.stages.shards import open_shards
from distqexp.stages.sketch import whole_sketch

SIZES = [1, 2, 1, 9, 1, 3, 1, 1, 4, 1, 12, 2, 1, 1, 5, 1, 2]
PARTS = 3
ADJACENCIES = ("zero-out", "replace-one", "add-remove")


def parts_config(folder: Path, *, rounds: int = 2 * PARTS, adjacency: str = "zero-out", **sections: Any) -> Config:
    """A float64 task whose micro-batches hold a few units, in three parts."""
    random_table("double", SIZES, seed=1).write(folder / "private.h5")
    random_table("double", [1, 2] * 4, seed=2).write(folder / "public.h5")
    mechanism = {"rounds": rounds, "parts": PARTS, "clip": 0.05} | sections.pop("mechanism", {})
    privacy = {"adjacency": adjacency} | sections.pop("privacy", {})
    return make_config(folder, "double", mechanism=mechanism, privacy=privacy, **sections)


def at_round(plan: Plan, round: int) -> RoundState:
    """The plan's first state, as that of another round."""
    return replace(plan.state, round=round)


def every_unit(config: Config, plan: Plan) -> NDArray[np.int64]:
    """The integers of all units, as if the plan had no parts: (units, k)."""
    mechanism = replace(plan.config.mechanism, parts=1)
    return unit_integers(config, replace(plan, config=replace(plan.config, mechanism=mechanism)))


def parts_of(config: Config, plan: Plan) -> NDArray[np.int64]:
    """The part of every unit, in the order of the units."""
    (source,), _ = open_shards(plan, config.data.private, SerialEngine())
    assert source.partition is not None
    return source.partition.part


# --- whose units a round sees ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_a_round_sums_the_units_of_its_part_and_no_others(adjacency: str, tmp_path: Path) -> None:
    # The plan's identity keys the hash of the ids: with this seed every part has units.
    config = parts_config(tmp_path, adjacency=adjacency, subspace={"seed": 1})
    plan = plan_of(config)
    units, part = every_unit(config, plan), parts_of(config, plan)
    assert len(set(part.tolist())) == PARTS
    if adjacency != "add-remove":
        assert part.tolist() == [u % PARTS for u in range(len(SIZES))]
    total = np.zeros(plan.k, dtype=np.int64)
    for round in range(2 * PARTS):
        sums = sums_of(config, plan, tmp_path / f"round-{round}", at_round(plan, round))
        np.testing.assert_array_equal(sums, units[part == round % PARTS].sum(axis=0))
        assert sums.any()
        total += sums
    np.testing.assert_array_equal(total, 2 * units.sum(axis=0), "every unit once a pass")


def test_a_rank_opens_the_rows_of_its_round_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parts_config(tmp_path)
    plan = plan_of(config)
    (source,), _ = open_shards(plan, config.data.private, SerialEngine())
    opened: list[int] = []
    read = Dataset.read
    monkeypatch.setattr(Dataset, "read", lambda self, rows, views=None: opened.extend(rows) or read(self, rows, views))
    seen: list[int] = []
    for round in range(PARTS):
        context = context_of(config, plan, at_round(plan, round))
        opened.clear()
        for piece in range(len(context.pieces)):
            list(context.batches(piece))
        handed_on = whole_sketch(plan, at_round(plan, round), source, np.zeros(plan.k, dtype=np.int64))
        assert len(handed_on.done) == len(context.pieces) < len(source.pieces(8))
        rows = context.sources[0].slots.rows
        assert sorted(opened) == sorted(rows.tolist())
        seen += rows.tolist()
    assert sorted(seen) == list(range(sum(SIZES)))


def test_a_source_without_its_partition_is_no_source_of_a_round(tmp_path: Path) -> None:
    config = parts_config(tmp_path)
    plan = plan_of(config)
    context = context_of(config, plan)
    with pytest.raises(ValueError, match="without its partition"):
        type(context).of_state(plan, plan.state, context.sources)


def test_every_shard_is_cut_the_same_way(tmp_path: Path) -> None:
    config = parts_config(tmp_path)
    private = config.data.private[0]
    other = random_table("double", [2] * 7, seed=5)
    other.u += 1000  # other units than those of the first shard
    other.write(tmp_path / "other.h5")
    shards = (replace(private, shard="a"), replace(private, shard="b", path=str(tmp_path / "other.h5")))
    config = replace(config, data=replace(config.data, private=shards))
    plan = plan_of(config)
    units, sizes = every_unit(config, plan), (len(SIZES), 7)
    part = np.concatenate([np.arange(size) % PARTS for size in sizes])
    for round in range(PARTS):
        sums = sums_of(config, plan, tmp_path / f"round-{round}", at_round(plan, round))
        np.testing.assert_array_equal(sums, units[part == round].sum(axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("adjacency", ["zero-out", "add-remove"])
def test_blanking_a_unit_changes_the_rounds_of_its_part_alone(adjacency: str, tmp_path: Path) -> None:
    config = parts_config(tmp_path, adjacency=adjacency)
    plan = plan_of(config)
    table, units, part = random_table("double", SIZES, seed=1), every_unit(config, plan), parts_of(config, plan)
    order = first_appearance(table.u)
    for victim in (0, 3, 10, 16):
        number = order.index(victim)
        np.save(tmp_path / "blank.npy", table.u == victim)
        blanked = with_blank(config, tmp_path / "blank.npy")
        for round in range(PARTS):
            before = sums_of(config, plan, tmp_path / f"before-{victim}-{round}", at_round(plan, round))
            after = sums_of(blanked, plan, tmp_path / f"after-{victim}-{round}", at_round(plan, round))
            expected = units[number] if part[number] == round else np.zeros(plan.k, dtype=np.int64)
            np.testing.assert_array_equal(before - after, expected)


def test_under_add_remove_a_unit_that_leaves_changes_the_rounds_of_its_part_alone(tmp_path: Path) -> None:
    config = parts_config(tmp_path, adjacency="add-remove")
    plan = plan_of(config)
    table: Table = random_table("double", SIZES, seed=1)
    before = [sums_of(config, plan, tmp_path / f"before-{r}", at_round(plan, r)) for r in range(PARTS)]
    whole = dict(zip(first_appearance(table.u), parts_of(config, plan).tolist(), strict=True))
    for leaver in (0, 3, 10):
        table.without(leaver).write(tmp_path / "private.h5")
        rest = dict(zip(first_appearance(table.without(leaver).u), parts_of(config, plan).tolist(), strict=True))
        assert rest == {name: part for name, part in whole.items() if name != leaver}
        for round in range(PARTS):
            after = sums_of(config, plan, tmp_path / f"after-{leaver}-{round}", at_round(plan, round))
            assert np.array_equal(before[round], after) == (whole[leaver] != round)


def test_the_hash_is_keyed_by_the_plan(tmp_path: Path) -> None:
    config = parts_config(tmp_path, adjacency="add-remove")
    table = random_table("double", SIZES, seed=1)
    for changed in (config, replace(config, subspace=replace(config.subspace, seed=3))):
        plan = plan_of(changed)
        (source,), _ = open_shards(plan, changed.data.private, SerialEngine())
        ids = [table.u[row] for row in source.slots.rows]
        expected = partition_by_id(source.slots, PARTS, ids, bytes.fromhex(plan.plan_id)).part
        assert parts_of(changed, plan).tolist() == expected.tolist()
    assert parts_of(config, plan_of(config)).tolist() != expected.tolist()


# --- what the run costs ----------------------------------------------------------------------------------------


def balance(config: Config, ledger: Path, certificate: dict[str, Any], universe: str = "private") -> bool:
    """Whether each round is charged once, to its part, and the certificate says what a unit of the worst part pays."""
    mechanism, rows = config.mechanism, rows_of(ledger, universe)
    by_part: dict[Part | None, list[Any]] = {}
    for row in rows:
        by_part.setdefault(row.part, []).append(row.event)
    with Ledger.open(ledger) as books:
        spent = books.spent("somebody", universe)
    return bool(
        len(rows) == len({row.key for row in rows}) == mechanism.rounds == len(certificate["rounds"])
        and [row.part for row in rows] == [Part(r % mechanism.parts, mechanism.parts) for r in range(mechanism.rounds)]
        and [entry["part"] for entry in certificate["rounds"]] == [r % mechanism.parts for r in range(mechanism.rounds)]
        and certificate["mu"] == max(compose(events).mu for events in by_part.values()) == spent.mu
        and certificate["epsilon"] == spent.epsilon(config.privacy.delta) <= config.privacy.epsilon
        and certificate["parts"]["count"] == mechanism.parts
    )


@pytest.mark.slow
@pytest.mark.parametrize(("adjacency", "noise"), [(a, "discrete") for a in ADJACENCIES] + [("zero-out", "gaussian")])
def test_a_run_costs_what_its_worst_part_costs(adjacency: str, noise: str, tmp_path: Path, own_ledger: Path) -> None:
    config = parts_config(
        tmp_path,
        adjacency=adjacency,
        mechanism={"noise": noise, "clip": None, "clip_quantile": 0.5, "step": 1e-3},
        precision={"kind": "diagonal"},
    )
    result = ran(config, tmp_path / "out")
    assert balance(config, own_ledger, result.certificate)
    assert 0.98 < result.certificate["epsilon"] <= 1.0
    one = plan_of(replace(config, mechanism=replace(config.mechanism, rounds=2, parts=1)))
    assert result.plan.calibration == one.calibration, "six rounds of three parts have the noise of two rounds"
    assert any(f"{2 * PARTS} round(s) in {PARTS} parts, 2 for each unit" in line for line in describe_plan(result.plan))
    with pytest.raises(BudgetError):
        fit(replace(config, subspace=replace(config.subspace, seed=5)), tmp_path / "other")


@pytest.mark.parametrize("forgotten", [0, 4])
def test_a_round_that_is_not_charged_would_be_caught(
    forgotten: int, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parts_config(tmp_path)
    leave_uncharged(forgotten, monkeypatch)
    result = ran(config, tmp_path / "out")
    assert not balance(config, own_ledger, result.certificate)
    # The certificate doesn't know whose units the round saw, so everybody pays for it.
    assert result.certificate["mu"] == pytest.approx(result.plan.state.grid.mu * 3**0.5)


@pytest.mark.parametrize("fewer", [1, 2])
def test_noise_for_too_few_rounds_does_not_fit_the_budget(
    fewer: int, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted calibration that counts too few rounds of a part."""
    config = parts_config(tmp_path, rounds=3 * PARTS)
    monkeypatch.setattr(MechanismConfig, "passes", property(lambda self: self.rounds // self.parts - fewer))
    with pytest.raises(BudgetError):
        ran(config, tmp_path / "out")
    assert rows_of(own_ledger) == []


def test_a_budget_is_checked_before_records_are_read(tmp_path: Path, own_ledger: Path) -> None:
    plan = plan_of(parts_config(tmp_path))
    with Ledger.open(own_ledger) as ledger:
        check_budget(plan, Charging(ledger), "release")
        sums = np.arange(plan.k)
        for round in range(PARTS):
            state = at_round(plan, round)
            draw_release(plan, state, Quadratic(plan.plan_id, round, state.identity(), sums), Charging(ledger))
            check_budget(plan, Charging(ledger), "release")
        other = sums + 1
        ledger.set_cap("somebody", 1.2, 1e-5)  # room for a bit more than the plan, not for a third of it again
        state = at_round(plan, 0)
        draw_release(plan, state, Quadratic(plan.plan_id, 0, state.identity(), other), Charging(ledger))
        with pytest.raises(BudgetError, match="4 releases on record and 3 more"):
            check_budget(plan, Charging(ledger), "release")


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("rounds", "parts"), [(3, 3), (6, 3)])
def test_the_released_law_is_that_of_the_claim_for_the_worst_part(
    noise: str, rounds: int, parts: int, tmp_path: Path, own_ledger: Path
) -> None:
    """False alarm below 2e-9. sigma is taken from epsilon and delta here: mu^2 shared by the rounds of one part.

    Noise for one round more or less in a part would be off by more than a tenth, eleven deviations from the threshold.
    """
    mechanism = {"clip": 0.05, "noise": noise, "rounds": rounds, "parts": parts}
    model = {**WIDE, "loss": "cross-entropy"}
    plan = plan_of(make_config(tmp_path, "mlp", public=False, model=model, mechanism=mechanism))
    mu = gdp.mu(1.0, 1e-5 * (0.999 if noise == "discrete" else 1)) / (rounds // parts) ** 0.5
    grid = plan.state.grid
    assert grid.clip_integer / grid.sigma <= mu
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("somebody", 50.0, 0.5)
        standard = draws(plan, plan.state, ledger, 3, None) * grid.sigma * mu / grid.clip_integer
        assert min(p_values(standard)) > ALARM
        assert min(p_values(0.9 * standard)) < ALARM


# --- files that change, kills ----------------------------------------------------------------------------------


def stop_after_the_first_round(config: Config, out: Path, patch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    with patch.context() as inner:
        second = killing(sketch_stage.sketch_round, lambda *_, **__: next(calls) == 1, True)
        inner.setattr(sketch_stage, "sketch_round", second)
        with pytest.raises(Killed):
            fit(config, out)


def write_in_another_order(folder: Path) -> None:
    table = random_table("double", SIZES, seed=1)
    turned = np.roll(np.arange(len(table.u)), 1)
    Table(table.x[turned], table.y[turned], table.u[turned]).write(folder / "private.h5")


@pytest.mark.parametrize("cap", [None, 3.0])
def test_a_file_in_another_order_is_charged_to_everybody(
    cap: float | None, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By slot, a unit of the round before may be in the next round's part now: the rest of the run costs all of it."""
    config = parts_config(tmp_path, rounds=PARTS)
    stop_after_the_first_round(config, tmp_path / "out", monkeypatch)
    write_in_another_order(tmp_path)
    if cap is None:
        with pytest.raises(BudgetError):
            fit(config, tmp_path / "out", resume=True)
        assert [row.part for row in rows_of(own_ledger)] == [Part(0, PARTS)]
        return
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("somebody", cap, 1e-5)
    result = ran(config, tmp_path / "out", resume=True)
    assert [row.part for row in rows_of(own_ledger)] == [Part(0, PARTS), None, None]
    assert [entry["part"] for entry in result.certificate["rounds"]] == [0, None, None]
    assert result.certificate["mu"] == pytest.approx(result.plan.state.grid.mu * PARTS**0.5)


@pytest.mark.parametrize("adjacency", ["zero-out", "add-remove"])
def test_corrected_records_of_the_same_units_are_the_same_parts(
    adjacency: str, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parts_config(tmp_path, rounds=PARTS, adjacency=adjacency)
    stop_after_the_first_round(config, tmp_path / "out", monkeypatch)
    if adjacency == "add-remove":
        write_in_another_order(tmp_path)
    else:
        table = random_table("double", SIZES, seed=1)
        Table(table.x + 0.25, table.y, table.u).write(tmp_path / "private.h5")
    result = ran(config, tmp_path / "out", resume=True)
    assert balance(config, own_ledger, result.certificate)


KILLS: Sequence[tuple[Any, str, bool]] = [
    (sketch_stage, "sketch_round", False),
    (ReleaseRule, "draw", False),
    (Ledger, "commit", True),
    (Ledger, "commit", False),
    (fit_module, "make_release", False),
]


@pytest.mark.slow
@pytest.mark.parametrize("adjacency", ["zero-out", "add-remove"])
@pytest.mark.parametrize("at", range(len(KILLS)))
def test_a_run_killed_in_its_second_round_ends_with_the_same_bytes(
    at: int, adjacency: str, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parts_config(tmp_path, rounds=PARTS, adjacency=adjacency)
    ran(config, tmp_path / "whole", insecure_noise_seed=4)
    for name in (own_ledger.name, f"{own_ledger.name}.files"):
        own_ledger.with_name(name).rename(own_ledger.with_name(f"whole-{name}"))
    owner, name, before = KILLS[at]
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), lambda *_, **__: next(calls) == 1, before))
        with pytest.raises(Killed):
            fit(config, tmp_path / "killed", insecure_noise_seed=4)
    result = ran(config, tmp_path / "killed", insecure_noise_seed=4, resume=True)
    for file in ("model.safetensors", *(f"release-{r:03d}.h5" for r in range(PARTS))):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert balance(config, own_ledger, result.certificate, "insecure-seed-4")
    assert not noise_files(own_ledger)


# --- the rules -------------------------------------------------------------------------------------------------
