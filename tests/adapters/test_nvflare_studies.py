"""Studies that FLARE carries: the sums of the files' way, and nothing that a study refuses among files gets through here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flare_parties import CLIENTS, CONFIG, HELPERS, ROUNDS, SHARDS, Parties, at, begin_study, make_parties
from numpy.typing import NDArray

from distqexp import api
from distqexp.adapters.nvflare.settings import COORDINATOR_FILE, SiteSettings, site_file
from distqexp.adapters.nvflare.site import attempt
from distqexp.adapters.nvflare.wire import ANSWER, SKETCH, VISIT
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic
from distqexp.consortium import releasing
from distqexp.consortium.coordinator import repeat, void
from distqexp.errors import EngineError, FileContentError, UsageError
from distqexp.federation.keys import passphrase_from
from distqexp.federation.messages import peek
from distqexp.federation.study import Trust
from distqexp.stages.by_hand import ReleaseOrder, release_round
from distqexp.storage.hdf5 import read_file

NORTH, SOUTH, WEST = CLIENTS


class StudyParties:
    """Parties of a study, and the exact sums that its coordinator released, which no run keeps."""

    def __init__(self, parties: Parties, sums: list[NDArray[np.int64]]) -> None:
        self.parties = parties
        self.sums = sums

    def own(self, name: str) -> Path:
        (folder,) = (self.parties.root / name / "party" / "studies").iterdir()
        return folder

    def run(self) -> dict[str, Any]:
        return self.parties.coordinator().run(self.parties.ask)

    def visit(self, client: str, messages: list[bytes]) -> tuple[int, str]:
        """The exit code of a visit, and the last line in the site's own log."""
        code, payload = attempt(self.parties.local / site_file(client), VISIT, {"messages": messages})
        assert not code or payload == {}
        return code, self.parties.log(client).splitlines()[-1]

    def news(self) -> list[bytes]:
        """What the coordinator told of rounds so far."""
        folder = self.parties.root / "office" / "exchange"
        return [path.read_bytes() for kind in ("closing", "release", "void") for path in folder.glob(f"{kind}-*")]


