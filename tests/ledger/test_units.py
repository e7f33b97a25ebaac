"""The ledger knows whom a charge protects: patients and single rows don't share a budget by chance.

Histories of plans for patients and for single rows, with parts, rounds, roles and kinds of noise drawn at random: what the
ledger says is at least what the worst patient pays, counted record by record.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounting import compose
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_child import EVENT, reserve

from distqexp.errors import BudgetError, UsageError
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease, cost, of_group
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.units import RECORD, UnitDeclaration

SMALL = replace(EVENT, mu=0.01)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def spend(ledger: Ledger, key: str, unit: str | None, **changes: Any) -> Any:
    return reserve(ledger, key=f"release/{key}/0/s", unit=unit, **({"event": SMALL} | changes))


# --- what composes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["pid", RECORD, "stay", None])
@pytest.mark.parametrize("second", ["pid", RECORD, "stay", None])
def test_only_one_kind_of_unit_shares_a_budget(ledger: Ledger, first: str | None, second: str | None) -> None:
    spend(ledger, "a", first)
    charge = Charge("release/b/0", "zero-out", SMALL, unit=second)
    if first == second:
        ledger.check(population="ward", cap=Cap(1.0, 1e-5), charges=[charge])
        spend(ledger, "b", second)
        assert [row.unit for row in ledger.rows()] == [first, second]
        return
    for act in (
        lambda: ledger.check(population="ward", cap=Cap(1.0, 1e-5), charges=[charge]),
        lambda: spend(ledger, "b", second),
    ):
        with pytest.raises(BudgetError, match="different units") as caught:
            act()
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        assert ("distqexp ledger cap ward" in str(caught.value)) == (
            None in (first, second) or RECORD in (first, second)
        )
    assert len(ledger.rows()) == 1
    # Other patients, and test runs, have books of their own.
    spend(ledger, "b", second, population="elsewhere")
    spend(ledger, "b", second, universe="insecure-seed-1")


def test_records_count_as_groups_once_the_cap_says_so(ledger: Ledger) -> None:
    ledger.set_cap("ward", 50.0, 1e-5, unit="pid", records_per_unit=50)
    spend(ledger, "a", "pid")
    spend(ledger, "b", RECORD)
    assert ledger.spent("ward") == compose([SMALL, *of_group([SMALL], 50)])
    assert ledger.spent("ward").mu == pytest.approx(0.01 * math.sqrt(1 + 50**2))
    with pytest.raises(BudgetError, match=r"'stay', while the cap is one for each 'pid'"):
        spend(ledger, "c", "stay")
    # A cap that names no unit leaves them as they are declared.
    ledger.set_cap("ward", 2.5, 1e-5)
    assert ledger.cap("ward") == Cap(2.5, 1e-5, UnitDeclaration("pid", 50))
    with pytest.raises(BudgetError, match="budget spent: 2 releases on record and 1 more"):
        spend(ledger, "c", RECORD)
    spend(ledger, "c", "pid")


def test_a_cap_for_each_unit_without_records_refuses_single_records(ledger: Ledger) -> None:
    ledger.set_cap("ward", 1.0, 1e-5, unit="pid")
    spend(ledger, "a", "pid")
    with pytest.raises(BudgetError, match=r"'record', while the cap is one for each 'pid'.*--records-per-unit N"):
        spend(ledger, "b", RECORD)


def test_rows_of_an_older_version_count_on_the_safe_side(ledger: Ledger) -> None:
    """A record that changes may change one old unit into another: two of them, for each of the patient's records."""
    spend(ledger, "old", None)
    assert "unit" not in ledger.export()[0]["body"]
    with pytest.raises(UsageError, match="an unknown unit, while the cap is one for each 'pid'"):
        ledger.set_cap("ward", 1.0, 1e-5, unit="pid")
    ledger.set_cap("ward", 5.0, 1e-5, unit="pid", records_per_unit=7)
    assert ledger.spent("ward") == compose(of_group([SMALL], 14))
    spend(ledger, "new", "pid")
    assert ledger.spent("ward") == compose([SMALL, *of_group([SMALL], 14)])


def test_a_cap_for_single_records(ledger: Ledger) -> None:
    spend(ledger, "old", None)
    ledger.set_cap("ward", 1.0, 1e-5, unit=RECORD)
    spend(ledger, "a", RECORD)
    assert ledger.spent("ward") == compose([SMALL, *of_group([SMALL], 2)])
    with pytest.raises(BudgetError, match="'pid', while the cap is one for each 'record'"):
        spend(ledger, "b", "pid")


# --- what can be declared ------------------------------------------------------------------------------------------


def test_a_cap_that_the_charges_on_record_do_not_fit_is_refused(ledger: Ledger) -> None:
    spend(ledger, "a", "stay")
    with pytest.raises(UsageError, match="the ledger has releases that protect 'stay'"):
        ledger.set_cap("ward", 1.0, 1e-5, unit="pid", records_per_unit=50)
    assert ledger.cap("ward") is None
    ledger.set_cap("ward", 1.0, 1e-5, unit="stay")


