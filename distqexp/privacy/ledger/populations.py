"""The names under which a site keeps the budgets of plans' populations. All names are public.

Budgets are kept under the site's own names. A population's name in a plan that the site has never seen must not silently open
a new budget: it may be the same patients under another name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import NamedTuple

from distqexp.errors import UsageError
from distqexp.privacy.ledger.books import PRIVATE, Books

SHOWN = 12
"""At most this many known names are listed in a refusal."""


class PlanPopulation(NamedTuple):
    """The population of a plan that came to a site.

    Attributes:
        name: Its name in the plan.
        given_name: The site's own name of it, where somebody gave one.
    """

    name: str
    given_name: str | None = None


def local_name(books: Books, universe: str, plan_population: PlanPopulation) -> str:
    """Return the name under which a site keeps the budget of a plan's population.

    Test runs (universes other than the private one) are never refused for a name that is new.

    Args:
        books: The books of the site's ledger.
        universe: "private", or the name of a test run.
        plan_population: The population, with the local name that somebody gave, if any.

    Raises:
        UsageError: A person has to give the name, or gave another one than before, or one that could be confused.
    """
    name, given_name = plan_population
    earlier_name = books.local_names.get((universe, name)) or books.local_names.get((PRIVATE, name))
    if earlier_name is not None:
        if given_name not in (None, earlier_name):
            raise UsageError(
                f"--population: found {given_name!r}; this ledger has taken population {name!r} of a plan for {earlier_name!r}: "
                "leave it out"
            )
        return earlier_name
    populations = books.populations()
    if given_name is None and (name in populations or not populations or universe != PRIVATE):
        return name
    if given_name is None:
        names = ", ".join(map(repr, sorted(populations)[:SHOWN])) + (", ..." if len(populations) > SHOWN else "")
        raise UsageError(
            f"population {name!r} of the plan: this ledger doesn't know it, but {names}: for the same patients give the name that "
            "their budget is kept under, --population NAME; for other patients a new name, which may be the plan's"
        )
    if not (given_name.strip() and given_name.isprintable()):
        raise UsageError(f"--population: found {given_name!r}; expected a name")
    if universe == PRIVATE:
        require_spelling("--population", given_name, populations)
    other_population = books.local_names.get((PRIVATE, given_name))
    if other_population is not None and given_name not in populations:
        raise UsageError(
            f"--population: found {given_name!r}, which is what another plan calls {other_population!r} here; give that, or a new name"
        )
    return given_name


def require_spelling(where: str, name: str, populations: Collection[str]) -> None:
    """Raise UsageError for a new name that people would confuse with a known one, or that is written in an unusual form.

    Args:
        where: What the message begins with.
        name: The name.
        populations: The names that are known.
    """
    if name in populations:
        return
    similar_names = sorted(other for other in populations if _fold(other) == _fold(name))
    if similar_names:
        raise UsageError(
            f"{where}: found {name!r}, which differs from {similar_names[0]!r}, known here, in case, blanks or Unicode form alone: "
            "give that, or for other patients a name that people can tell apart"
        )
    normal_name = unicodedata.normalize("NFC", name).strip()
    if name != normal_name:
        raise UsageError(f"{where}: found {name!r}; expected {normal_name!r}: no blanks around it, Unicode form NFC")


def _fold(name: str) -> str:
    """Return a form that is equal for names which people would confuse."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())
