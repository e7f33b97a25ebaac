"""Signed messages: one file with a header, a signature and the content, and nothing of it is handed on before it is checked.

    magic line | length of the header, 4 bytes | header | signature, 64 bytes | content

The header is canonical JSON. It holds the SHA-256 and the length of the content, so the signature of the header covers both.
A content for one party is sealed to it first, so header and signature say nothing of what is in it, and everybody can check them.
A message is known by its identity, the SHA-256 of its header, which stands in file names, receipts and logs.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation.header import KINDS, Envelope, Header
from distqexp.federation.keys import Card, Identity
from distqexp.federation.sealing import Seal, opened, sealed_length
from distqexp.storage.atomic import write_atomic

MAGIC = b"distqexp message 1\n"
SUFFIX = ".message"
LARGEST_HEADER = 1 << 20
"""The bytes that a header has at most; receipts of 200 sites take 14 thousand."""

LARGEST_FILE = 1 << 40
"""The bytes that the content of a file has at most."""

SIGNATURE_BYTES = 64
_DOMAIN = b"distqexp signed message 1\n"
_CHUNK = 1 << 22
_NO_FILE = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR)
"""What opening a link, a socket, a device or a folder fails with."""

Content = bytes | bytearray | memoryview | Path
"""The content of a message: bytes in memory, or a file that is streamed."""


@dataclass(frozen=True)
class Expected:
    """What a reader expects of a message. None accepts any round or attempt.

    Attributes:
        kind: The kind.
        study: The identity of the study.
        plan_id: The plan that the study fixes.
        senders: The names that may have sent it.
        recipient: To whom it is addressed; None for everybody.
        round: The round.
        attempt: The attempt of the round.
    """

    kind: str
    study: str
    plan_id: str
    senders: tuple[str, ...]
    recipient: str | None = None
    round: int | None = None
    attempt: int | None = None


class SignedFaultError(FileContentError):
    """What a sender signed is itself wrong, so another copy of the message helps nobody."""


class Message(NamedTuple):
    """A message that passed every check. Its content is private where it was sealed."""

    header: Header
    identity: str
    content: memoryview


def identity_of(header: bytes) -> str:
    """Return the identity of the message with that header. Public."""
    return hashlib.sha256(_DOMAIN + header).hexdigest()


def file_name(header: Header, identity: str) -> str:
    """Return the name of a message's file: for people at the front, by its identity at the end."""
    return f"{header.kind}-{header.round:03d}-{header.attempt:02d}-{header.sender}-{identity[:32]}{SUFFIX}"


def write_message(
    folder: Path, identity: Identity, envelope: Envelope, content: Content, to: Card | None = None
) -> tuple[Path, str]:
    """Sign a message, sealed to its recipient where it has one, and write it into a folder, atomically.

    Args:
        folder: The folder.
        identity: The sender's keys.
        envelope: The fields of the header that the sender chooses.
        content: Bytes, or a file, which is read twice in pieces.
        to: The recipient's card; None for everybody.

    Returns:
        The path of the file, whose name follows from the message, and the message's identity.

    Raises:
        UsageError: The folder or the content's file does not exist, the header would be too long, or the card is not the recipient's.
        StorageError: The disk is full, the folder can't be written, or the content changed while it was read.
    """
    if (to and to.name) != envelope.recipient:
        raise UsageError(f"message: a card of {to and to.name}; expected that of its recipient, {envelope.recipient}")
    seal = None if to is None else Seal(to, envelope, identity.name)
    length, digest = _measured(_written(content, seal))
    header = Header.of(envelope, identity.name, length, digest)
    text = header.to_bytes()
    if len(text) > LARGEST_HEADER:
        raise UsageError(f"message: a header of {len(text)} bytes; expected at most {LARGEST_HEADER}: fewer receipts")
    known = identity_of(text)
    path = folder / file_name(header, known)

    def fill(file: BinaryIO) -> None:
        file.write(MAGIC + struct.pack(">I", len(text)) + text + identity.sign(_DOMAIN + text))
        copied = hashlib.sha256()
        for chunk in _written(content, seal):
            copied.update(chunk)
            file.write(chunk)
        if copied.hexdigest() != digest:
            name = content if isinstance(content, Path) else Path("content")
            raise StorageError(f"{name}: it changed while it was read; expected a file that nobody writes: try again")

    write_atomic(path, fill)
    return path, known


