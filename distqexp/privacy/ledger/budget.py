"""Whether charges fit what a population has left."""

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
    """Raise BudgetError when ``charges`` more don't fit the cap of a population; ``cap`` where the ledger has none.

    remark: what a refusal says besides.
    """
    set_cap = books.caps.get(population)
    limit = set_cap or cap
    rows = books.charged(universe, population)
    if not charges:
        return
    together = [*(row.charge for row in rows), *charges]
    require_one_unit(population, {charge.unit for charge in together}, books.units(population))
    guarantee = expenses(together, books.units(population)).guarantee()
    before = expenses([row.charge for row in rows], books.units(population)).guarantee() if rows else None
    require_sound(guarantee, limit.delta, before, limit.epsilon)
    if limit.delta == 0:
        over = guarantee.pure > limit.epsilon
        figures = f"pure epsilon {guarantee.pure!r}, the cap is {limit.epsilon:g} at delta 0, for pure releases only"
    else:
        delta = guarantee.delta(limit.epsilon)
        over = delta > limit.delta
        figures = f"delta {delta:.3g} at epsilon {limit.epsilon:g}, the cap is {limit.delta:g}"
    if over:
        source = "set in the ledger" if set_cap else "the config's own budget, as none is set in the ledger"
        raise BudgetError(
            f"population {population!r}: budget spent: {len(rows)} releases on record and {len(charges)} more make "
            f"{figures} ({source}); {remark}a higher cap is for whoever answers for the data: distqexp ledger cap"
        )
