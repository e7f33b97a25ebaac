"""A party's own folder: what a killed command left half, what is missing or too many, and who may look into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kills import Killed
from run_harness import Commands
from studies import StudyFolders

Begin = Callable[..., StudyFolders]


@pytest.mark.parametrize("place", ["distqexp.consortium.home.Log.append", "distqexp.consortium.home.write_atomic"])
@pytest.mark.parametrize("passphrase", [False, True])
def test_the_card_and_the_log_of_a_killed_init_are_made_of_the_keys(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, passphrase: bool
) -> None:
    monkeypatch.setenv("DISTQEXP_HOME", str(tmp_path / "home"))
    (tmp_path / "words").write_text("four words of mine\n")
    (tmp_path / "words").chmod(0o600)
    monkeypatch.setenv("DISTQEXP_PASSPHRASE_FILE", str(tmp_path / "words"))

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        with pytest.raises(Killed):
            run.distqexp("site", "init", "north", *(["--passphrase"] if passphrase else []))
    again = run.distqexp("site", "init", "north")
    assert again.code == 2
    assert "distqexp site card" in again.reasons()[0]
    shown = run.done("site", "card").out
    assert '"name":"north"' in shown
    assert (tmp_path / "home" / "north.card").read_text() in shown
    (line,) = run.done("log", "show").out.splitlines()
    assert '"event": "init"' in line


def test_another_card_in_the_home_is_left_alone(begin: Begin) -> None:
    study = begin()
    home = study.home("north")
    (home / "another.card").write_bytes((study.home("south") / "south.card").read_bytes())
    assert "you, north" in study.at("north").done("study", "status", "exchange").out
    study.at("north").done("log", "verify")
    assert '"name":"north"' in study.at("north").done("site", "card").out


def test_a_home_without_its_study_is_refused_in_one_line(begin: Begin) -> None:
    study = begin()
    (study.own("north") / "study.toml").unlink()
    for outcome in (study.sketch("north"), study.at("north").distqexp("study", "status", "exchange")):
        assert outcome.code == 3
        assert "study.toml: missing; expected the study that was accepted: restore the home" in outcome.reasons()[0]


def test_a_home_that_others_may_look_into_is_refused(begin: Begin) -> None:
    study = begin()
    study.home("north").chmod(0o755)
    refused = study.sketch("north")
    assert refused.code == 6
    assert "mode 755; expected 700" in refused.reasons()[0]
    assert study.charges("north") == []
    study.home("north").chmod(0o700)
    study.sketches(["north"])
