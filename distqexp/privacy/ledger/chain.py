"""The ledger's entries: append-only, hash-chained, in SQLite.

An entry's hash is the SHA-256 of the previous hash and of its body, canonical JSON of public fields. The
time of an entry stands beside its body, outside the chain: the same history has the same hashes. A keyed
seal over the number of entries and the last hash shows when the newest ones were removed; the head in the ledger's
folder, when the whole file was put back to an older copy, see ``ledger_head``.
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
"""Of ledgers whose folder has no head yet; they get one at the next opening."""

BUSY_SECONDS = 60.0

_CONTENTS = (
    "CREATE TABLE IF NOT EXISTS private_contents(digest BLOB, universe TEXT, population TEXT,"
    " PRIMARY KEY (digest, universe, population))"
)
"""Made when it is first needed: ledgers of older versions have none."""

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
        self._checked: list[Entry] = []
        self._appended = False
        with self._translated():
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.execute("PRAGMA synchronous = EXTRA")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def prepare(self) -> None:
        """Read the key of the seals; begin a new ledger, or give an old one its head. Raises FileContentError."""
        with self._exclusive():
            new = self._connection.execute("SELECT 1 FROM head").fetchone() is None
            self._files.load_key(new=new)
            if new:
                self._begin()
            elif self._version() == HEADLESS_FORMAT:
                self._take_over()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One exclusive writer at a time, and at most one new entry.

        What happens inside is durable as a whole, or did not happen. But once the folder's head says it, it will have
        happened: after a failure in between, the next transaction finds the entry appended.
        """
        with self._exclusive():
            while self._one_behind(found := self._entries(), head := self._head.read()):
                self._insert(head)
                self._connection.execute("COMMIT")
                self._connection.execute("BEGIN IMMEDIATE")
            self._require_head(found, head.anchor)
            self._checked, self._appended = found, False
            yield

    def entries(self) -> list[Entry]:
        """Every entry, checked. Inside a transaction."""
        return self._checked

    def append(self, body: Mapping[str, Any], after: list[Entry], tag: bytes = b"") -> Entry:
        """Add an entry after the checked ones, inside their transaction. tag: private, of a reservation's sums."""
        if self._appended:  # the folder's head could redo the last one only
            raise ValueError("a second entry in one transaction; expected one at most")
        previous = after[-1].hash if after else FIRST_PREVIOUS
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(len(after) + 1, time, dict(body), previous, entry_hash(previous, canonical_json(dict(body))))
        self._appended = True
        head = Head(entry, tag)
        self._head.write(head)
        self._insert(head)
        after.append(entry)
        return entry

    def private_tag(self, reservation: int) -> bytes:
        """The keyed digest of a reservation's sums; empty when there is none. Never exported."""
        row = self._connection.execute("SELECT tag FROM private_tags WHERE reservation = ?", (reservation,)).fetchone()
        return bytes(row[0]) if row else b""

    def note_contents(self, universe: str, population: str, digests: Iterable[bytes]) -> None:
        """Remember keyed digests of data files with the population that they are charged to. Never exported."""
        rows = [(digest, universe, population) for digest in digests]
        if not rows:
            return
        self._connection.execute(_CONTENTS)
        self._connection.executemany("INSERT OR IGNORE INTO private_contents VALUES (?, ?, ?)", rows)

    def names_of_contents(self, universe: str, digests: Iterable[bytes]) -> set[str]:
        """The populations that any of them was charged to."""
        self._connection.execute(_CONTENTS)
        query = "SELECT population FROM private_contents WHERE digest = ? AND universe = ?"
        return {str(row[0]) for digest in digests for row in self._connection.execute(query, (digest, universe))}

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._require_tables()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _entries(self) -> list[Entry]:
        previous, found = FIRST_PREVIOUS, []
        rows = self._connection.execute("SELECT number, time, body, previous, hash FROM entries ORDER BY number")
        for expected, (number, time, text, stored_previous, stored_hash) in enumerate(rows.fetchall(), start=1):
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

    def _one_behind(self, found: list[Entry], head: Head) -> bool:
        """Whether all that is missing is the head's entry: a kill, or a failure, came between the two writes."""
        last = found[-1].hash if found else FIRST_PREVIOUS
        return head.entry is not None and (head.entry.number, head.entry.previous) == (len(found) + 1, last)

    def _require_head(self, found: list[Entry], head: Anchor) -> None:
        """Refuse a file that is older than its folder, or of another history; bring an older folder up to date."""
        if head.number > len(found):
            raise FileContentError(
                f"{self.path}: {len(found)} entries, the head in {self._head.path} is entry {head.number}: the ledger was put "
                f"back to an older copy without its folder; {RESTORE}"
            )
        there = found[head.number - 1].hash if head.number else FIRST_PREVIOUS
        if there != head.hash:
            raise FileContentError(
                f"{self.path}: entry {head.number} has hash {there[:12]}, the head in {self._head.path} has {head.hash[:12]}: "
                f"ledger and folder are not of one history; {RESTORE}"
            )
        if head.number < len(found):
            # A folder of an older backup: every charge stands in the file. Draws that it lacks are missed when they are used.
            self._head.write(Head(found[-1], self.private_tag(found[-1].number)))

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
            raise self._tampered("entries, and no head")
        if not self._head.exists():
            self._head.write(Head(None))
        self._seal_head(0, FIRST_PREVIOUS)

    def _take_over(self) -> None:
        """From a version before the head: once. A copy from then that is put back later is older than its folder's head."""
        if not self._head.exists():
            if self._files.has_head():
                self._head.read()  # refuses
            found = self._entries()
            self._head.write(Head(found[-1], self.private_tag(found[-1].number)) if found else Head(None))
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")

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
