"""The units that the charges of a population protect: of one kind, or groups of records that a data owner declares.

Everything here is public. A charge names the plan's unit: the column of the unit ids, or "record" where each record is a
unit of its own. Charges of different units don't compose, unless the population's cap declares what its units are and how
many records one has at most. See docs/proofs/composition.md, section 4.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from distqexp.errors import BudgetError, UsageError

RECORD = "record"
"""The unit of a plan whose records are units of their own. No column of ids may have this name."""

MOST_RECORDS = 10**9
"""The largest number of records per unit that can be declared."""


@dataclass(frozen=True)
class UnitDeclaration:
    """The privacy units of a population, as the data owner declares them.

    Attributes:
        unit: The column of the unit ids, or "record".
        records: How many records a unit has at most, in all data that are ever charged; None where that is not declared, and
            then charges for single records are not counted.
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

    def group_size(self, unit: str | None) -> int | None:
        """Return how many of a charge's units count together for one declared unit; None where that can't be determined.

        ``unit`` is the charge's unit; it is None for older rows, which name none. A changed record changes at most one of
        their units into another: two of them, the one that goes and the one that comes.
        """
        if unit == self.unit:
            return 1
        if unit is None:
            return 2 if self.unit == RECORD else self.records and 2 * self.records
        return self.records if unit == RECORD else None


def group_size(unit: str | None, declaration: UnitDeclaration | None) -> int | None:
    """Return the group size of ``UnitDeclaration.group_size``; without a declaration every charge counts for its own unit."""
    return 1 if declaration is None else declaration.group_size(unit)


def mixture(unit_names: Iterable[str | None], declaration: UnitDeclaration | None) -> str:
    """Return the reason why charges of these units can't be counted together; it is empty where they can."""
    names = set(unit_names)
    if declaration is None:
        return f"releases that protect different units ({_list_of(names)})" if len(names) > 1 else ""
    others = {unit for unit in names if declaration.group_size(unit) is None}
    if not others:
        return ""
    return f"releases that protect {_list_of(others)}, while the cap is one for each {declaration.unit!r}"


def require_one_unit(population: str, unit_names: set[str | None], declaration: UnitDeclaration | None) -> None:
    """Raise BudgetError unless charges of these units can be counted together."""
    if reason := mixture(unit_names, declaration):
        raise BudgetError(
            f"population {population!r}: {reason}: no budget adds them up; {_remedy(population, unit_names, declaration)}"
        )


def require_countable(
    population: str, unit_names: set[str | None], declaration: UnitDeclaration, largest_group: int
) -> None:
    """Raise UsageError unless a new declaration fits the charges of a population.

    Args:
        population: The population.
        unit_names: The units that its charges name.
        declaration: The new declaration.
        largest_group: The largest group of records that charges were counted for so far.
    """
    if reason := mixture(unit_names, declaration):
        raise UsageError(
            f"cap of population {population!r}: the ledger has {reason}; expected charges that count for it: "
            f"{_remedy(population, unit_names, declaration)}"
        )
    if (declaration.records or 1) < largest_group and unit_names & {None, RECORD}:
        raise UsageError(
            f"cap of population {population!r}: records per unit {declaration.records or 1}; expected {largest_group} or more, as "
            "releases were counted for groups of so many"
        )


def _remedy(population: str, unit_names: Iterable[str | None], declaration: UnitDeclaration | None) -> str:
    """Return what can be done about a mixture."""
    columns = sorted(unit for unit in set(unit_names) if unit not in (None, RECORD))
    if declaration is not None:
        advice, columns = f"plan for each {declaration.unit!r}", [name for name in columns if name != declaration.unit]
        unit = declaration.unit
    else:
        advice, unit, columns = "plan for the unit that is on record", columns[0] if columns else RECORD, columns[1:]
    if columns:  # no declaration says how one column's ids count for another's
        return advice
    group = "" if unit == RECORD else " --records-per-unit N"
    return (
        f"{advice}, or let whoever answers for the data declare how single records count: distqexp ledger cap "
        f"{_word(population, 'POPULATION')} --epsilon E --delta D --unit {_word(unit, 'COLUMN')}{group}"
    )


def _word(text: str, placeholder: str) -> str:
    """Return ``text`` as a word of a command line, or the placeholder where it can't be printed."""
    return shlex.quote(text) if text.isprintable() else placeholder


def _list_of(unit_names: Iterable[str | None]) -> str:
    return " and ".join(sorted("an unknown unit" if unit is None else repr(unit) for unit in unit_names))
