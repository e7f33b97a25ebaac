"""What a party's own ledger and log have to say before it sends anything: a charge that stands, and nothing that was forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kills import Killed, killing
from studies import OFFICE, StudyFolders, put_back
from study_forgery import message

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.consortium.journal import Journal
from distqexp.federation.header import Envelope, Header
from distqexp.federation.keys import Identity
from distqexp.federation.log import Log
from distqexp.federation.messages import peek
from distqexp.privacy.ledger import Anchor, Ledger
from distqexp.stages.void import Void

Begin = Callable[..., StudyFolders]


@pytest.mark.parametrize("party", ["north", OFFICE])
def test_a_ledger_that_was_put_back_and_went_on_is_refused_at_home(begin: Begin, party: str) -> None:
    study = begin()
    restore = put_back(study, party, ("books",))
    study.whole_round(0)
    restore()
    for number in range(4):  # it passes its old height
        study.at(party).done("ledger", "cap", f"others-{number}", "--epsilon", "1", "--delta", "1e-6")
    outcome = study.sketch(party) if party == "north" else study.close()
    study.check_refused(party, outcome, "which others were told of: the ledger was put back to an older time")


def test_messages_confirm_no_guess_of_the_ledgers_entries(begin: Begin) -> None:
    study = begin()
    assert study.sketch("north").code == 0
    told = peek(message(study, "masked-000-00-north"))[0].ledger
    with Ledger.open(study.root / "north" / "books" / "ledger.sqlite") as ledger:
        assert told.number == ledger.head().number > 0
        assert told.hash not in {entry["hash"] for entry in ledger.export()}
        assert told == ledger.told_head()


def test_what_was_told_last_is_found_whatever_the_study_and_in_old_logs_too(tmp_path: Path) -> None:
    identity, told = Identity.draw("north"), Anchor(3, "3" * 64)
    log = Log(tmp_path / "log.jsonl", identity)
    journal = Journal(log, "1" * 64)
    for kind, recipient, ledger in (("masked", OFFICE, told), ("answer", OFFICE, Anchor(9, "9" * 64))):
        header = Header.of(Envelope(kind, "1" * 64, "2" * 64, 0, 0, recipient, ledger), "north", 0, "0" * 64)
        with journal.open() as opened:
            opened.note_sent(header, "4" * 64)
            assert opened.last_told == told  # a helper's message tells of its log
    log.append({"event": "sent", "study": "1" * 64, "kind": "masked", "round": 1, "attempt": 0, "message": "5" * 64})
    with Journal(log, "6" * 64).open() as opened:
        assert opened.last_told == told
    with journal.open() as opened:
        assert opened.sent("masked", 1) == ["5" * 64]


def test_nothing_is_signed_without_a_standing_charge(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begin()
    restore = put_back(study, "north", ("books",))
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.consortium.site.contribute", killing(lambda: None, lambda *_, **__: True, True))
        with pytest.raises(Killed):
            study.sketch("north")
    restore()
    study.check_refused("north", study.sketch("north"), "round 0 has no standing charge")
    assert not list((study.own("north") / "sent").iterdir())


def test_a_void_that_anybody_made_gives_no_charge_back(begin: Begin) -> None:
    study = begin()
    assert study.sketch("north").code == 0
    plan = Plan.read(study.root / "plan.h5")
    state = Sketch.read(study.own("north") / "sketch-000.h5", plan, own=True).state
    forged = Void(plan.plan_id, 0, state, plan.config.data.population, plan.config.shards, Anchor(1, "1" * 64))
    forged.write(study.root / "forged.h5")
    outcome = study.at("north").distqexp("ledger", "accept-void", "forged.h5")
    study.check_refused("north", outcome, "expected the one that its coordinator signed: distqexp study sketch FOLDER")
    assert study.charges("north") == [("site-north", "0", "committed")]


def test_no_exact_sums_stay_after_a_void_or_a_kill(begin: Begin) -> None:
    study = begin("trusted-curator")
    study.sketches()
    assert study.close().code == 0
    study.at(OFFICE).done("ledger", "cap", "patients", "--epsilon", "0.01", "--delta", "1e-6")
    assert study.release().code == 4
    own = study.own(OFFICE)
    for left in (own / ".taken-north.h5.1.ab.unfinished", own / "sent" / ".sketch.message.1.ab.unfinished"):
        left.write_bytes(b"sums")
    exact = ("quadratic-*", "taken-*", ".*.unfinished", "sent/.*.unfinished")
    assert all(list(own.glob(pattern)) for pattern in exact)
    study.at(OFFICE).done("study", "void", "exchange")
    assert [path for pattern in exact for path in own.glob(pattern)] == []
    study.sketches()
    assert study.charges("north") == [("site-north", "0", "voided")]
    with Ledger.open(study.root / OFFICE / "books" / "ledger.sqlite") as ledger:
        assert Void.read(study.own("north") / "void-taken.h5").entry == ledger.told_head() != ledger.head()
