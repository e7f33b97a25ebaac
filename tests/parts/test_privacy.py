"""What a unit pays under parts: the rounds of its own part, never fewer; the books of whole plans; old ledgers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from accounting import compose
from dp_accounting import pld
from hypothesis import given
from hypothesis import strategies as st
from ledger_child import CAP, reserve

from distqexp.errors import BudgetError
from distqexp.privacy.calibration import calibrate
from distqexp.privacy.events import Cost, GaussianRelease, cost, total_cost, worst_cost
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.ledger import Cap, Ledger

EVENT = GaussianRelease(mu=0.1, coordinates=5, sigma=2.0**20)


def charge(key: str, part: tuple[int, int] | None = None, mu: float = 0.5, sigma: float = 1000.0) -> Charge:
    event = GaussianRelease(mu=mu, coordinates=10, sigma=sigma)
    return Charge(key, "zero-out", event, Part(*part) if part else None)


def mu_of(*charges: Charge) -> float:
    return expenses(charges).guarantee().mu


# --- what charges amount to ------------------------------------------------------------------------------------


def test_a_unit_pays_for_the_rounds_of_its_part() -> None:
    rounds = [charge(f"release/p/{r}/s", (r % 4, 4)) for r in range(12)]
    assert math.isclose(mu_of(*rounds), 0.5 * math.sqrt(3))
    assert math.isclose(mu_of(*rounds, charge("release/p/12/s", (2, 4))), 0.5 * math.sqrt(4)), "the worst part"
    assert math.isclose(mu_of(*rounds[:5]), 0.5 * math.sqrt(2)), "part 0 alone has two rounds"


def test_plans_add_up_each_with_its_worst_part() -> None:
    first = [charge(f"release/p/{r}/s", (r, 3), mu=0.3) for r in range(3)]
    second = [charge(f"release/q/{r}/s", (r, 3), mu=mu) for r, mu in enumerate((0.1, 0.4, 0.2))]
    whole = charge("release/w/0/s", mu=0.2)
    assert math.isclose(mu_of(*first, *second, whole), math.sqrt(0.3**2 + 0.4**2 + 0.2**2))


def test_whatever_is_unclear_is_charged_to_everybody() -> None:
    clear = [charge("release/p/0/s", (0, 2)), charge("release/p/1/s", (1, 2))]
    assert math.isclose(mu_of(*clear), 0.5)
    both = math.sqrt(0.5)
    unclear = [
        charge("release/p/1/s"),
        charge("release/p/1/s", (1, 3)),
        charge("release/p/1/s", (2, 2)),
        charge("release/p/1/s", (-1, 2)),
        charge("release/p/1/s", (0, 1)),
        charge("release/q/1/s", (1, 2)),
        charge("release/p", (1, 2)),
        charge("", (1, 2)),
    ]
    for other in unclear:
        assert math.isclose(mu_of(clear[0], other), both), other
    for pair in (((1, 3), (2, 3)), ((1, 3), None), ((1, 3), (1, 2))):
        disagreeing = [charge(f"{role}/p/1/s", part) for role, part in zip(("site-a", "release"), pair, strict=True)]
        assert math.isclose(mu_of(charge("release/p/0/s", (0, 3)), *disagreeing), both), pair


def test_roles_pay_once_and_other_sums_again() -> None:
    roles = [charge(f"{role}/p/{r}/s", (r, 2)) for role in ("site-a", "site-b", "release") for r in range(2)]
    assert math.isclose(mu_of(*roles), 0.5)
    assert math.isclose(mu_of(*roles, charge("release/p/1/s", (1, 2))), math.sqrt(0.5))


def test_the_largest_figure_of_each_kind_counts() -> None:
    """One part has the larger mu, the other the coarser noise: the bound takes both."""
    found = expenses([charge("r/p/0/s", (0, 2), mu=0.7, sigma=1e6), charge("r/p/1/s", (1, 2), mu=0.2, sigma=10.0)])
    assert found == Cost(0.7**2, cost([GaussianRelease(0.2, 10, 10.0)]).divergence)


@given(
    rounds=st.lists(
        st.tuples(st.sampled_from("pq"), st.sampled_from([None, 0, 1, 2]), st.floats(0.01, 1), st.floats(3, 1e4)),
        max_size=12,
    )
)
def test_no_unit_pays_more_than_the_books_say(rounds: list[tuple[str, int | None, float, float]]) -> None:
    """Against every unit there can be: one in part i of plan p and in part j of plan q."""
    charges = [
        charge(f"release/{plan}/{number}/s", None if part is None else (part, 3), mu, sigma)
        for number, (plan, part, mu, sigma) in enumerate(rounds)
    ]
    books = expenses(charges)
    paid = []
    for i, j in itertools.product(range(3), repeat=2):
        mine = [c.event for c in charges if c.part is None or c.part.number == {"p": i, "q": j}[c.key.split("/")[1]]]
        unit = cost(mine)
        assert unit.square <= books.square * (1 + 1e-12)
        assert unit.divergence <= books.divergence * (1 + 1e-12)
        for epsilon in (0.1, 1.0):
            assert compose(mine).delta(epsilon) <= books.guarantee().delta(epsilon) * (1 + 1e-9)
        paid.append(unit.square)
    assert books.square <= max(paid) * (1 + 1e-12), "and some unit pays that much"


def test_costs_of_nothing() -> None:
    assert total_cost([]) == worst_cost([]) == cost([]) == expenses([]) == Cost(0.0, 0.0)
    assert Cost().guarantee() == compose([])


# --- calibration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
@pytest.mark.parametrize(("rounds", "parts"), [(8, 8), (8, 4), (12, 3), (4, 1)])
def test_dp_accounting_agrees_on_the_worst_part_of_a_schedule(epsilon: float, rounds: int, parts: int) -> None:
    """Their accountant on the events of each part: within the target for every part, and beyond it by one round."""
    delta, passes = 1e-5, rounds // parts
    plan = calibrate(epsilon=epsilon, delta=delta, rounds=passes, k=50, noise="discrete")
    event = GaussianRelease(plan.mu_round, 50, float(plan.sigma_minimum))
    charges = [Charge(f"release/p/{r}/s", "zero-out", event, Part(r % parts, parts)) for r in range(rounds)]
    books = expenses(charges).guarantee()
    for number in range(parts):
        mine = [c.event for c in charges if c.part == Part(number, parts)]
        accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
        accountant.compose(dp_accounting.GaussianDpEvent(1 / event.mu), len(mine))
        theirs = accountant.get_epsilon(delta)
        assert books.epsilon(delta) == pytest.approx(theirs, rel=0.01)
        assert books.epsilon(delta) <= epsilon
        accountant.compose(dp_accounting.GaussianDpEvent(1 / event.mu))
        assert accountant.get_epsilon(delta) > epsilon * 1.05, "one round too few would show"


# --- the ledger ------------------------------------------------------------------------------------------------


def charge_rounds(ledger: Ledger, rounds: Sequence[int], parts: int, plan: str = "p", basis: bytes = b"1") -> None:
    for round in rounds:
        part = Part(round % parts, parts)
        reserve(ledger, key=f"release/{plan}/{round}/s", event=EVENT, part=part, basis=basis, cap=Cap(8.0, 1e-5))


def test_rows_carry_the_part_and_the_books_the_worst_one(ledger: Ledger) -> None:
    charge_rounds(ledger, range(6), 3)
    assert [row.part for row in ledger.rows()] == [Part(r % 3, 3) for r in range(6)]
    assert [(e["body"]["part"], e["body"]["parts"]) for e in ledger.export()] == [(r % 3, 3) for r in range(6)]
    assert ledger.spent("ward") == compose([EVENT] * 2)
    charge_rounds(ledger, [7], 3)
    assert ledger.spent("ward") == compose([EVENT] * 3)
    ledger.verify()


@pytest.mark.parametrize(("rounds", "parts"), [(6, 3), (4, 4), (8, 2)])
def test_a_calibrated_schedule_fits_its_budget_and_one_more_round_does_not(
    ledger: Ledger, rounds: int, parts: int
) -> None:
    plan = calibrate(epsilon=1.0, delta=1e-5, rounds=rounds // parts, k=5, noise="discrete")
    event = GaussianRelease(plan.mu_round, 5, float(plan.sigma_minimum))
    schedule = [Charge(f"release/p/{r}", "zero-out", event, Part(r % parts, parts)) for r in range(rounds)]
    ledger.check(population="ward", cap=CAP, charges=schedule)
    with pytest.raises(BudgetError):
        ledger.check(population="ward", cap=CAP, charges=[c._replace(part=None) for c in schedule])
    for item in schedule:
        reserve(ledger, key=f"{item.key}/s", event=event, part=item.part)
    assert 0.98 < ledger.spent("ward").epsilon(1e-5) <= 1.0
    for part in (*(Part(number, parts) for number in range(parts)), None):
        with pytest.raises(BudgetError):
            reserve(ledger, key="release/p/99/s", event=event, part=part)
    with pytest.raises(BudgetError):
        ledger.check(population="ward", cap=CAP, charges=[Charge("release/q/0", "zero-out", event, Part(0, parts))])


def test_other_sums_of_a_round_are_charged_again_and_the_same_ones_are_not(ledger: Ledger) -> None:
    charge_rounds(ledger, range(3), 3)
    charge_rounds(ledger, range(3), 3)
    assert len(ledger.rows()) == 3
    other = np.zeros(5, dtype=np.int64)
    reserve(ledger, key="release/p/1/s", event=EVENT, part=Part(1, 3), basis=b"1", sums=other)
    assert ledger.spent("ward") == compose([EVENT] * 2)


def test_when_units_may_have_moved_everybody_pays(ledger: Ledger) -> None:
    """Round 1 on a file in another order: a unit of part 0 may be in part 1 now."""
    charge_rounds(ledger, [0], 2, basis=b"1")
    charge_rounds(ledger, [1], 2, basis=b"2")
    assert [row.part for row in ledger.rows()] == [Part(0, 2), None]
    assert ledger.spent("ward") == compose([EVENT] * 2)
    charge_rounds(ledger, [1], 2, basis=b"2")
    assert len(ledger.rows()) == 2, "the same sums find their charge"
    charge_rounds(ledger, [3], 2, basis=b"1")
    assert ledger.rows()[-1].part == Part(1, 2), "the first file again"
    charge_rounds(ledger, [5], 2, basis=b"2")
    assert ledger.rows()[-1].part is None
    # Other plans, other roles and other universes have bases of their own.
    charge_rounds(ledger, [0], 2, plan="q", basis=b"2")
    reserve(ledger, key="site-a/p/0/s", event=EVENT, part=Part(0, 2), basis=b"2")
    reserve(ledger, key="release/p/0/s", event=EVENT, part=Part(0, 2), basis=b"2", universe="insecure-seed-1")
    assert [row.part for row in ledger.rows()[-3:]] == [Part(0, 2)] * 3
    reserve(ledger, key="site-a/p/1/s", event=EVENT, part=Part(1, 2), basis=b"3")
    assert ledger.rows()[-1].part is None


def test_a_changed_number_of_parts_is_charged_in_full(ledger: Ledger) -> None:
    charge_rounds(ledger, [0, 1], 2)
    charge_rounds(ledger, [2], 3)
    assert ledger.spent("ward") == compose([EVENT] * 2)


def test_the_basis_is_nowhere_in_the_chain(ledger: Ledger, path: Path) -> None:
    charge_rounds(ledger, [0], 2, basis=b"who is where, 0123456789")
    assert "basis" not in str(ledger.export())
    assert b"who is where" not in path.read_bytes()


def test_an_old_ledger_reads_and_its_rows_are_everybodys(ledger: Ledger, path: Path) -> None:
    """Rows without parts are written as they always were: the same body, the same hash."""
    found = reserve(ledger)
    (entry,) = ledger.export()
    assert set(entry["body"]) == {
        "action", "universe", "private", "population", "key", "adjacency", "mu", "coordinates", "sigma",
    }  # fmt: skip
    assert entry["body"]["key"] == "plan/0"
    ledger.close()
    with Ledger.open(path) as again:
        assert again.rows()[0].part is None
        assert reserve(again) == found
        charge_rounds(again, [0, 1], 2)
        assert again.spent("ward").mu == pytest.approx(math.hypot(again.rows()[0].event.mu, EVENT.mu))


def test_the_noise_of_a_part_survives_a_restart(ledger: Ledger, path: Path) -> None:
    noise = np.arange(5, dtype=np.int64)
    arguments = {"key": "release/p/0/s", "event": EVENT, "part": Part(0, 2), "basis": b"1"}
    ledger.persist_noise(reserve(ledger, **arguments), noise)
    ledger.close()
    with Ledger.open(path) as again:
        found = reserve(again, **arguments)
        assert (found.state, again.noise(found).tolist()) == ("drawn", noise.tolist())
        again.commit(found, noise)
        again.verify()


def test_replace_one_doubles_parts_too() -> None:
    one = replace(EVENT, mu=0.2)
    charges = [Charge("r/p/0/s", "zero-out", one, Part(0, 2)), Charge("r/p/1/s", "replace-one", one, Part(1, 2))]
    assert math.isclose(mu_of(*charges), 0.4)
