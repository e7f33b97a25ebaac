"""The ledger under kills, races and full disks: processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ledger_child
import pytest
from ledger_child import SUMS

pytestmark = pytest.mark.process

CHILD = Path(ledger_child.__file__)


def child(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(CHILD), *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_kill_at_any_step_costs_one_charge_and_keeps_one_draw(tmp_path: Path) -> None:
    outcomes = child("kill", str(tmp_path))
    killed = [outcome for outcome in outcomes if outcome["code"] == -9]
    assert len(killed) == len(outcomes) - 1 >= 20
    for outcome in outcomes:
        assert outcome["rows"] == 1
        assert outcome["actions"] == ["reserve", "draw", "commit"]
        noises = {tuple(noise) for noise in outcome["used"]}
        assert len(noises) == 1
        assert outcome["released"] == outcome["again"] == (SUMS + next(iter(noises))).tolist()
        assert outcome["files"] == ["begun", "head", "key", "lock", "released-1.npy"]
        assert outcome["beside"] == ["ledger.sqlite", "ledger.sqlite.files"]
    assert any(len(outcome["used"]) == 2 for outcome in killed), (
        "no kill fell between the use of the noise and the commit"
    )


def test_two_processes_race_for_the_last_of_a_budget(tmp_path: Path) -> None:
    assert child("race", str(tmp_path), "20") == [[0, 4]] * 20


@pytest.mark.slow
def test_two_processes_race_for_the_last_of_a_budget_many_times(tmp_path: Path) -> None:
    assert child("race", str(tmp_path), "200") == [[0, 4]] * 200


def test_a_draw_that_does_not_fit_on_the_disk_is_exit_6_and_can_be_repeated(tmp_path: Path) -> None:
    outcome = child("full", str(tmp_path))
    assert outcome == {"refused": 6, "files": ["begun", "head", "key", "lock"], "state": "reserved", "rows": 1}


def test_a_charge_that_the_head_has_and_the_full_disk_refused_stands(tmp_path: Path) -> None:
    """Never less than the truth: what was refused with exit 6 is charged all the same, once, and found by its sums."""
    assert child("full-ledger", str(tmp_path)) == {
        "refused": 6, "seen": ["reserved"], "again": [1, "reserved"], "rows": 1
    }  # fmt: skip


def test_a_void_killed_at_any_step_gives_back_once(tmp_path: Path) -> None:
    outcomes = child("kill-void", str(tmp_path))
    assert len(outcomes) > 20
    assert all(outcome["code"] == -9 for outcome in outcomes[:-1])
    for outcome in outcomes:
        assert outcome["actions"] == ["reserve", "reserve", "commit", "void", "accept-void"]
        assert (outcome["states"], outcome["mu"]) == (["voided", "voided"], 0.0)


def test_a_draw_and_a_void_race_and_one_of_them_is_refused(tmp_path: Path) -> None:
    """Exit 2 for the void after the draw, 3 for the draw after the void; never both granted."""
    outcomes = child("race-void", str(tmp_path), "30")
    assert {tuple(codes) for codes in outcomes} <= {(0, 2), (3, 0)}
    assert len(outcomes) == 30
