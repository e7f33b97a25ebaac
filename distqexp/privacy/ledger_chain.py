"""The ledger's entries: append-only, hash-chained, in SQLite.

An entry's hash is the SHA-256 of the previous hash and of its body, canonical JSON of public fields. The
time of an entry stands beside its body, outside the chain: the same history has the same hashes. A keyed
seal over the number of entries and the last hash shows when the newest ones were removed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distqexp.errors import DistqexpError, FileContentError, StorageError
from distqexp.storage.canonical import canonical_json

FORMAT = 1
BUSY_SECONDS = 60.0
FIRST_PREVIOUS = "0" * 64

_TABLES = (
    "CREATE TABLE entries(number INTEGER PRIMARY KEY, time TEXT NOT NULL, body TEXT NOT NULL,"
    " previous TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TABLE head(one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash TEXT NOT NULL,"
    " seal BLOB NOT NULL)",
    "CREATE TABLE private_tags(reservation INTEGER PRIMARY KEY, tag BLOB NOT NULL)",
    f"PRAGMA user_version = {FORMAT}",
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


class Chain:
    """The SQLite file of a ledger. Every read checks the whole chain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tag: Callable[..., bytes] = lambda *_: b""
        with self._translated():
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.execute("PRAGMA synchronous = EXTRA")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One exclusive writer at a time: what happens inside is durable as a whole, or did not happen."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._prepare()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def is_new(self) -> bool:
        """Whether the chain was never begun; inside a transaction."""
        return self._connection.execute("SELECT 1 FROM head").fetchone() is None

    def begin(self) -> None:
        """Seal the empty chain, inside the transaction that found it new. Raises FileContentError."""
        if self._connection.execute("SELECT 1 FROM entries").fetchone() is not None:
            raise self._tampered("entries, and no head")
        self._seal_head(0, FIRST_PREVIOUS)

    def entries(self) -> list[Entry]:
        """Every entry, checked. Inside a transaction. Raises FileContentError."""
        previous, found = FIRST_PREVIOUS, []
        rows = self._connection.execute("SELECT number, time, body, previous, hash FROM entries ORDER BY number")
        for expected, (number, time, text, stored_previous, stored_hash) in enumerate(rows, start=1):
            computed = entry_hash(previous, str(text).encode())
            if (number, stored_previous, stored_hash) != (expected, previous, computed):
                raise self._tampered(
                    f"entry {number} does not fit: found hash {str(stored_hash)[:12]}, computed {computed[:12]}"
                )
            found.append(Entry(number, time, self._parsed(number, text), previous, computed))
            previous = computed
        head = self._connection.execute("SELECT number, hash, seal FROM head").fetchone()
        if head is None or head[:2] != (len(found), previous):
            raise self._tampered(f"{len(found)} entries, its head says {head[0] if head else 'none'}")
        if not isinstance(head[2], bytes) or not hmac.compare_digest(head[2], self._seal(len(found), previous)):
            raise self._tampered("the seal of its head does not fit")
        return found

    def append(self, body: Mapping[str, Any], after: list[Entry]) -> Entry:
        """Add an entry after the checked ones, inside their transaction."""
        previous = after[-1].hash if after else FIRST_PREVIOUS
        text = canonical_json(dict(body))
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(len(after) + 1, time, dict(body), previous, entry_hash(previous, text))
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (entry.number, time, text.decode(), previous, entry.hash)
        )
        self._seal_head(entry.number, entry.hash)
        after.append(entry)
        return entry

    def private_tag(self, reservation: int) -> bytes:
        """The keyed digest of a reservation's sums; empty when there is none. Never exported."""
        row = self._connection.execute("SELECT tag FROM private_tags WHERE reservation = ?", (reservation,)).fetchone()
        return bytes(row[0]) if row else b""

    def store_private_tag(self, reservation: int, tag: bytes) -> None:
        """Keep it, inside the reservation's transaction."""
        self._connection.execute("INSERT INTO private_tags VALUES (?, ?)", (reservation, tag))

    def _seal(self, number: int, last: str) -> bytes:
        return self.tag(b"head", str(number).encode(), last.encode())

    def _seal_head(self, number: int, last: str) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (number, last, self._seal(number, last))
        )

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _TABLES:
                self._connection.execute(statement)
        elif version != FORMAT:
            raise FileContentError(
                f"{self.path}: ledger format {version}, this distqexp reads {FORMAT}; use the version that wrote it"
            )

    def _parsed(self, number: int, text: str) -> dict[str, Any]:
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._tampered(f"entry {number} is no mapping")
        return body

    def _tampered(self, what: str) -> FileContentError:
        return FileContentError(f"{self.path}: the ledger was altered: {what}; restore it from a backup")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a closed ledger or another thread: a mistake in the code, not in the file
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> DistqexpError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageError(f"{self.path}: another process held the ledger for {BUSY_SECONDS:.0f} s; try again")
        if code in (
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_PERM,
        ):
            return StorageError(f"{self.path}: can't be written ({error}); free some space, or check its folder")
        return FileContentError(f"{self.path}: not readable as a ledger ({error}); restore it from a backup")
