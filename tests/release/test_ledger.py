"""One charge, one draw, one release a round, wherever a run is killed: the release stage and its ledger."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting import compose, spent_epsilon
from kills import Killed, killing, leave_uncharged, noise_files, ran, rows_of, small_config
from numpy.typing import NDArray
from small_runs import make_config, plan_of, random_table

from distqexp import arrays
from distqexp.api import fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.config import Config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import BudgetError, FileContentError
from distqexp.mechanism import rule as mechanism_release
from distqexp.mechanism.noise import draw_discrete
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Cap, Ledger, LedgerRow
from distqexp.privacy.ledger.chain import Chain
from distqexp.privacy.ledger.files import LedgerFiles
from distqexp.privacy.ledger.head import HeadFile
from distqexp.stages import rounds as fit_module
from distqexp.stages import sketch as sketch_stage
from distqexp.stages.charging import Charging, check_budget
from distqexp.stages.pool import pool_files
from distqexp.stages.release import Draw, draw_release, make_release

Integers = NDArray[np.int64]


def quadratic(plan: Plan, sums: Integers, state: RoundState | None = None) -> Quadratic:
    state = state or plan.state
    return Quadratic(plan_id=plan.plan_id, round=state.round, state=state.identity(), sums=sums)


def some_sums(plan: Plan, seed: int = 0) -> Integers:
    return np.random.default_rng(seed).integers(-(10**6), 10**6, plan.k)


# --- kills inside one release ----------------------------------------------------------------------------------


def on_action(name: str) -> Callable[..., bool]:
    return lambda chain, body, entries, *tag: body["action"] == name


def on_head(name: str) -> Callable[..., bool]:
    return lambda file, head: head.entry is not None and head.entry.body["action"] == name


def on_file(purpose: str) -> Callable[..., bool]:
    return lambda files, found, *rest: found == purpose


def always(*arguments: Any, **keywords: Any) -> bool:
    return True


KILLS: dict[str, tuple[Any, str, Callable[..., bool], bool, bool]] = {
    "before the reservation": (Chain, "append", on_action("reserve"), True, False),
    "before the head of the reservation": (HeadFile, "write", on_head("reserve"), True, False),
    "after the head of the reservation, before its entry": (HeadFile, "write", on_head("reserve"), False, False),
    "before the draw": (ReleaseRule, "draw", always, True, False),
    "after the draw, before it is stored": (Ledger, "persist_noise", always, True, False),
    "before the noise file": (LedgerFiles, "write", on_file("noise"), True, False),
    "after the noise file, before its entry": (Chain, "append", on_action("draw"), True, True),
    "after the head of the draw, before its entry": (HeadFile, "write", on_head("draw"), False, True),
    "between persist and commit": (Ledger, "commit", always, True, True),
    "before the stored release": (LedgerFiles, "write", on_file("released"), True, True),
    "after the stored release, before its entry": (Chain, "append", on_action("commit"), True, True),
    "after the head of the commit, before its entry": (HeadFile, "write", on_head("commit"), False, True),
    "before the noise is erased": (LedgerFiles, "erase", on_file("noise"), True, True),
    "after the commit": (Ledger, "commit", always, False, True),
}
"""Where: what is patched, when, before or after its work, and whether a draw is stored by then."""


@pytest.mark.parametrize("where", KILLS)
@pytest.mark.parametrize(("seed", "block"), [(None, arrays.BLOCK), (3, arrays.BLOCK), (None, 16)])
def test_a_kill_anywhere_costs_one_charge_and_uses_the_stored_draw(
    where: str, seed: int | None, block: int, plan: Plan, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draw is the noise or, by blocks of 16 coordinates, its source."""
    monkeypatch.setattr(arrays, "BLOCK", block)
    owner, name, when, before, stored = KILLS[where]
    sums = some_sums(plan)
    draws: list[Integers] = []
    real = ReleaseRule.draw

    def spying(*arguments: Any) -> Any:
        draws.append(real(*arguments))
        return draws[-1].copy()

    monkeypatch.setattr(ReleaseRule, "draw", spying)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), when, before))
        with pytest.raises(Killed):
            draw_release(plan, plan.state, quadratic(plan, sums), Charging(Ledger.open(own_ledger), seed))
    on_disk = [np.load(path) for path in noise_files(own_ledger)] if where == "between persist and commit" else []
    with Ledger.open(own_ledger) as ledger:
        noisy = draw_release(plan, plan.state, quadratic(plan, sums), Charging(ledger, seed))
        again = draw_release(plan, plan.state, quadratic(plan, sums), Charging(ledger, seed))
        rows = ledger.rows()
        ledger.verify()
    assert noisy.tobytes() == again.tobytes()
    assert [(row.state, row.event) for row in rows] == [("committed", plan.event(plan.state.grid))]
    assert noisy.tobytes() == plan.rule(plan.state).noisy_sums(sums, draws[-1]).tobytes()
    assert (noisy != sums).all()
    assert draws[-1].dtype == (np.int64 if block > plan.k else np.uint8)
    if stored:
        assert len(draws) == 1  # no second draw
    assert all(found.tobytes() == draws[0].tobytes() for found in on_disk)
    assert not noise_files(own_ledger)
    first = make_release(plan, plan.state, Draw(noisy, seed), None, SerialEngine())
    assert (
        first.theta.tobytes() == make_release(plan, plan.state, Draw(again, seed), None, SerialEngine()).theta.tobytes()
    )


