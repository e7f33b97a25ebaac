"""Ways to two sums that differ by one site or by a few records, to charges that are wrong afterwards, and to sums that stay on a disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from consortium import SHARDS
from kills import Killed
from studies import OFFICE, StudyFolders
from study_forgery import content_of, message, replaced

from distqexp.federation.keys import Identity
from distqexp.federation.messages import SUFFIX

Begin = Callable[..., StudyFolders]


@pytest.mark.parametrize("party", ["north", "ethics"])
def test_a_second_study_on_one_plan_is_refused(begin: Begin, party: str) -> None:
    study = begin()
    office = study.at(OFFICE)
    office.done(*study.new_command("other.toml", name="sepsis-2", k_min=3))
    office.done("study", "sign", "other.toml", "--plan", "plan.h5", "--folder", "second")
    outcome = study.at(party).distqexp(*study.accept_command(party, "second"))
    study.check_refused(party, outcome, "is that of another study accepted here")


def test_records_that_changed_never_meet_a_repeat(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    study.at(OFFICE).done("study", "repeat", "exchange")
    (study.own("north") / "sketch-000.h5").unlink()
    study.check_refused("north", study.sketch("north"), "expected the same sums again")
    assert study.charges("north") == [("site-north", "0", "committed")]


def test_a_site_that_was_late_does_not_join_a_repeat(begin: Begin) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    away = study.root / "away"
    away.mkdir()
    assert study.close().code == 0
    closing = study.closing()
    closing.rename(away / closing.name)
    study.sketches(["west"])
    (away / closing.name).rename(closing)
    study.at(OFFICE).done("study", "repeat", "exchange")
    outcome = study.sketch("west")
    assert outcome.code == 2
    assert "is for the sites of the attempt before" in outcome.reasons()[0]
    study.sketches(SHARDS[:3])
    study.check_refused(OFFICE, study.close(), "west sent it for round 0, attempt 0")
    assert study.close().code == 0
    study.answers(0, 1)
    assert study.release().code == 0


def test_a_round_is_not_repeated_once_its_release_is_charged(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    study.answers()
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.stages.by_hand.make_release", _killed)
        with pytest.raises(Killed):
            study.release()
    again = study.at(OFFICE).distqexp("study", "repeat", "exchange")
    study.check_refused(OFFICE, again, "is charged for its release")
    assert study.release().code == 0


def _killed(*_: object) -> None:
    raise Killed


def test_a_charge_stands_again_when_a_voided_last_round_turns_out_released(begin: Begin) -> None:
    study = begin(rounds_done=1)
    study.sketches()
    assert study.close().code == 0
    study.answers(1)
    for part in ("home", "books"):
        shutil.copytree(study.root / OFFICE / part, study.root / "kept" / part)
    assert study.release().code == 0
    release = message(study, "release-001")
    release.rename(study.root / release.name)
    for part in ("home", "books"):
        shutil.rmtree(study.root / OFFICE / part)
        shutil.copytree(study.root / "kept" / part, study.root / OFFICE / part)
    study.at(OFFICE).done("study", "void", "exchange")
    assert "given back" in study.sketch("north").out
    (study.root / release.name).rename(release)
    study.check_refused("north", study.sketch("north"), "the void was false; the charge stands again")
    assert study.charges("north")[-1] == ("site-north", "1", "committed")


def test_a_charge_without_a_sketch_is_given_back_by_a_void(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin()
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.stages.by_hand.whole_sketch", _killed)
        with pytest.raises(Killed):
            study.sketch("north")
    assert study.charges("north") == [("site-north", "0", "committed")]
    study.at(OFFICE).done("study", "void", "exchange")
    assert "its charge here is given back" in study.sketch("north").out
    assert study.charges("north") == [("site-north", "0", "voided")]
    assert not list(study.own("north").glob("sketch-*"))


@pytest.mark.parametrize("trust", ["trusted-curator", "helper-masks"])
def test_exact_sums_do_not_outlive_their_study(begin: Begin, trust: str) -> None:
    study = begin(trust)
    study.sketches()
    assert study.close().code == 0
    study.at(OFFICE).done("study", "void", "exchange")
    assert study.sketch("north").code == 0
    assert not list(study.own("north").glob("sketch-*"))
    assert not list(study.own(OFFICE).glob("taken-*"))
    study = begin("helper-masks", rounds_done=1)
    study.whole_round(1)
    assert "all 2 rounds are released" in study.sketch("north").out
    assert not list(study.own("north").glob("sketch-*"))


def test_a_strangers_closing_accuses_nobody(begin: Begin) -> None:
    study = begin()
    study.sketches()
    assert study.close().code == 0
    closing = study.closing()
    replaced(study, closing, Identity.draw(OFFICE), content_of(study, closing))
    study.check_refused(OFFICE, study.release(), f"its signature is not that of {OFFICE}")


def test_a_signed_message_that_makes_no_sense_blocks_one_visit_alone(begin: Begin) -> None:
    study = begin()
    study.sketches()
    path = message(study, "masked-000-00-west")
    replaced(study, path, study.identity("west"), b"12345")
    study.check_refused(OFFICE, study.close(), "5 bytes; expected")
    assert study.close().code == 0
    assert not [path for path in study.exchange.glob(f"closing-*{SUFFIX}") if b"west" in path.read_bytes()]