def read_message(
    path: Path, expected: Expected, roster: Mapping[str, Card], largest: int, reader: Identity | None = None
) -> Message:
    """Read a message into memory, once, and check everything before its content is returned.

    Args:
        path: The file.
        expected: What it has to be.
        roster: The cards of the study's parties by name.
        largest: The bytes that the content may have at most, before it is sealed.
        reader: The keys of the recipient, which a sealed content needs.

    Raises:
        FileContentError: Something is not as expected; the message names the value found and the one expected.
        SignedFaultError: It is its sender's, but too long, or not sealed to the reader for this place.
        UsageError: There is no such file, or it is sealed and there are no keys.
        StorageError: It can't be read.
    """
    with _opened(path) as file:
        header, known = _checked_header(path, file, expected, roster)
        _refuse_long(path, header, largest)
        content = bytearray()
        for piece in _read(path, file, header, reader):
            content += piece
    return Message(header, known, memoryview(content).toreadonly())


def extract_message(
    path: Path,
    expected: Expected,
    roster: Mapping[str, Card],
    out: Path,
    reader: Identity | None = None,
    largest: int = LARGEST_FILE,
) -> tuple[Header, str]:
    """Check a message and write its content to a file, in pieces; the file appears when everything is checked.

    The arguments and errors are those of ``read_message``; returns the header and the message's identity. What was sealed gets the
    mode 0600.
    """
    with _opened(path) as file:
        header, known = _checked_header(path, file, expected, roster)
        _refuse_long(path, header, largest)

        def fill(copy: BinaryIO) -> None:
            for piece in _read(path, file, header, reader):
                copy.write(piece)

        write_atomic(out, fill, private=KINDS[header.kind].sealed)
    return header, known


def check_message(
    path: Path, expected: Expected, roster: Mapping[str, Card], *, content: bool = True
) -> tuple[Header, str]:
    """Check a message, but for what its recipient alone can read; return its header and identity. Errors as of ``read_message``.

    Without ``content`` its content, which may be large, is not read: the signature is enough to know who sent it.
    """
    with _opened(path) as file:
        header, known = _checked_header(path, file, expected, roster)
        if content:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            _require_digest(path, header, digest.hexdigest())
    return header, known


def _refuse_long(path: Path, header: Header, largest: int) -> None:
    most = sealed_length(largest) if KINDS[header.kind].sealed else largest
    if header.length > most:
        raise SignedFaultError(
            f"{path}: a content of {header.length} bytes; expected at most {most} of a {header.kind}: ask {header.sender}"
        )


def _read(path: Path, file: BinaryIO, header: Header, reader: Identity | None) -> Iterator[bytes]:
    """Yield the content from where the file stands. At the end its digest is checked; only then what was yielded may be used."""
    digest = hashlib.sha256()

    def stored() -> Iterator[bytes]:
        left = header.length
        while left and (chunk := file.read(min(_CHUNK, left))):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk

    parts = stored()
    if not KINDS[header.kind].sealed:
        yield from parts
    elif reader is None:
        raise UsageError(f"{path}: sealed to {header.recipient}; expected that party's keys")
    else:
        try:
            yield from opened(path, parts, reader, header, header.sender)
        except FileContentError as error:
            for _ in parts:  # a damaged file is told from one that its sender made wrong
                pass
            _require_digest(path, header, digest.hexdigest())
            raise SignedFaultError(str(error)) from None
    _require_digest(path, header, digest.hexdigest())


def peek(path: Path) -> tuple[Header, str]:
    """Return what a message claims to be, and its identity; neither signature nor content are checked.

    Raises FileContentError, UsageError, StorageError.
    """
    with _opened(path) as file:
        text = _parts(path, file)[0]
    return Header.parse(path, text), identity_of(text)


