"""What a visit asks of the party's own ledger: its newest entry, as messages tell of it, and whether a round is charged."""

from __future__ import annotations

from distqexp.consortium.journal import OpenJournal
from distqexp.errors import FileContentError
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.head import Anchor


def newest_entry() -> Anchor:
    """Return what a message tells of the newest entry of the user's own ledger. Public, see ``Ledger.told_head``."""
    with Ledger.open() as ledger:
        return ledger.told_head()


def require_told(journal: OpenJournal) -> None:
    """Raise FileContentError where the user's own ledger lacks what the party's last message told of it: it was put back.

    Others see that only for as long as it is behind. Charges that it forgot would be spent once more.
    """
    told = journal.last_told
    if told is not None and told.number:
        with Ledger.open() as ledger:
            ledger.require_told(told)


def is_charged(ledger: Ledger, role: str, plan_id: str, round: int) -> bool:
    """Whether a role ("release", "site-SHARD") stands charged for a round of a plan, at whatever state it was."""
    key = f"{role}/{plan_id}/{round}/"
    return any(row.key.startswith(key) and row.state != "voided" for row in ledger.rows())


def require_charged(study_name: str, role: str, plan_id: str, round: int) -> None:
    """Raise FileContentError unless the user's own ledger stands charged for a role in a round, see ``is_charged``."""
    with Ledger.open() as ledger:
        if not is_charged(ledger, role, plan_id, round):
            raise FileContentError(
                f"{ledger.path}: study {study_name}: round {round} has no standing charge; expected one before anything is sent: the "
                "ledger was put back, or the charge was given back: restore the newest ledger together with its folder"
            )