def test_a_rerun_of_a_committed_release_adds_no_line_to_the_ledger(plan: Plan, own_ledger: Path) -> None:
    sums = some_sums(plan)
    with Ledger.open(own_ledger) as ledger:
        noisy = draw_release(plan, plan.state, quadratic(plan, sums), Charging(ledger))
        chain = ledger.export()
        for _ in range(2):
            assert draw_release(plan, plan.state, quadratic(plan, sums), Charging(ledger)).tobytes() == noisy.tobytes()
        check_budget(plan, Charging(ledger), "release")  # a finished round costs nothing again
        assert ledger.export() == chain


def test_changed_sums_are_charged_anew_with_fresh_noise_or_refused(plan: Plan, own_ledger: Path) -> None:
    """Fresh noise repeats none of k = 83 draws at sigma > 2^15: false alarm below 83 / 2^15 for one, 1e-20 for six."""
    sums, changed = some_sums(plan), some_sums(plan)
    changed[3] += 1
    assert plan.state.grid.sigma > 2**15
    with Ledger.open(own_ledger) as ledger:
        noisy = draw_release(plan, plan.state, quadratic(plan, sums), Charging(ledger))
        with pytest.raises(BudgetError, match="budget spent: 1 releases on record and 1 more"):
            draw_release(plan, plan.state, quadratic(plan, changed), Charging(ledger))
        assert [row.state for row in ledger.rows()] == ["committed"]
        ledger.set_cap("somebody", 3.0, 1e-4)
        other = draw_release(plan, plan.state, quadratic(plan, changed), Charging(ledger))
        assert [row.state for row in ledger.rows()] == ["committed", "committed"]
        assert np.count_nonzero((other - changed) == (noisy - sums)) < 6
        assert ledger.spent("somebody").mu == pytest.approx(plan.state.grid.mu * 2**0.5, rel=1e-12)
        # The old release is still there under its own sums.
        assert draw_release(plan, plan.state, quadratic(plan, sums), Charging(ledger)).tobytes() == noisy.tobytes()


def test_equal_sums_at_another_state_are_another_release(plan: Plan, own_ledger: Path) -> None:
    """A round repeated on other public values is charged, even when no unit is present and all sums are zero:
    else the number of charges, and one draw used twice, would tell whether anybody is there."""
    nobody = np.zeros(plan.k, dtype=np.int64)
    elsewhere = replace(plan.state, theta=plan.state.theta + 0.25)
    with Ledger.open(own_ledger) as ledger:
        noisy = draw_release(plan, plan.state, quadratic(plan, nobody), Charging(ledger))
        with pytest.raises(BudgetError):
            draw_release(plan, elsewhere, quadratic(plan, nobody, elsewhere), Charging(ledger))
        ledger.set_cap("somebody", 3.0, 1e-4)
        other = draw_release(plan, elsewhere, quadratic(plan, nobody, elsewhere), Charging(ledger))
        assert len(ledger.rows()) == 2
        assert not np.array_equal(noisy, other)


def test_test_runs_and_real_runs_have_books_of_their_own(plan: Plan, own_ledger: Path) -> None:
    with Ledger.open(own_ledger) as ledger:
        for seed in (None, 1, 2):
            draw_release(plan, plan.state, quadratic(plan, some_sums(plan)), Charging(ledger, seed))
        universes = [(row.universe, row.private) for row in ledger.rows()]
    assert universes == [("private", True), ("insecure-seed-1", False), ("insecure-seed-2", False)]


def test_a_quadratic_of_another_round_or_state_is_refused_and_costs_nothing(plan: Plan, own_ledger: Path) -> None:
    sums = some_sums(plan)
    later = replace(plan.state, round=1)
    elsewhere = replace(plan.state, theta=plan.state.theta + 1)
    with Ledger.open(own_ledger) as ledger:
        for state in (later, elsewhere):
            with pytest.raises(FileContentError, match="quadratic: "):
                draw_release(plan, plan.state, quadratic(plan, sums, state), Charging(ledger))
        assert ledger.rows() == []


