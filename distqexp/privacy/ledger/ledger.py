"""The ledger: the privacy budget spent on each population, and the draws that were paid for.

A release is charged in three steps. *Reserve* writes one row for (universe, population, key) and exactly these
integer sums. *Draw* stores the noise before it is used. *Commit* stores the release and erases the noise.
Each step is durable before the next one begins, so that a run that is killed anywhere continues under its
own reservation: one charge, one draw, one release. Other sums under the same key are charged anew.

Sums are recognised by a keyed digest whose key never leaves the ledger's folder; neither this digest nor any other
digest of private data is part of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distqexp.arrays import IntegerArray, blocks_of
from distqexp.errors import UsageError
from distqexp.kinds import Adjacency
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger.books import PRIVATE, Books, Cap, LedgerRow, Reservation, event_fields
from distqexp.privacy.ledger.budget import require_room
from distqexp.privacy.ledger.chain import Chain
from distqexp.privacy.ledger.coins import CoinOwner, LedgerCoins
from distqexp.privacy.ledger.files import LedgerFiles, default_path, require_place
from distqexp.privacy.ledger.populations import PlanPopulation, local_name, require_spelling
from distqexp.privacy.ledger.recognised import BlockDigests, block_field, require_comparable, sums_tags
from distqexp.privacy.ledger.voids import require_not_voided, require_one_sum, require_open
from distqexp.privacy.units import UnitDeclaration, require_countable, require_one_unit
from distqexp.storage.atomic import storage_error

TAG_BYTES = 32
"""A private tag begins with the keyed digest of the sums, of this length; with parts, that of their basis follows."""

_BASIS_CHANGED = (
    "units stand elsewhere in the files than in an earlier round, so that all of them are charged, whatever their part: "
    "restore the files, or make a new plan; "
)


class Provenance(NamedTuple):
    """The private origin of a release's sums, of which the ledger stores keyed digests only.

    Attributes:
        basis: The data that the split of units into parts depends on.
        contents: Keyed digests of the content of the records' files.
    """

    basis: bytes = b""
    contents: Sequence[bytes] = ()


NO_PROVENANCE = Provenance()

_SAME_SAMPLE = (
    "another release of this round may rest on the same secret sample, so that this one is charged as if everybody took part: "
    "keep the first one, or make a new plan; "
)


class Ledger(LedgerCoins):
    """One ledger, to read and to charge. Open it by ``Ledger.open``, as a context manager; it is not for use from two threads."""

    @classmethod
    def open(cls, path: Path | None = None, *, create: bool = True) -> Ledger:
        """Open a ledger, and remove what killed runs left.

        Args:
            path: Its file; None is DISTQEXP_LEDGER, else a file in the user's state folder.
            create: Whether to create a ledger that does not exist.

        Raises:
            StorageError: File locks don't work there, or it can't be written.
            UsageError: It does not exist and is not to be created, or its place can't be right, see ``require_place``.
            FileContentError: It was altered.
        """
        # Links are resolved: one ledger has one folder of keys and draws, whatever name it is opened by.
        path = Path(os.path.realpath(default_path() if path is None else path))
        if not create and not path.exists():
            raise UsageError(f"{path}: no ledger there; set DISTQEXP_LEDGER, or make a release first")
        require_place(path)
        files = LedgerFiles(path)
        files.prepare()
        _create_private(path)
        chain = Chain(path, files)
        try:
            chain.prepare()
            with chain.transaction():
                files.clean(Books(chain.entries()).committed_reservations())
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
        """Raise BudgetError, before any record is read, when new charges don't fit the cap; ``reserve`` decides later.

        Args:
            population: The name that the budget is kept under.
            cap: Applies when the ledger has no cap for the population.
            charges: The new charges, without those on record: with them a killed run could not continue.
            universe: "private", or the name of a test run.
            unit: The unit that the charges protect; None keeps their own.
        """
        charges = [charge._replace(unit=unit or charge.unit) for charge in charges]
        with self._chain.transaction():
            books = Books(self._chain.entries())
            if unit is not None:  # also without new charges: the records must not be read in vain
                unit_names = {unit, *(row.unit for row in books.charges(universe, population))}
                require_one_unit(population, unit_names, books.declaration(population))
            require_room(books, universe, population, charges, cap)

    def reserve(
        self,
        charge: Charge,
        *,
        population: str,
        cap: Cap,
        sums: IntegerArray | BlockDigests,
        universe: str = PRIVATE,
        plan_population: PlanPopulation | None = None,
        provenance: Provenance = NO_PROVENANCE,
    ) -> Reservation:
        """Charge a release to ``population``, or find the charge that these very sums have already.

        Args:
            charge: The release. Its key is "ROLE/RELEASE": who charges, and the identity of the release (plan, round, and the
                state that it builds on). Charges of one release by several roles (its sites, its curator) that share a ledger
                are one expense. When the role charged other bases for this plan before, units may have changed their parts,
                and everybody is charged: the reservation's ``part`` is None then. When the role charged other sums under this key
                before, and the coins are not newer than that, one secret sample may stand behind both: a sampled release is then
                charged as one of everybody (docs/proofs/sampled.md, section 7). Charges of different units are refused, unless the cap
                declares how they count.
            population: The name that the budget is kept under.
            cap: Applies when the ledger has no cap for the population; it can't raise a cap that is set there.
            sums: int64 (k,), or the digests of their blocks; private. A charge to a part doesn't cover the same sums of another basis,
                or of everybody.
            universe: "private", or another name for test runs, which have books of their own.
            plan_population: At a site, the plan's population; the row stores its name.
            provenance: The origin of the sums, private.

        Returns:
            The row of the ledger that paid.

        Raises:
            BudgetError: Too little is left; nothing is charged.
            UsageError: An older version charged this release, and knows whole sums only; nothing is charged.
            FileContentError: The release was voided, or made of other sums that hold the same shares of noise; nothing is charged.
        """
        key, part = charge.key, charge.part
        if not isinstance(sums, BlockDigests) and (sums.dtype != np.int64 or sums.ndim != 1):
            raise ValueError(f"sums: {sums.dtype} of shape {sums.shape}; expected int64 (k,)")
        body = _reservation_body(charge, population, universe, plan_population)
        tags = sums_tags(self._files, body, sums)
        basis_tag = b"" if part is None else self._files.tag(b"basis", provenance.basis)
        with self._chain.transaction():
            books = Books(self._chain.entries())
            require_open(books, self.path, key)
            if plan_population and (name := local_name(books, universe, plan_population)) != population:
                raise UsageError(f"population {population!r}: another process took it for {name!r}; run again")
            self._chain.note_contents(universe, population, provenance.contents)
            earlier_rows, remark = books.charges(universe, population), ""
            for row in earlier_rows:
                row_tag = self._chain.private_tag(row.id)
                covers = row.part is None or (row.part, row_tag[TAG_BYTES:]) == (part, basis_tag)
                if row.key == key and row_tag[:TAG_BYTES] in tags and covers:
                    return self._earlier_reservation(books, row)
            require_comparable(books, [row for row in earlier_rows if row.key == key], sums)
            require_one_sum(self.path, charge, earlier_rows)
            if part is not None:
                if all(self._keeps_parts(row, key, basis_tag) for row in earlier_rows):
                    body |= {"part": part.number, "parts": part.parts}
                else:
                    part, remark = None, _BASIS_CHANGED
            whole, owner = charge.of_everybody(), CoinOwner(universe, population, key.rpartition("/")[0])
            again = any(row.key == key for row in earlier_rows)
            if whole != charge and again and not self._is_fresh_sample(owner, books):
                charge, remark = whole, _SAME_SAMPLE
                body = _reservation_body(charge, population, universe, plan_population)
            require_room(books, universe, population, [charge._replace(part=part)], cap, remark)
            entry = self._chain.append(body | block_field(sums), books.entries, tags[0] + basis_tag)
        return Reservation(entry.number, "reserved", entry.hash, part)

    def persist_noise(self, reservation: Reservation, noise: npt.NDArray[Any]) -> None:
        """Store a draw, int64 (k,), before it is used; of more than one block also its source, uint8 (bytes,).

        Only the first draw of a reservation counts.

        Raises UsageError when there is one already, since another process was faster; another run then uses that one.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            row = _row(books, reservation)
            is_source = noise.dtype == np.uint8 and len(blocks_of(row.event.coordinates)) > 1
            if not is_source and (noise.dtype != np.int64 or noise.shape != (row.event.coordinates,)):
                raise ValueError(
                    f"noise: {noise.dtype}, shape {noise.shape}; the charge is for int64 ({row.event.coordinates},)"
                )
            require_not_voided(row)
            has_draw = row.state != "reserved"
            if not has_draw and self._files.exists("noise", row.id):
                self._read("noise", row)  # raises FileContentError for a draw from a lost history
                has_draw = True
            if has_draw:
                raise UsageError(
                    f"ledger entry {row.id}: another process drew its noise already; run again with --resume"
                )
            self._write("noise", row, noise)
            self._chain.append({"action": "draw", "reservation": row.id}, books.entries)

    def noise(self, reservation: Reservation) -> npt.NDArray[Any]:
        """Return the draw, or its source, of a reservation in state "drawn". It is private until it is part of a release."""
        with self._chain.transaction():
            row = _row(Books(self._chain.entries()), reservation)
            if row.state != "drawn":
                raise UsageError(f"ledger entry {row.id}: {row.state}, expected drawn; there is no noise to use")
            return self._read("noise", row)

    def commit(self, reservation: Reservation, noisy_sums: npt.NDArray[Any] | None) -> None:
        """Store the noisy sums of a release, or nothing where they are None, and erase the noise.

        Committing the same array again does nothing. Raises UsageError for another array.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            row = _row(books, reservation)
            require_not_voided(row)
            if row.state == "reserved" and noisy_sums is not None:
                raise UsageError(f"ledger entry {row.id}: reserved, expected drawn; store the noise before it is used")
            if row.state != "committed":
                if noisy_sums is not None:
                    self._write("released", row, noisy_sums)
                body = {"action": "commit", "reservation": row.id, "stored": noisy_sums is not None}
                self._chain.append(body, books.entries)
            elif not _same(noisy_sums, self._stored_sums(books, row)):
                raise UsageError(
                    f"ledger entry {row.id}: committed with another release already; run again with --resume"
                )
        self._files.erase("noise", reservation.id)

    def noisy_sums(self, reservation: Reservation) -> npt.NDArray[Any] | None:
        """Return the noisy sums of a committed reservation; None when it was committed without any."""
        with self._chain.transaction():
            books = Books(self._chain.entries())
            row = _row(books, reservation)
            if row.state != "committed":
                raise UsageError(f"ledger entry {row.id}: {row.state}, expected committed; there is no release yet")
            return self._stored_sums(books, row)

    # --- caps --------------------------------------------------------------------------------------------------

    def set_cap(
        self,
        population: str,
        epsilon: float,
        delta: float,
        unit: str | None = None,
        records_per_unit: int | None = None,
    ) -> None:
        """Set the cap of a population, up or down: an act of whoever answers for the data, never of a config.

        Args:
            population: The name that the budget is kept under.
            epsilon: The epsilon of the cap.
            delta: The most that may be spent at that epsilon; 0 allows pure releases only.
            unit: The unit that the cap is for, the column of the unit ids or "record"; None keeps the unit declared before.
            records_per_unit: How many records a unit has at most in all data ever charged. No run can check this declaration
                where its plan has no unit column. Charges for single records then count for groups of this many.

        Raises:
            UsageError: The charges on record can't be counted that way, or were counted for larger groups.
        """
        if records_per_unit is not None and unit is None:
            raise UsageError("cap: records per unit without a unit; expected both: --unit pid --records-per-unit 50")
        cap = Cap(epsilon, delta, None if unit is None else UnitDeclaration(unit, records_per_unit))
        body = {"action": "cap", "population": population, "epsilon": cap.epsilon, "delta": cap.delta}
        if cap.declaration is not None:
            body |= {"unit": cap.declaration.unit, "records_per_unit": cap.declaration.records}
        with self._chain.transaction():
            books = Books(self._chain.entries())
            populations = books.populations()
            require_spelling("cap", population, populations)
            local = books.local_names.get((PRIVATE, population), population)
            if local != population and population not in populations:
                raise UsageError(f"cap: {population!r} is what plans call {local!r} here; cap that")
            if cap.declaration is not None:
                unit_names = {row.unit for row in books.charges(PRIVATE, population)}
                largest_group = books.largest_groups.get(population, 1)
                require_countable(population, unit_names, cap.declaration, largest_group)
            self._chain.append(body, books.entries)

    def _write(self, purpose: str, row: LedgerRow, array: npt.NDArray[Any]) -> None:
        self._files.write(purpose, row.id, self._chain.private_tag(row.id), array)

    def _stored_sums(self, books: Books, row: LedgerRow) -> npt.NDArray[Any] | None:
        return self._read("released", row) if row.id in books.stored_releases else None

    def _keeps_parts(self, row: LedgerRow, key: str, basis_tag: bytes) -> bool:
        """Whether an earlier charge is of another role or plan than ``key``, or split the units on the same basis."""
        comparable = row.part is not None and row.key.split("/")[:2] == key.split("/")[:2]
        return not comparable or self._chain.private_tag(row.id)[TAG_BYTES:] == basis_tag

    def _earlier_reservation(self, books: Books, row: LedgerRow) -> Reservation:
        """Return the reservation of an earlier charge, with an entry for a draw that was stored just before a kill."""
        state = row.state
        if state == "reserved" and self._files.exists("noise", row.id):
            self._read("noise", row)
            self._chain.append({"action": "draw", "reservation": row.id}, books.entries)
            state = "drawn"
        return Reservation(row.id, state, row.hash, row.part)


def _reservation_body(
    charge: Charge, population: str, universe: str, plan_population: PlanPopulation | None
) -> dict[str, Any]:
    """Return the fields of a reservation's entry, without the part, which depends on earlier charges."""
    if charge.adjacency not in list(Adjacency):
        raise ValueError(f"adjacency {charge.adjacency!r}; expected one of {', '.join(Adjacency)}")
    return {
        "action": "reserve",
        "universe": universe,
        "private": universe == PRIVATE,
        "population": population,
        "key": charge.key,
        "adjacency": str(charge.adjacency),
        **event_fields(charge.event),
        **({} if charge.unit is None else {"unit": charge.unit}),
        **({} if plan_population is None else {"plan_population": plan_population.name}),
    }


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
    """Create the empty SQLite file with mode 0600. An existing one is not opened, since closing it would drop its locks."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise storage_error(path, error) from error