@pytest.fixture
def study(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyParties:
    """A study with masks in which two of three sites are enough."""
    sums: list[NDArray[np.int64]] = []

    def release(order: ReleaseOrder, engine: Any) -> Any:
        sums.append(Quadratic.read(order.quadratic, Plan.read(order.plan)).sums)
        return release_round(order, engine)

    monkeypatch.setattr(releasing, "release_round", release)
    return StudyParties(make_parties(tmp_path, files / "plan.h5", trust=Trust.MASKS, k_min=2), sums)


def plain(files: Path, shard: str) -> NDArray[np.int64]:
    return np.asarray(read_file(files / f"{shard}.0.h5").arrays["sums"])


def test_with_masks_the_sums_are_the_same_and_no_sketch_is_sent(files: Path, study: StudyParties) -> None:
    parties = study.parties
    sketches: list[list[NDArray[np.int64]]] = []

    def ask(name: str, payloads: Any) -> Any:
        answers = parties.ask(name, payloads)
        if name == VISIT and len(sketches) < ROUNDS:
            kept = [study.own(shard) / f"sketch-{len(sketches):03d}.h5" for shard in SHARDS]
            assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
            sketches.append([np.asarray(read_file(path).arrays["sums"]) for path in kept])
        return answers

    certificate = parties.coordinator().run(ask)
    assert certificate["noise_seed"] is None
    assert [name for name, _ in parties.asked] == [VISIT, ANSWER] * ROUNDS + [VISIT]
    for number, shard in enumerate(SHARDS):
        np.testing.assert_array_equal(sketches[0][number], plain(files, shard))
        assert [key.split("/")[2] for key in parties.charges(shard)] == ["0", "1"]
        assert not list(study.own(shard).glob("sketch-*"))  # the last release was told, too
    for round in range(ROUNDS):
        np.testing.assert_array_equal(study.sums[round], sum(sketches[round]))
        for number, client in enumerate(CLIENTS):
            code, payload = parties.answered[2 * round][client]
            assert (code, set(payload)) == (0, {"messages"})
            secret = sketches[round][number][:8].tobytes()
            assert all(secret not in message for message in payload["messages"])
    study.run()
    assert len(parties.asked) == 2 * ROUNDS + 1  # all is there: nothing is asked


def test_a_round_goes_on_without_a_site_and_a_repeat_has_the_very_same_vectors(
    files: Path, study: StudyParties, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties = study.parties
    parties.absent = {(VISIT, WEST), (ANSWER, SOUTH)}
    with pytest.raises(EngineError, match=f"expected the answers of 2 helpers.*{SOUTH}: no answer in time"):
        study.run()
    with pytest.raises(EngineError, match="expected the answers of 2 helpers"):
        study.run()
    assert [(name, set(payloads)) for name, payloads in parties.asked[2:]] == [
        (ANSWER, {SOUTH})
    ]  # for the same closing

    with at(parties.root, "office"):
        repeat(parties.root / "office" / "exchange", passphrase_from)
    blank = parties.root / "blank.npy"
    np.save(blank, np.arange(1797) % 2 == 0)
    parties.change(NORTH, blank=str(blank))  # its records changed: half of them are gone
    kept = study.own("south") / "sketch-000.h5"
    kept.rename(kept.with_name("away"))
    parties.absent = {(ANSWER, NORTH)}
    with pytest.raises(EngineError, match=f"south did not send attempt 1 of round 0.*{SOUTH}: exit code 3"):
        study.run()
    assert "missing, yet round 0 was sent before" in parties.log(SOUTH)
    assert set(parties.asked[-1][1]) == {NORTH, SOUTH}  # a repeat is for the sites of the attempt before
    code, line = study.visit(WEST, study.news())
    assert (code, "attempt 1 of round 0 is for the sites of the attempt before" in line) == (2, True)
    assert not parties.charges("west")

    kept.with_name("away").rename(kept)
    parties.absent = set()
    monkeypatch.setattr(releasing, "release_round", lambda order, engine: stop_after(study, order))
    with pytest.raises(KeyboardInterrupt):
        study.run()
    np.testing.assert_array_equal(study.sums[0], plain(files, "north") + plain(files, "south"))
    assert [len(parties.charges(shard)) for shard in SHARDS] == [1, 1, 0]


def stop_after(study: StudyParties, order: ReleaseOrder) -> None:
    study.sums.append(Quadratic.read(order.quadratic, Plan.read(order.plan)).sums)
    raise KeyboardInterrupt


def test_a_site_whose_reply_was_lost_sends_the_same_messages_again(study: StudyParties) -> None:
    parties = study.parties
    lost = attempt(parties.local / site_file(NORTH), VISIT, {"messages": []})
    np.save(parties.root / "blank.npy", np.ones(1797, dtype=bool))
    parties.change(NORTH, blank=str(parties.root / "blank.npy"))
    assert attempt(parties.local / site_file(NORTH), VISIT, {"messages": []}) == lost
    assert len(parties.charges("north")) == 1


def test_a_site_killed_after_its_charge_answers_with_what_it_charged_for(
    study: StudyParties, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties = study.parties
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.consortium.site._send", lambda *words: 1 / 0)
        assert study.visit(NORTH, [])[0] == 5
    assert len(parties.charges("north")) == 1
    code, payload = attempt(parties.local / site_file(NORTH), VISIT, {"messages": []})
    assert (code, len(payload["messages"])) == (0, 1 + len(HELPERS))
    np.testing.assert_array_equal(read_file(study.own("north") / "sketch-000.h5").arrays["sums"], plain(files, "north"))


def test_a_plan_is_in_one_study_and_never_both_in_one_and_without(files: Path, study: StudyParties) -> None:
    parties = study.parties
    plan = files / "plan.h5"
    payload = {"plan": plan.read_bytes(), "releases": []}
    assert attempt(parties.local / site_file(WEST), SKETCH, payload) == (3, {})
    assert "task: outside of a study" in parties.log(WEST)
    bare = f'plan_id = "{api.Plan.read(plan).plan_id}"\nshard = "west"\nledger = "{parties.root}/west/ledger.sqlite"\n'
    (parties.local / site_file(WEST)).write_text(bare)
    assert attempt(parties.local / site_file(WEST), SKETCH, payload) == (3, {})
    assert "the plan of a study that was accepted here" in parties.log(WEST)
    with pytest.raises(FileContentError, match="is that of another study accepted here"):
        begin_study(parties.root, plan, Trust.MASKS, 3, "second")


def test_a_plan_that_was_sketched_without_a_study_is_in_none(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    payload = {"plan": (files / "plan.h5").read_bytes(), "releases": []}
    assert attempt(parties.local / site_file(NORTH), SKETCH, payload)[0] == 0
    with pytest.raises(FileContentError, match="its plan was sketched here without a study"):
        begin_study(parties.root, files / "plan.h5", Trust.MASKS, 3)


def test_a_site_takes_signed_news_of_its_coordinator_alone(study: StudyParties) -> None:
    parties = study.parties
    parties.absent = {(VISIT, WEST)}

    def ask(name: str, payloads: Any) -> Any:
        if any("-000-" in path.name and "release" in path.name for path in office.iterdir()):
            raise KeyboardInterrupt
        return parties.ask(name, payloads)

    office = parties.root / "office" / "exchange"
    with pytest.raises(KeyboardInterrupt):
        parties.coordinator().run(ask)
    (closing,), (release,) = (list(office.glob(f"{kind}-*")) for kind in ("closing", "release"))
    (masked,) = office.glob("masked-*-north-*")
    altered = bytearray(release.read_bytes())
    altered[-1] ^= 1
    before = {path.name for path in (parties.root / "north" / "exchange").iterdir()}
    for message, words in (
        (bytes(altered), "its content is not the one that office signed"),
        (b"release", "it is no message"),
        (masked.read_bytes(), "a masked of north with kind masked; expected closing or void or release"),
    ):
        code, line = study.visit(NORTH, [closing.read_bytes(), message])
        assert (code, words in line) == (3, True), line
    assert {path.name for path in (parties.root / "north" / "exchange").iterdir()} == before | {closing.name}
    assert study.visit(NORTH, [release.read_bytes()])[0] == 0
    assert peek(release)[0].receipts == (peek(closing)[1], *(peek(path)[1] for path in sorted(office.glob("masked-*"))))


def test_a_message_in_another_partys_name_is_refused(study: StudyParties) -> None:
    parties = study.parties
    south = attempt(parties.local / site_file(SOUTH), VISIT, {"messages": []})

    def ask(name: str, payloads: Any) -> Any:
        return dict.fromkeys(payloads, south)

    with pytest.raises(
        FileContentError, match=f"client {NORTH}: task: a seed of south with sender south; expected north"
    ):
        parties.coordinator().run(ask)
    assert not list((parties.root / "office" / "exchange").glob("seed-*"))
    seeds = {peek(path)[0].recipient: path for path in (parties.root / "south" / "exchange").glob("seed-*")}
    for recipient, words in (("south", "a seed of south with recipient south"), ("north", "it is no message")):
        question = {"closing": b"", "seeds": [seeds[recipient].read_bytes()]}
        assert attempt(parties.local / site_file(NORTH), ANSWER, question) == (3, {})
        assert words in parties.log(NORTH).splitlines()[-1]


def test_a_void_gives_charges_back_and_ends_the_job(study: StudyParties) -> None:
    parties = study.parties
    assert study.visit(NORTH, [])[0] == 0
    with at(parties.root, "office"):
        void(parties.root / "office" / "exchange", passphrase_from)
    with pytest.raises(UsageError, match="round 0 is void; expected a study that goes on"):
        study.run()
    with api.Ledger.open(parties.root / "north" / "ledger.sqlite") as ledger:
        assert [row.state for row in ledger.rows()] == ["voided"]
    assert not list(study.own("north").glob("sketch-*"))


def test_noise_in_shares_is_carried_too(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(CONFIG.replace("rounds = 2", "rounds = 1\ntolerated_sites = 1"))
    api.plan(api.load_config(tmp_path / "task.toml"), tmp_path / "plan.h5")
    parties = make_parties(tmp_path / "parties", tmp_path / "plan.h5", trust=Trust.SHARED_NOISE, k_min=2)
    parties.absent = {(VISIT, WEST)}
    parties.coordinator().run(parties.ask)
    assert [len(parties.charges(shard)) for shard in SHARDS] == [1, 1, 0]


@pytest.mark.parametrize(
    ("client", "task", "payload", "code", "words"),
    [
        (WEST, VISIT, {}, 3, "messages is NoneType"),
        (WEST, ANSWER, {"closing": b"", "seeds": []}, 3, "it is no message"),
        (NORTH, ANSWER, {"closing": b"", "seeds": [b""]}, 3, "it is no message"),
    ],
)
def test_a_party_refuses_and_tells_its_own_log_alone(
    study: StudyParties, client: str, task: str, payload: dict[str, Any], code: int, words: str
) -> None:
    parties = study.parties
    assert attempt(parties.local / site_file(client), task, payload) == (code, {})
    (line,) = parties.log(client).splitlines()
    assert line.startswith("distqexp: ")
    assert words in line
    assert not (parties.root / CLIENTS[client] / "ledger.sqlite").exists() or not parties.charges(CLIENTS[client])


def test_settings_of_a_study_leave_what_it_fixes_to_it(study: StudyParties) -> None:
    parties = study.parties
    for key, value in {"shard": "west", "insecure_noise_seed": 5, "population": "icu"}.items():
        with pytest.raises(UsageError, match=f"{key} with exchange"):
            SiteSettings(exchange=parties.root, **{key: value})
    path = parties.local / COORDINATOR_FILE
    path.write_text(path.read_text().replace("[helpers]\n", "[helpers]\nclinic-west = 'west'\n"))
    with pytest.raises(UsageError, match="helpers north, south, west; expected a client for each of north, south"):
        parties.coordinator()


def test_a_trusted_curator_has_signed_sketches(files: Path, tmp_path: Path) -> None:
    study = StudyParties(make_parties(tmp_path, files / "plan.h5", trust=Trust.CURATOR), [])
    study.parties.absent = {(VISIT, WEST)}
    with pytest.raises(EngineError, match=f"2 sites sent their sketches.*{WEST}: no answer in time"):
        study.run()
    study.parties.absent = set()
    study.run()
    assert [set(payloads) for _, payloads in study.parties.asked] == [set(CLIENTS), {WEST}, set(CLIENTS), set(CLIENTS)]
    assert [len(study.parties.charges(shard)) for shard in SHARDS] == [2, 2, 2]
