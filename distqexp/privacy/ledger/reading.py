"""What a ledger tells: caps, charges, what is spent, its chain. Nothing here charges."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from distqexp.privacy.expenses import expenses
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.ledger.books import PRIVATE, Books, Cap, LedgerRow
from distqexp.privacy.ledger.chain import Chain
from distqexp.privacy.ledger.files import LedgerFiles
from distqexp.privacy.ledger.head import Anchor, newest, require_noted
from distqexp.privacy.ledger.populations import Accepted, local_name
from distqexp.privacy.units import require_one_unit


class LedgerReading:
    """The side of a ledger that reads. Use ``Ledger.open``."""

    def __init__(self, chain: Chain, files: LedgerFiles) -> None:
        self.path = chain.path
        self._chain = chain
        self._files = files

    def close(self) -> None:
        """Close the file; reservations live on."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def keyed_digest(self, *parts: bytes) -> bytes:
        """A digest of private facts, for this machine's own files: its key never leaves the ledger's folder."""
        return self._files.tag(b"records", *parts)

    def local_population(self, accepted: Accepted, universe: str = PRIVATE) -> str:
        """The name under which this site keeps the budget of a plan's population. Raises UsageError, see local_name.

        It is remembered with the first charge.
        """
        with self._chain.transaction():
            return local_name(Books(self._chain.entries()), universe, accepted)

    def accepted(self) -> dict[str, str]:
        """Of every plan's population that this site took the local name. Public."""
        with self._chain.transaction():
            accepted = Books(self._chain.entries()).accepted
        return {plan: local for (universe, plan), local in accepted.items() if universe == PRIVATE}

    def charged_elsewhere(self, population: str, contents: Sequence[bytes], universe: str = PRIVATE) -> list[str]:
        """Other populations that files of the same content were charged to. contents: as in ``reserve``."""
        with self._chain.transaction():
            names = self._chain.names_of_contents(universe, contents)
        return sorted(names - {population})

    def cap(self, population: str) -> Cap | None:
        """The cap that is set for a population, if any."""
        with self._chain.transaction():
            return Books(self._chain.entries()).caps.get(population)

    def rows(self, population: str | None = None) -> list[LedgerRow]:
        """Every charge, oldest first, those that were given back ("voided") too. Public."""
        with self._chain.transaction():
            rows = Books(self._chain.entries()).rows.values()
        return [row for row in rows if population in (None, row.population)]

    def spent(self, population: str, universe: str = PRIVATE) -> Guarantee:
        """What all charges of a population together still guarantee to each of its units, see Cap.units."""
        with self._chain.transaction():
            books = Books(self._chain.entries())
        rows = books.charged(universe, population)
        require_one_unit(population, {row.unit for row in rows}, books.units(population))
        return expenses([row.charge for row in rows], books.units(population)).guarantee()

    def export(self) -> list[dict[str, Any]]:
        """The chain as JSON trees, for others to verify: number, time, body, previous, hash. Public."""
        with self._chain.transaction():
            return [{**vars(entry), "body": dict(entry.body)} for entry in self._chain.entries()]

    def head(self) -> Anchor:
        """Number and hash of the newest entry, to note elsewhere: public."""
        with self._chain.transaction():
            return newest(self._chain.entries())

    def verify(self, noted: Anchor | None = None) -> None:
        """Check the chain, its seal, its folder's head, and the stored arrays. Raises FileContentError.

        noted: a head that was noted elsewhere; the ledger must hold that very entry.
        """
        with self._chain.transaction():
            books = Books(self._chain.entries())
            require_noted(self.path, books.entries, noted)
            for row in books.rows.values():
                if row.state == "drawn":
                    self._read("noise", row)
                elif row.id in books.stored:
                    self._read("released", row)

    def _read(self, purpose: str, row: LedgerRow) -> npt.NDArray[Any]:
        return self._files.read(purpose, row.id, self._chain.private_tag(row.id))
