"""What a party remembers of the messages that it took: one of a kind from each sender, and how far each sender's ledger was."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from distqexp.errors import FileContentError
from distqexp.federation.header import KINDS, Header
from distqexp.privacy.ledger.head import Anchor


class Origin(NamedTuple):
    """What a message is, of which each sender sends one."""

    kind: str
    sender: str
    recipient: str | None
    round: int
    attempt: int

    @staticmethod
    def of(header: Header) -> Origin:
        """Return the origin that a header states."""
        return Origin(header.kind, header.sender, header.recipient, header.round, header.attempt)

    @property
    def role(self) -> tuple[str, str]:
        """The sender in its role: a site that is a helper has a log of its own for that."""
        return self.sender, KINDS[self.kind].sender


class Taken:
    """The messages that were taken in one study, in memory; whoever keeps a log fills it from there."""

    def __init__(self) -> None:
        self._identities: dict[Origin, str] = {}
        self._anchors: dict[tuple[str, str], Anchor] = {}

    def recall(self, origin: Origin, identity: str, ledger: Anchor) -> None:
        """Remember a message that was taken earlier; calls come in the order in which messages were taken."""
        self._identities[origin] = identity
        self._anchors[origin.role] = ledger

    def take(self, path: Path, header: Header, identity: str) -> bool:
        """Take a checked message; False where the same one was taken before.

        Raises FileContentError where its sender sent another one of the kind for the attempt, or a ledger that was put back.
        """
        origin = Origin.of(header)
        earlier = self._identities.get(origin)
        if earlier == identity:
            return False
        if earlier is not None:
            raise FileContentError(
                f"{path}: message {identity[:16]} is a second {header.kind} of {header.sender} for round {header.round}, attempt "
                f"{header.attempt}; expected the one that was taken, {earlier[:16]}: ask {header.sender}"
            )
        refuse_rollback(path, header.sender, self._anchors.get(origin.role), header.ledger)
        self.recall(origin, identity, header.ledger)
        return True


def refuse_rollback(path: Path, sender: str, known: Anchor | None, found: Anchor) -> None:
    """Raise FileContentError where a sender's ledger is behind what it said before, or has another entry at the same number.

    Messages may come late, so whoever calls this does so in the order in which they were sent.
    """
    if known is None or found.number > known.number or found == known:
        return
    raise FileContentError(
        f"{path}: the ledger of {sender} is at entry {found.number} with hash {found.hash[:16]}, earlier it was at entry "
        f"{known.number} with hash {known.hash[:16]}: it was put back to an older time; {sender} has to restore it"
    )
