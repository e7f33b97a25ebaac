"""The ledger's entries, append-only and hash-chained, in SQLite.

An entry's hash is the SHA-256 of the previous hash and of its body, canonical JSON of public fields. The
time of an entry stands beside its body, outside the chain, so that the same history has the same hashes. A keyed
seal over the number of entries and the last hash shows when the newest ones were removed. The head in the ledger's
folder shows when the whole file was put back to an older copy, see ``head.py``.
"""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distqexp.errors import DistqexpError, FileContentError, StorageError
from distqexp.privacy.ledger.files import LedgerFiles
from distqexp.privacy.ledger.head import FIRST_PREVIOUS, RESTORE, Anchor, Entry, Head, HeadFile, entry_hash
from distqexp.storage.canonical import canonical_json

FORMAT = 2
HEADLESS_FORMAT = 1
"""The format of ledgers whose folder has no head yet; they get one at the next opening."""

BUSY_SECONDS = 60.0
"""How long to wait for another process that holds the ledger."""

_CONTENTS = (
    "CREATE TABLE IF NOT EXISTS private_contents(digest BLOB, universe TEXT, population TEXT,"
    " PRIMARY KEY (digest, universe, population))"
)
"""This table is made when it is first needed, since ledgers of older versions have none."""

_TABLES = (
    "CREATE TABLE entries(number INTEGER PRIMARY KEY, time TEXT NOT NULL, body TEXT NOT NULL,"
    " previous TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TABLE head(one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash TEXT NOT NULL,"
    " seal BLOB NOT NULL)",
    "CREATE TABLE private_tags(reservation INTEGER PRIMARY KEY, tag BLOB NOT NULL)",
    f"PRAGMA user_version = {FORMAT}",
)


