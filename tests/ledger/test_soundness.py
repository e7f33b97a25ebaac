"""A curve that falls to nothing is found out before anything is charged or certified; a hopeless run never passes a cap."""

from __future__ import annotations

from pathlib import Path

import pytest
from accounting import compose
from ledger_child import EVENT, reserve

from distqexp.errors import BudgetError, InternalError
from distqexp.privacy import gdp, zcdp
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.soundness import require_certifiable, require_sound

CAP = Cap(1.0, 1e-5)


@pytest.mark.parametrize("mu", [2.0, 37.0, 37.8, 45.0, 1e4])
def test_a_release_beyond_every_budget_is_refused_and_so_is_all_after_it(tmp_path: Path, mu: float) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for sigma in (None, 2.0**20):
            with pytest.raises(BudgetError, match="budget spent"):
                reserve(ledger, event=GaussianRelease(mu, 5, sigma), cap=CAP)
        assert ledger.rows() == []


def test_a_curve_that_falls_to_nothing_is_an_internal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = zcdp.log_delta
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        reserve(ledger, cap=CAP)
        monkeypatch.setattr(zcdp, "log_delta", lambda e, rho: float("-inf") if rho > 700 else right(e, rho))
        with pytest.raises(InternalError, match=r"privacy accounting: .* a defect of distqexp"):
            reserve(ledger, key="plan/1", event=GaussianRelease(45.0, 5), cap=CAP)
        assert len(ledger.rows()) == 1


def test_a_total_that_gets_smaller_is_an_internal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gdp.log_delta
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        reserve(ledger, cap=CAP)
        monkeypatch.setattr(gdp, "log_delta", lambda e, mu: right(e, mu if mu <= EVENT.mu * 1.01 else mu / 4))
        with pytest.raises(InternalError, match="one more release makes"):
            reserve(ledger, key="plan/1", cap=CAP)
        assert len(ledger.rows()) == 1
    assert InternalError.exit_code == 70


def test_no_certificate_of_nothing() -> None:
    assert require_sound(compose([GaussianRelease(1e-12, 1)]), 0.5) > 0
    for epsilon in (0.0, float("inf"), float("nan"), -1.0):
        with pytest.raises(InternalError, match="certificate: epsilon"):
            require_certifiable(epsilon)
