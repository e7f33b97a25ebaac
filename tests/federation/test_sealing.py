"""Sealed contents: the recipient opens what was sealed, and nobody else, nowhere else, nothing altered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from federations import identity

from distqexp.errors import FileContentError
from distqexp.federation import sealing
from distqexp.federation.header import Envelope
from distqexp.federation.sealing import KEY_BYTES, TAG_BYTES, Seal, opened, sealed_length

ENVELOPE = Envelope("masked", "1" * 64, "2" * 64, 3, 1, "office")
PATH = Path("a.message")
PIECE = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "PIECE", PIECE)


def sealed(content: bytes, envelope: Envelope = ENVELOPE, sender: str = "site0", to: str = "office") -> bytes:
    return b"".join(Seal(identity(to).card, envelope, sender).pieces([content]))


def open_it(text: bytes, envelope: Envelope = ENVELOPE, sender: str = "site0", reader: str = "office") -> bytes:
    return b"".join(opened(PATH, [text], identity(reader), envelope, sender))


@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, 5 * PIECE + 7])
def test_what_was_sealed_comes_back_in_parts_of_any_size(length: int) -> None:
    content = bytes(byte % 251 for byte in range(length))
    seal = Seal(identity("office").card, ENVELOPE, "site0")
    text = b"".join(seal.pieces([content]))
    assert len(text) == sealed_length(length)
    parts = [content[first : first + 7] for first in range(0, length, 7)]
    assert b"".join(seal.pieces(parts)) == text, "the same bytes again, however they come"
    for size in (1, 7, PIECE, 10**6):
        pieces = [text[first : first + size] for first in range(0, len(text), size)]
        assert b"".join(opened(PATH, pieces, identity("office"), ENVELOPE, "site0")) == content
    assert sealed(content) != text, "another time under another key"


@pytest.mark.parametrize(
    ("changes", "sender", "reader"),
    [
        ({}, "site0", "site1"),
        ({}, "site0", "helper0"),
        ({}, "site1", "office"),
        ({"kind": "sketch"}, "site0", "office"),
        ({"study": "3" * 64}, "site0", "office"),
        ({"plan_id": "3" * 64}, "site0", "office"),
        ({"round": 2}, "site0", "office"),
        ({"attempt": 0}, "site0", "office"),
        ({"recipient": "helper0"}, "site0", "office"),
    ],
)
def test_only_its_recipient_opens_it_and_only_in_its_place(
    changes: dict[str, object], sender: str, reader: str
) -> None:
    text = sealed(b"content")
    assert open_it(text) == b"content"
    with pytest.raises(FileContentError, match=rf"can't be opened by {reader}; expected one that {sender} sealed to"):
        open_it(text, dataclasses.replace(ENVELOPE, **changes), sender, reader)  # type: ignore[arg-type]


def test_no_bit_and_no_piece_can_be_changed_moved_left_out_or_repeated() -> None:
    content = bytes(range(3 * PIECE + 9))
    text = sealed(content)
    for place in range(len(text)):
        with pytest.raises(FileContentError, match="can't be opened"):
            open_it(text[:place] + bytes([text[place] ^ (1 << place % 8)]) + text[place + 1 :])
    key, size = text[:KEY_BYTES], PIECE + TAG_BYTES
    first, second, third, last = (text[KEY_BYTES + size * number :][:size] for number in range(4))
    assert key + first + second + third + last == text
    for pieces in (
        [], [first], [first, second], [first, second, third], [first, second, last], [second, third, last], [last],
        [second, first, third, last], [first, first, second, third, last], [first, second, third, last, last],
    ):  # fmt: skip
        with pytest.raises(FileContentError, match="can't be opened"):
            open_it(key + b"".join(pieces))
    for length in range(0, len(text), 5):
        with pytest.raises(FileContentError, match="can't be opened"):
            open_it(text[:length])


def test_a_key_that_anybody_could_compute_is_refused() -> None:
    with pytest.raises(FileContentError, match="can't be opened"):
        open_it(bytes(KEY_BYTES) + sealed(b"content")[KEY_BYTES:])
