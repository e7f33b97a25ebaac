"""What an attacker, a clumsy coordinator or a dishonest site may try with a study's files: each is refused, in one line, in the log."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from consortium import SHARDS
from studies import OFFICE, StudyFolders
from study_forgery import content_of, message, replaced, stolen

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.federation.header import Envelope
from distqexp.federation.keys import Identity
from distqexp.federation.messages import MAGIC, SUFFIX, peek, write_message

Begin = Callable[..., StudyFolders]


def test_a_replay_under_another_name_is_refused(begin: Begin) -> None:
    study = begin(rounds_done=1)
    old = message(study, "masked-000-00-north")
    shutil.copy(old, study.exchange / old.name.replace("masked-000", "masked-001"))
    study.check_refused(OFFICE, study.close(), "its name is not that of the message in it")


def test_an_old_message_counts_for_no_other_round(begin: Begin) -> None:
    study = begin(rounds_done=1)
    study.sketches(SHARDS[:2])
    few = study.close()  # the messages of round 0 still lie there, of four sites
    assert few.code == 2
    assert "2 sites sent" in few.reasons()[0]


def test_a_message_of_a_round_to_come_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    path = message(study, "masked-000-00-north")
    replaced(study, path, study.identity("north"), content_of(study, path), round=1)
    study.check_refused(OFFICE, study.close(), "it is from a time that hasn't come")


@pytest.mark.parametrize(("field", "words"), [("study", "of study 1111"), ("plan_id", "of plan 1111")])
def test_a_message_of_another_study_or_plan_is_refused(begin: Begin, field: str, words: str) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    path = message(study, "masked-000-00-north")
    replaced(study, path, study.identity("north"), content_of(study, path), **{field: "1" * 64})
    study.check_refused(OFFICE, study.close(), words)


def test_two_sketches_of_a_site_are_refused_and_the_first_counts(begin: Begin) -> None:
    study = begin()
    study.sketches()
    path = message(study, "masked-000-00-north")
    first = path.read_bytes()
    replaced(study, path, study.identity("north"), content_of(study, path))
    path.write_bytes(first)
    study.check_refused(OFFICE, study.close(), "is a second masked of north for round 0")
    assert study.close().code == 0  # the next visit leaves the refused one out


def test_altered_sums_with_right_checksums_are_refused(begin: Begin) -> None:
    study = begin()
    study.sketches()
    path = message(study, "masked-000-00-north")
    data = bytearray(path.read_bytes())
    start = len(MAGIC) + 4
    (size,) = struct.unpack(">I", data[len(MAGIC) : start])
    tree = json.loads(data[start : start + size])
    data[-1] ^= 1
    tree["sha256"] = hashlib.sha256(data[-tree["length"] :]).hexdigest()
    text = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    assert len(text) == size
    data[start : start + size] = text
    path.unlink()
    identity = hashlib.sha256(b"distqexp signed message 1\n" + text).hexdigest()
    (study.exchange / f"masked-000-00-north-{identity[:32]}{SUFFIX}").write_bytes(data)
    study.check_refused(OFFICE, study.close(), "its signature is not that of north")


def test_content_that_was_altered_alone_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches()
    path = message(study, "masked-000-00-north")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    study.check_refused(OFFICE, study.close(), "its content is not the one that north signed")


def test_a_wrong_signer_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches()
    path = message(study, "masked-000-00-north")
    stranger = Identity.draw("north")
    replaced(study, path, stranger, content_of(study, path))
    study.check_refused(OFFICE, study.close(), "its signature is not that of north")


def test_a_sender_who_is_no_party_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    path = message(study, "masked-000-00-north")
    replaced(study, path, Identity.draw("fifth"), content_of(study, path))
    study.check_refused(OFFICE, study.close(), "sender fifth; expected a party of study sepsis")


def forged(study: StudyFolders, scale: float) -> tuple[Path, bytes]:
    """A sketch that north's own people made from the plan, with sums of so many units' clips."""
    plan = Plan.read(study.root / "plan.h5")
    real = Sketch.read(study.own("north") / "sketch-000.h5", plan, own=True)
    sums = np.zeros_like(real.sums)
    sums[0] = int(scale * plan.config.privacy.units * plan.state.grid.sensitivity)
    path = study.root / "forged.h5"
    Sketch(real.plan_id, 0, real.state, "north", sums, real.done, "").write(path)
    return path, path.read_bytes()


def test_a_forged_sketch_is_refused(begin: Begin) -> None:
    study = begin("trusted-curator")
    study.sketches()
    path = message(study, "sketch-000-00-north")
    replaced(study, path, study.identity("north"), forged(study, 1.01)[1])
    study.check_refused(OFFICE, study.close(), "its sums are longer than the study's units with the clip can make them")


def test_a_sketch_within_bounds_is_taken(begin: Begin) -> None:
    study = begin("trusted-curator")
    study.sketches()
    path = message(study, "sketch-000-00-north")
    replaced(study, path, study.identity("north"), forged(study, 0.99)[1])
    assert study.close().code == 0  # nobody can see that it is no sketch of records


def test_another_sites_sums_are_refused(begin: Begin) -> None:
    study = begin("trusted-curator")
    study.sketches()
    path = message(study, "sketch-000-00-north")
    replaced(study, path, study.identity("north"), content_of(study, message(study, "sketch-000-00-south")))
    study.check_refused(OFFICE, study.close(), "shard south; expected north")


def test_another_sites_masked_sums_and_seeds_under_ones_own_name_are_refused(begin: Begin) -> None:
    """A thief can copy what is sealed, and sign it; but it opens in the name of its own sender alone."""
    study = begin()
    study.sketches()
    north, south = message(study, "masked-000-00-north"), message(study, "masked-000-00-south")
    genuine = north.read_bytes()
    north.unlink()
    receipts = tuple(peek(stolen(study, seed, study.identity("north")))[1] for seed in _seeds_of(study, south))
    theft = stolen(study, south, study.identity("north"), receipts=receipts)
    study.check_refused(OFFICE, study.close(), "its content can't be opened by curator; expected one that north sealed")
    north.write_bytes(genuine)
    theft.unlink()
    masked = content_of(study, north)
    replaced(study, north, study.identity("north"), masked, receipts=receipts)
    assert study.close().code == 0
    outcome = study.at("ethics").distqexp("helper", "answer", study.closing())
    study.check_refused("ethics", outcome, "its content can't be opened by ethics; expected one that north sealed")


def _seeds_of(study: StudyFolders, masked: Path) -> list[Path]:
    """The seeds that a masked vector names, in the order of the helpers."""
    found = {peek(path)[1]: path for path in study.exchange.glob(f"seed-*{SUFFIX}")}
    return [found[known] for known in peek(masked)[0].receipts]


def test_a_downgraded_mode_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    outside = study.at("west").distqexp("sketch", "plan.h5", "--data", "west/west.csv", "--out", "west.h5")
    study.check_refused("west", outside, "the plan of a study that was accepted here")
    assert study.charges("west") == []
    header = peek(message(study, "masked-000-00-north"))[0]
    plain = Envelope("sketch", header.study, header.plan_id, 0, 0, OFFICE)
    write_message(study.exchange, study.identity("west"), plain, b"sums", study.identity(OFFICE).card)
    study.check_refused(OFFICE, study.close(), "a sketch with trust 'helper-masks'; expected none")


def test_a_plan_that_is_swapped_after_acceptance_is_refused(begin: Begin) -> None:
    study = begin()
    header = peek(message(study, "plan-"))[0]
    other = Envelope("plan", header.study, header.plan_id)
    write_message(study.exchange, study.identity(OFFICE), other, (study.root / "plan.h5").read_bytes())
    study.check_refused("north", study.sketch("north"), "another plan than the one accepted")
    assert study.charges("north") == []


def test_a_changed_roster_is_another_study(begin: Begin) -> None:
    study = begin()
    office = study.at(OFFICE)
    office.done(*study.new_command("other.toml", name="sepsis-2"))
    office.done("study", "sign", "other.toml", "--plan", "plan.h5", "--folder", "second")
    shutil.copy(next((study.root / "second").glob(f"study-*{SUFFIX}")), study.exchange)
    study.check_refused("north", study.sketch("north"), "it is a message of another study")
    assert study.charges("north") == []


def test_a_site_beyond_the_plan_is_refused(begin: Begin) -> None:
    study = begin()
    (study.root / "fifth").mkdir()
    study.at("fifth").done("site", "init", "fifth")
    more = study.at(OFFICE).distqexp(*study.new_command("five.toml", sites=(*SHARDS, "fifth")))
    assert more.code == 2
    assert "expected the plan's shards" in more.reasons()[0]


def test_a_population_can_not_be_renamed(begin: Begin) -> None:
    study = begin()
    study.sketches(["north"])
    again = study.at("north").distqexp(*study.accept_command("north"), "--population", "others")
    study.check_refused(
        "north", again, "population 'others'; expected 'patients', under which it was accepted",
        logged="study sepsis: another population than the one under which it was accepted",
    )  # fmt: skip
    assert study.charges("north") == [("site-north", "0", "committed")]


def test_a_release_made_by_hand_is_refused(begin: Begin) -> None:
    study = begin(rounds_done=1)
    path = message(study, "release-000-00")
    replaced(study, path, Identity.draw(OFFICE), content_of(study, path))
    study.check_refused("north", study.sketch("north"), f"its signature is not that of {OFFICE}")


def test_a_release_that_its_coordinator_altered_is_refused(begin: Begin) -> None:
    study = begin(rounds_done=1)
    path = message(study, "release-000-00")
    data = bytearray(content_of(study, path))
    data[len(data) // 2] ^= 1
    replaced(study, path, study.identity(OFFICE), bytes(data))
    study.check_refused("north", study.sketch("north"), "release")


def test_a_release_without_its_receipts_is_refused(begin: Begin) -> None:
    study = begin(rounds_done=1)
    path = message(study, "release-000-00")
    replaced(study, path, study.identity(OFFICE), content_of(study, path), receipts=peek(path)[0].receipts[:-1])
    study.check_refused("north", study.sketch("north"), "it acknowledges 4 messages; expected the closing and the 4")


def test_a_late_sketch_is_refused(begin: Begin) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    held = study.root / "held"
    held.mkdir()
    shutil.copytree(study.exchange, held / "exchange")
    assert study.close().code == 0
    closing = study.closing()
    closing.rename(held / closing.name)  # west hasn't seen it
    study.sketches(["west"])
    (held / closing.name).rename(closing)
    study.check_refused(OFFICE, study.close(), "west sent it for round 0, attempt 0, which was closed without it")
    study.answers()
    assert study.release().code == 0
    study.sketches()  # it is in the next round
    assert study.close().code == 0


def test_a_site_does_not_sketch_a_round_that_was_closed_without_it(begin: Begin) -> None:
    study = begin()
    study.sketches(SHARDS[:3])
    assert study.close().code == 0
    study.check_refused("west", study.sketch("west"), "was closed without west")
    assert study.charges("west") == []
