"""The books of a ledger, read from its entries: charges, their states, and caps. All fields are public."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distqexp.errors import UsageError
from distqexp.kinds import Adjacency
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease
from distqexp.privacy.expenses import Charge, Part
from distqexp.privacy.ledger.head import Anchor, Entry
from distqexp.privacy.units import UnitDeclaration

PRIVATE = "private"
"""The universe of real charges; test runs have universes of their own."""


@dataclass(frozen=True)
class Cap:
    """The most that may be spent on a population: ``delta`` at ``epsilon``.

    Attributes:
        epsilon: The epsilon, a finite number above 0.
        delta: The delta at that epsilon; 0 allows pure releases only.
        declaration: The units that the cap is for, where the data owner declares them; None is for the one kind of unit that
            all charges name.
    """

    epsilon: float
    delta: float
    declaration: UnitDeclaration | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UsageError(f"cap: epsilon {self.epsilon!r}; expected a finite number above 0")
        if not 0 <= self.delta < 1:
            raise UsageError(f"cap: delta {self.delta!r}; expected a number from 0, for pure releases only, to below 1")

    def line(self) -> str:
        """Describe the cap in one line for people."""
        unit = ""
        if self.declaration:
            records = self.declaration.records
            groups = f", single records as groups of {records}" if records else ""
            unit = f" for each {self.declaration.unit}{groups}"
        return f"capped at epsilon {self.epsilon:g}, delta {self.delta:g}{unit}"


@dataclass(frozen=True)
class Reservation:
    """A handle of a row of the ledger that was charged.

    Attributes:
        id: The number of the row's entry.
        state: "reserved", then "drawn", then "committed"; or "voided" for a charge that was given back.
        hash: The hash of the row's entry. Public.
        part: The part whose units are charged; None charges everybody.
    """

    id: int
    state: str
    hash: str
    part: Part | None = None


@dataclass(frozen=True)
class LedgerRow:
    """A charge, for people and certificates. All fields are public.

    Attributes:
        id: The number of the entry.
        time: When the entry was written, in UTC.
        universe: "private", or the name of a test run.
        population: The name that the budget is kept under.
        key: "ROLE/RELEASE", see ``Charge``.
        adjacency: What one unit more or less means for the release.
        event: The release as a privacy event.
        part: The part whose units are charged; None charges everybody.
        unit: The unit that the release protects, a column's name or "record"; None in rows of older versions.
        state: As in ``Reservation``.
        previous: The hash of the entry before it.
        hash: The hash of the entry.
    """

    id: int
    time: str
    universe: str
    population: str
    key: str
    adjacency: Adjacency
    event: Event
    part: Part | None
    unit: str | None
    state: str
    previous: str
    hash: str

    @property
    def private(self) -> bool:
        """False for test runs with seeded noise: NOT PRIVATE."""
        return self.universe == PRIVATE

    @property
    def charge(self) -> Charge:
        """The charge as the accounting takes it."""
        return Charge(self.key, self.adjacency, self.event, self.part, self.unit)


@dataclass
class Books:
    """The state of a ledger that follows from its entries.

    Attributes:
        entries: The entries that the books are read from.
        rows: The charges by the numbers of their entries.
        stored_releases: The committed reservations whose release is stored.
        caps: The cap of each population that has one.
        local_names: For (universe, population of a plan) the name under which a site charged it.
        largest_groups: For each population the largest number of records per unit that was in force at a charge to it.
        voids: The releases that the curator will never draw, by "PLAN/ROUND/STATE", with the entries that say so.
        accepted_voids: The void releases whose charge a site took back, with the numbers of the entries.
        reinstatements: The charges that were given back and stand again, since a release proved the void false. They are
            never given back a second time.
    """

    entries: list[Entry]
    rows: dict[int, LedgerRow] = field(default_factory=dict)
    stored_releases: set[int] = field(default_factory=set)
    caps: dict[str, Cap] = field(default_factory=dict)
    local_names: dict[tuple[str, str], str] = field(default_factory=dict)
    largest_groups: dict[str, int] = field(default_factory=dict)
    voids: dict[str, Anchor] = field(default_factory=dict)
    accepted_voids: dict[str, int] = field(default_factory=dict)
    reinstatements: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        readers = {
            "reserve": self._read_charge,
            "cap": self._read_cap,
            "void": self._read_void,
            "accept-void": self._read_void,
            "reinstate": self._read_reinstatement,
            "draw": self._read_step,
            "commit": self._read_step,
        }
        for entry in self.entries:
            readers[entry.body["action"]](entry)

    def _read_charge(self, entry: Entry) -> None:
        body = entry.body
        self.rows[entry.number] = LedgerRow(
            id=entry.number,
            time=entry.time,
            universe=body["universe"],
            population=body["population"],
            key=body["key"],
            adjacency=Adjacency(body["adjacency"]),
            event=_event(body),
            part=_part(body),
            unit=body.get("unit"),
            state="reserved",
            previous=entry.previous,
            hash=entry.hash,
        )
        self._note_group(self.rows[entry.number])
        if "plan_population" in body:
            self.local_names.setdefault((body["universe"], body["plan_population"]), body["population"])

    def _read_cap(self, entry: Entry) -> None:
        self.caps[entry.body["population"]] = self._cap(entry.body)

    def _read_void(self, entry: Entry) -> None:
        if entry.body["action"] == "void":
            self.voids[entry.body["release"]] = Anchor(entry.number, entry.hash)
        else:
            self.accepted_voids[entry.body["release"]] = entry.number
        self._set_states(entry.body["reservations"], "voided")

    def _read_reinstatement(self, entry: Entry) -> None:
        self._set_states(entry.body["reservations"], "committed")
        self.reinstatements.update(entry.body["reservations"])

    def _read_step(self, entry: Entry) -> None:
        number = entry.body["reservation"]
        self._set_states([number], {"draw": "drawn", "commit": "committed"}[entry.body["action"]])
        if entry.body.get("stored"):
            self.stored_releases.add(number)

    def _set_states(self, numbers: Iterable[int], state: str) -> None:
        for number in numbers:
            self.rows[number] = replace(self.rows[number], state=state)

    def charges(self, universe: str, population: str) -> list[LedgerRow]:
        """Return the charges that a population pays for, without those that were given back, which no release ever used."""
        return [
            row
            for row in self.rows.values()
            if (row.universe, row.population) == (universe, population) and row.state != "voided"
        ]

    def populations(self) -> set[str]:
        """Return the names that budgets are kept under."""
        return {row.population for row in self.rows.values() if row.private} | set(self.caps)

    def declaration(self, population: str) -> UnitDeclaration | None:
        """Return the units that the data owner declared for a population, or None."""
        cap = self.caps.get(population)
        return cap.declaration if cap else None

    def _cap(self, body: Mapping[str, Any]) -> Cap:
        """Read a cap; one that declares no unit keeps the declaration that the population had before."""
        declaration = self.declaration(body["population"])
        if body.get("unit") is not None:
            declaration = UnitDeclaration(body["unit"], body.get("records_per_unit"))
        return Cap(body["epsilon"], body["delta"], declaration)

    def _note_group(self, row: LedgerRow) -> None:
        declaration = self.declaration(row.population)
        if row.private and declaration and declaration.records:
            self.largest_groups[row.population] = max(declaration.records, self.largest_groups.get(row.population, 1))

    def committed_reservations(self) -> set[int]:
        """Return the numbers of the reservations that are committed."""
        return {row.id for row in self.rows.values() if row.state == "committed"}


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event as fields of an entry.

    Older versions read a bounded release as the continuous Gaussian release that it also is, and a sampled one as one in which
    every unit takes part. Noise in shares they read as one draw: the total variation between the two is below every digit that they
    print.
    """
    fields: dict[str, Any] = {"mu": event.mu, "coordinates": event.coordinates}
    if isinstance(event, BoundedRelease):
        return fields | {"sigma": None, "epsilon": event.epsilon}
    fields |= {"sigma": event.sigma} | ({"shares": event.shares} if event.shares > 1 else {})
    return fields | (
        {"sampling": event.sampling, "failure": event.failure} if event.sampling < 1 or event.failure else {}
    )


def _event(body: Mapping[str, Any]) -> Event:
    if "epsilon" in body:
        return BoundedRelease(mu=body["mu"], epsilon=body["epsilon"], coordinates=body["coordinates"])
    return GaussianRelease(
        mu=body["mu"],
        coordinates=body["coordinates"],
        sigma=body["sigma"],
        sampling=body.get("sampling", 1.0),
        failure=body.get("failure", 0.0),
        shares=body.get("shares", 1),
    )


def _part(body: Mapping[str, Any]) -> Part | None:
    """Return the part of a charge; where the entry names none it is None, so that everybody pays."""
    return Part(body["part"], body["parts"]) if "part" in body and "parts" in body else None
