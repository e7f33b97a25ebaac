"""What the entries of a ledger say: charges, their states, and caps. All fields are public."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distqexp.errors import UsageError
from distqexp.privacy.events import BoundedRelease, GaussianRelease, Release
from distqexp.privacy.expenses import Charge, Part
from distqexp.privacy.ledger.head import Anchor, Entry
from distqexp.privacy.units import Declared

PRIVATE = "private"


@dataclass(frozen=True)
class Cap:
    """The most that may be spent on a population: delta at epsilon; delta 0 admits pure releases only.

    units: for whom, where the data owner declares it; None: for the one kind of unit that all charges name.
    """

    epsilon: float
    delta: float
    units: Declared | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise UsageError(f"cap: epsilon {self.epsilon!r}; expected a finite number above 0")
        if not 0 <= self.delta < 1:
            raise UsageError(f"cap: delta {self.delta!r}; expected a number from 0, for pure releases only, to below 1")

    def line(self) -> str:
        """For people."""
        groups = f", single records as groups of {self.units.records}" if self.units and self.units.records else ""
        unit = f" for each {self.units.unit}{groups}" if self.units else ""
        return f"capped at epsilon {self.epsilon:g}, delta {self.delta:g}{unit}"


@dataclass(frozen=True)
class Reservation:
    """A charged row. part: as LedgerRow.

    state: "reserved", then "drawn", then "committed"; or "voided", given back. hash: of its entry (public).
    """

    id: int
    state: str
    hash: str
    part: Part | None = None


@dataclass(frozen=True)
class LedgerRow:
    """A charge, for people and certificates. All fields are public.

    part: whose units it is charged to; None: everybody's. unit: whom the release protects, a column's name or "record"; None in
    rows of older versions.
    """

    id: int
    time: str
    universe: str
    population: str
    key: str
    adjacency: str
    event: Release
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
        """What it is paid for."""
        return Charge(self.key, self.adjacency, self.event, self.part, self.unit)


@dataclass
class Books:
    """What the entries say."""

    entries: list[Entry]
    rows: dict[int, LedgerRow] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    caps: dict[str, Cap] = field(default_factory=dict)
    accepted: dict[tuple[str, str], str] = field(default_factory=dict)
    """Of (universe, population of a plan) the name under which a site charged it."""
    counted: dict[str, int] = field(default_factory=dict)
    """Of each population the largest number of records per unit that was in force when something was charged to it."""
    voided: dict[str, Anchor] = field(default_factory=dict)
    """Releases that the curator will never draw, by "PLAN/ROUND/STATE", and the entries that say so."""
    given_back: dict[str, int] = field(default_factory=dict)
    """Void releases whose charge a site took back, and the entries."""
    reinstated: set[int] = field(default_factory=set)
    """Charges that were given back and stand again, as a release proved the void false: never given back a second time."""

    def __post_init__(self) -> None:
        for entry in self.entries:
            body = entry.body
            if body["action"] == "reserve":
                self.rows[entry.number] = LedgerRow(
                    id=entry.number,
                    time=entry.time,
                    universe=body["universe"],
                    population=body["population"],
                    key=body["key"],
                    adjacency=body["adjacency"],
                    event=_event(body),
                    part=_part(body),
                    unit=body.get("unit"),
                    state="reserved",
                    previous=entry.previous,
                    hash=entry.hash,
                )
                self._note_group(self.rows[entry.number])
                if "plan_population" in body:
                    self.accepted.setdefault((body["universe"], body["plan_population"]), body["population"])
            elif body["action"] == "cap":
                self.caps[body["population"]] = self._cap(body)
            elif body["action"] in ("void", "accept-void"):
                if body["action"] == "void":
                    self.voided[body["release"]] = Anchor(entry.number, entry.hash)
                else:
                    self.given_back[body["release"]] = entry.number
                for number in body["reservations"]:
                    self.rows[number] = replace(self.rows[number], state="voided")
            elif body["action"] == "reinstate":
                for number in body["reservations"]:
                    self.rows[number] = replace(self.rows[number], state="committed")
                self.reinstated.update(body["reservations"])
            else:
                state = {"draw": "drawn", "commit": "committed"}[body["action"]]
                number = body["reservation"]
                self.rows[number] = replace(self.rows[number], state=state)
                if body.get("stored"):
                    self.stored.add(number)

    def charged(self, universe: str, population: str) -> list[LedgerRow]:
        """What a population pays for; without charges that were given back, whose sketches no release ever used."""
        return [
            row
            for row in self.rows.values()
            if (row.universe, row.population) == (universe, population) and row.state != "voided"
        ]

    def known(self) -> set[str]:
        """The names that budgets are kept under."""
        return {row.population for row in self.rows.values() if row.private} | set(self.caps)

    def units(self, population: str) -> Declared | None:
        """What the data owner declared a population's units to be."""
        cap = self.caps.get(population)
        return cap.units if cap else None

    def _cap(self, body: Mapping[str, Any]) -> Cap:
        """A cap as it was set; one that declares no unit leaves the units as they were declared before."""
        declared = self.units(body["population"])
        if body.get("unit") is not None:
            declared = Declared(body["unit"], body.get("records_per_unit"))
        return Cap(body["epsilon"], body["delta"], declared)

    def _note_group(self, row: LedgerRow) -> None:
        units = self.units(row.population)
        if row.private and units and units.records:
            self.counted[row.population] = max(units.records, self.counted.get(row.population, 1))

    def committed(self) -> set[int]:
        return {row.id for row in self.rows.values() if row.state == "committed"}


def event_fields(event: Release) -> dict[str, Any]:
    """An event as fields of an entry; an older version reads a bounded release as the continuous Gaussian that it also is."""
    fields = {"mu": event.mu, "coordinates": event.coordinates}
    return fields | (
        {"sigma": event.sigma} if isinstance(event, GaussianRelease) else {"sigma": None, "epsilon": event.epsilon}
    )


def _event(body: Mapping[str, Any]) -> Release:
    if "epsilon" in body:
        return BoundedRelease(mu=body["mu"], epsilon=body["epsilon"], coordinates=body["coordinates"])
    return GaussianRelease(mu=body["mu"], coordinates=body["coordinates"], sigma=body["sigma"])


def _part(body: Mapping[str, Any]) -> Part | None:
    """The part of a charge; None, so that everybody pays, where the entry names none."""
    return Part(body["part"], body["parts"]) if "part" in body and "parts" in body else None
