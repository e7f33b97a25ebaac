"""Voids: a round that was sketched and never released costs nothing, once nobody can release it any more.

The coordinator's ledger records that the release will never be drawn, and refuses it for ever; a site's ledger gives its
charge back, once. After a draw nothing can be voided, since somebody may have seen the draw, and a charge for which a site drew its
share of the noise stands. A site that meets a release of a round whose charge it took back records the charge again. All quantities
are public.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger.books import Books, LedgerRow

CURATOR = "release"
"""The role of the party that draws the release."""


class Key(NamedTuple):
    """The parts of a charge's key: "ROLE/PLAN/ROUND/STATE"."""

    role: str
    plan: str
    round: int
    state: str

    @staticmethod
    def of(key: str) -> Key | None:
        """Parse a key; the result is None for keys of another form, which no plan's rounds have."""
        role, *rest = key.split("/")
        if len(rest) != 3 or not (rest[1].isascii() and rest[1].isdigit()):
            return None
        return Key(role, rest[0], int(rest[1]), rest[2])


def require_open(books: Books, path: Path, key: str) -> None:
    """Refuse the curator's charge for a release that was voided. Raises FileContentError."""
    void = books.voids.get(_release_of(key))
    if void is not None and key.partition("/")[0] == CURATOR:
        raise FileContentError(
            f"{path}: entry {void.number} voided this round: it is never released, and the sites have their charge back; "
            "expected a round that is not void: make a new plan"
        )


def require_one_sum(path: Path, charge: Charge, earlier_rows: Collection[LedgerRow]) -> None:
    """Refuse the curator's charge for a second sum of the same shares of noise. Raises FileContentError.

    Sums over some sites and over others are not two releases with noise of their own: their difference has the shares of few sites.
    """
    if charge.key.partition("/")[0] != CURATOR or getattr(charge.event, "shares", 1) == 1:
        return
    for row in earlier_rows:
        if row.key == charge.key:
            raise FileContentError(
                f"{path}: entry {row.id} is for another sum of this round, with the same shares of noise; expected that sum again: two of "
                "them tell more than two charges pay for"
            )


def require_not_voided(row: LedgerRow) -> None:
    """Refuse to draw or to commit under a charge that was given back. Raises FileContentError."""
    if row.state == "voided":
        raise FileContentError(
            f"ledger entry {row.id}: voided, its charge was given back; expected one that stands: sketch again, or make a new plan"
        )


def to_void(books: Books, path: Path, release: str, has_draw: Callable[[int], bool]) -> list[int]:
    """Return the curator's charges for a release that was never drawn.

    Rows of every universe count: sums that were released with seeded noise are known outside as well.

    Args:
        books: The books of the curator's ledger.
        path: The path of the ledger, for messages.
        release: The release, "PLAN/ROUND/STATE".
        has_draw: Whether a reservation has a stored draw, which a kill may have left without its entry.

    Raises:
        UsageError: The release, or its round at any state, was drawn, or the ledger is not the one that the plan is charged to.
    """
    target = _release_key(release)
    plan_rows = _plan_rows(books, target.plan)
    drawn_here = {(key.role, key.round, row.state) for row, key in plan_rows if row.id not in books.reinstatements}
    if target.round and (CURATOR, target.round - 1, "committed") not in drawn_here:
        raise UsageError(
            f"{path}: no release of round {target.round - 1} of plan {target.plan[:16]}, which round {target.round} builds on; "
            "expected the ledger that the plan's releases are charged to"
        )
    for row, key in plan_rows:
        if key.round > target.round:
            raise UsageError(
                f"{path}: entry {row.id} is of round {key.round}, which builds on a release of round {target.round}; "
                f"expected a round that was never released: it can't be voided"
            )
        if (key.role, key.round) != (CURATOR, target.round):
            continue
        if row.state in ("drawn", "committed") or has_draw(row.id):
            raise UsageError(
                f"{path}: entry {row.id} has a draw for round {target.round} of this plan; expected none: after a draw nothing can "
                "be voided"
            )
    return [row.id for row, key in _standing_rows(plan_rows, release) if key.role == CURATOR]


