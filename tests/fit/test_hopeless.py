"""A run beyond every budget never passes a cap, a certificate never understates, and a curve that fails ends a run before it draws."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import pytest
from exact_curves import gdp_log_delta
from run_harness import Commands, charges, forbid_records, overrides

from distqexp.privacy import zcdp
from distqexp.privacy.ledger import Ledger

GAUSSIAN = 'mechanism.noise="gaussian"'
DISCRETE = 'mechanism.noise="discrete"'
BALL = ("privacy.delta=0", "mechanism.trust_radius=0.5", GAUSSIAN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epsilon", "noise"), [(2.0, GAUSSIAN), (500.0, GAUSSIAN), (1000.0, GAUSSIAN), (1e4, GAUSSIAN), (20.0, DISCRETE)]
)
def test_a_cap_of_one_refuses_more_before_a_record_is_read(
    run: Commands, task: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, epsilon: float, noise: str
) -> None:
    """At epsilon 500 and 1000 the zCDP bound fell to nothing, and everything passed."""
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("patients", 1.0, 1e-4)
    assert run.fit(task, "--out", task.parent / "first", *overrides("privacy.epsilon=0.5", noise)).code == 0
    forbid_records(monkeypatch)
    out = task.parent / "out"
    outcome = run.fit(task, "--out", out, *overrides(f"privacy.epsilon={epsilon}", noise, "mechanism.clip=0.05"))
    outcome.refused(4, "budget spent", "the cap is 0.0001")
    assert charges(own_ledger) == 1
    assert not [*out.glob("release-*"), *out.glob("certificate*")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epsilon", "more"),
    [
        (0.5, (DISCRETE,)),
        (20.0, (DISCRETE, "mechanism.rounds=3")),
        (1000.0, (GAUSSIAN, "mechanism.rounds=2", "mechanism.clip=0.05")),
        (1e4, (GAUSSIAN, 'privacy.adjacency="replace-one"', "mechanism.clip=0.05")),
        (700.0, (GAUSSIAN, "privacy.presence=3", "mechanism.clip=0.05")),
    ],
)
def test_a_certificate_never_understates(
    run: Commands, task: Path, own_ledger: Path, epsilon: float, more: Any
) -> None:
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("patients", 1e6, 1e-4)
    out = task.parent / "out"
    outcome = run.fit(task, "--out", out, *overrides(f"privacy.epsilon={epsilon}", *more))
    assert outcome.code == 0, outcome
    certificate = json.loads((out / "certificate.json").read_text())
    with mpmath.workdps(50):
        squares = [
            (Fraction(entry["sensitivity"]) / Fraction(entry["grid_step"]) / entry["sigma"]) ** 2
            for entry in certificate["rounds"]
        ]
        square = sum(squares, Fraction(0))
        mu = mpmath.sqrt(mpmath.mpf(square.numerator) / square.denominator)
        assert mu <= certificate["mu"]
        assert certificate["rho"] is None or mu**2 / 2 <= certificate["rho"]
        assert gdp_log_delta(certificate["epsilon"], mu) <= mpmath.log(mpmath.mpf(certificate["delta"]))
    assert 0.9 * epsilon < certificate["epsilon"] <= epsilon


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 3, 7, 10])
def test_a_pure_run_of_several_rounds_fits_its_own_budget(
    run: Commands, task: Path, own_ledger: Path, rounds: int
) -> None:
    """Equal shares of a pure budget came to more than it by a rounding error: exit 4 before the first round."""
    out = task.parent / "out"
    outcome = run.fit(task, "--out", out, *overrides(*BALL, f"mechanism.rounds={rounds}"))
    assert outcome.code == 0, outcome
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["delta"] == 0
    assert 0 < certificate["pure_epsilon"] <= certificate["epsilon"] <= 1.0
    assert charges(own_ledger) == rounds


def test_pure_privacy_of_gaussian_noise_is_refused_as_a_config(run: Commands, task: Path, own_ledger: Path) -> None:
    """Its epsilon would be infinite: no certificate could say it."""
    out = task.parent / "out"
    run.fit(task, "--out", out, *overrides("privacy.delta=0", GAUSSIAN)).refused(
        2, "privacy.delta", "mechanism.trust_radius"
    )
    assert not out.exists()
    assert not own_ledger.exists()


@pytest.mark.parametrize("noise", [GAUSSIAN, DISCRETE])
def test_a_planted_curve_that_falls_to_nothing_ends_the_run_before_a_draw(
    run: Commands, task: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    right = zcdp.log_delta
    monkeypatch.setattr(zcdp, "log_delta", lambda epsilon, rho: -math.inf if rho > 1e-3 else right(epsilon, rho))
    forbid_records(monkeypatch)
    out = task.parent / "out"
    run.fit(task, "--out", out, "--set", noise).refused(70, "privacy accounting", "a defect of distqexp")
    assert not [*out.glob("release-*"), *out.glob("quadratic-*"), *out.glob("certificate*"), *out.glob("*.safetensors")]
    assert charges(own_ledger) == 0
