"""Voids: a round that was sketched and never released costs nothing, once nobody can release it any more.

The coordinator's ledger writes down that the release will never be drawn, and refuses it for ever; a site's ledger gives its
charge back, once. What was drawn can't be voided: whoever saw the draw knows. A site that meets a release of a round that it took
back for void writes the charge down again. All quantities are public.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.ledger.books import Books, LedgerRow

CURATOR = "release"
"""The role of whoever draws."""


class Key(NamedTuple):
    """The parts of a charge's key: "ROLE/PLAN/ROUND/STATE"."""

    role: str
    plan: str
    round: int
    state: str

    @staticmethod
    def of(key: str) -> Key | None:
        """None for keys of another form, which no plan's rounds have."""
        role, *rest = key.split("/")
        if len(rest) != 3 or not (rest[1].isascii() and rest[1].isdigit()):
            return None
        return Key(role, rest[0], int(rest[1]), rest[2])


def release_of(key: str) -> str:
    """The release that a charge's key is about, "PLAN/ROUND/STATE": the same for every role."""
    return key.partition("/")[2]


def require_open(books: Books, path: Path, key: str) -> None:
    """Refuse the curator's charge for a release that was voided. Raises FileContentError."""
    voided = books.voided.get(release_of(key))
    if voided is not None and key.partition("/")[0] == CURATOR:
        raise FileContentError(
            f"{path}: entry {voided.number} voided this round: it is never released, and the sites have their charge back; "
            "expected a round that is not void: make a new plan"
        )


def require_not_voided(row: LedgerRow) -> None:
    """Refuse to draw or to commit under a charge that was given back. Raises FileContentError."""
    if row.state == "voided":
        raise FileContentError(
            f"ledger entry {row.id}: voided, its charge was given back; expected one that stands: sketch again, or make a new plan"
        )


def to_void(books: Books, path: Path, release: str, drawn: Callable[[int], bool]) -> list[int]:
    """The curator's charges of a release that was never drawn. Raises UsageError when it, or its round at any state, was.

    drawn: whether a reservation has a stored draw, which a kill may have left without its entry. Rows of every universe
    count: sums that were released with seeded noise are out as well.
    """
    wanted = _required(release)
    before = {(CURATOR, wanted.round - 1, "committed")}
    drawn_here = [(row, key) for row, key in _rounds(books, wanted.plan) if row.id not in books.reinstated]
    if wanted.round and not before & {(key.role, key.round, row.state) for row, key in drawn_here}:
        raise UsageError(
            f"{path}: no release of round {wanted.round - 1} of plan {wanted.plan[:16]}, which round {wanted.round} builds on; "
            "expected the ledger that the plan's releases are charged to"
        )
    for row, key in _rounds(books, wanted.plan):
        if key.round > wanted.round:
            raise UsageError(
                f"{path}: entry {row.id} is of round {key.round}, which builds on a release of round {wanted.round}; "
                f"expected a round that was never released: it can't be voided"
            )
        if (key.role, key.round) != (CURATOR, wanted.round):
            continue
        if row.state in ("drawn", "committed") or drawn(row.id):
            raise UsageError(
                f"{path}: entry {row.id} has a draw for round {wanted.round} of this plan; expected none: after a draw nothing can "
                "be voided"
            )
    return [row.id for row, key in _standing(books, release) if key.role == CURATOR]


def to_give_back(books: Books, path: Path, release: str, population: str, roles: Collection[str]) -> list[LedgerRow]:
    """The charges of these roles for a void release. Raises FileContentError when the void does not fit the ledger."""
    wanted = _required(release)
    if (earlier := books.given_back.get(release)) is not None:
        raise FileContentError(
            f"{path}: entry {earlier} gave the charge for this void back already; expected a void that is new here: it counts once"
        )
    rows = [row for row, key in _standing(books, release) if key.role in roles]
    if not rows:
        rounds = sorted({key.round for _, key in _rounds(books, wanted.plan)})
        raise FileContentError(
            f"{path}: no charge of {' or '.join(sorted(roles))} for round {wanted.round} of plan {wanted.plan[:16]} at state "
            f"{wanted.state[:16]} (of this plan it has rounds {rounds}); expected the void of a round that this site sketched"
        )
    for row in rows:
        # A site may keep the budget under a name of its own; the row then says what the plan calls it.
        named = books.entries[row.id - 1].body.get("plan_population", row.population)
        if named != population:
            raise FileContentError(
                f"{path}: entry {row.id} is of population {named!r}, the void of {population!r}; expected the same"
            )
    for row, key in _rounds(books, wanted.plan):
        later, drawn = key.round > wanted.round, row.state in ("drawn", "committed")
        later = later or (row.id in books.reinstated and key.round == wanted.round)
        if later or (drawn and (key.role, key.round) == (CURATOR, wanted.round)):
            raise FileContentError(
                f"{path}: by entry {row.id} (round {key.round}) round {wanted.round} was released; expected one that never was: "
                "its charge stands, ask the coordinator what the void is about"
            )
    return rows


def to_reinstate(books: Books, plan: str, round: int) -> list[LedgerRow]:
    """The charges for ``round`` of a plan, or an earlier one, that were given back, at whatever state.

    With a release of ``round`` at hand none of these voids was true.
    """
    return [row for row, key in _rounds(books, plan) if row.state == "voided" and key.round <= round]


def _rounds(books: Books, plan: str) -> list[tuple[LedgerRow, Key]]:
    """Every charge for a round of a plan, voided ones too."""
    found = [(row, Key.of(row.key)) for row in books.rows.values()]
    return [(row, key) for row, key in found if key is not None and key.plan == plan]


def _standing(books: Books, release: str) -> list[tuple[LedgerRow, Key]]:
    """The charges of one release that were not given back."""
    return [
        (row, key)
        for row, key in _rounds(books, _required(release).plan)
        if release_of(row.key) == release and row.state != "voided"
    ]


def _required(release: str) -> Key:
    key = Key.of(f"{CURATOR}/{release}")
    if key is None:
        raise ValueError(f"release {release!r}; expected PLAN/ROUND/STATE")
    return key
