"""Visits of one party at once, on several ranks, and what its log may tell others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mpi_harness import MpiRun, mpi_command
from run_harness import Outcome
from studies import OFFICE, StudyFolders

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.consortium import site
from distqexp.consortium.home import Home
from distqexp.consortium.party import open_party
from distqexp.consortium.visits import one_visit

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