def test_what_was_counted_for_large_groups_is_never_counted_for_smaller_ones(ledger: Ledger) -> None:
    ledger.set_cap("ward", 9.0, 1e-5, unit="pid", records_per_unit=500)
    ledger.set_cap("ward", 9.0, 1e-5, unit="pid", records_per_unit=50)  # nothing was charged: a slip of the pen
    spend(ledger, "a", RECORD)
    before = ledger.spent("ward")
    for unit, records in (("pid", 49), ("pid", 1), ("patient", 10), (RECORD, None)):
        with pytest.raises(UsageError, match="expected 50 or more"):
            ledger.set_cap("ward", 9.0, 1e-5, unit=unit, records_per_unit=records)
    assert ledger.spent("ward") == before
    ledger.set_cap("ward", 9.0, 1e-5, unit="pid", records_per_unit=60)
    assert ledger.spent("ward").mu == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("unit", "records"), [(None, 5), ("", None), ("  ", 3), (RECORD, 2), ("pid", 0), ("pid", -1), ("pid", 10**10)]
)
def test_declarations_that_make_no_sense(ledger: Ledger, unit: str | None, records: int | None) -> None:
    with pytest.raises(UsageError, match="cap: "):
        ledger.set_cap("ward", 1.0, 1e-5, unit, records)
    assert ledger.export() == []


def test_a_restart_finds_its_charge_and_another_unit_is_another_charge(ledger: Ledger) -> None:
    ledger.set_cap("ward", 9.0, 1e-5, unit="pid", records_per_unit=3)
    first = spend(ledger, "a", "pid")
    assert spend(ledger, "a", "pid") == first
    assert spend(ledger, "a", RECORD) != first


# --- what a patient pays -------------------------------------------------------------------------------------------


def releases(number: random.Random, rounds: int) -> list[Event]:
    """One event a round: Gaussian with discrete noise, or on a ball."""
    mu = number.uniform(0.01, 0.4)
    if number.random() < 0.5:
        sigma = 10 ** number.uniform(0.6, 3)
        return [GaussianRelease(mu, number.randint(1, 50), sigma) for _ in range(rounds)]
    return [BoundedRelease(mu, number.uniform(0.01, 0.5), 3) for _ in range(rounds)]


def paid(event: Event, members: int) -> list[Event]:
    return of_group([event], members) if members else []


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), most=st.integers(1, 6))
def test_the_ledger_says_at_least_what_the_worst_patient_pays(seed: int, most: int) -> None:
    """Patients of up to ``most`` rows; each row has a part of its own in a plan for single rows. Every patient is counted."""
    number = random.Random(seed)
    records = [number.randint(1, most) for _ in range(6)]
    records[0] = most
    charges: list[Charge] = []
    owed: list[list[Event]] = [[] for _ in records]
    for plan in range(number.randint(1, 4)):
        single, parts, passes = number.random() < 0.6, number.choice([1, 2, 3]), number.randint(1, 2)
        events = releases(number, parts * passes)
        homes = [[number.randrange(parts) for _ in range(rows if single else 1)] for rows in records]
        if number.random() < 0.5:  # the worst case: all rows of a patient in one part
            homes[0] = [number.randrange(parts)] * len(homes[0])
        for round, event in enumerate(events):
            part = Part(round % parts, parts) if parts > 1 else None
            for role in ("release", "site-north")[: number.randint(1, 2)]:
                key = f"{role}/plan{plan}/{round}/s"
                charges.append(Charge(key, "zero-out", event, part, RECORD if single else "pid"))
            for patient, places in enumerate(homes):
                owed[patient] += paid(event, places.count(round % parts))
    said = expenses(charges, UnitDeclaration("pid", most)).guarantee()
    for events in owed:
        truth = compose(events)
        assert truth.mu <= said.mu * (1 + 1e-12)
        assert truth.rho <= said.rho * (1 + 1e-12)
        assert truth.total_variation <= said.total_variation * (1 + 1e-12)
        assert truth.pure <= said.pure * (1 + 1e-12) or not events
        for epsilon in (0.1, 1.0, 4.0):
            assert truth.delta(epsilon) <= said.delta(epsilon) * (1 + 1e-9)


def test_the_slack_of_a_group_is_that_of_every_part_with_a_member() -> None:
    """Two rows in two parts: each round's discrete noise differs from the rounded noise once for the patient."""
    event = GaussianRelease(0.1, 10, 4.0)
    charges = [Charge(f"release/p/{r}/s", "zero-out", event, Part(r, 2), RECORD) for r in range(2)]
    alone, group = expenses(charges), expenses(charges, UnitDeclaration("pid", 2))
    assert group.divergence == pytest.approx(2 * alone.divergence) == pytest.approx(cost([event, event]).divergence)
    assert group.square == pytest.approx(4 * alone.square)  # both rows in one part, not 2 * alone.square


def test_a_group_of_discrete_noise_is_a_shift_of_so_many_steps() -> None:
    """The exact Renyi divergence of N_Z(0, sigma^2) and its shift by m steps is what zCDP says for m times mu."""
    sigma, members, order = 3.0, 5, 2.0
    [event] = of_group([GaussianRelease(1 / sigma, 1, sigma)], members)
    points = np.arange(-200, 201)
    log_p = -(points**2) / (2 * sigma**2)
    log_q = -((points - members) ** 2) / (2 * sigma**2)
    divergence = np.log(np.exp(order * log_p + (1 - order) * log_q).sum() / np.exp(log_p).sum()) / (order - 1)
    rho = compose([event]).rho
    assert divergence <= order * rho * (1 + 1e-12)
    assert divergence == pytest.approx(order * rho, rel=1e-9)  # an integer shift: the bound is reached
    assert compose([event]).total_variation == compose([GaussianRelease(1 / sigma, 1, sigma)]).total_variation


def test_a_mixture_is_never_added_up_in_silence() -> None:
    charges = [
        Charge("release/p/0/s", "zero-out", SMALL, unit="pid"),
        Charge("release/q/0/s", "zero-out", SMALL, unit=RECORD),
    ]
    with pytest.raises(ValueError, match="different units"):
        expenses(charges)
    with pytest.raises(ValueError, match="while the cap"):
        expenses(charges, UnitDeclaration("pid"))
