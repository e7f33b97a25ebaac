"""The newest entry of a ledger, kept in its folder too and written first: a write-ahead record.

A ledger file that was put back to an older copy shows by it: it ends before its folder's head. One entry less is what a
kill between the two writes leaves; the head carries the whole entry, so that it is appended then, never lost. Both
put back together look like an earlier time; only a head that was noted elsewhere can tell (``Anchor``).
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
RESTORE = (
    "restore the ledger and its folder together from the newest backup; where there is none, whoever answers for the data "
    "decides what counts as spent, moves both away, and sets a cap that leaves it out: distqexp ledger cap"
)


@dataclass(frozen=True)
class Entry:
    """One entry. body: public fields. time: UTC, not covered by the hash."""

    number: int
    time: str
    body: Mapping[str, Any]
    previous: str
    hash: str


def entry_hash(previous: str, body: bytes) -> str:
    """The chain's hash."""
    return hashlib.sha256(previous.encode() + b"\n" + body).hexdigest()


class Anchor(NamedTuple):
    """Number and hash of an entry, to note where nobody rolls back: public. Number 0 is a ledger without entries."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"

    @staticmethod
    def parse(text: str) -> Anchor:
        """Read ``N:HASH``. Raises UsageError."""
        match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text.strip().lower())
        if match is None:
            raise UsageError(
                f"head: found {text[:100]!r}; expected N:HASH with 64 hexadecimal digits, as distqexp ledger head prints it"
            )
        return Anchor(int(match[1]), match[2])


def newest(entries: Sequence[Entry]) -> Anchor:
    """Number and hash of the last entry."""
    return Anchor(entries[-1].number, entries[-1].hash) if entries else Anchor(0, FIRST_PREVIOUS)


def require_noted(path: Path, entries: Sequence[Entry], noted: Anchor | None) -> None:
    """Refuse a ledger that does not hold the noted entry, if one is noted. Raises FileContentError."""
    if noted is None:
        return
    if noted.number > len(entries):
        raise FileContentError(
            f"{path}: {len(entries)} entries, the noted head is entry {noted.number} with hash {noted.hash}: ledger and folder "
            f"were put back to an older time; {RESTORE}"
        )
    found = entries[noted.number - 1].hash if noted.number else FIRST_PREVIOUS
    if found != noted.hash:
        raise FileContentError(
            f"{path}: entry {noted.number} has hash {found}, the noted head says {noted.hash}: another history; {RESTORE}"
        )


@dataclass(frozen=True)
class Head:
    """The newest entry, None where there is none, and a reservation's private tag with it."""

    entry: Entry | None
    tag: bytes = b""

    @property
    def anchor(self) -> Anchor:
        """Its number and hash."""
        return newest([self.entry] if self.entry else [])


class HeadFile:
    """The file ``head`` of a ledger's folder, sealed with the ledger's key. To be used inside the ledger's transactions."""

    def __init__(self, files: LedgerFiles) -> None:
        self._files = files
        self.path = files.folder / "head"

    def exists(self) -> bool:
        """Whether it was ever written."""
        return self.path.exists()

    def write(self, head: Head) -> None:
        """Store durably. Raises StorageError."""
        entry = head.entry
        tree = {"entry": {**vars(entry), "body": dict(entry.body)} if entry else None, "tag": head.tag.hex()}
        data = canonical_json(tree)
        write_atomic(self.path, data + self._seal(data), private=True)

    def read(self) -> Head:
        """Raises FileContentError when it is missing, damaged or of another ledger."""
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
