"""Files that come late, in another order, or never: nothing is taken before its time, and nobody is locked out or accused for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from consortium import SHARDS
from studies import OFFICE, StudyFolders
from study_forgery import content_of, message, replaced

Begin = Callable[..., StudyFolders]


@pytest.mark.parametrize("late", [("release-000",), ("closing-000", "release-000")])
def test_a_site_takes_news_in_the_order_in_which_it_was_sent_however_it_is_copied(
    begin: Begin, late: tuple[str, ...]
) -> None:
    study = begin()
    study.whole_round(0)
    study.at(OFFICE).done("ledger", "cap", "others", "--epsilon", "1", "--delta", "1e-6")
    study.sketches(SHARDS[1:])  # north doesn't come in time
    assert study.close().code == 0
    paths = [message(study, name) for name in late]
    for path in paths:
        path.rename(study.root / path.name)
    study.check_refused("north", study.sketch("north"), "it is here without what came of round 0, attempt 0")
    for path in paths:
        (study.root / path.name).rename(path)
    study.answers(1)
    assert study.release().code == 0
    outcome = study.sketch("north")
    assert outcome.code == 0, outcome
    assert "all 2 rounds are released" in outcome.out


@pytest.mark.parametrize("command", ["repeat", "void"])
def test_a_repeat_or_a_void_without_the_closing_that_it_builds_on_waits_for_it(begin: Begin, command: str) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    closing = study.closing()
    study.at(OFFICE).done("study", command, "exchange")
    closing.rename(study.root / closing.name)
    study.check_refused("north", study.sketch("north"), "it is here without the closing of round 0, attempt 0")
    (study.root / closing.name).rename(closing)
    assert study.sketch("north").code == 0


def test_a_site_that_is_in_no_sum_is_told_so(begin: Begin) -> None:
    study = begin()
    study.sketches()
    sent = message(study, "masked-000-00-north")
    sent.rename(study.root / sent.name)
    assert study.close().code == 0
    outcome = study.sketch("north")
    assert outcome.code == 0
    assert "it was closed before that came, which is in no sum: its charge stays" in outcome.out
    assert "in no sum" not in study.sketch("south").out


def test_a_vector_whose_seeds_are_not_here_is_not_closed_over(begin: Begin) -> None:
    study = begin()
    study.sketches()
    path = message(study, "masked-000-00-north")
    replaced(study, path, study.identity("north"), content_of(study, path), receipts=("1" * 64, "2" * 64))
    study.check_refused(OFFICE, study.close(), "2 of the 2 seeds that it names are not here")
    message(study, "masked-000-00-north").unlink()
    assert "north" not in study.close().out.split(" is closed over ")[1].split(":")[0]


def test_a_sketch_that_the_coordinator_lost_is_taken_from_its_message_again(begin: Begin) -> None:
    study = begin("trusted-curator")
    study.sketches()
    assert study.close().code == 0
    (study.own(OFFICE) / "taken-south.h5").unlink()
    assert study.release().code == 0
