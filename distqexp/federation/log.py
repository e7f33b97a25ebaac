"""A party's log: an append-only chain of signed lines, which anybody with the party's card can check.

A line is canonical JSON. Its hash covers its number, time, event and the hash of the line before; the party signs the hash. Lines
that were cut off at the end in whole show to whoever noted a later anchor (``N:HASH``), as every message carries one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation.header import NO_ENTRIES
from distqexp.federation.keys import Card, Identity
from distqexp.privacy.ledger.head import Anchor
from distqexp.storage.atomic import storage_error, sync_folder
from distqexp.storage.canonical import canonical_json

_DOMAIN = b"distqexp log line 1\n"


@dataclass(frozen=True)
class LogEntry:
    """One line of a log. Public.

    Attributes:
        number: Its number, from 1.
        time: When it was written, in UTC.
        event: What happened.
        previous: The hash of the line before it.
        hash: Its own hash.
        signature: The party's signature of the hash.
    """

    number: int
    time: str
    event: Mapping[str, Any]
    previous: str
    hash: str
    signature: str


class Log:
    """The log of one party. Processes and threads may append at the same time; a lock on the file puts them in order."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self._identity = identity

    def append(self, event: Mapping[str, Any]) -> Anchor:
        """Append an event durably; return the new line's anchor. See ``OpenLog.append``."""
        with self.locked() as log:
            return log.append(event)

    @contextmanager
    def locked(self) -> Iterator[OpenLog]:
        """Open the log, check all of it, and keep others from appending until the block ends.

        Raises FileContentError where the log was altered, StorageError where it can't be read or written.
        """
        new = not self.path.exists()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if new:
                    sync_folder(self.path.parent)
                content = _read_all(descriptor)
            except OSError as error:
                raise StorageError(f"{self.path}: can't be locked ({error.strerror}); check its file system") from error
            yield OpenLog(self.path, descriptor, self._identity, _checked(self.path, content, self._identity.card))
        finally:
            os.close(descriptor)

    def mend(self) -> int:
        """Remove a last line that is cut short, as a crash leaves it; return how many bytes. Its event was never confirmed."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = _read_all(descriptor)
            whole = content.rfind(b"\n") + 1
            os.ftruncate(descriptor, whole)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return len(content) - whole


class OpenLog:
    """A log that is checked and locked."""

    def __init__(self, path: Path, descriptor: int, identity: Identity, entries: list[LogEntry]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = identity
        self.entries = entries

    @property
    def anchor(self) -> Anchor:
        """The number and the hash of the last line."""
        return _anchor(self.entries)

    def append(self, event: Mapping[str, Any]) -> Anchor:
        """Append an event of public fields; it is on the disk when this returns its anchor.

        Raises StorageError where it can't be written, and ValueError or TypeError for what JSON does not have.
        """
        number, previous = len(self.entries) + 1, self.anchor.hash
        time = datetime.now(UTC).isoformat(timespec="seconds")
        digest = _hash(number, time, event, previous)
        signature = self._identity.sign(_DOMAIN + digest.encode()).hex()
        entry = LogEntry(number, time, dict(event), previous, digest, signature)
        line = canonical_json(vars(entry)) + b"\n"
        try:
            if os.write(self._descriptor, line) != len(line):
                raise StorageError(
                    f"{self._path}: a line was cut short, the disk may be full; free some space, then: distqexp log mend"
                )
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(self._path, error) from error
        self.entries.append(entry)
        return self.anchor


def verify_log(path: Path, card: Card, noted: Anchor | None = None) -> list[LogEntry]:
    """Return all lines of a party's log, checked.

    Args:
        path: The file.
        card: The party's card.
        noted: An anchor that was noted elsewhere, and has to be in the log.

    Raises:
        FileContentError: A line was altered, removed, added by somebody else or cut short; the message names the first one.
        UsageError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # no line is being written
            content = file.read()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; check its path") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
    entries = _checked(path, content, card)
    if noted is not None:
        found = _anchor(entries[: noted.number])
        if found != noted:
            raise FileContentError(
                f"{path}: line {found.number} with hash {found.hash[:16]}; expected line {noted.number} with hash "
                f"{noted.hash[:16]}, which was noted: the log was put back to an older time or is another one: restore it"
            )
    return entries


def _checked(path: Path, content: bytes, card: Card) -> list[LogEntry]:
    *lines, rest = content.split(b"\n")
    entries: list[LogEntry] = []
    for number, line in enumerate(lines, start=1):
        entry = _parsed(line)
        previous = _anchor(entries).hash
        if entry is None:
            fault = "is not as distqexp writes it"
        elif (entry.number, entry.previous) != (number, previous):
            fault = f"is number {ascii(entry.number)[:20]} after {ascii(entry.previous)[:18]}; expected {number} after '{previous[:16]}"
        elif entry.hash != _hash(entry.number, entry.time, entry.event, entry.previous):
            fault = "does not have the hash that it says"
        elif not card.verifies(bytes.fromhex(entry.signature), _DOMAIN + entry.hash.encode()):
            fault = f"is not signed by {card.name}"
        else:
            entries.append(entry)
            continue
        raise FileContentError(f"{path}: line {number} {fault}: the log was altered: restore it from a backup")
    if rest:
        raise FileContentError(
            f"{path}: line {len(lines) + 1} is cut short, as a crash leaves it; its event was not confirmed: {card.name} takes it out "
            "with distqexp log mend"
        )
    return entries


def _parsed(line: bytes) -> LogEntry | None:
    try:
        entry = LogEntry(**json.loads(line))
        texts = (entry.time, entry.previous, entry.hash, entry.signature)
        valid = (
            canonical_json(vars(entry)) == line
            and type(entry.number) is int
            and isinstance(entry.event, dict)
            and all(isinstance(text, str) for text in texts)
            and len(bytes.fromhex(entry.signature)) == 64
        )
    except (ValueError, TypeError, RecursionError):
        return None
    return entry if valid else None


def _hash(number: int, time: str, event: Mapping[str, Any], previous: str) -> str:
    fields = {"number": number, "time": time, "event": dict(event), "previous": previous}
    return hashlib.sha256(_DOMAIN + canonical_json(fields)).hexdigest()


def _anchor(entries: list[LogEntry]) -> Anchor:
    return Anchor(entries[-1].number, entries[-1].hash) if entries else NO_ENTRIES


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()
