"""What a site calls the population of a plan that came from elsewhere. All names are public.

Budgets are kept under the site's own names. A plan's name that the site has never seen must not open a new budget in
silence: it may be the same patients under another name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import NamedTuple

from distqexp.errors import UsageError
from distqexp.privacy.ledger.books import PRIVATE, Books

SHOWN = 12
"""So many known names are listed in a refusal."""


class Accepted(NamedTuple):
    """A plan's population as a site takes it. plan: its name there. asked: the local name that somebody gave, if any."""

    plan: str
    asked: str | None = None


def local_name(books: Books, universe: str, accepted: Accepted) -> str:
    """The local name of a plan's population. Raises UsageError where a person has to say it, or says another than before.

    Test runs (other universes than the private one) are never refused for a name that is new.
    """
    plan, asked = accepted
    before = books.accepted.get((universe, plan)) or books.accepted.get((PRIVATE, plan))
    if before is not None:
        if asked not in (None, before):
            raise UsageError(
                f"--population: found {asked!r}; this ledger has taken population {plan!r} of a plan for {before!r}: leave it out"
            )
        return before
    known = books.known()
    if asked is None and (plan in known or not known or universe != PRIVATE):
        return plan
    if asked is None:
        names = ", ".join(map(repr, sorted(known)[:SHOWN])) + (", ..." if len(known) > SHOWN else "")
        raise UsageError(
            f"population {plan!r} of the plan: this ledger doesn't know it, but {names}: for the same patients give the name that "
            "their budget is kept under, --population NAME; for other patients a new name, which may be the plan's"
        )
    if not (asked.strip() and asked.isprintable()):
        raise UsageError(f"--population: found {asked!r}; expected a name")
    if universe == PRIVATE:
        require_spelling("--population", asked, known)
    elsewhere = books.accepted.get((PRIVATE, asked))
    if elsewhere is not None and asked not in known:
        raise UsageError(
            f"--population: found {asked!r}, which is what another plan calls {elsewhere!r} here; give that, or a new name"
        )
    return asked


def require_spelling(where: str, name: str, known: Collection[str]) -> None:
    """Refuse (UsageError) a new name that people would take for a known one, or that is written in an unusual form."""
    if name in known:
        return
    alike = sorted(other for other in known if _folded(other) == _folded(name))
    if alike:
        raise UsageError(
            f"{where}: found {name!r}, which differs from {alike[0]!r}, known here, in case, blanks or Unicode form alone: give that, or "
            "for other patients a name that people can tell apart"
        )
    if name != normal(name):
        raise UsageError(f"{where}: found {name!r}; expected {normal(name)!r}: no blanks around it, Unicode form NFC")


def normal(name: str) -> str:
    """A population's name as it is to be written."""
    return unicodedata.normalize("NFC", name).strip()


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())
