"""How a study begins where something goes wrong: a killed command, a second one, a coordinator with records of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from kills import Killed
from run_harness import Commands
from studies import OFFICE, StudyFolders
from study_forgery import content_of, message, replaced

from distqexp import api
from distqexp.errors import FileContentError
from distqexp.federation.keys import Identity
from distqexp.federation.messages import SUFFIX

Begin = Callable[..., StudyFolders]

SIGN = ("study", "sign", "study.toml", "--plan", "plan.h5", "--folder")


def _killed(*_: object, **__: object) -> None:
    raise Killed


def second_study(study: StudyFolders, coordinator: str) -> tuple[Commands, tuple[str, ...]]:
    """A study of another plan, not signed yet; returns its coordinator's commands and the words that sign it."""
    at = study.at(coordinator)
    at.done("plan", f"{OFFICE}/task.toml", "--out", "plan2.h5", "--set", "privacy.epsilon=0.9")
    words = study.new_command("two.toml", k_min=3, name="two")
    at.done(*(word if word != "plan.h5" else "plan2.h5" for word in words))
    return at, ("study", "sign", "two.toml", "--plan", "plan2.h5", "--folder", "second")


@pytest.mark.parametrize("place", ["_pin", "deliver"])
def test_a_study_whose_signing_was_killed_is_signed_by_the_next_call(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    study = begin()
    office, sign = second_study(study, OFFICE)
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


def test_a_coordinator_that_is_a_site_is_asked_what_a_site_is_asked(begin: Begin) -> None:
    study = begin()
    north, sign = second_study(study, "north")
    north.done(*sign)
    sketch = ("study", "sketch", "second", "--data", "north/north.csv")
    early = north.distqexp(*sketch)
    assert early.code == 2
    assert "expected its acceptance first: distqexp study accept second" in early.reasons()[0]
    accept = ("study", "accept", "second", "--coordinator", str(study.card("north")))
    unsaid = north.distqexp(*accept)
    assert unsaid.code == 2
    assert "expected --elsewhere or --not-elsewhere" in unsaid.reasons()[0]
    north.done(*accept, "--not-elsewhere", "--population", "wards")
    north.done(*accept, "--not-elsewhere")
    other = north.distqexp(*accept, "--not-elsewhere", "--population", "others")
    study.check_refused(
        "north",
        other,
        "expected 'wards'",
        logged="study two: another population than the one under which it was accepted",
    )
    north.done(*sketch)


def test_a_plan_of_a_study_is_refused_outside_by_functions_too(begin: Begin) -> None:
    study = begin()
    study.at("north")
    with pytest.raises(FileContentError, match="the plan of a study that was accepted here"):
        api.sketch("plan.h5", "north/north.csv", "plain.h5", shard="north")
    assert study.log("north")[-1].event["event"] == "refused"
    (study.root / "run").mkdir()
    (study.root / "plan.h5").rename(study.root / "run" / "plan.h5")
    config = api.load_config(study.root / OFFICE / "task.toml")
    with pytest.raises(FileContentError, match="the plan of a study that was accepted here"):
        api.fit(config, "run", resume=True)
    by_command = study.at("north").distqexp("fit", f"{OFFICE}/task.toml", "--out", "run", "--resume")
    study.check_refused("north", by_command, "the plan of a study that was accepted here")
    assert study.charges("north") == []


def test_a_release_over_budget_is_refused_in_the_log(begin: Begin) -> None:
    study = begin("trusted-curator")
    study.sketches()
    assert study.close().code == 0
    study.at(OFFICE).done("ledger", "cap", "patients", "--epsilon", "0.01", "--delta", "1e-6")
    outcome = study.release()
    assert outcome.code == 4, outcome
    event = study.log(OFFICE)[-1].event
    assert (event["event"], event["reason"]) == ("refused", "the budget here does not allow it")


def test_a_refused_acceptance_leaves_no_cap(begin: Begin) -> None:
    study = begin()
    shutil.rmtree(study.home("north") / "studies")
    shutil.rmtree(study.root / "north" / "books")
    north, accept = study.at("north"), study.accept_command("north")
    refused = north.distqexp(*accept, "--cap", "0.2")
    assert refused.code == 4
    assert "the cap is" in refused.reasons()[0]
    assert "epsilon 0.2" not in north.done("ledger", "show").out
    north.done(*accept)
    north.done(*accept, "--cap", "3")
    assert "epsilon 3" in north.done("ledger", "show").out
    other = north.distqexp(*accept, "--cap", "4")
    assert other.code == 2
    assert "has a cap of epsilon 3.0" in other.reasons()[0]


def test_a_forged_study_is_refused_in_the_log(begin: Begin) -> None:
    study = begin()
    accept = list(study.accept_command("north"))
    accept[accept.index("--coordinator") + 1] = str(study.card("ethics"))
    other = study.at("north").distqexp(*accept)
    study.check_refused("north", other, "expected")
    path = message(study, "study-")
    replaced(study, path, Identity.draw(OFFICE), content_of(study, path))
    forged = study.at("north").distqexp(*study.accept_command("north"))
    study.check_refused("north", forged, f"its signature is not that of {OFFICE}")
    assert len([one for one in study.log("north") if one.event["event"] == "refused"]) == 2


def test_a_study_that_its_coordinator_could_not_release_is_not_signed(begin: Begin) -> None:
    """Sites would be charged for rounds that end at the coordinator's own budget."""
    study = begin()
    office, sign = second_study(study, OFFICE)
    private = office.distqexp(*sign[:-1], OFFICE)
    assert private.code == 2
    assert f"the keys of {OFFICE} are in it" in private.reasons()[0]
    office.done("ledger", "cap", "patients", "--epsilon", "0.1", "--delta", "1e-5")
    refused = office.distqexp(*sign)
    assert refused.code == 4
    assert "budget" in refused.reasons()[0]
    assert not (study.root / "second").exists()