def test_noise_of_the_right_sampler_is_drawn(plan: Plan, own_ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unseeded discrete runs call the exact sampler with the grid's own sigma, once a round."""
    calls: list[tuple[int, int]] = []

    def spying(k: int, sigma: int) -> Integers:
        calls.append((k, sigma))
        return draw_discrete(k, sigma)

    monkeypatch.setattr(mechanism_release, "draw_discrete", spying)
    with Ledger.open(own_ledger) as ledger:
        draw_release(plan, plan.state, quadratic(plan, some_sums(plan)), Charging(ledger))
    assert calls == [(plan.k, plan.state.grid.sigma)]


# --- wrapping --------------------------------------------------------------------------------------------------


def test_sums_and_noise_wrap_modulo_two_to_the_64(tmp_path: Path, own_ledger: Path) -> None:
    """Under add-remove nothing is refused or capped on the data: int64 is arithmetic modulo 2^64 throughout."""
    table = random_table("mlp", [1] * 5, seed=1)
    for name in ("a", "b", "public"):
        table.write(tmp_path / f"{name}.h5")
    source = {"format": "hdf5", "columns": {"features": ["x"], "target": "y"}, "unit": "u"}
    config = make_config(
        tmp_path,
        "mlp",
        privacy={"adjacency": "add-remove"},
        data={
            "population": "somebody",
            "private": [{**source, "path": str(tmp_path / f"{name}.h5"), "shard": name} for name in "ab"],
        },
    )
    plan = plan_of(config)
    parts = [np.full(plan.k, 2**63 - 5, dtype=np.int64), np.arange(plan.k, dtype=np.int64) - 3]
    paths = []
    for name, sums in zip("ab", parts, strict=True):
        paths.append(tmp_path / f"{name}-sketch.h5")
        Sketch(
            plan_id=plan.plan_id, round=0, state=plan.state.identity(), shard=name, sums=sums,
            done=np.ones(1, dtype=np.bool_), fingerprint="0",
        ).write(paths[-1])  # fmt: skip
    pooled = pool_files(plan, paths)

    def modulo(value: int) -> int:
        return (value + 2**63) % 2**64 - 2**63

    exact = [int(a) + int(b) for a, b in zip(*parts, strict=True)]
    assert max(exact) > 2**63
    assert pooled.sums.tolist() == [modulo(value) for value in exact]
    with Ledger.open(own_ledger) as ledger, warnings.catch_warnings():
        warnings.simplefilter("error")
        noisy = draw_release(plan, plan.state, pooled, Charging(ledger, 8))
        release = make_release(plan, plan.state, Draw(noisy, 8), None, SerialEngine())
    noise = plan.rule(plan.state).draw(some_sums(plan), 8, 0)
    assert noisy.tolist() == [modulo(value + int(x)) for value, x in zip(exact, noise, strict=True)]
    assert noisy.min() < -(2**62) < 2**62 < noisy.max()  # on both sides of the seam
    assert np.isfinite(release.theta).all()


# --- the books of whole runs -----------------------------------------------------------------------------------


def books_balance(rows: Sequence[LedgerRow], certificate: dict[str, Any], config: Config) -> bool:
    """Whether the ledger charged every round that the certificate speaks of, once, and nothing is understated."""
    epsilon, delta, rounds = config.privacy.epsilon, config.privacy.delta, config.mechanism.rounds
    events = [row.event for row in rows]
    return bool(
        len(rows) == len({row.key for row in rows}) == rounds == len(certificate["rounds"])
        and [row.event.mu for row in rows] == [entry["mu"] for entry in certificate["rounds"]]
        and all(row.state == "committed" for row in rows)
        and compose(events).mu == certificate["mu"]
        and spent_epsilon(events, delta) == certificate["epsilon"] <= epsilon
        and certificate["ledger"] == {"entry": rows[-1].id, "hash": rows[-1].hash}
    )


@pytest.mark.parametrize(
    ("rounds", "noise", "adjacency"),
    [(1, "discrete", "add-remove"), (3, "discrete", "replace-one"), (2, "gaussian", "zero-out")],
)
def test_a_run_charges_every_round_once(
    rounds: int, noise: str, adjacency: str, tmp_path: Path, own_ledger: Path
) -> None:
    config = small_config(
        tmp_path,
        privacy={"adjacency": adjacency},
        mechanism={"rounds": rounds, "noise": noise, "clip": None, "clip_quantile": 0.5, "step": 1e-3},
        precision={"kind": "diagonal"},
    )
    result = ran(config, tmp_path / "out")
    assert books_balance(rows_of(own_ledger), result.certificate, config)
    assert not noise_files(own_ledger)
    with pytest.raises(BudgetError):
        fit(replace(config, subspace=replace(config.subspace, seed=5)), tmp_path / "other")
    assert len(rows_of(own_ledger)) == rounds


@pytest.mark.parametrize("forgotten", [0, 1, 2])
def test_a_round_that_is_not_charged_would_be_caught(
    forgotten: int, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, mechanism={"rounds": 3, "clip": 0.05})
    leave_uncharged(forgotten, monkeypatch)
    if forgotten == 2:  # the export itself misses the last one
        with pytest.raises(FileContentError, match="no charge for round 2"):
            fit(config, tmp_path / "out")
    else:
        result = ran(config, tmp_path / "out")
        assert not books_balance(rows_of(own_ledger), result.certificate, config)


KILLS_IN_A_RUN = [
    (sketch_stage, "sketch_round", False),
    (fit_module, "draw_release", True),
    (ReleaseRule, "draw", False),
    (Ledger, "commit", True),
    (Ledger, "commit", False),
    (fit_module, "draw_release", False),
    (fit_module, "make_release", False),
]


@pytest.mark.slow
@pytest.mark.parametrize("at", range(len(KILLS_IN_A_RUN)))
def test_a_seeded_run_killed_in_its_second_round_ends_with_the_same_bytes(
    at: int, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, mechanism={"rounds": 3, "clip": 0.05}, precision={"kind": "diagonal"})
    ran(config, tmp_path / "whole", insecure_noise_seed=4)
    own_ledger.rename(own_ledger.with_name("whole.sqlite"))
    own_ledger.with_name(own_ledger.name + ".files").rename(own_ledger.with_name("whole.sqlite.files"))
    owner, name, before = KILLS_IN_A_RUN[at]
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), lambda *_, **__: next(calls) == 1, before))
        with pytest.raises(Killed):
            fit(config, tmp_path / "killed", insecure_noise_seed=4)
    result = ran(config, tmp_path / "killed", insecure_noise_seed=4, resume=True)
    for file in ("model.safetensors", "release-000.h5", "release-001.h5", "release-002.h5"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    rows = rows_of(own_ledger, "insecure-seed-4")
    assert books_balance(rows, result.certificate, config)


def test_an_unseeded_run_killed_between_persist_and_commit_goes_on_with_its_draw(
    tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, mechanism={"rounds": 3, "clip": 0.05})
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", killing(Ledger.commit, lambda *_, **__: next(calls) == 1, before=True))
        with pytest.raises(Killed):
            fit(config, tmp_path / "out")
    (noise_file,) = noise_files(own_ledger)
    noise = np.load(noise_file)
    assert noise_file.stat().st_mode & 0o777 == 0o600
    made = Plan.read(tmp_path / "out" / "plan.h5")
    pooled = Quadratic.read(tmp_path / "out" / "quadratic-001.h5", made)
    result = ran(config, tmp_path / "out", resume=True)
    assert np.array_equal(result.releases[1].noisy_sums, pooled.sums + noise)
    assert books_balance(rows_of(own_ledger), result.certificate, config)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["discrete", "gaussian"])
