"""What the ledger charges, refuses, keeps and erases."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting import compose
from ledger_child import CAP, EVENT, NOISE, SMALL, SUMS, reserve
from run_harness import Commands

from distqexp.errors import BudgetError, StorageError, UsageError
from distqexp.privacy.calibration import calibrate
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.ledger import files as ledger_files


def edit(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


# --- one charge, one draw --------------------------------------------------------------------------------------


def test_a_restart_finds_the_same_reservation_and_noise(path: Path) -> None:
    with Ledger.open(path) as ledger:
        first = reserve(ledger)
        assert (first.id, first.state) == (1, "reserved")
    with Ledger.open(path) as ledger:
        assert reserve(ledger) == first
        ledger.persist_noise(first, NOISE)
    with Ledger.open(path) as ledger:
        again = reserve(ledger)
        assert (again.id, again.state, again.hash) == (1, "drawn", first.hash)
        assert ledger.noise(again).dtype == np.int64
        assert ledger.noise(again).tolist() == NOISE.tolist()
        assert len(ledger.rows()) == 1


def test_a_committed_rerun_returns_the_release_and_spends_nothing(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger)
        ledger.persist_noise(reservation, NOISE)
        ledger.commit(reservation, SUMS + NOISE)
        assert not list(path.with_name("ledger.sqlite.files").glob("noise-*"))
    with Ledger.open(path) as ledger:
        again = reserve(ledger)
        assert (again.id, again.state) == (1, "committed")
        released = ledger.noisy_sums(again)
        assert released is not None
        assert released.tolist() == (SUMS + NOISE).tolist()
        ledger.commit(again, SUMS + NOISE)
        assert len(ledger.export()) == 3
        with pytest.raises(UsageError, match="another release"):
            ledger.commit(again, SUMS)
        with pytest.raises(UsageError, match="committed, expected drawn"):
            ledger.noise(again)


def test_noise_left_by_a_kill_after_the_commit_is_erased_at_the_next_opening(path: Path) -> None:
    noise = path.with_name("ledger.sqlite.files") / "noise-1.npy"
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger)
        ledger.persist_noise(reservation, NOISE)
        kept = noise.read_bytes()
        ledger.commit(reservation, SUMS + NOISE)
    noise.write_bytes(kept)
    with Ledger.open(path):
        assert not noise.exists()


def test_continuous_noise_is_stored_on_the_grid_and_releases_without_an_array(ledger: Ledger) -> None:
    continuous = GaussianRelease(mu=0.1, coordinates=5, sigma=None)
    reservation = reserve(ledger, event=continuous)
    for unrounded in (NOISE / 3, NOISE.astype(np.float64), NOISE.astype(np.int32)):
        with pytest.raises(ValueError, match="the charge is for int64"):
            ledger.persist_noise(reservation, unrounded)
    ledger.persist_noise(reservation, NOISE)
    assert ledger.noise(reservation).tobytes() == NOISE.tobytes()
    ledger.commit(reservation, None)
    assert reserve(ledger, event=continuous).state == "committed"
    assert ledger.noisy_sums(reservation) is None
    ledger.verify()


def test_changed_sums_are_charged_anew_and_never_meet_old_noise(ledger: Ledger) -> None:
    first = reserve(ledger, event=SMALL)
    ledger.persist_noise(first, NOISE)
    second = reserve(ledger, event=SMALL, sums=SUMS + np.array([0, 0, 0, 0, 1]))
    assert (second.id, second.state) == (3, "reserved")
    assert len(ledger.rows()) == 2
    with pytest.raises(UsageError, match="reserved, expected drawn"):
        ledger.noise(second)
    assert reserve(ledger, event=SMALL).id == first.id


@pytest.mark.parametrize(
    "change",
    [{"key": "plan/1"}, {"population": "other"}, {"event": replace(EVENT, mu=0.02)}, {"universe": "insecure-seed-1"}],
)
def test_any_other_release_is_another_charge(ledger: Ledger, change: dict[str, Any]) -> None:
    reserve(ledger, event=SMALL)
    assert reserve(ledger, **({"event": SMALL} | change)).id == 2


def test_only_the_first_draw_of_a_reservation_counts(path: Path) -> None:
    with Ledger.open(path) as one, Ledger.open(path) as two:
        first, second = reserve(one), reserve(two)
        assert first == second
        one.persist_noise(first, NOISE)
        with pytest.raises(UsageError, match="another process drew"):
            two.persist_noise(second, NOISE + 1)
        assert two.noise(second).tolist() == NOISE.tolist()


def test_noise_must_be_stored_before_a_release_and_fit_its_charge(ledger: Ledger) -> None:
    reservation = reserve(ledger)
    with pytest.raises(UsageError, match="store the noise before it is used"):
        ledger.commit(reservation, SUMS)
    with pytest.raises(ValueError, match="shape"):
        ledger.persist_noise(reservation, NOISE[:3])
    with pytest.raises(ValueError, match="int64"):
        reserve(ledger, sums=SUMS.astype(float))
    with pytest.raises(ValueError, match="adjacency"):
        reserve(ledger, adjacency="twice")
    with pytest.raises(UsageError, match="not a reservation of this ledger"):
        ledger.noise(replace(reservation, hash="0" * 64))


# --- budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["discrete", "gaussian"])
@pytest.mark.parametrize("rounds", [1, 3, 20])
def test_a_calibrated_run_fits_its_own_budget_exactly(ledger: Ledger, noise: str, rounds: int) -> None:
    cap = Cap(epsilon=1.0, delta=1e-5)
    plan = calibrate(epsilon=1.0, delta=1e-5, rounds=rounds, k=5, noise=noise)
    event = GaussianRelease(plan.mu_round, 5, float(plan.sigma_minimum) if noise == "discrete" else None)
    ledger.check(population="ward", cap=cap, charges=[Charge("", "zero-out", event)] * rounds)
    for round in range(rounds):
        reserve(ledger, key=f"plan/{round}", event=event, cap=cap)
    with pytest.raises(BudgetError) as caught:
        reserve(ledger, key="plan/more", event=event, cap=cap)
    assert caught.value.exit_code == 4
    assert f"{rounds} releases on record and 1 more" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(ledger.rows()) == rounds
    assert ledger.spent("ward").delta(1.0) <= 1e-5


def test_the_check_counts_what_is_to_come_and_charges_nothing(ledger: Ledger) -> None:
    plan = calibrate(epsilon=1.0, delta=1e-5, rounds=2, k=5, noise="gaussian")
    event = GaussianRelease(plan.mu_round, 5)
    arguments: dict[str, Any] = {"population": "ward", "cap": CAP}
    charge = Charge("", "zero-out", event)
    ledger.check(**arguments, charges=[charge] * 2)
    with pytest.raises(BudgetError):
        ledger.check(**arguments, charges=[charge] * 3)
    reserve(ledger, key="plan/0", event=event)
    with pytest.raises(BudgetError):
        ledger.check(**arguments, charges=[charge] * 2)
    ledger.check(**arguments, charges=[charge])
    ledger.check(**arguments, charges=[])
    assert len(ledger.rows()) == 1


def test_a_cap_that_is_set_cannot_be_raised_by_a_config(ledger: Ledger) -> None:
    ledger.set_cap("ward", epsilon=0.1, delta=1e-6)
    generous = Cap(epsilon=10.0, delta=1e-3)
    with pytest.raises(BudgetError, match="set in the ledger"):
        reserve(ledger, cap=generous)
    assert ledger.rows() == []
    assert ledger.cap("ward") == Cap(0.1, 1e-6)
    assert ledger.cap("other") is None
    reserve(ledger, population="other", cap=generous)
    ledger.set_cap("ward", epsilon=10.0, delta=1e-3)
    assert reserve(ledger, cap=Cap(0.01, 1e-9)).state == "reserved"


def test_with_no_cap_set_the_config_is_the_cap(ledger: Ledger) -> None:
    with pytest.raises(BudgetError, match="the config's own budget"):
        reserve(ledger, cap=Cap(0.1, 1e-6))
    reserve(ledger, cap=Cap(1.0, 1e-5))


def test_test_runs_have_books_of_their_own(ledger: Ledger) -> None:
    plan = calibrate(epsilon=1.0, delta=1e-5, rounds=1, k=5, noise="gaussian")
    event = GaussianRelease(plan.mu_round, 5)
    for universe in ("insecure-seed-1", "private", "insecure-seed-2"):
        reserve(ledger, event=event, universe=universe)
        with pytest.raises(BudgetError):
            reserve(ledger, event=event, universe=universe, key="more")
    assert [row.private for row in ledger.rows("ward")] == [False, True, False]
    assert [entry["body"]["private"] for entry in ledger.export()] == [False, True, False]
    assert ledger.spent("ward") == compose([event])


def test_mixed_adjacencies_are_composed_under_the_strictest(ledger: Ledger) -> None:
    reserve(ledger, event=SMALL)
    assert ledger.spent("ward") == compose([SMALL])
    reserve(ledger, key="b", event=SMALL, adjacency="replace-one")
    assert ledger.spent("ward") == compose([replace(SMALL, mu=0.02), SMALL])


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (math.inf, 1e-5), (1, -1e-9), (1, 1)]
)
def test_caps_that_make_no_sense(ledger: Ledger, epsilon: float, delta: float) -> None:
    with pytest.raises(UsageError, match="cap: "):
        ledger.set_cap("ward", epsilon, delta)


# --- where it lives --------------------------------------------------------------------------------------------------


def test_default_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "named.sqlite"))
    assert ledger_files.default_path() == tmp_path / "named.sqlite"
    monkeypatch.delenv("DISTQEXP_LEDGER")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with Ledger.open() as ledger:
        assert ledger.path == tmp_path / "state" / "distqexp" / "ledger.sqlite"
        assert ledger.path.exists()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_files.default_path() == tmp_path / ".local" / "state" / "distqexp" / "ledger.sqlite"


def test_a_mistyped_path_is_no_new_budget(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty ledger is announced until it is used, and a folder is none."""
    cap = ("ledger", "cap", "ward", "--epsilon", "3", "--delta", "1e-5")
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path))
    run.distqexp(*cap).refused(2, "is a folder", f"DISTQEXP_LEDGER={tmp_path}/ledger.sqlite")
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "ledger.sqlite"))
    new = f"new ledger at {tmp_path / 'ledger.sqlite'}: nothing is on record there for anybody"
    for _ in range(2):
        with Ledger.open() as ledger:
            assert ledger.new_line() == new
    run.done(*cap)
    with Ledger.open() as ledger:
        assert ledger.new_line() is None


def test_looking_at_a_ledger_makes_none(path: Path) -> None:
    with pytest.raises(UsageError, match="no ledger there"):
        Ledger.open(path, create=False)
    assert list(path.parent.iterdir()) == []


def test_a_path_under_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be a folder"):
        Ledger.open(tmp_path / "file" / "ledger.sqlite")


def test_file_systems_without_locks_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_files.fcntl, "fcntl", lambda *_: b"")
        with pytest.raises(StorageError, match="two locks on one file were granted"):
            Ledger.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(ledger_files.fcntl, "lockf", refuse)
        with pytest.raises(StorageError, match=r"file locks don't work there .No locks available"):
            Ledger.open(path)
    assert not path.exists()


def test_a_ledger_held_by_another_is_a_storage_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqexp.privacy.ledger.chain.BUSY_SECONDS", 0.05)
    with Ledger.open(path) as ledger:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StorageError, match="another process held the ledger"):
                reserve(ledger)
        finally:
            blocker.close()
        assert reserve(ledger).id == 1
