"""Runs that end before or after a step, and what their ledger holds then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_config, plan_of, random_table

from distqexp.api import fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config
from distqexp.mechanism.noise import draw_discrete
from distqexp.privacy.ledger import Ledger, LedgerRow
from distqexp.stages import rounds as fit_module
from distqexp.stages.charging import Charging
from distqexp.stages.release import draw_release
from distqexp.stages.rounds import FitResult


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def small_config(folder: Path, **sections: Any) -> Config:
    table, public = random_table("mlp", [1, 2, 1, 9, 1, 3] * 3, seed=1), random_table("mlp", [1, 2] * 4, seed=2)
    table.write(folder / "private.h5")
    public.write(folder / "public.h5")
    return make_config(folder, "mlp", **sections)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(small_config(tmp_path))


def noise_files(ledger_path: Path) -> list[Path]:
    return sorted(ledger_path.with_name(ledger_path.name + ".files").glob("noise-*"))


def killing(original: Callable[..., Any], when: Callable[..., bool], before: bool) -> Callable[..., Any]:
    """The function, killed before or after it has done its work."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        if not when(*arguments, **keywords):
            return original(*arguments, **keywords)
        if not before:
            original(*arguments, **keywords)
        raise Killed

    return run


def rows_of(path: Path, universe: str = "private") -> list[LedgerRow]:
    with Ledger.open(path) as ledger:
        return [row for row in ledger.rows() if row.universe == universe]


def ran(config: Config, out: Path, **keywords: Any) -> FitResult:
    result = fit(config, out, **keywords)
    assert result is not None
    return result


def leave_uncharged(forgotten: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted leak: one round adds its noise without the ledger."""
    real = draw_release

    def leaky(plan: Plan, state: RoundState, pooled: Quadratic, charging: Charging) -> Any:
        if state.round != forgotten:
            return real(plan, state, pooled, charging)
        return pooled.sums + draw_discrete(plan.k, state.grid.sigma)

    monkeypatch.setattr(fit_module, "draw_release", leaky)