def _checked_header(path: Path, file: BinaryIO, expected: Expected, roster: Mapping[str, Card]) -> tuple[Header, str]:
    """Return the header and the message's identity; the file then stands at its content."""
    text, signature, length = _parts(path, file)
    header = Header.parse(path, text)
    if header.sender not in expected.senders:
        raise _mismatch(path, "sender", header.sender, " or ".join(expected.senders[:5]) or "nobody")
    card = roster.get(header.sender)
    if card is None:
        raise _mismatch(path, "sender", header.sender, "a party of the study")
    if not card.verifies(signature, _DOMAIN + text):
        raise FileContentError(
            f"{path}: its signature is not that of {header.sender} with key {card.signing[:16]}, as the study has it; "
            "it was altered or forged: get it again from its sender"
        )
    for field in fields(Expected):
        wanted = getattr(expected, field.name)
        if field.name == "senders" or (wanted is None and field.name != "recipient"):
            continue
        if (found := getattr(header, field.name)) != wanted:
            raise _mismatch(path, field.name, found, wanted)
    if header.length != length:
        raise FileContentError(
            f"{path}: {length} bytes of content, its header says {header.length}; cut short or padded: copy it again"
        )
    return header, identity_of(text)


def _parts(path: Path, file: BinaryIO) -> tuple[bytes, bytes, int]:
    """Return header, signature and the number of bytes of the content."""
    start = file.read(len(MAGIC) + 4)
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 4:
        raise FileContentError(f"{path}: it is no message, or damaged; expected one that distqexp wrote: copy it again")
    (size,) = struct.unpack(">I", start[len(MAGIC) :])
    length = os.fstat(file.fileno()).st_size - len(start) - size - SIGNATURE_BYTES
    if size > LARGEST_HEADER or length < 0:
        raise FileContentError(f"{path}: a header of {size} bytes does not fit into the file; cut short: copy it again")
    return file.read(size), file.read(SIGNATURE_BYTES), length


def _require_digest(path: Path, header: Header, found: str) -> None:
    if not hmac.compare_digest(found, header.sha256):
        raise FileContentError(
            f"{path}: its content is not the one that {header.sender} signed; it was altered or damaged: copy it again"
        )


def _mismatch(path: Path, field: str, found: object, expected: object) -> FileContentError:
    found_text, expected_text = ("everybody" if value is None else str(value) for value in (found, expected))
    return FileContentError(
        f"{path}: {field} {found_text}; expected {expected_text}: it is a message for another place or time"
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a whole file, which is as private as its content. Raises FileContentError where it is no regular file."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextmanager
def _opened(path: Path, links: int = os.O_NOFOLLOW) -> Iterator[BinaryIO]:
    """Open a regular file. A pipe would block whoever reads a folder, and a link leads where others choose."""
    flags = os.O_NONBLOCK | links
    try:
        with open(path, "rb", opener=lambda name, reading: os.open(name, reading | flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.ENXIO, "", str(path))
            yield file
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise
        raise UsageError(f"{path}: no such file; check its path") from None
    except OSError as error:
        if error.filename == str(path) and error.errno in _NO_FILE:
            raise FileContentError(
                f"{path}: a link, a folder, a pipe or a device; expected a file: take it out"
            ) from None
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error


def _written(content: Content, seal: Seal | None) -> Iterator[bytes | memoryview]:
    """Yield a content as it is in the file."""
    return _chunks(content) if seal is None else seal.pieces(_chunks(content))


def _measured(stored: Iterable[bytes | memoryview]) -> tuple[int, str]:
    digest, length = hashlib.sha256(), 0
    for chunk in stored:
        digest.update(chunk)
        length += len(chunk)
    return length, digest.hexdigest()


def _chunks(content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, Path):
        with _opened(content, links=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    else:
        view = memoryview(content).cast("B")
        for first in range(0, len(view), _CHUNK):
            yield view[first : first + _CHUNK]
