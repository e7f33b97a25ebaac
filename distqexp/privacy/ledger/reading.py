"""The reading side of a ledger: caps, charges, guarantees, its chain. Nothing here charges."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from distqexp.errors import FileContentError
from distqexp.privacy.expenses import expenses
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.ledger.books import PRIVATE, Books, Cap, LedgerRow
from distqexp.privacy.ledger.chain import Chain
from distqexp.privacy.ledger.files import LedgerFiles
from distqexp.privacy.ledger.head import Anchor, Entry, newest_anchor, require_anchor
from distqexp.privacy.ledger.populations import PlanPopulation, local_name
from distqexp.privacy.units import require_one_unit


class LedgerReading:
    """The methods of a ledger that only read. Open one by ``Ledger.open``."""

    def __init__(self, chain: Chain, files: LedgerFiles) -> None:
        self.path = chain.path
        self._chain = chain
        self._files = files

    def close(self) -> None:
        """Close the file; reservations persist."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def keyed_digest(self, *parts: bytes) -> bytes:
        """Return a digest of private facts for this machine's own files; its key never leaves the ledger's folder."""
        return self._files.tag(b"records", *parts)

    def local_population(self, plan_population: PlanPopulation, universe: str = PRIVATE) -> str:
        """Return the name under which this site keeps the budget of a plan's population.

        The name is stored with the first charge. Raises UsageError, see ``populations.local_name``.
        """
        with self._chain.transaction():
            return local_name(Books(self._chain.entries()), universe, plan_population)

    def local_names(self) -> dict[str, str]:
        """Return the local name of every population of a plan that this site charged, by its name in the plan. Public."""
        with self._chain.transaction():
            local_names = Books(self._chain.entries()).local_names
        return {name: local for (universe, name), local in local_names.items() if universe == PRIVATE}

    def charged_elsewhere(self, population: str, contents: Sequence[bytes], universe: str = PRIVATE) -> list[str]:
        """Return the other populations that files of the same content were charged to.

        Args:
            population: The population that is charged now.
            contents: Keyed digests of the files' content, as in ``Provenance``.
            universe: "private", or the name of a test run.
        """
        with self._chain.transaction():
            names = self._chain.names_of_contents(universe, contents)
        return sorted(names - {population})

    def cap(self, population: str) -> Cap | None:
        """Return the cap that is set for a population, or None."""
        with self._chain.transaction():
            return Books(self._chain.entries()).caps.get(population)

    def populations(self) -> list[str]:
        """Return the names of all populations with a charge or a cap, sorted. Public."""
        with self._chain.transaction():
            return sorted(Books(self._chain.entries()).populations())

    def rows(self, population: str | None = None) -> list[LedgerRow]:
        """Return every charge, or those to one population, oldest first, including those given back ("voided"). Public."""
        with self._chain.transaction():
            rows = Books(self._chain.entries()).rows.values()
        return [row for row in rows if population in (None, row.population)]

    def spent(self, population: str, universe: str = PRIVATE) -> Guarantee:
        """Return what all charges of a population together still guarantee to each of its units, see ``Cap.declaration``.

        Raises BudgetError where the charges are for units that can't be counted together.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
        rows, declaration = books.charges(universe, population), books.declaration(population)
        require_one_unit(population, {row.unit for row in rows}, declaration)
        return expenses([row.charge for row in rows], declaration).guarantee()

    def new_line(self) -> str | None:
        """Return what to say before the first entry of a ledger, in which every budget is whole; None where there is an entry."""
        with self._chain.transaction():
            if self._chain.entries():
                return None
        return f"new ledger at {self.path}: nothing is on record there for anybody"

    def export(self) -> list[dict[str, Any]]:
        """Return the chain as JSON trees for others to verify: number, time, body, previous and hash of each entry. Public."""
        with self._chain.transaction():
            return [{**vars(entry), "body": dict(entry.body)} for entry in self._chain.entries()]

    def told_head(self) -> Anchor:
        """Return the number and a keyed digest of the newest entry, for others.

        Equal entries of this ledger give equal digests, so others see that it was put back. An entry's own hash would confirm guesses
        of the entries, of the names of populations say, as there is no secret in them. Public.
        """
        with self._chain.transaction():
            return self._told(self._chain.entries())

    def require_told(self, told: Anchor) -> None:
        """Raise FileContentError unless the ledger still has an entry that ``told_head`` told of. The message is public."""
        with self._chain.transaction():
            entries = self._chain.entries()
        if len(entries) < told.number or self._told(entries[: told.number]) != told:
            raise FileContentError(
                f"{self.path}: {len(entries)} entries; expected among them entry {told.number}, which others were told of: the ledger was "
                "put back to an older time, or is another one: restore the newest one together with its folder"
            )

    def _told(self, entries: Sequence[Entry]) -> Anchor:
        anchor = newest_anchor(entries)
        if not entries:
            return anchor
        return Anchor(anchor.number, self._files.tag(b"told head", anchor.hash.encode()).hex())

    def head(self) -> Anchor:
        """Return the number and the hash of the newest entry, to be noted elsewhere. Public."""
        with self._chain.transaction():
            return newest_anchor(self._chain.entries())

    def verify(self, anchor: Anchor | None = None) -> None:
        """Check the chain, its seal, its folder's head, and the stored arrays. Raises FileContentError.

        ``anchor`` is a head that was noted elsewhere: the ledger must hold exactly that entry.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            require_anchor(self.path, books.entries, anchor)
            for row in books.rows.values():
                if row.state == "drawn":
                    self._read("noise", row)
                elif row.id in books.stored_releases:
                    self._read("released", row)

    def _read(self, purpose: str, row: LedgerRow) -> npt.NDArray[Any]:
        return self._files.read(purpose, row.id, self._chain.private_tag(row.id))
