"""A study from keys to a verified model, by commands and files alone: the same integers as in one run, and one charge a round."""

from __future__ import annotations

import re

import numpy as np
import pytest
from consortium import SHARDS
from run_harness import Commands
from studies import OFFICE, Terminal, begun_study

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.federation.messages import SUFFIX

SHARED = "helper-masks-distributed-noise"


@pytest.mark.parametrize("trust", ["trusted-curator", "helper-masks", SHARED])
def test_a_study_ends_in_a_model_that_verifies_although_a_site_drops_out(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    study = begun_study(tmp_path_factory, run, monkeypatch, trust, {"tolerated_sites": 1} if trust == SHARED else None)
    study.whole_round(0)
    study.whole_round(1, SHARDS[:3])  # west is gone
    office = study.at(OFFICE)
    assert "all 2 rounds are released" in office.done("study", "status", "exchange").out
    export = ["study", "export", "exchange", "--out", "model"]
    office.done(*export, "--config", f"{OFFICE}/task.toml")
    office.distqexp(*export).refused(2, "--out model: not empty; choose a new folder: an export")
    office.distqexp(*export, "--config", "no.toml").refused(
        2, "--config no.toml: no such file; expected the config that"
    )
    releases = [study.own(OFFICE) / f"release-{round:03d}.h5" for round in range(2)]
    office.done("verify", "model", "plan.h5", *releases)
    assert (study.root / "model" / "study.toml").read_bytes() == (study.root / "study.toml").read_bytes()
    assert "The coordinator" in (study.root / "model" / "who-could-learn-what.txt").read_text()
    assert study.charges(OFFICE) == [("release", "0", "committed"), ("release", "1", "committed")]
    for site in SHARDS:
        rounds = ["0"] if site == "west" else ["0", "1"]
        assert study.charges(site) == [(f"site-{site}", round, "committed") for round in rounds]
        visits = [entry for entry in study.log(site) if entry.event["event"] == "accept"]
        assert len(visits) == 1  # a site's visits are this one and one sketch a round
    for party in study.parties:
        study.at(party).done("log", "verify")
        assert not [entry for entry in study.log(party) if entry.event["event"] == "refused"]


def test_the_coordinator_gets_exactly_the_plain_sum_of_the_sites(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun_study(tmp_path_factory, run, monkeypatch)
    study.sketches()
    plan = Plan.read(study.root / "plan.h5")
    sums = [Sketch.read(study.own(site) / "sketch-000.h5", plan, own=True).sums for site in SHARDS]
    assert study.close().code == 0
    study.answers()
    kept: list[Quadratic] = []
    write = Quadratic.write
    monkeypatch.setattr(Quadratic, "write", lambda self, path: (kept.append(self), write(self, path))[1])
    assert study.release().code == 0
    np.testing.assert_array_equal(kept[0].sums, np.sum(sums, axis=0))
    assert not list(study.own(OFFICE).glob("quadratic*"))
    for site, own in zip(
        SHARDS, sums, strict=True
    ):  # neither its bytes nor any eight in a row of them are in what it sent
        (sent,) = study.exchange.glob(f"masked-000-00-{site}-*{SUFFIX}")
        content = sent.read_bytes()
        assert all(number.tobytes() not in content for number in own if number)


def test_with_noise_in_shares_nobody_sees_an_exact_sum_and_a_repeat_averages_nothing_out(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun_study(tmp_path_factory, run, monkeypatch, SHARED, {"tolerated_sites": 1})
    study.sketches()
    plan = Plan.read(study.root / "plan.h5")
    noisy = [Sketch.read(study.own(site) / "sketch-000.h5", plan, own=True).sums for site in SHARDS]
    assert study.close().code == 0
    study.at(OFFICE).done("study", "repeat", "exchange")
    study.sketches()
    for site, vector in zip(SHARDS, noisy, strict=True):
        np.testing.assert_array_equal(Sketch.read(study.own(site) / "sketch-000.h5", plan, own=True).sums, vector)
    assert study.close().code == 0
    study.answers(0, 1)
    assert study.release().code == 0
    np.testing.assert_array_equal(study.sums(0), np.sum(noisy, axis=0))
    other = study.at(OFFICE).distqexp(*[word.replace(SHARED, "helper-masks") for word in study.new_command("o.toml")])
    assert other.code == 2
    assert "with mechanism.tolerated_sites 1 in the plan; expected 0" in other.reasons()[0]


def test_a_repeat_is_the_same_vector_and_no_charge(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun_study(tmp_path_factory, run, monkeypatch)
    study.sketches(SHARDS[:3])
    again = study.sketch("north")
    assert "was sent" in again.out
    for path in study.exchange.glob(f"masked-*north*{SUFFIX}"):
        path.unlink()
    assert study.sketch("north").code == 0  # copied once more, from its own folder
    assert len(list(study.exchange.glob(f"masked-*north*{SUFFIX}"))) == 1
    assert study.close().code == 0
    for path in study.exchange.glob(f"seed-*{SUFFIX}"):
        path.unlink()  # a disk is lost: no helper can answer
    assert study.at("ethics").distqexp("helper", "answer", study.closing()).code == 3
    study.at(OFFICE).done("study", "repeat", "exchange")
    late = study.sketch("west")
    assert late.code == 2
    assert "attempt before" in late.reasons()[0]
    study.sketches(SHARDS[:3])
    assert study.close().code == 0
    study.answers(0, 1)
    assert study.release().code == 0
    for site in SHARDS[:3]:
        assert study.charges(site) == [(f"site-{site}", "0", "committed")]
    study.sketches()  # west joins the next round


def test_a_void_gives_each_charge_back_once(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun_study(tmp_path_factory, run, monkeypatch)
    study.sketches(SHARDS[:2])
    few = study.close()
    assert few.code == 2
    assert "expected at least 3" in few.reasons()[0]
    study.at(OFFICE).distqexp("study", "export", "exchange", "--out", "model").refused(2, "0 of 2 rounds released")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Terminal("n\n"))
        asked = study.at(OFFICE).distqexp("study", "void", "exchange")
        assert (asked.code, "no model can come of it, for ever" in asked.out) == (2, True), asked
        assert "round 0 is not voided" in asked.reasons()[-1]
        assert not list(study.exchange.glob("void-*"))
        patch.setattr("sys.stdin", Terminal("y\n"))
        done = study.at(OFFICE).done("study", "void", "exchange")
        assert done.err == ""  # no release was tried, so the ledger need not know the plan
    study.at(OFFICE).distqexp("study", "export", "exchange", "--out", "model").refused(2, "round 0 was voided")
    for site in SHARDS:
        outcome = study.sketch(site)
        assert outcome.code == 0
        assert "the study ends" in outcome.out
        assert ("given back" in outcome.out) == (site in SHARDS[:2])
        assert study.sketch(site).code == 0
        expected = [(f"site-{site}", "0", "voided")] if site in SHARDS[:2] else []
        assert study.charges(site) == expected
    assert "has ended" in study.at("north").done("study", "status", "exchange").out


def test_status_tells_each_party_its_next_command(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = begun_study(tmp_path_factory, run, monkeypatch)

    def mine(party: str) -> str:
        lines = study.at(party).done("study", "status", "exchange").out.splitlines()
        (line,) = [line for line in lines if line.startswith("you, ")]
        return line

    text = (study.root / "study.toml").read_text()
    (study.root / "other.toml").write_text(re.sub(r'(?m)^plan_id = ".*"$', f'plan_id = "{"1" * 64}"', text))
    other = study.at(OFFICE).distqexp("study", "sign", "other.toml", "--plan", "plan.h5", "--folder", "new")
    other.refused(3, "plan_id 1111111111111111, and the plan given is another one")
    shown = study.at("north").done("study", "show", "exchange", "--coordinator", study.card(OFFICE)).out
    assert shown.splitlines()[-1] == f"Signed by {OFFICE}, with the key of {study.card(OFFICE)}."
    assert mine("north") == "you, north: sketch: distqexp study sketch exchange --data FILE"
    study.sketches(SHARDS[:3])
    assert mine("north") == "you, north: wait: sent"
    assert "close: 3 of 4 sites sent" in mine(OFFICE)
    assert study.close().code == 0
    assert mine("ethics").startswith("you, ethics: answer: distqexp helper answer exchange/closing-")
    assert "2 more helpers have" in mine(OFFICE)
    early = study.release()
    assert early.code == 2
    assert "ethics, archive did not answer; expected the answers of 2 helpers" in early.reasons()[0]
    study.at("ethics").done("helper", "answer", study.closing())
    assert "1 more helper has" in mine(OFFICE)
    study.at("archive").distqexp("helper", "answer", "exchange").refused(
        2, "exchange: a folder", "study status exchange"
    )
    study.at(OFFICE).done("study", "repeat", "exchange")
    assert mine("west").startswith("you, west: wait for the release")
    assert mine("north").startswith("you, north: sketch")
    study.sketches(SHARDS[:2])
    assert mine(OFFICE) == f"you, {OFFICE}: wait: 2 of 3 sites sent, 3 are needed"
    few = study.close()
    assert few.code == 2
    assert (
        f"{SHARDS[2]} did not send attempt 1 of round 0; expected every site of the attempt before" in few.reasons()[0]
    )
    assert "sent again under new masks, without a charge" in study.sketch(SHARDS[2]).out
    assert study.close().code == 0
    study.answers(0, 1)
    assert "release: distqexp study release exchange" in mine(OFFICE)
    study.at(OFFICE).done("study", "void", "exchange")
    assert mine("north") == "you, north: take note of it, once: distqexp study sketch exchange"
    assert study.sketch("north").code == 0
    assert mine("north") == "you, north: nothing is left to do"


def test_a_site_with_a_passphrase_is_asked_for_it(
    tmp_path_factory: pytest.TempPathFactory, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    words = folder / "words"
    words.write_text("correct horse\n")
    words.chmod(0o600)
    monkeypatch.setenv("DISTQEXP_HOME", str(folder / "home"))
    refused = run.distqexp("site", "init", "north", "--passphrase")
    assert refused.code == 2
    assert "--passphrase: none given" in refused.reasons()[0]
    typed = iter(["horse", "house", ""])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Terminal())
        for reason in ("typed differently the second time", "passphrase: empty"):
            assert reason in run.distqexp("site", "init", "north", "--passphrase").reasons()[0]
    assert not (folder / "home").exists()
    monkeypatch.setenv("DISTQEXP_PASSPHRASE_FILE", str(words))
    run.done("site", "init", "north", "--passphrase")
    assert (folder / "home" / "identity.json").stat().st_mode & 0o777 == 0o600
    run.done("log", "mend")
    run.distqexp("log", "verify", "--noted", "3:abc").refused(2, "as distqexp log verify prints it")
    words.write_text("another\n")
    assert run.distqexp("log", "mend").code == 2
    assert "north" in run.done("site", "card", "--out", str(folder / "copy.card")).out
    twice = run.distqexp("site", "init", "north")
    assert twice.code == 2
    assert "a party's keys are there, of north" in twice.reasons()[0]
