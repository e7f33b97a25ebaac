"""Pure privacy: its conversions against their definitions, the temperature, and budgets of delta 0."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from accounting import compose, delta_of_mu, spent, spent_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_child import EVENT, SUMS, reserve

from distqexp.errors import BudgetError, UsageError
from distqexp.privacy import pure, zcdp
from distqexp.privacy.calibration import Calibration, calibrate, calibrate_pure
from distqexp.privacy.events import BoundedRelease, GaussianRelease
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.ledger import Cap, Ledger

EPSILONS = (1e-9, 1e-4, 9.9e-4, 1.1e-3, 0.1, 1.0, 3.0, 20.0, 300.0)
EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True)
SIZES = st.floats(-100, 100).map(math.exp)


# --- what epsilon-DP says in the other languages ---------------------------------------------------------------


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_mu_of_a_pure_release_is_the_smallest(epsilon: float) -> None:
    """Phi(mu / 2) >= e^epsilon / (1 + e^epsilon): from there on the Gaussian pair is the harder one."""
    with mpmath.workdps(200):
        wanted = 1 / (1 + mpmath.exp(epsilon))
        found = mpmath.mpf(pure.mu(epsilon)) / 2
        assert mpmath.ncdf(-found) <= wanted
        assert mpmath.ncdf(-found * (1 - mpmath.mpf("3e-6"))) > wanted


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 2.0, 8.0])
def test_randomised_response_is_never_above_the_gaussian_curve_of_its_mu(epsilon: float) -> None:
    for share in np.linspace(0, 0.999, 40):
        at = float(share) * epsilon
        response = (math.exp(epsilon) - math.exp(at)) / (1 + math.exp(epsilon))
        assert response <= delta_of_mu(at, pure.mu(epsilon)) * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 1.0, 4.0, 20.0])
def test_rho_of_a_pure_release_bounds_every_order_and_is_reached(epsilon: float) -> None:
    with mpmath.workdps(40):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(epsilon)))
        ratios = []
        for excess in (1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 10.0, 100.0):
            order = 1 + mpmath.mpf(excess)
            moment = p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)
            ratios.append(mpmath.log(moment) / (order - 1) / order)
        assert max(ratios) <= pure.rho(epsilon)
        assert max(ratios) >= pure.rho(epsilon) * (1 - 1e-5)
    assert pure.rho(epsilon) <= epsilon**2 / 2


# --- the epsilon of one release -------------------------------------------------------------------------------------------


@EXAMPLES
@given(sensitivity=SIZES, radius=SIZES, temperature=SIZES)
def test_epsilon_errs_on_the_safe_side_by_less_than_one_float(
    sensitivity: float, radius: float, temperature: float
) -> None:
    exact = 2 * Fraction(sensitivity) * Fraction(radius) / Fraction(temperature)
    found = pure.pure_epsilon(sensitivity, radius, temperature)
    assert Fraction(math.nextafter(found, 0.0)) < exact <= Fraction(found)
    assert pure.pure_epsilon(Fraction(sensitivity), Fraction(radius), Fraction(temperature)) == found


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 1.0), (1.0, math.inf, 1.0), (1.0, 1.0, math.nan), (1.0, 1.0, -1.0)])
def test_impossible_figures_are_refused(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="expected a finite number above 0"):
        pure.pure_epsilon(*arguments)


# --- calibration -----------------------------------------------------------------------------------------------


@EXAMPLES
@given(epsilon=st.floats(1e-6, 100), rounds=st.integers(1, 500))
def test_rounds_never_add_up_to_more_than_epsilon(epsilon: float, rounds: int) -> None:
    calibration = calibrate_pure(epsilon=epsilon, rounds=rounds, k=7)
    share = calibration.epsilon_round
    assert share is not None
    assert rounds * Fraction(share) <= Fraction(epsilon) < rounds * Fraction(math.nextafter(share, math.inf))
    events = [BoundedRelease(calibration.mu_round, share)] * rounds
    assert spent_epsilon(events, 0.0) <= epsilon
    assert spent(events, epsilon) == 0.0


def test_a_calibration_survives_json_and_old_ones_are_read() -> None:
    calibration = calibrate_pure(epsilon=1.0, rounds=3, k=5)
    assert Calibration(**json.loads(json.dumps(asdict(calibration)))) == calibration
    plain = calibrate(epsilon=1.0, delta=1e-5, rounds=3, k=5, noise="discrete")
    old = {name: value for name, value in asdict(plain).items() if name != "epsilon_round"}
    assert Calibration(**old) == plain


def test_pure_targets_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"privacy.epsilon: found 0.0"):
        calibrate_pure(epsilon=0.0, rounds=1, k=1)
    with pytest.raises(UsageError, match="rounds and k: found 0 and 1"):
        calibrate_pure(epsilon=1.0, rounds=0, k=1)
    with pytest.raises(UsageError, match="rounds can share"):
        calibrate_pure(epsilon=5e-324, rounds=3, k=1)


# --- the ledger ------------------------------------------------------------------------------------------------

BOUNDED = BoundedRelease(mu=0.1, epsilon=0.4, coordinates=5)
PURE = Cap(epsilon=1.0, delta=0.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_bounded_releases_are_stored_chained_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger, event=BOUNDED, sums=np.arange(20, dtype=np.int64))  # packed curvature behind s
        ledger.persist_noise(reservation, np.arange(5))
        ledger.commit(reservation, np.arange(5))
        reserve(ledger, key="plan/1")
    with Ledger.open(path) as ledger:
        ledger.verify()
        assert [row.event for row in ledger.rows()] == [BOUNDED, EVENT]
        assert ledger.spent("ward") == compose([replace(BOUNDED, coordinates=1), EVENT])
        assert reserve(ledger, event=BOUNDED, sums=np.arange(20, dtype=np.int64)).state == "committed"
        assert ledger.export()[0]["body"]["epsilon"] == 0.4


def test_entries_of_gaussian_releases_are_what_they_were(ledger: Ledger) -> None:
    """Their hashes and the digests of their sums hang on these very fields."""
    reserve(ledger)
    assert ledger.export()[0]["body"] == {
        "action": "reserve",
        "universe": "private",
        "private": True,
        "population": "ward",
        "key": "plan/0",
        "adjacency": "zero-out",
        "mu": 0.2,
        "coordinates": 5,
        "sigma": 2.0**20,
    }


def test_a_cap_of_delta_zero_admits_pure_releases_up_to_its_epsilon(ledger: Ledger) -> None:
    reserve(ledger, event=BOUNDED, cap=PURE)
    reserve(ledger, event=BOUNDED, cap=PURE, key="plan/1")
    with pytest.raises(
        BudgetError, match=r"make pure epsilon 1\.2\d*, the cap is 1 at delta 0, for pure releases only"
    ):
        reserve(ledger, event=BOUNDED, cap=PURE, key="plan/2")
    reserve(ledger, event=replace(BOUNDED, epsilon=1 - 2 * 0.4), cap=PURE, key="plan/2")
    assert ledger.spent("ward").epsilon(0.0) == 1.0
    assert len(ledger.rows()) == 3


def test_a_cap_of_delta_zero_refuses_gaussian_releases_and_after_one_everything(ledger: Ledger) -> None:
    tiny = GaussianRelease(mu=1e-9, coordinates=5)
    with pytest.raises(BudgetError, match=r"pure epsilon inf, .* for pure releases only"):
        reserve(ledger, event=tiny, cap=PURE)
    with pytest.raises(BudgetError, match="pure releases only"):
        ledger.check(population="ward", cap=PURE, charges=[Charge("", "zero-out", tiny)])
    reserve(ledger, event=tiny, cap=Cap(1.0, 1e-9))
    with pytest.raises(BudgetError, match="pure releases only"):
        reserve(ledger, event=BOUNDED, cap=PURE, key="plan/1")


def test_a_cap_of_delta_zero_can_be_set_and_holds(ledger: Ledger) -> None:
    ledger.set_cap("ward", 0.5, 0.0)
    assert ledger.cap("ward") == Cap(0.5, 0.0)
    reserve(ledger, event=BOUNDED, cap=Cap(9.0, 1e-2))
    with pytest.raises(BudgetError, match="set in the ledger"):
        reserve(ledger, event=BOUNDED, cap=Cap(9.0, 1e-2), key="plan/1")
    with pytest.raises(UsageError, match=r"cap: delta -0\.1"):
        Cap(1.0, -0.1)


def test_pure_and_gaussian_releases_share_a_cap(ledger: Ledger) -> None:
    cap = Cap(epsilon=1.5, delta=1e-6)
    events = [GaussianRelease(mu=0.1, coordinates=5), *[BoundedRelease(5.0, 0.2, 5)] * 6]
    admitted = 0
    for number, event in enumerate(events):
        if spent(events[: number + 1], cap.epsilon) > cap.delta:
            with pytest.raises(BudgetError, match="delta"):
                reserve(ledger, event=event, cap=cap, key=f"plan/{number}", sums=SUMS)
            break
        reserve(ledger, event=event, cap=cap, key=f"plan/{number}", sums=SUMS)
        admitted += 1
    assert 3 <= admitted < len(events)


def test_expenses_by_roles_parts_and_adjacencies() -> None:
    def charge(key: str, part: int | None = None, adjacency: str = "zero-out") -> Charge:
        return Charge(key, adjacency, BOUNDED, None if part is None else Part(part, 2))

    def total(*charges: Charge) -> float:
        return expenses(charges).guarantee().pure

    assert total(charge("site-a/p/0/s"), charge("site-b/p/0/s"), charge("release/p/0/s")) == 0.4
    assert total(charge("release/p/0/s"), charge("release/p/0/s")) == 0.8, "other sums under one key"
    assert total(*(charge(f"release/p/{r}/s", r % 2) for r in range(4))) == 0.8, "two rounds of the worst part"
    assert total(charge("release/p/0/s", 0), charge("release/p/1/s", 1), charge("release/q/0/s")) == 0.8
    assert total(charge("release/p/0/s"), charge("release/p/1/s", None, "replace-one")) == pytest.approx(1.2)
    roles = [charge("site-a/p/0/s"), Charge("release/p/0/s", "zero-out", GaussianRelease(0.3, 5))]
    found = expenses(roles)
    assert found.square == pytest.approx(0.09), "roles that disagree: both"
    assert len(found.bounded_releases) == 1
    assert found.guarantee().rho == pytest.approx(zcdp.rho(0.3) + BOUNDED.rho)
