"""Visits of one party at once, on several ranks, and what its log may tell others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi_harness import MpiRun, mpi_command
from run_harness import Outcome
from studies import OFFICE, StudyFolders
from study_forgery import content_of, message, replaced

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.consortium import site
from distqexp.consortium.home import Home
from distqexp.consortium.journal import refusal
from distqexp.consortium.party import open_party
from distqexp.consortium.visits import one_visit
from distqexp.errors import BudgetError, FileContentError

Begin = Callable[..., StudyFolders]


def test_a_second_visit_of_a_site_ends_at_once_and_sends_nothing(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin()
    original, others = site.sketch_shard, list[Outcome]()

    def sketch(*arguments: Any) -> None:
        others.append(study.sketch("north"))
        original(*arguments)
        lock = study.own("north") / "visit.lock"
        assert lock.stat().st_mode & 0o777 == 0o600
        lock.unlink()  # so that only the look before sending is left
        others.append(study.sketch("north"))

    monkeypatch.setattr(site, "sketch_shard", sketch)
    first = study.sketch("north")
    assert [first.code, *(other.code for other in others)] == [0, 2, 0]
    others[0].refused(2, "another visit of north to study sepsis is at work", str(study.own("north")))
    assert "is charged and sent" in others[1].out
    assert "was sent" in first.out
    assert study.charges("north") == [("site-north", "0", "committed")]
    assert len(list(study.exchange.glob("masked-000-00-north-*"))) == 1
    assert len(list(study.exchange.glob("seed-000-00-north-*"))) == 2


def test_every_other_visit_has_the_same_lock(begin: Begin) -> None:
    study = begin()
    for party, commands in {
        OFFICE: [["study", verb, "exchange"] for verb in ("close", "release", "repeat", "void")],
        "ethics": [["helper", "answer", "exchange/closing.message"]],
    }.items():
        at = study.at(party)
        with one_visit(open_party(study.exchange, lambda: None, Home())):
            for command in commands:
                at.distqexp(*command).refused(2, "another visit of", "expected one at a time")
        assert "another visit" not in at.distqexp(*commands[0]).err


def test_the_log_tells_of_a_refusal_no_more_than_everybody_may_know(begin: Begin) -> None:
    study = begin()
    table = study.root / "north" / "north.csv"
    whole = table.read_text()
    table.write_text(whole.replace("dose", "secret_column"))
    refused = study.at("north").distqexp("study", "sketch", study.exchange, "--data", table)
    line = refused.refused(3, "north.csv", "secret_column")
    assert str(table) in line
    event = dict(study.log("north")[-1].event)
    del event["study"]
    assert event == {"event": "refused", "reason": "the records here were refused", "code": 3}
    table.write_text(whole)
    plan = message(study, "plan-")
    other = replaced(study, plan, study.identity(OFFICE), content_of(study, plan))
    refused = study.at("north").distqexp("study", "sketch", study.exchange, "--data", table)
    assert str(other) in refused.refused(3, "another plan than the one accepted")
    assert (
        study.log("north")[-1].event["reason"].startswith(f"{other.name}: another plan than the one accepted, message ")
    )
    assert str(study.root) not in (study.home("north") / "log.jsonl").read_text()


def test_reasons_in_a_log_have_neither_folders_nor_budgets() -> None:
    reasons = {
        "/a b/exchange/x.message: cut short": "x.message: cut short",
        "exchange/x.message: cut short": "x.message: cut short",
        "study x: see /home/me/ledger.sqlite, or 1/2 of it": "study x: see ledger.sqlite, or 1/2 of it",
        "study x: '/home/me/x.message' (/tmp/y), 1 / 2": "study x: 'x.message' (y), 1 / 2",
        "nothing to strip": "nothing to strip",
    }
    for text, reason in reasons.items():
        assert refusal(FileContentError(text)) == {"event": "refused", "reason": reason, "code": 3}
    spent = refusal(BudgetError("population 'icu': budget spent: 3 releases on record"))
    assert spent == {"event": "refused", "reason": "the budget here does not allow it", "code": 4}


@pytest.mark.process
@pytest.mark.slow
def test_a_visit_on_two_ranks_sends_once_what_one_process_sends(begin: Begin) -> None:
    study = begin()
    study.sketches(["north"])
    plan, file = Plan.read(study.root / "plan.h5"), study.own("north") / "sketch-000.h5"
    alone = Sketch.read(file, plan, own=True).sums
    study = begin()  # the same folders as before the visit
    assert not file.exists()
    study.at("north")
    visit = ["study", "sketch", "exchange", "--data", "north/north.csv"]
    command = mpi_command(2, "-c", "from distqexp.cli import main; main()", *visit)
    with MpiRun(command, study.root / "north", cwd=study.root) as job:
        finished = job.finish(180)
    assert finished.code == 0, finished
    assert finished.out.count("is charged and sent") == 1
    assert len(finished.out.splitlines()) == 1
    assert alone.any()
    np.testing.assert_array_equal(Sketch.read(file, plan, own=True).sums, alone)
    assert study.charges("north") == [("site-north", "0", "committed")]
    assert len(list(study.exchange.glob("masked-000-00-north-*"))) == 1
    assert len(list(study.exchange.glob("seed-000-00-north-*"))) == 2