def to_give_back(books: Books, path: Path, release: str, population: str, roles: Collection[str]) -> list[LedgerRow]:
    """Return the charges that a site gives back for a void release.

    Args:
        books: The books of the site's ledger.
        path: The path of the ledger, for messages.
        release: The release, "PLAN/ROUND/STATE".
        population: The plan's name of the population that the void is about.
        roles: The roles whose charges are given back.

    Raises:
        FileContentError: The void does not fit the ledger.
    """
    target = _release_key(release)
    plan_rows = _plan_rows(books, target.plan)
    if (earlier := books.accepted_voids.get(release)) is not None:
        raise FileContentError(
            f"{path}: entry {earlier} gave the charge for this void back already; expected a void that is new here: it counts once"
        )
    rows = [row for row, key in _standing_rows(plan_rows, release) if key.role in roles]
    if not rows:
        rounds = sorted({key.round for _, key in plan_rows})
        raise FileContentError(
            f"{path}: no charge of {' or '.join(sorted(roles))} for round {target.round} of plan {target.plan[:16]} at state "
            f"{target.state[:16]} (of this plan it has rounds {rounds}); expected the void of a round that this site sketched"
        )
    for row in rows:
        if row.state == "drawn" or row.id in books.stored_releases:
            raise FileContentError(
                f"{path}: entry {row.id} has a draw of this site's share of the noise, which others may hold; expected a charge without: "
                "after a draw nothing is given back"
            )
        # A site may keep the budget under a name of its own; the row's entry then holds the plan's name.
        plan_population = books.entries[row.id - 1].body.get("plan_population", row.population)
        if plan_population != population:
            raise FileContentError(
                f"{path}: entry {row.id} is of population {plan_population!r}, the void of {population!r}; expected the same"
            )
    for row, key in plan_rows:
        is_later = key.round > target.round
        is_reinstated = key.round == target.round and row.id in books.reinstatements
        is_drawn = (key.role, key.round) == (CURATOR, target.round) and row.state in ("drawn", "committed")
        if is_later or is_reinstated or is_drawn:
            raise FileContentError(
                f"{path}: by entry {row.id} (round {key.round}) round {target.round} was released; expected one that never was: "
                "its charge stands, ask the coordinator what the void is about"
            )
    return rows


def to_reinstate(books: Books, plan: str, round: int) -> list[LedgerRow]:
    """Return the charges for ``round`` of a plan, or an earlier round, that were given back, at any state.

    A release of ``round`` proves that none of these voids was true.
    """
    return [row for row, key in _plan_rows(books, plan) if row.state == "voided" and key.round <= round]


def _release_of(key: str) -> str:
    """Return the release that a charge's key is about, "PLAN/ROUND/STATE", which is the same for every role."""
    return key.partition("/")[2]


def _plan_rows(books: Books, plan: str) -> list[tuple[LedgerRow, Key]]:
    """Return every charge for a round of a plan, voided ones included."""
    rows = [(row, Key.of(row.key)) for row in books.rows.values()]
    return [(row, key) for row, key in rows if key is not None and key.plan == plan]


def _standing_rows(plan_rows: list[tuple[LedgerRow, Key]], release: str) -> list[tuple[LedgerRow, Key]]:
    """Return the charges for one release that were not given back."""
    return [(row, key) for row, key in plan_rows if _release_of(row.key) == release and row.state != "voided"]


def _release_key(release: str) -> Key:
    """Parse a release, "PLAN/ROUND/STATE", as a key of the curator."""
    key = Key.of(f"{CURATOR}/{release}")
    if key is None:
        raise ValueError(f"release {release!r}; expected PLAN/ROUND/STATE")
    return key
