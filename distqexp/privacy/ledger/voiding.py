"""The methods of a ledger that void rounds. The rules are in ``voids.py``."""

from __future__ import annotations

from collections.abc import Collection

from distqexp.privacy.ledger.books import Books, LedgerRow
from distqexp.privacy.ledger.head import Anchor
from distqexp.privacy.ledger.reading import LedgerReading
from distqexp.privacy.ledger.voids import to_give_back, to_reinstate, to_void


class LedgerVoiding(LedgerReading):
    """The methods of a ledger for rounds that are never released. Open one by ``Ledger.open``."""

    def void(self, *, population: str, release: str) -> Anchor:
        """Record at the curator that ``release`` ("PLAN/ROUND/STATE") was never drawn and never will be, and return the entry.

        Reserved charges for it are given back, and ``reserve`` refuses it for ever. Called again it returns the same entry.
        Raises UsageError when the round has a draw.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            if (earlier := books.voids.get(release)) is not None:
                return earlier
            reservations = to_void(books, self.path, release, lambda row: self._files.exists("noise", row))
            body = {"action": "void", "population": population, "release": release, "reservations": reservations}
            entry = self._chain.append(body, books.entries)
            return Anchor(entry.number, entry.hash)

    def has_void(self, release: str) -> bool:
        """Whether the curator voided ``release`` in this ledger."""
        with self._chain.transaction():
            return release in Books(self._chain.entries()).voids

    def accept_void(self, *, population: str, release: str, roles: Collection[str]) -> list[LedgerRow]:
        """Give back at a site, once, the charges for a release that the curator voided.

        Args:
            population: The plan's name of the population.
            release: The release, "PLAN/ROUND/STATE".
            roles: The roles whose charges are given back.

        Returns:
            The charges that were given back.

        Raises:
            FileContentError: There is no such charge, it was given back before, or the ledger knows of a release of that round.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            rows = to_give_back(books, self.path, release, population, roles)
            body = {"action": "accept-void", "population": population, "release": release}
            self._chain.append(body | {"reservations": [row.id for row in rows]}, books.entries)
        return rows

    def reinstate(self, *, plan: str, round: int) -> list[LedgerRow]:
        """Restore, for ever, the charges for a round and earlier ones that were given back although a release exists.

        Returns those charges; where there are none, nothing is written. They may exceed a cap, since a release is spent.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            rows = to_reinstate(books, plan, round)
            if rows:
                body = {"action": "reinstate", "plan": plan, "round": round}
                self._chain.append(body | {"reservations": [row.id for row in rows]}, books.entries)
        return rows
