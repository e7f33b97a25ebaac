"""How a study begins where something goes wrong: a killed command, a second one, a coordinator with records of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kills import Killed
from studies import OFFICE, StudyFolders

from distqexp.federation.messages import SUFFIX

Begin = Callable[..., StudyFolders]

SIGN = ("study", "sign", "study.toml", "--plan", "plan.h5", "--folder")


def _killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize("place", ["_pin", "deliver"])
def test_a_study_whose_signing_was_killed_is_signed_by_the_next_call(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    study = begin()
    office = study.at(OFFICE)
    office.done("plan", f"{OFFICE}/task.toml", "--out", "plan2.h5", "--set", "privacy.epsilon=0.9")
    words = study.new_command("two.toml", k_min=3, name="two")
    office.done(*(word if word != "plan.h5" else "plan2.h5" for word in words))
    sign = ("study", "sign", "two.toml", "--plan", "plan2.h5", "--folder", "second")
    with monkeypatch.context() as patch:
        patch.setattr(f"distqexp.consortium.beginning.{place}", _killed)
        with pytest.raises(Killed):
            office.distqexp(*sign)
    office.done(*sign)
    study.at("north").done(*study.accept_command("north", "second"))
    early = study.at(OFFICE).distqexp("study", "close", "second")  # which copies what was sent again
    assert early.code == 2, early
    assert len(list((study.root / "second").glob(f"*{SUFFIX}"))) == 2


def test_a_study_that_runs_is_not_signed_again(begin: Begin) -> None:
    study = begin()
    office = study.at(OFFICE)
    office.done(*SIGN, "exchange")
    office.done(*SIGN, "third")
    begun = {path.name for path in study.exchange.glob(f"*{SUFFIX}")}
    assert begun == {path.name for path in (study.root / "third").glob(f"*{SUFFIX}")}
    assert len(begun) == 2
    (study.own(OFFICE) / "sent" / min(begun)).unlink()
    gone = office.distqexp(*SIGN, "fourth")
    assert gone.code == 3
    assert "was signed before" in gone.reasons()[0]
    study.sketches()
    assert study.close().code == 0