class Chain:
    """The SQLite file of a ledger. Every transaction begins with a check of the whole chain and of the folder's head."""

    def __init__(self, path: Path, files: LedgerFiles) -> None:
        self.path = path
        self._files = files
        self._head = HeadFile(files)
        self._checked_entries: list[Entry] = []
        self._has_appended = False
        with self._sqlite_errors():
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.execute("PRAGMA synchronous = EXTRA")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def prepare(self) -> None:
        """Read the key of the seals, and begin a new ledger or give an old one its head. Raises FileContentError."""
        with self._exclusive_access():
            new = self._connection.execute("SELECT 1 FROM head").fetchone() is None
            self._files.load_key(new=new)
            if new:
                self._begin()
            elif self._version() == HEADLESS_FORMAT:
                self._add_head()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction with one exclusive writer and at most one new entry.

        All changes inside become durable together, or none does. But once the folder's head holds the new entry, the entry
        counts: after a failure in between, the next transaction appends it.
        """
        with self._exclusive_access():
            while self._is_one_behind(entries := self._read_entries(), head := self._head.read()):
                self._insert(head)
                self._connection.execute("COMMIT")
                self._connection.execute("BEGIN IMMEDIATE")
            self._require_head(entries, head.anchor)
            self._checked_entries, self._has_appended = entries, False
            yield

    def entries(self) -> list[Entry]:
        """Return every entry, checked. This works inside a transaction only."""
        return self._checked_entries

    def append(self, body: Mapping[str, Any], entries: list[Entry], tag: bytes = b"") -> Entry:
        """Append an entry to the ledger and to the list of its entries, inside a transaction.

        Args:
            body: The public fields of the entry.
            entries: The checked entries of this transaction; the new one is appended to the list.
            tag: The private tag of a reservation's sums.

        Returns:
            The new entry.
        """
        if self._has_appended:  # the folder's head could restore only the last one
            raise ValueError("a second entry in one transaction; expected one at most")
        previous = entries[-1].hash if entries else FIRST_PREVIOUS
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(len(entries) + 1, time, dict(body), previous, entry_hash(previous, canonical_json(dict(body))))
        self._has_appended = True
        head = Head(entry, tag)
        self._head.write(head)
        self._insert(head)
        entries.append(entry)
        return entry

    def private_tag(self, reservation: int) -> bytes:
        """Return the private tag of a reservation, empty when it has none. It is never exported."""
        row = self._connection.execute("SELECT tag FROM private_tags WHERE reservation = ?", (reservation,)).fetchone()
        return bytes(row[0]) if row else b""

    def note_contents(self, universe: str, population: str, digests: Iterable[bytes]) -> None:
        """Store keyed digests of data files with the population that they are charged to. They are never exported."""
        rows = [(digest, universe, population) for digest in digests]
        if not rows:
            return
        self._connection.execute(_CONTENTS)
        self._connection.executemany("INSERT OR IGNORE INTO private_contents VALUES (?, ?, ?)", rows)

    def names_of_contents(self, universe: str, digests: Iterable[bytes]) -> set[str]:
        """Return the populations that any of the data files was charged to."""
        self._connection.execute(_CONTENTS)
        query = "SELECT population FROM private_contents WHERE digest = ? AND universe = ?"
        return {str(row[0]) for digest in digests for row in self._connection.execute(query, (digest, universe))}

    @contextmanager
    def _exclusive_access(self) -> Iterator[None]:
        """Open a write transaction of SQLite; an exception rolls it back."""
        with self._sqlite_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._require_tables()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _read_entries(self) -> list[Entry]:
        """Read every entry, and check the chain and its seal."""
        previous, entries = FIRST_PREVIOUS, []
        rows = self._connection.execute("SELECT number, time, body, previous, hash FROM entries ORDER BY number")
        for expected, (number, time, text, stored_previous, stored_hash) in enumerate(rows.fetchall(), start=1):
            computed = entry_hash(previous, str(text).encode())
            if (number, stored_previous, stored_hash) != (expected, previous, computed):
                raise self._tampering_error(
                    f"entry {number} does not fit: found hash {str(stored_hash)[:12]}, computed {computed[:12]}"
                )
            entries.append(Entry(number, time, self._parse_body(number, text), previous, computed))
            previous = computed
        head = self._connection.execute("SELECT number, hash, seal FROM head").fetchone()
        if head is None or head[:2] != (len(entries), previous):
            raise self._tampering_error(f"{len(entries)} entries, its head says {head[0] if head else 'none'}")
        if not isinstance(head[2], bytes) or not hmac.compare_digest(head[2], self._seal(len(entries), previous)):
            raise self._tampering_error("the seal of its head does not fit")
        return entries

    def _is_one_behind(self, entries: list[Entry], head: Head) -> bool:
        """Whether only the head's entry is missing, since a kill or a failure came between the two writes."""
        last = entries[-1].hash if entries else FIRST_PREVIOUS
        return head.entry is not None and (head.entry.number, head.entry.previous) == (len(entries) + 1, last)

    def _require_head(self, entries: list[Entry], head: Anchor) -> None:
        """Refuse a file that is older than its folder, or of another history, and bring an older folder up to date."""
        if head.number > len(entries):
            raise FileContentError(
                f"{self.path}: {len(entries)} entries, the head in {self._head.path} is entry {head.number}: the ledger was put "
                f"back to an older copy without its folder; {RESTORE}"
            )
        actual = entries[head.number - 1].hash if head.number else FIRST_PREVIOUS
        if actual != head.hash:
            raise FileContentError(
                f"{self.path}: entry {head.number} has hash {actual[:12]}, the head in {self._head.path} has {head.hash[:12]}: "
                f"ledger and folder are not of one history; {RESTORE}"
            )
        if head.number < len(entries):
            # The folder is from an older backup: the file has every charge. A draw that the folder lacks shows when it is used.
            self._write_head(entries)

    def _insert(self, head: Head) -> None:
        entry = head.entry
        if entry is None:
            raise ValueError("a head without an entry; expected one to insert")
        text = canonical_json(dict(entry.body)).decode()
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (entry.number, entry.time, text, entry.previous, entry.hash)
        )
        if head.tag:
            self._connection.execute("INSERT INTO private_tags VALUES (?, ?)", (entry.number, head.tag))
        self._seal_head(entry.number, entry.hash)

    def _begin(self) -> None:
        if self._connection.execute("SELECT 1 FROM entries").fetchone() is not None:
            raise self._tampering_error("entries, and no head")
        if not self._head.exists():
            self._head.write(Head(None))
        self._seal_head(0, FIRST_PREVIOUS)

    def _add_head(self) -> None:
        """Give a ledger of a version before the head its head, once.

        A copy of the file from before, if it is put back later, is older than its folder's head.
        """
        if not self._head.exists():
            if self._files.has_head():
                self._head.read()  # raises FileContentError: the head is missing
            self._write_head(self._read_entries())
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def _write_head(self, entries: list[Entry]) -> None:
        """Write the newest of the entries to the folder's head."""
        self._head.write(Head(entries[-1], self.private_tag(entries[-1].number)) if entries else Head(None))

    def _seal(self, number: int, last: str) -> bytes:
        return self._files.tag(b"head", str(number).encode(), last.encode())

    def _seal_head(self, number: int, last: str) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", (number, last, self._seal(number, last))
        )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _require_tables(self) -> None:
        version = self._version()
        if version == 0 and self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _TABLES:
                self._connection.execute(statement)
        elif version not in (HEADLESS_FORMAT, FORMAT):
            raise FileContentError(
                f"{self.path}: ledger format {version}, this distqexp reads {FORMAT}; use the version that wrote it"
            )

    def _parse_body(self, number: int, text: str) -> dict[str, Any]:
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._tampering_error(f"entry {number} is no mapping")
        return body

    def _tampering_error(self, what: str) -> FileContentError:
        return FileContentError(f"{self.path}: the ledger was altered: {what}; restore it from a backup")

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        """Turn errors of SQLite into those of this package."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a closed ledger or another thread is a mistake in the code, not in the file
        except sqlite3.Error as error:
            raise self._storage_or_content_error(error) from error

    def _storage_or_content_error(self, error: sqlite3.Error) -> DistqexpError:
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