@pytest.mark.parametrize("rounds", [1, 2, 7, 50])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-8), (1.0, 1e-5), (8.0, 1e-3)])
def test_no_budget_is_overspent_by_its_own_rounds(
    noise: str, rounds: int, epsilon: float, delta: float, plan: Plan, tmp_path: Path
) -> None:
    """All rounds of a plan fit the config's own cap, one more doesn't, and the books' epsilon is within the target."""
    config = small_config(
        tmp_path,
        privacy={"epsilon": epsilon, "delta": delta},
        mechanism={"rounds": rounds, "noise": noise, "clip": 0.05},
        subspace={"kind": "sjlt", "k": 5},
    )
    made = plan_of(config)
    event = made.event(made.state.grid)
    with Ledger.open(tmp_path / "books.sqlite") as ledger:
        for i in range(rounds):
            ledger.reserve(
                Charge(f"{i}", "zero-out", event),
                population="somebody",
                cap=Cap(epsilon, delta),
                sums=np.zeros(5, dtype=np.int64),
            )
        spent = ledger.spent("somebody").epsilon(delta)
        assert 0.98 * epsilon < spent <= epsilon
        with pytest.raises(BudgetError):
            ledger.check(population="somebody", cap=Cap(epsilon, delta), charges=[Charge("", "zero-out", event)])
