"""What a visit asks of the party's own ledger: its newest entry, which goes into every message, and whether a round is charged."""

from __future__ import annotations

from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.head import Anchor


def newest_entry() -> Anchor:
    """Return the newest entry of the user's own ledger. Public."""
    with Ledger.open() as ledger:
        return ledger.head()


def is_charged(ledger: Ledger, role: str, plan_id: str, round: int) -> bool:
    """Whether a role ("release", "site-SHARD") stands charged for a round of a plan, at whatever state it was."""
    key = f"{role}/{plan_id}/{round}/"
    return any(row.key.startswith(key) and row.state != "voided" for row in ledger.rows())
