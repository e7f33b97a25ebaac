"""The check whether charges fit the budget that a population has left."""

from __future__ import annotations

from collections.abc import Sequence

from distqexp.errors import BudgetError
from distqexp.privacy.expenses import Charge, expenses
from distqexp.privacy.ledger.books import Books, Cap
from distqexp.privacy.soundness import require_sound
from distqexp.privacy.units import require_one_unit


def require_room(
    books: Books, universe: str, population: str, charges: Sequence[Charge], cap: Cap, remark: str = ""
) -> None:
    """Check that new charges fit the cap of a population.

    Args:
        books: The ledger's books.
        universe: "private", or the name of a test run.
        population: The name that the budget is kept under.
        charges: The new charges.
        cap: The cap where the ledger has none for the population.
        remark: A remark that a refusal includes.

    Raises:
        BudgetError: The charges don't fit, or can't be counted together with those on record.
    """
    if not charges:
        return
    set_cap = books.caps.get(population)
    limit = set_cap or cap
    rows = books.charges(universe, population)
    earlier_charges = [row.charge for row in rows]
    all_charges = [*earlier_charges, *charges]
    declaration = books.declaration(population)
    require_one_unit(population, {charge.unit for charge in all_charges}, declaration)
    guarantee = expenses(all_charges, declaration).guarantee()
    before = expenses(earlier_charges, declaration).guarantee() if rows else None
    require_sound(guarantee, limit.delta, before, limit.epsilon)
    if limit.delta == 0:
        exceeds_cap = guarantee.pure > limit.epsilon
        figures = f"pure epsilon {guarantee.pure!r}, the cap is {limit.epsilon:g} at delta 0, for pure releases only"
    else:
        delta = guarantee.delta(limit.epsilon)
        exceeds_cap = delta > limit.delta
        figures = f"delta {delta:.3g} at epsilon {limit.epsilon:g}, the cap is {limit.delta:g}"
    if exceeds_cap:
        source = "set in the ledger" if set_cap else "the config's own budget or --cap, as none is set in the ledger"
        raise BudgetError(
            f"population {population!r}: budget spent: {len(rows)} releases on record and {len(charges)} more make "
            f"{figures} ({source}); {remark}a higher cap is for whoever answers for the data: distqexp ledger cap"
        )
