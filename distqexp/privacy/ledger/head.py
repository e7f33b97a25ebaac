"""The newest entry of a ledger, which is kept in its folder too and written there first: a write-ahead record.

It shows when the ledger's file was put back to an older copy: the file then ends before its folder's head. A kill between
the two writes leaves the file one entry short; the head holds the whole entry, which is then appended and never lost. File
and folder that were put back together look like an earlier time; only a head that was noted elsewhere (``Anchor``) shows
that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.privacy.ledger.files import SEAL_BYTES, LedgerFiles
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import canonical_json

FIRST_PREVIOUS = "0" * 64
"""The hash that stands before the first entry."""

RESTORE = (
    "restore the ledger and its folder together from the newest backup; where there is none, whoever answers for the data "
    "decides what counts as spent, moves both away, and sets a cap that leaves it out: distqexp ledger cap"
)


@dataclass(frozen=True)
class Entry:
    """One entry of the ledger.

    Attributes:
        number: Its number, from 1.
        time: When it was written, in UTC; the hash does not cover it.
        body: Its public fields.
        previous: The hash of the entry before it.
        hash: Its own hash.
    """

    number: int
    time: str
    body: Mapping[str, Any]
    previous: str
    hash: str


def entry_hash(previous: str, body: bytes) -> str:
    """Return the hash of an entry from the previous hash and the entry's body."""
    return hashlib.sha256(previous.encode() + b"\n" + body).hexdigest()


class Anchor(NamedTuple):
    """The number and the hash of an entry, to be noted where nobody can roll it back. Public; number 0 is an empty ledger."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"

    @staticmethod
    def parse(text: str, printed_by: str = "distqexp ledger head") -> Anchor:
        """Parse ``N:HASH``, which the command ``printed_by`` printed. Raises UsageError."""
        match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text.strip().lower())
        if match is None:
            raise UsageError(
                f"head: found {text[:100]!r}; expected N:HASH with 64 hexadecimal digits, as {printed_by} prints it"
            )
        return Anchor(int(match[1]), match[2])


def newest_anchor(entries: Sequence[Entry]) -> Anchor:
    """Return the number and the hash of the last entry."""
    return Anchor(entries[-1].number, entries[-1].hash) if entries else Anchor(0, FIRST_PREVIOUS)


def require_anchor(path: Path, entries: Sequence[Entry], anchor: Anchor | None) -> None:
    """Raise FileContentError unless the entries of the ledger at ``path`` include the anchor's; None is always included."""
    if anchor is None:
        return
    if anchor.number > len(entries):
        raise FileContentError(
            f"{path}: {len(entries)} entries, the noted head is entry {anchor.number} with hash {anchor.hash}: ledger and folder "
            f"were put back to an older time; {RESTORE}"
        )
    actual = entries[anchor.number - 1].hash if anchor.number else FIRST_PREVIOUS
    if actual != anchor.hash:
        raise FileContentError(
            f"{path}: entry {anchor.number} has hash {actual}, the noted head says {anchor.hash}: another history; {RESTORE}"
        )


@dataclass(frozen=True)
class Head:
    """The newest entry of a ledger, with its private tag.

    Attributes:
        entry: The entry; None where the ledger has none.
        tag: The private tag of the reservation that the entry makes; empty for other entries.
    """

    entry: Entry | None
    tag: bytes = b""

    @property
    def anchor(self) -> Anchor:
        """The number and the hash of the entry."""
        return newest_anchor([self.entry] if self.entry else [])


class HeadFile:
    """The file ``head`` of a ledger's folder, sealed with the ledger's key. It must be used inside the ledger's transactions."""

    def __init__(self, files: LedgerFiles) -> None:
        self._files = files
        self.path = files.folder / "head"

    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.exists()

    def write(self, head: Head) -> None:
        """Store a head durably. Raises StorageError."""
        entry = head.entry
        tree = {"entry": {**vars(entry), "body": dict(entry.body)} if entry else None, "tag": head.tag.hex()}
        data = canonical_json(tree)
        write_atomic(self.path, data + self._seal(data), private=True)

    def read(self) -> Head:
        """Read the head. Raises FileContentError when it is missing, damaged or of another ledger."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise FileContentError(f"{self.path}: missing, expected the ledger's newest entry; {RESTORE}") from None
        except OSError as error:
            raise StorageError(f"{self.path}: can't be read ({error.strerror}); check its owner and mode") from error
        data, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._seal(data)):
            raise FileContentError(
                f"{self.path}: its seal is not the one expected; damaged or of another ledger: {RESTORE}"
            )
        tree = json.loads(data)
        return Head(Entry(**tree["entry"]) if tree["entry"] else None, bytes.fromhex(tree["tag"]))

    def _seal(self, data: bytes) -> bytes:
        return self._files.tag(b"folder head", data)
