"""A round by files: the pool holds the plain sum, a helper answers once, and everything else is refused."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import Consortium, identity, make_study, uniform, vectors

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import Closing, Listed
from distqexp.federation.contribution import contribute
from distqexp.federation.helper import Helper
from distqexp.federation.keys import Identity
from distqexp.federation.log import Log, verify_log
from distqexp.federation.masks import MaskContext, stream_sums
from distqexp.federation.messages import peek, read_message, write_message
from distqexp.federation.pooling import Pool

VALUES = vectors(4, 50)
SITES = make_study().site_names


@pytest.fixture
def two(tmp_path: Path) -> Consortium:
    """Four sites have sent their vectors for round 0; there are two helpers."""
    consortium = Consortium(make_study(), tmp_path)
    consortium.send(VALUES)
    return consortium


def closing_of(consortium: Consortium, sites: tuple[str, ...], signer: str = "office", **changes: Any) -> Path:
    """A closing as a coordinator can sign it by hand, whatever it lists."""
    listed = []
    for name in sites:
        sent = consortium.sent.get((name, 0, 0)) or consortium.sent["site0", 0, 0]
        seeds = {helper: peek(path)[1] for helper, path in sent.seeds.items()}
        listed.append(Listed(name, peek(sent.masked)[1], seeds))
    study = consortium.study
    envelope = dataclasses.replace(study.envelope("closing"), **changes)
    return write_message(consortium.folder, identity(signer), envelope, Closing(50, tuple(listed)).to_bytes())[0]


def plain_sum(*sites: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return VALUES[list(sites)].sum(axis=0)


@pytest.mark.parametrize("helpers", [2, 3, 4])
def test_a_round_gives_the_plain_sum_of_the_listed_sites(tmp_path: Path, helpers: int) -> None:
    """One site drops out before the closing; with three or four helpers, one of them never answers."""
    consortium = Consortium(make_study(4, helpers), tmp_path)
    consortium.send(VALUES)
    pool, closing = consortium.pool(SITES[:3])
    answers = [consortium.answer(name, closing) for name in consortium.study.helper_names[-max(2, helpers - 1) :]]
    assert np.array_equal(pool.unmask(answers), plain_sum(0, 1, 2))
    with pytest.raises(FileContentError, match="site3 came after round 0, attempt 0 was closed"):
        pool.add(consortium.sent["site3", 0, 0].masked)
    with pytest.raises(FileContentError, match=r"expected those of \d helpers"):
        pool.unmask(answers[:1])
    again = Pool(consortium.study, identity("office"), (0, 0), 50)
    for name in reversed(SITES[:3]):
        again.add(consortium.sent[name, 0, 0].masked)
    again.closed_before(closing)
    assert np.array_equal(again.unmask(answers), plain_sum(0, 1, 2)), "an interrupted coordinator goes on"
    fewer = Pool(consortium.study, identity("office"), (0, 0), 50)
    with pytest.raises(FileContentError, match="it lists other vectors than the 0 here"):
        fewer.closed_before(closing)
    headers = [peek(answer)[0] for answer in answers]
    logs = [verify_log(tmp_path / f"{header.sender}.log", consortium.study.roster[header.sender]) for header in headers]
    assert [header.ledger.hash for header in headers] == [log[-1].hash for log in logs], "the log goes with the answer"


def test_the_pool_refuses_doubles_wrong_lengths_and_too_few(two: Consortium) -> None:
    pool = Pool(two.study, identity("office"), (0, 0), 50)
    first = two.sent["site0", 0, 0].masked
    assert pool.add(first)
    assert not pool.add(first)
    second = contribute(two.study, identity("site0"), VALUES[1], (0, 0), two.folder).masked
    with pytest.raises(FileContentError, match="a second masked of site0"):
        pool.add(second)
    for sent in (contribute(two.study, identity("site1"), VALUES[1][:49], (0, 0), two.folder).masked,):
        with pytest.raises(FileContentError, match="392 bytes; expected 400"):
            pool.add(sent)
    late = contribute(two.study, identity("site1"), VALUES[1], (0, 1), two.folder).masked
    with pytest.raises(FileContentError, match="attempt 1; expected 0"):
        pool.add(late)
    with pytest.raises(UsageError, match="1 sites sent their vectors; expected at least 2"):
        pool.close(two.folder)
    pool.add(two.sent["site1", 0, 0].masked)
    with pytest.raises(UsageError, match="pooled by site0; expected its coordinator office"):
        Pool(two.study, identity("site0"), (0, 0), 50)
    _, other = two.pool(SITES)
    answer = two.answer("helper0", other)
    pool.close(two.folder)
    with pytest.raises(FileContentError, match="answers closing"):
        pool.unmask([answer])


def test_a_helper_answers_the_same_list_again_and_no_other(two: Consortium) -> None:
    _, closing = two.pool(SITES)
    first = two.answer("helper0", closing)

    def sums(path: Path) -> bytes:
        expected = two.study.expects("answer", round=0, attempt=0)
        return bytes(read_message(path, expected, two.study.roster, 10**4, identity("office")).content)

    assert sums(two.answer("helper0", closing)) == sums(first)
    _, resigned = two.pool(SITES)
    assert peek(resigned)[1] != peek(closing)[1]
    assert sums(two.answer("helper0", resigned)) == sums(first), "the same list signed again"
    entries = verify_log(two.folder / "helper0.log", identity("helper0").card)
    assert [entry.event["sites"] for entry in entries] == [list(SITES)], "one answer is on record"
    _, shorter = two.pool(SITES[:3])
    with pytest.raises(FileContentError, match="was answered in attempt 0 for 4 sites") as caught:
        two.answer("helper0", shorter)
    assert caught.value.exit_code == 3
    two.answer("helper1", shorter)
    with pytest.raises(FileContentError, match="a second list would give sites away"):
        two.answer("helper1", closing)


def test_a_list_is_on_record_before_the_answer_can_leave(two: Consortium) -> None:
    """An answer that fails to be written may have left all the same: the record stands, and the same list is answered."""
    _, closing = two.pool(SITES)
    _, shorter = two.pool(SITES[:3])
    with pytest.raises(UsageError, match="does not exist"):
        two.helper("helper0").answer(closing, sorted(two.folder.glob("seed-*")), two.folder / "missing")
    with pytest.raises(FileContentError, match="was answered in attempt 0 for 4 sites"):
        two.answer("helper0", shorter)
    two.answer("helper0", closing)
    assert len(verify_log(two.folder / "helper0.log", identity("helper0").card)) == 1


def test_the_measurement_at_a_small_size(capsys: pytest.CaptureFixture[str]) -> None:
    """The script compares the sum with the plain one; no time is tested."""
    program = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "consortium.py"))
    figures = program["main"](["--sites", "5", "--missing", "1", "--helpers", "4", "--k", "100"])
    assert json.loads(capsys.readouterr().out) == figures
    assert figures["peak memory (MB)"] > 0


def test_other_seeds_of_the_same_sites_are_another_list(two: Consortium) -> None:
    _, closing = two.pool(SITES)
    two.answer("helper0", closing)
    two.send(VALUES[:1])
    _, other = two.pool(SITES)
    with pytest.raises(FileContentError, match="found 4 sites, list"):
        two.answer("helper0", other)


def test_a_later_attempt_is_answered_for_the_same_sites_alone(two: Consortium) -> None:
    """A new attempt must not be a way to a second sum: after three of four sites, all four would give the fourth away."""
    _, closing = two.pool(SITES[:3])
    two.answer("helper0", closing)
    two.send(VALUES, attempt=1)
    _, all_four = two.pool(SITES, attempt=1)
    with pytest.raises(FileContentError, match="was answered in attempt 0 for 3 sites"):
        two.answer("helper0", all_four)
    pool, same = two.pool(SITES[:3], attempt=1)
    answers = [two.answer(name, same) for name in two.study.helper_names]
    assert np.array_equal(pool.unmask(answers), plain_sum(0, 1, 2))
    two.send(VALUES, round=1)
    two.answer("helper0", two.pool(SITES, round=1)[1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda two: closing_of(two, SITES[:1]), "1 sites are listed; expected at least 2"),
        (lambda two: closing_of(two, ()), "0 sites are listed"),
        (
            lambda two: closing_of(two, (*SITES[:2], "stranger")),
            "site stranger is listed; expected sites of study sepsis",
        ),
        (lambda two: closing_of(two, ("site0", "site0", "site1")), "site site0 is listed twice"),
        (lambda two: closing_of(two, ("site1", "site0")), "its content is no closing"),
        (lambda two: closing_of(two, SITES, "site0"), "sender site0; expected office"),
        (lambda two: closing_of(two, SITES, round=3), "round 3; expected 0 to 2"),
        (lambda two: closing_of(two, SITES, attempt=1), "attempt 0; expected 1"),
        (lambda two: closing_of(two, SITES, study="0" * 64), "study 0000"),
        (lambda two: closing_of(two, SITES, plan_id="0" * 64), "plan_id 0000"),
    ],
)
def test_a_list_that_is_not_the_studys_is_refused_and_nothing_is_recorded(
    two: Consortium, make: Callable[[Consortium], Path], words: str
) -> None:
    closing = make(two)
    with pytest.raises(FileContentError, match=words):
        two.answer("helper0", closing)
    assert not (two.folder / "helper0.log").exists() or not (two.folder / "helper0.log").read_bytes()
    two.answer("helper0", two.pool(SITES)[1])


def test_a_list_without_a_helpers_seed_is_refused(two: Consortium) -> None:
    _, closing = two.pool(SITES)
    helper = two.helper("helper0")
    seeds = [two.sent[name, 0, 0].seeds["helper0"] for name in SITES]
    with pytest.raises(FileContentError, match="no seed of site2, site3 is here"):
        helper.answer(closing, seeds[:2], two.folder)
    whole = seeds[3].read_bytes()
    seeds[3].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileContentError, match="its content is not the one that site3 signed"):
        helper.answer(closing, seeds, two.folder)
    signature = len(whole) - 80 - 64
    seeds[3].write_bytes(whole[:signature] + bytes([whole[signature] ^ 1]) + whole[signature + 1 :])
    with pytest.raises(FileContentError, match="its signature is not that of site3"):
        helper.answer(closing, seeds, two.folder)
    seeds[3].write_bytes(whole)
    junk = two.folder / "seed-junk"
    junk.write_bytes(b"junk")
    helper.answer(closing, [junk, *seeds], two.folder)
    partial = closing_of(two, SITES)
    content = read_message(partial, two.study.expects("closing"), two.study.roster, 10**5).content
    lacking = bytes(content).replace(b'"helper1"', b'"helper7"')
    envelope = two.study.envelope("closing")
    path, _ = write_message(two.folder, identity("office"), envelope, lacking)
    with pytest.raises(FileContentError, match="expected one for each of helper0, helper1"):
        two.answer("helper0", path)


def test_whoever_sees_all_files_of_a_round_and_has_one_helpers_keys_learns_no_vector(tmp_path: Path) -> None:
    """The audit by files: a shared folder, a helper that looks at everything, and what it knows once the other one joins."""
    values = np.tile(np.arange(2000), (4, 1))  # far from uniform
    consortium = Consortium(make_study(), tmp_path)
    consortium.send(values)
    study, context = consortium.study, MaskContext.of(consortium.study, 0, 0)
    sent = consortium.sent["site0", 0, 0]
    expected = study.expects("masked", round=0, attempt=0)
    content = read_message(sent.masked, expected, study.roster, 10**6, identity("office")).content
    words = np.frombuffer(content, "<u8").astype(np.uint64)
    assert uniform(words)
    assert not uniform(values[0].view(np.uint64))

    def seed(addressee: str, reader: str) -> bytes:
        wanted = study.expects("seed", recipient=addressee, round=0, attempt=0)
        return bytes(read_message(sent.seeds[addressee], wanted, study.roster, 32, identity(reader)).content)

    left = words - stream_sums({"site0": seed("helper0", "helper0")}, context, "helper0", 2000)[0]
    assert uniform(left)
    for reader in ("helper0", "office", "site1"):
        with pytest.raises(FileContentError, match="can't be opened"):
            seed("helper1", reader)
    bare = left - stream_sums({"site0": seed("helper1", "helper1")}, context, "helper1", 2000)[0]
    assert np.array_equal(bare.view(np.int64), values[0]), "both helpers and the coordinator together learn it"


def test_only_rostered_parties_take_part(two: Consortium) -> None:
    stranger = Identity.draw("helper0")
    with pytest.raises(UsageError, match="expected a helper of it"):
        Helper(two.study, stranger, Log(two.folder / "log", stranger))
    with pytest.raises(UsageError, match="expected a helper of it"):
        Helper(two.study, identity("site0"), Log(two.folder / "log", identity("site0")))
    for party in (Identity.draw("site0"), identity("helper0")):
        with pytest.raises(UsageError, match="expected one of its sites"):
            contribute(two.study, party, VALUES[0], (0, 0), two.folder)
