"""The ledger: what was spent on each population, and the draws that were paid for.

A release is charged in three steps. *Reserve*: one row for (universe, population, key) and these very
integer sums. *Draw*: the noise is stored before it is used. *Commit*: the release is stored, the noise
erased. Each step is durable before the next one begins, so that a run killed anywhere continues under its
own reservation: one charge, one draw, one release. Other sums under the same key are charged anew.

Sums are recognised by a keyed digest whose key never leaves the ledger's folder; neither it nor any other
digest of private data is part of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.errors import UsageError
from distqexp.privacy.events import Release
from distqexp.privacy.expenses import Charge, Part
from distqexp.privacy.ledger.books import PRIVATE, Books, Cap, LedgerRow, Reservation, event_fields
from distqexp.privacy.ledger.budget import require_room
from distqexp.privacy.ledger.chain import Chain
from distqexp.privacy.ledger.files import LedgerFiles, default_path
from distqexp.privacy.ledger.head import Anchor
from distqexp.privacy.ledger.populations import Accepted, local_name, require_spelling
from distqexp.privacy.ledger.reading import LedgerReading
from distqexp.privacy.ledger.voids import require_not_voided, require_open, to_give_back, to_reinstate, to_void
from distqexp.privacy.units import Declared, require_countable, require_one_unit
from distqexp.storage.atomic import storage_error
from distqexp.storage.canonical import array_bytes, canonical_json

TAG_BYTES = 32
"""A private tag is the keyed digest of the sums; with parts, that of what they rest on follows it."""

MOVED = (
    "units stand elsewhere in the files than in an earlier round, so that all of them are charged, whatever their part: "
    "restore the files, or make a new plan; "
)

ADJACENCIES = ("zero-out", "add-remove", "replace-one")


class Ledger(LedgerReading):
    """One ledger, to read and to charge. Use ``Ledger.open``; as a context manager it closes itself. Not for use from two threads."""

    @classmethod
    def open(cls, path: Path | None = None, *, create: bool = True) -> Ledger:
        """Open the ledger at ``path`` (default: DISTQEXP_LEDGER, else the user's state folder).

        create: make it when it does not exist. What killed runs left is tidied up.

        Raises StorageError (no file locks, not writable), UsageError (missing, not to be created),
        FileContentError (altered).
        """
        # Through links: one ledger has one folder of keys and draws, by whatever name it is opened.
        path = Path(os.path.realpath(default_path() if path is None else path))
        if not create and not path.exists():
            raise UsageError(f"{path}: no ledger there; set DISTQEXP_LEDGER, or make a release first")
        files = LedgerFiles(path)
        files.prepare()
        _create_private(path)
        chain = Chain(path, files)
        try:
            chain.prepare()
            with chain.transaction():
                files.clean(Books(chain.entries()).committed())
                files.mark_begun()
        except BaseException:
            chain.close()
            raise
        return cls(chain, files)

    # --- spending --------------------------------------------------------------------------------------------

    def check(
        self,
        *,
        population: str,
        cap: Cap,
        charges: Sequence[Charge],
        universe: str = PRIVATE,
        unit: str | None = None,
    ) -> None:
        """Refuse with BudgetError, before anything is read, when ``charges`` more don't fit the cap.

        Leave out what is charged already, or a killed run could not go on. unit: whom they protect, as in ``reserve``, which
        still decides later.
        """
        charges = [charge._replace(unit=unit or charge.unit) for charge in charges]
        with self._chain.transaction():
            books = Books(self._chain.entries())
            if unit is not None:  # also where nothing is left to charge: the records must not be read in vain
                units = {unit, *(row.unit for row in books.charged(universe, population))}
                require_one_unit(population, units, books.units(population))
            require_room(books, universe, population, charges, cap)

    def reserve(
        self,
        *,
        population: str,
        key: str,
        event: Release,
        adjacency: str,
        cap: Cap,
        sums: npt.NDArray[np.int64],
        universe: str = PRIVATE,
        part: Part | None = None,
        basis: bytes = b"",
        unit: str | None = None,
        accepted: Accepted | None = None,
        contents: Sequence[bytes] = (),
    ) -> Reservation:
        """Charge ``event`` to ``population``, or find the charge that these very sums have already.

        key: "ROLE/RELEASE", public: who charges, and the identity of the release (plan, round, what it builds
        on; it begins with the plan and "/"). Charges of one release by several roles (its sites, its curator) that share a ledger are one
        expense, see ``expenses``. cap: applies when the ledger has no cap for the population; a cap set there
        can't be raised by it. sums: int64 (k,), private. universe: "private", or another name for test runs,
        which have books of their own. part: whose units the sums are of, None: everybody's. basis: what the split
        into parts rests on, private. When the role charged another basis for this plan before, units may have
        changed their parts, and the charge is everybody's: the reservation's ``part`` is None then. A charge to a part
        doesn't cover the same sums of another basis, or of everybody. unit: whom the release protects, the column of the unit
        ids or "record"; None: unknown. Charges of different units are refused, unless the cap declares how they count. accepted: at a
        site, what the plan calls its population, which the row remembers. contents: keyed digests of what the records' files hold, private.

        Raises BudgetError, FileContentError for a release that was voided; then nothing is charged.
        """
        if sums.dtype != np.int64 or sums.ndim != 1:
            raise ValueError(f"sums: {sums.dtype} of shape {sums.shape}; expected int64 (k,)")
        if adjacency not in ADJACENCIES:
            raise ValueError(f"adjacency {adjacency!r}; expected one of {', '.join(ADJACENCIES)}")
        body = {
            "action": "reserve",
            "universe": universe,
            "private": universe == PRIVATE,
            "population": population,
            "key": key,
            "adjacency": adjacency,
            **event_fields(event),
            **({} if unit is None else {"unit": unit}),
            **({} if accepted is None else {"plan_population": accepted.plan}),
        }
        tag = self._files.tag(b"sums", canonical_json(body), str(sums.shape).encode(), array_bytes(sums))
        whose = b"" if part is None else self._files.tag(b"basis", basis)
        with self._chain.transaction():
            books = Books(self._chain.entries())
            require_open(books, self.path, key)
            if accepted is not None and (name := local_name(books, universe, accepted)) != population:
                raise UsageError(f"population {population!r}: another process took it for {name!r}; run again")
            self._chain.note_contents(universe, population, contents)
            earlier, remark = books.charged(universe, population), ""
            for row in earlier:
                found = self._chain.private_tag(row.id)
                covers = row.part is None or (row.part, found[TAG_BYTES:]) == (part, whose)
                if row.key == key and found[:TAG_BYTES] == tag and covers:
                    return self._found(books, row)
            if part is not None:
                tag += whose
                if all(self._same_basis(row, key, tag) for row in earlier):
                    body |= {"part": part.number, "parts": part.parts}
                else:
                    part, remark = None, MOVED
            require_room(books, universe, population, [Charge(key, adjacency, event, part, unit)], cap, remark)
            entry = self._chain.append(body, books.entries, tag)
        return Reservation(entry.number, "reserved", entry.hash, part)

    def persist_noise(self, reservation: Reservation, noise: npt.NDArray[Any]) -> None:
        """Store a draw, int64 (k,), before it is used. Only the first draw of a reservation counts.

        Raises UsageError when there is one already (another process was faster): run again to use that one.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            row = _row(books, reservation)
            if noise.dtype != np.int64 or noise.shape != (row.event.coordinates,):
                raise ValueError(
                    f"noise: {noise.dtype}, shape {noise.shape}; the charge is for int64 ({row.event.coordinates},)"
                )
            require_not_voided(row)
            waiting = row.state == "reserved"
            if waiting and self._files.exists("noise", row.id):
                self._read("noise", row)  # refuses what a lost history left
                waiting = False
            if not waiting:
                raise UsageError(
                    f"ledger entry {row.id}: another process drew its noise already; run again with --resume"
                )
            self._write("noise", row, noise)
            self._chain.append({"action": "draw", "reservation": row.id}, books.entries)

    def noise(self, reservation: Reservation) -> npt.NDArray[Any]:
        """The draw of a reservation in state "drawn". Private until it is part of a release."""
        with self._chain.transaction():
            row = _row(Books(self._chain.entries()), reservation)
            if row.state != "drawn":
                raise UsageError(f"ledger entry {row.id}: {row.state}, expected drawn; there is no noise to use")
            return self._read("noise", row)

    def commit(self, reservation: Reservation, released: npt.NDArray[Any] | None) -> None:
        """The release is out: store it (None: nothing to store), then erase the noise.

        Committing the same array again does nothing. Raises UsageError for another array.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            row = _row(books, reservation)
            require_not_voided(row)
            if row.state == "reserved" and released is not None:
                raise UsageError(f"ledger entry {row.id}: reserved, expected drawn; store the noise before it is used")
            if row.state != "committed":
                if released is not None:
                    self._write("released", row, released)
                body = {"action": "commit", "reservation": row.id, "stored": released is not None}
                self._chain.append(body, books.entries)
            elif not _same(released, self._read("released", row) if row.id in books.stored else None):
                raise UsageError(
                    f"ledger entry {row.id}: committed with another release already; run again with --resume"
                )
        self._files.erase("noise", reservation.id)

    def released(self, reservation: Reservation) -> npt.NDArray[Any] | None:
        """The release of a committed reservation; None when it was committed without one."""
        with self._chain.transaction():
            books = Books(self._chain.entries())
            row = _row(books, reservation)
            if row.state != "committed":
                raise UsageError(f"ledger entry {row.id}: {row.state}, expected committed; there is no release yet")
            return self._read("released", row) if row.id in books.stored else None

    # --- voids -----------------------------------------------------------------------------------------------

    def void(self, *, population: str, release: str) -> Anchor:
        """At the curator: ``release`` ("PLAN/ROUND/STATE") was never drawn and never will be. Returns its entry.

        Reserved charges for it are given back; ``reserve`` refuses it for ever. Voided again, it is the same entry. Raises
        UsageError when the round has a draw.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            if (earlier := books.voided.get(release)) is not None:
                return earlier
            back = to_void(books, self.path, release, lambda row: self._files.exists("noise", row))
            body = {"action": "void", "population": population, "release": release, "reservations": back}
            entry = self._chain.append(body, books.entries)
            return Anchor(entry.number, entry.hash)

    def has_void(self, release: str) -> bool:
        """Whether ``release`` was voided here, at the curator."""
        with self._chain.transaction():
            return release in Books(self._chain.entries()).voided

    def accept_void(self, *, population: str, release: str, roles: Collection[str]) -> list[LedgerRow]:
        """At a site: give back, once, what ``roles`` charged for a release that the curator voided. Returns those charges.

        Raises FileContentError when there is no such charge, when it was given back before, or when the ledger knows
        of a release of that round.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            rows = to_give_back(books, self.path, release, population, roles)
            body = {"action": "accept-void", "population": population, "release": release}
            self._chain.append(body | {"reservations": [row.id for row in rows]}, books.entries)
        return rows

    def reinstate(self, *, plan: str, round: int) -> list[LedgerRow]:
        """A release of ``round`` of a plan is at hand: charges for it and earlier rounds that were given back stand again, for ever.

        Returns those charges; without any nothing is written. They may exceed a cap: what was released is spent.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            rows = to_reinstate(books, plan, round)
            if rows:
                body = {"action": "reinstate", "plan": plan, "round": round}
                self._chain.append(body | {"reservations": [row.id for row in rows]}, books.entries)
        return rows

    # --- caps and rows ---------------------------------------------------------------------------------------

    def set_cap(
        self,
        population: str,
        epsilon: float,
        delta: float,
        unit: str | None = None,
        records_per_unit: int | None = None,
    ) -> None:
        """Set the cap of a population, up or down: the act of whoever answers for the data, never of a config.

        unit: for whom, the column of the unit ids or "record"; as it was declared before, when None. records_per_unit: how many
        records a unit has at most in all data ever charged, a declaration that no run can check where its plan has
        no unit column: charges for single records then count for groups of so many. Raises UsageError where the charges
        on record don't count that way, or counted for larger groups.
        """
        if records_per_unit is not None and unit is None:
            raise UsageError("cap: records per unit without a unit; expected both: --unit pid --records-per-unit 50")
        cap = Cap(epsilon, delta, None if unit is None else Declared(unit, records_per_unit))
        body = {"action": "cap", "population": population, "epsilon": cap.epsilon, "delta": cap.delta}
        if cap.units is not None:
            body |= {"unit": cap.units.unit, "records_per_unit": cap.units.records}
        with self._chain.transaction():
            books = Books(self._chain.entries())
            require_spelling("cap", population, books.known())
            local = books.accepted.get((PRIVATE, population), population)
            if local != population and population not in books.known():
                raise UsageError(f"cap: {population!r} is what plans call {local!r} here; cap that")
            if cap.units is not None:
                units = {row.unit for row in books.charged(PRIVATE, population)}
                require_countable(population, units, cap.units, books.counted.get(population, 1))
            self._chain.append(body, books.entries)

    def _write(self, purpose: str, row: LedgerRow, array: npt.NDArray[Any]) -> None:
        self._files.write(purpose, row.id, self._chain.private_tag(row.id), array)

    def _same_basis(self, row: LedgerRow, key: str, tag: bytes) -> bool:
        """Whether an earlier charge leaves a unit of ``key``'s plan and role in the part that it has by ``tag``."""
        same = row.part is not None and row.key.split("/")[:2] == key.split("/")[:2]
        return not same or self._chain.private_tag(row.id)[TAG_BYTES:] == tag[TAG_BYTES:]

    def _found(self, books: Books, row: LedgerRow) -> Reservation:
        """An earlier charge. A draw that was stored just before a kill is taken up."""
        state = row.state
        if state == "reserved" and self._files.exists("noise", row.id):
            self._read("noise", row)
            self._chain.append({"action": "draw", "reservation": row.id}, books.entries)
            state = "drawn"
        return Reservation(row.id, state, row.hash, row.part)


def _row(books: Books, reservation: Reservation) -> LedgerRow:
    row = books.rows.get(reservation.id)
    if row is None or row.hash != reservation.hash:
        raise UsageError(f"ledger entry {reservation.id}: not a reservation of this ledger; reserve first")
    return row


def _same(first: npt.NDArray[Any] | None, second: npt.NDArray[Any] | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def _create_private(path: Path) -> None:
    """Make the empty SQLite file with mode 0600; an existing one is not touched (closing it would drop its locks)."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise storage_error(path, error) from error
