"""Signed messages: what was sent comes back, and everything else is refused, with the value found and the one expected."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation import messages, sealing
from distqexp.federation.header import Envelope, Header
from distqexp.federation.keys import Identity
from distqexp.federation.messages import MAGIC, Expected, extract_message, peek, read_message, write_message
from distqexp.federation.receiving import Taken
from distqexp.privacy.ledger.head import Anchor

STUDY, OTHER_STUDY, PLAN, OTHER_PLAN = (digit * 64 for digit in "1234")
NORTH, SOUTH, COORDINATOR = (Identity.draw(name) for name in ("north", "south", "office"))
ROSTER = {party.name: party.card for party in (NORTH, SOUTH, COORDINATOR)}
OFFICE = COORDINATOR.card
ENVELOPE = Envelope("sketch", STUDY, PLAN, 2, 1, "office", Anchor(5, "ab" * 32), ("cd" * 32,))
EXPECTED = Expected("sketch", STUDY, PLAN, ("north", "south"), "office", 2, 1)
VECTOR = np.arange(-50, 50, dtype="<i8")
SEALED = 848  # 800 bytes, a key and a tag


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    return write_message(tmp_path, NORTH, ENVELOPE, memoryview(VECTOR), OFFICE)[0]


def refused(path: Path, words: str, expected: Expected = EXPECTED, largest: int = 10**6) -> None:
    """Both ways of reading refuse it with exit 3, in one line, and leave nothing behind."""
    out = path.with_name("out")
    for act in (
        lambda: read_message(path, expected, ROSTER, largest, COORDINATOR),
        lambda: extract_message(path, expected, ROSTER, out, COORDINATOR),
    ):
        with pytest.raises(FileContentError, match=words) as caught:
            act()
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_message_comes_back_whole_and_its_name_does_not_tell_its_content(sent: Path, tmp_path: Path) -> None:
    message = read_message(sent, EXPECTED, ROSTER, 800, COORDINATOR)
    assert np.array_equal(np.frombuffer(message.content, "<i8"), VECTOR)
    header = message.header
    assert (header.sender, header.ledger, header.receipts) == ("north", Anchor(5, "ab" * 32), ("cd" * 32,))
    assert peek(sent) == (header, message.identity)
    assert VECTOR.tobytes()[:64] not in sent.read_bytes(), "nobody else can read it, so the file may lie in the open"
    assert stat.S_IMODE(sent.stat().st_mode) & 0o044
    assert message.identity[:32] in sent.name
    identity = write_message(tmp_path, NORTH, ENVELOPE, memoryview(VECTOR), OFFICE)[1]
    assert identity != message.identity, "the same private content has another identity: guesses of it can't be tried"
    source, out = tmp_path / "content", tmp_path / "out"
    source.write_bytes(VECTOR.tobytes())
    streamed, _ = write_message(tmp_path, NORTH, ENVELOPE, source, OFFICE)
    found, _ = extract_message(streamed, EXPECTED, ROSTER, out, COORDINATOR)
    assert out.read_bytes() == source.read_bytes()
    assert found.sha256 == hashlib.sha256(streamed.read_bytes()[-SEALED:]).hexdigest(), "the digest of what is sealed"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    public = Envelope("release", STUDY, PLAN)
    assert stat.S_IMODE(write_message(tmp_path, COORDINATOR, public, b"")[0].stat().st_mode) & 0o044


def test_a_large_content_passes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_CHUNK", 7)
    monkeypatch.setattr(sealing, "PIECE", 11)
    content = bytes(range(250))
    path, _ = write_message(tmp_path, NORTH, ENVELOPE, content, OFFICE)
    extract_message(path, EXPECTED, ROSTER, tmp_path / "out", COORDINATOR)
    assert (
        (tmp_path / "out").read_bytes()
        == content
        == bytes(read_message(path, EXPECTED, ROSTER, 250, COORDINATOR).content)
    )


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("round", 3, "round 2; expected 3"),
        ("attempt", 0, "attempt 1; expected 0"),
        ("study", OTHER_STUDY, f"study {STUDY}; expected {OTHER_STUDY}"),
        ("plan_id", OTHER_PLAN, f"plan_id {PLAN}; expected {OTHER_PLAN}"),
        ("kind", "masked", "kind sketch; expected masked"),
        ("recipient", "helper", "recipient office; expected helper"),
        ("recipient", None, "recipient office; expected everybody"),
        ("senders", ("south",), "sender north; expected south"),
        ("senders", (), "sender north; expected nobody"),
    ],
)
def test_a_message_of_another_place_or_time_is_refused(sent: Path, field: str, value: Any, found: str) -> None:
    """A replay in another round, attempt, study or plan, another kind, recipient or sender: each by name."""
    refused(sent, found, dataclasses.replace(EXPECTED, **{field: value}))


def resigned(sent: Path, signer: Identity, **changes: Any) -> bytes:
    """The message with other fields, signed anew."""
    content = sent.read_bytes()[-SEALED:]
    text = dataclasses.replace(peek(sent)[0], **changes).to_bytes()
    return MAGIC + struct.pack(">I", len(text)) + text + signer.sign(messages._DOMAIN + text) + content


def test_a_wrong_signer_is_refused(sent: Path) -> None:
    whole = sent.read_bytes()
    assert resigned(sent, NORTH) == whole, "the helper below signs as the sender does"
    sent.write_bytes(resigned(sent, SOUTH))
    refused(sent, "its signature is not that of north")
    sent.write_bytes(resigned(sent, SOUTH, sender="south"))
    refused(sent, "can't be opened by office; expected one that south sealed to office for round 2, attempt 1")
    refused(sent, "sender south; expected north", dataclasses.replace(EXPECTED, senders=("north",)))
    sent.write_bytes(whole)
    stranger = dataclasses.replace(EXPECTED, senders=("north", "east"))
    with pytest.raises(FileContentError, match="expected a party of the study"):
        read_message(sent, stranger, {"south": SOUTH.card}, 10**6, COORDINATOR)


def test_altered_content_is_refused_even_with_its_checksum_recomputed(sent: Path) -> None:
    whole = sent.read_bytes()
    altered = whole[:-1] + bytes([whole[-1] ^ 1])
    sent.write_bytes(altered)
    refused(sent, "its content is not the one that north signed")
    digest = hashlib.sha256(altered[-SEALED:]).hexdigest()
    sent.write_bytes(altered.replace(peek(sent)[0].sha256.encode(), digest.encode()))
    refused(sent, "its signature is not that of north")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: b"", "it is no message"),
        (lambda whole: b"x" + whole[1:], "it is no message"),
        (lambda whole: whole[:-1], "847 bytes of content, its header says 848"),
        (lambda whole: whole + b"\0", "849 bytes of content, its header says 848"),
        (lambda whole: whole[:100], "does not fit into the file"),
        (lambda whole: MAGIC + b"\xff\xff\xff\xff" + whole[23:], "does not fit into the file"),
        (lambda whole: whole.replace(b'"round":2', b'"round":3'), "its signature is not that of north"),
        (lambda whole: whole.replace(b'"round":2', b'"round":-'), "its header can't be read"),
        (lambda whole: whole.replace(b'"schema":1', b'"schema":2'), "schema 2, this distqexp reads 1"),
        (lambda whole: whole.replace(b'"attempt":1', b'"attempt":"'), "its header can't be read"),
        (lambda whole: whole.replace(b'"kind":"sketch"', b'"kind":"skETch"'), "is refused: kind"),
        (lambda whole: whole.replace(b'"round":2', b'"ro_nd":2'), "not as distqexp writes it"),
        (lambda whole: whole.replace(b'"length":848', b'"length":8e2'), "is refused: length"),
    ],
)
def test_a_damaged_message_is_refused(sent: Path, change: Callable[[bytes], bytes], words: str) -> None:
    sent.write_bytes(change(sent.read_bytes()))
    refused(sent, words)


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    """Of magic, length, header, signature and content: one bit of each byte at a time, and nothing but a refusal comes out."""
    sent, _ = write_message(tmp_path, NORTH, ENVELOPE, b"content", OFFICE)
    whole = sent.read_bytes()
    for place in range(len(whole)):
        sent.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(FileContentError) as caught:
            read_message(sent, EXPECTED, ROSTER, 100, COORDINATOR)
        assert str(caught.value).isprintable(), place
    for length in range(0, len(whole), 7):
        sent.write_bytes(whole[:length])
        with pytest.raises(FileContentError):
            read_message(sent, EXPECTED, ROSTER, 100, COORDINATOR)


def test_a_header_in_another_spelling_is_refused(sent: Path) -> None:
    """Otherwise one message would have several identities."""
    content = sent.read_bytes()[-SEALED:]
    text = json.dumps(json.loads(peek(sent)[0].to_bytes())).encode()
    sent.write_bytes(MAGIC + struct.pack(">I", len(text)) + text + NORTH.sign(messages._DOMAIN + text) + content)
    refused(sent, "not as distqexp writes it")


def test_more_content_than_expected_is_not_read(sent: Path) -> None:
    with pytest.raises(FileContentError, match="848 bytes; expected at most 847"):
        read_message(sent, EXPECTED, ROSTER, 799, COORDINATOR)


def test_mistakes_of_the_sender_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, words in (
        ({"kind": "letter"}, "expected one of study, plan"),
        ({"round": -1}, "round -1"),
        ({"attempt": True}, "attempt True"),
        ({"receipts": ("x",)}, "identity 'x'"),
        ({"recipient": None}, "expected the name of a party"),
        ({"kind": "release"}, "it is for everybody"),
    ):
        with pytest.raises(UsageError, match=words):
            dataclasses.replace(ENVELOPE, **changes)
    for card in (None, SOUTH.card):
        with pytest.raises(UsageError, match="expected that of its recipient, office"):
            write_message(tmp_path, NORTH, ENVELOPE, b"", card)
    with pytest.raises(UsageError, match="does not exist"):
        write_message(tmp_path / "missing", NORTH, ENVELOPE, b"", OFFICE)
    with pytest.raises(UsageError, match="no such file"):
        write_message(tmp_path, NORTH, ENVELOPE, tmp_path / "missing", OFFICE)
    with pytest.raises(UsageError, match="no such file"):
        peek(tmp_path / "missing")
    measured = messages._measured
    monkeypatch.setattr(messages, "_measured", lambda content: (measured(content)[0], "00" * 32))
    with pytest.raises(StorageError, match="changed while it was read"):
        write_message(tmp_path, NORTH, ENVELOPE, b"content", OFFICE)
    assert list(tmp_path.iterdir()) == []


def test_one_message_of_a_kind_from_each_sender_and_no_ledger_that_was_put_back(tmp_path: Path) -> None:
    taken = Taken()

    def take(sender: Identity, **changes: Any) -> bool:
        path, identity = write_message(tmp_path, sender, dataclasses.replace(ENVELOPE, **changes), b"content", OFFICE)
        header: Header = peek(path)[0]
        return taken.take(path, header, identity) and not taken.take(path, header, identity)

    assert take(NORTH)
    assert take(SOUTH)
    assert take(NORTH, attempt=2, ledger=Anchor(6, "ab" * 32))
    with pytest.raises(FileContentError, match="a second sketch of north for round 2, attempt 1"):
        take(NORTH)
    for ledger in (Anchor(5, "ab" * 32), Anchor(6, "ac" * 32)):
        with pytest.raises(FileContentError, match=r"earlier it was at entry 6 .* put back to an older time"):
            take(NORTH, attempt=3, ledger=ledger)
    assert take(NORTH, attempt=3, ledger=Anchor(6, "ab" * 32))
    assert take(NORTH, kind="answer", ledger=Anchor(1, "ad" * 32)), "as a helper it has another log"
