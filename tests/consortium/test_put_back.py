"""A party whose files were put back to an older time, a helper that is asked twice, and a void after a draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from consortium import SHARDS
from run_harness import Outcome
from studies import OFFICE, StudyFolders, put_back
from study_forgery import content_of, message, replaced, the_study

from distqexp.federation.closing import Closing
from distqexp.federation.header import Envelope
from distqexp.federation.messages import peek, write_message

Begin = Callable[..., StudyFolders]


def test_a_second_release_of_a_round_is_refused_by_the_sites(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    study.answers()
    restore = put_back(study, OFFICE, ("home", "books"))
    assert study.release().code == 0
    assert study.sketch("north").code == 0  # took the release
    release = message(study, "release-000-00")
    release.rename(study.root / release.name)
    restore()
    assert study.release().code == 0  # another draw
    study.check_refused("north", study.sketch("north"), f"is a second release of {OFFICE} for round 0")


def test_a_coordinator_that_was_put_back_is_told_so(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    study.answers()
    restore = put_back(study, OFFICE, ("home", "books"))
    assert study.release().code == 0
    restore()
    study.check_refused(OFFICE, study.release(), "that the log here doesn't know")


def test_a_ledger_that_is_put_back_alone_is_refused_at_home(begin: Begin) -> None:
    study = begin()
    ledger = study.root / "north" / "books" / "ledger.sqlite"
    study.at("north").done("ledger", "cap", "others", "--epsilon", "1", "--delta", "1e-6")
    before = ledger.read_bytes()
    study.whole_round(0)
    ledger.write_bytes(before)
    study.check_refused("north", study.sketch("north"), "put back to an older")


def test_a_ledger_that_is_put_back_with_its_folder_is_seen_by_the_others(begin: Begin) -> None:
    study = begin()
    restore = put_back(study, "north", ("home", "books"))
    study.whole_round(0)
    restore()
    study.check_refused("north", study.sketch("north"), "the ledger and the log here were put back to an older time")


def test_a_ledger_that_is_put_back_is_seen_by_the_coordinator_too(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begin()
    restore = put_back(study, "north", ("books",))
    study.whole_round(0)
    restore()
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.consortium.site.require_told", lambda journal: None)  # a site that runs other code
        study.sketches()
    study.check_refused(OFFICE, study.close(), "the ledger of north is at entry")


def relisted(study: StudyFolders, sites: tuple[str, ...]) -> Path:
    """The coordinator's closing of the round, with other sites, signed by it."""
    path = study.closing()
    listing = Closing.parse(path, content_of(study, path), the_study(study))
    content = Closing(listing.entries, tuple(one for one in listing.listed if one.site in sites)).to_bytes()
    return replaced(study, path, study.identity(OFFICE), content)


def answer(study: StudyFolders, helper: str, closing: Path) -> Outcome:
    return study.at(helper).distqexp("helper", "answer", closing)


def test_a_helper_that_is_asked_with_another_list_refuses(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    closing = study.closing()
    assert answer(study, "ethics", closing).code == 0
    assert "answered before" in answer(study, "ethics", closing).out
    study.check_refused(
        "ethics", answer(study, "ethics", relisted(study, SHARDS[:3])), "a second list would give sites away"
    )


def test_a_helper_that_was_put_back_answers_no_second_list(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    log = study.home("ethics") / "log.jsonl"
    before, restore = log.read_bytes(), put_back(study, "ethics", ("home",))
    assert answer(study, "ethics", study.closing()).code == 0
    second = relisted(study, SHARDS[:3])
    words = "an answer of ethics that the log here doesn't know"
    given = message(study, "answer-000-00-ethics")
    aside = given.rename(study.root / given.name)
    log.write_bytes(before)
    study.check_refused("ethics", answer(study, "ethics", second), words)  # it lies in its own folder
    restore()
    aside.rename(given)
    study.check_refused("ethics", answer(study, "ethics", second), words)  # it lies in the exchanged folder
    log.unlink()
    gone = answer(study, "ethics", second)
    assert gone.code == 3
    assert "log.jsonl: missing, yet ethics has keys" in gone.reasons()[0]
    assert not log.exists()


def test_a_closing_of_another_width_or_of_a_void_attempt_is_not_answered(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    closing = study.closing()
    genuine = closing.read_bytes()
    listing = Closing.parse(closing, content_of(study, closing), the_study(study))
    wide = replaced(study, closing, study.identity(OFFICE), Closing(listing.entries + 1, listing.listed).to_bytes())
    study.check_refused("ethics", answer(study, "ethics", wide), f"vectors of {listing.entries + 1} entries; expected")
    wide.unlink()
    closing.write_bytes(genuine)
    assert answer(study, "ethics", closing).code == 0  # no other list is on record
    study.at(OFFICE).done("study", "void", "exchange")
    for helper in study.helpers:
        study.check_refused(helper, answer(study, helper, closing), "round 0, attempt 0 is void")


def test_a_list_below_k_min_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    outcome = answer(study, "ethics", relisted(study, SHARDS[:2]))
    study.check_refused("ethics", outcome, "2 sites are listed; expected at least 3")


def test_a_void_after_a_draw_is_refused_on_both_sides(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    study.answers()
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.consortium.releasing.release_round", drawn_and_killed)
        assert study.release().code == 70
    study.check_refused(
        OFFICE, study.at(OFFICE).distqexp("study", "void", "exchange"), "after a draw nothing can be voided"
    )
    assert study.release().code == 0
    study.sketches(["north"])  # took the release
    header = peek(message(study, "release-000-00"))[0]
    false = Envelope("void", header.study, header.plan_id, 0, 0, None, header.ledger)
    write_message(study.exchange, study.identity(OFFICE), false, b"void")
    study.check_refused("north", study.sketch("north"), "expected no void after a draw")


def drawn_and_killed(order: object, engine: object) -> None:
    """Draw a release, and end before anything is stored but what the ledger has."""
    from distqexp.errors import InternalError
    from distqexp.stages.by_hand import release_round

    release_round(order, engine)  # type: ignore[arg-type]
    order.out.unlink()  # type: ignore[attr-defined]
    raise InternalError("killed")
