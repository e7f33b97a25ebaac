"""Whom the charges of one population protect: units of one kind, or groups of records that a data owner declares. All public.

A charge names the plan's unit: the column of the unit ids, or "record" where each record is a unit of its own. Charges
of different units don't compose, unless the population's cap says what its units are and how many records one has at most. See
docs/proofs/composition.md, section 4.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from distqexp.errors import BudgetError, UsageError

RECORD = "record"
"""The unit of a plan whose records are units of their own. No column of ids may have this name."""

MOST_RECORDS = 10**9


@dataclass(frozen=True)
class Declared:
    """What a population's units are, as its data owner declares them: a column's name or "record".

    records: how many records a unit has at most, in all data that are ever charged; None: not declared, and charges
    for single records are not counted.
    """

    unit: str
    records: int | None = None

    def __post_init__(self) -> None:
        if not self.unit.strip():
            raise UsageError("cap: unit ''; expected the column of the unit ids, or record: --unit pid")
        if self.records is None:
            return
        if self.unit == RECORD:
            raise UsageError(
                "cap: records per unit with unit record, which is one; expected them with a column: --unit pid"
            )
        if not 1 <= self.records <= MOST_RECORDS:
            raise UsageError(f"cap: records per unit {self.records!r}; expected 1 to {MOST_RECORDS}")

    def group(self, unit: str | None) -> int | None:
        """So many of a charge's units count together for one declared unit; None where that can't be told.

        unit: the charge's; None for older rows, which name none. A changed record changes one of their units to another at most:
        two of them, the one that goes and the one that comes.
        """
        if unit == self.unit:
            return 1
        if unit is None:
            return 2 if self.unit == RECORD else self.records and 2 * self.records
        return self.records if unit == RECORD else None


def group_of(unit: str | None, declared: Declared | None) -> int | None:
    """As Declared.group; where nothing is declared every charge counts for its own unit."""
    return 1 if declared is None else declared.group(unit)


def mixture(units: Iterable[str | None], declared: Declared | None) -> str:
    """Why charges of these units can't be counted together; empty where they can."""
    found = set(units)
    if declared is None:
        return f"releases that protect different units ({_listed(found)})" if len(found) > 1 else ""
    lost = {unit for unit in found if declared.group(unit) is None}
    return f"releases that protect {_listed(lost)}, while the cap is one for each {declared.unit!r}" if lost else ""


def remedy(population: str, units: Iterable[str | None], declared: Declared | None) -> str:
    """What to do about a mixture."""
    columns = sorted(unit for unit in set(units) if unit not in (None, RECORD))
    if declared is not None:
        plan, columns = f"plan for each {declared.unit!r}", [column for column in columns if column != declared.unit]
        named = declared.unit
    else:
        plan, named, columns = "plan for the unit that is on record", columns[0] if columns else RECORD, columns[1:]
    if columns:  # no declaration says how one column's ids count for another's
        return plan
    group = "" if named == RECORD else " --records-per-unit N"
    return (
        f"{plan}, or let whoever answers for the data declare how single records count: distqexp ledger cap "
        f"{_word(population, 'POPULATION')} --epsilon E --delta D --unit {_word(named, 'COLUMN')}{group}"
    )


def require_one_unit(population: str, units: set[str | None], declared: Declared | None) -> None:
    """Raise BudgetError unless charges of these units can be counted together."""
    if reason := mixture(units, declared):
        raise BudgetError(
            f"population {population!r}: {reason}: no budget adds them up; {remedy(population, units, declared)}"
        )


def require_countable(population: str, units: set[str | None], declared: Declared, counted: int) -> None:
    """Raise UsageError unless charges of these units, counted for groups of ``counted`` so far, fit a new declaration."""
    if reason := mixture(units, declared):
        raise UsageError(
            f"cap of population {population!r}: the ledger has {reason}; expected charges that count for it: "
            f"{remedy(population, units, declared)}"
        )
    if (declared.records or 1) < counted and units & {None, RECORD}:
        raise UsageError(
            f"cap of population {population!r}: records per unit {declared.records or 1}; expected {counted} or more, as "
            "releases were counted for groups of so many"
        )


def _word(text: str, other: str) -> str:
    """``text`` as a word of a command line; ``other`` where it can't be printed."""
    return shlex.quote(text) if text.isprintable() else other


def _listed(units: Iterable[str | None]) -> str:
    return " and ".join(sorted("an unknown unit" if unit is None else repr(unit) for unit in units))
