"""What a party did in one study, by its signed log: the messages that it took and sent, and what it refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from distqexp.errors import BudgetError, DistqexpError, FileContentError
from distqexp.federation.header import HELPER, KINDS, Header
from distqexp.federation.log import Log, OpenLog
from distqexp.federation.messages import Message, SignedFaultError
from distqexp.federation.receiving import Origin, Taken
from distqexp.privacy.ledger.head import Anchor

_FIELDS = ("kind", "sender", "recipient", "round", "attempt")
_FOLDERS = re.compile(r"(?<![\w.~-])/(?=\S)(?:\S*/)?")
"""The folders of an absolute path."""


class OwnWordsError(FileContentError):
    """A refusal that names to the party itself, on its terminal, what its log doesn't: a log may be shown to others."""

    def __init__(self, text: str, for_log: str) -> None:
        super().__init__(text)
        self.for_log = for_log


class Journal:
    """The lines of one study in a party's log."""

    def __init__(self, log: Log, study_id: str) -> None:
        self._log = log
        self._study_id = study_id

    @contextmanager
    def open(self) -> Iterator[OpenJournal]:
        """Read and lock the log until the block ends."""
        with self._log.locked() as log:
            yield OpenJournal(log, self._study_id)

    @contextmanager
    def refusals(self, *, of_records: bool = False) -> Iterator[None]:
        """Write into the log what the block refuses by exit code 3 or 4, in words that anybody may read, see ``refusal``."""
        try:
            yield
        except DistqexpError as error:
            if error.exit_code in (3, 4) and not getattr(error, "logged", False):
                self._log.append({**refusal(error, of_records=of_records), "study": self._study_id})
            raise


def refusal(error: DistqexpError, *, of_records: bool = False) -> dict[str, Any]:
    """Return the event of a refusal, of public facts alone: a log may be shown to others, a terminal is its party's own.

    Errors of messages are public but for this machine's folders. Errors of a site's records may name its files and columns, those of
    its budget what other studies spent: nothing of them is in the event but the code.
    """
    if isinstance(error, OwnWordsError):
        reason = error.for_log
    elif error.exit_code == BudgetError.exit_code:
        reason = "the budget here does not allow it"
    else:
        reason = "the records here were refused" if of_records else _without_folders(str(error))
    return {"event": "refused", "reason": reason, "code": error.exit_code}


def _without_folders(text: str) -> str:
    """Return an error's text with file names in place of paths: of the one that it begins with, and of absolute ones."""
    first, separator, rest = text.partition(": ")
    return first.rpartition("/")[2] + separator + _FOLDERS.sub("", rest)


class OpenJournal:
    """A journal that is read and locked."""

    def __init__(self, log: OpenLog, study_id: str) -> None:
        self._log = log
        self._study_id = study_id
        self._taken = Taken()
        self._taken_identities: set[str] = set()
        self.refused: set[str] = set()
        for event in self._events():
            if event["event"] == "took":
                self._taken.recall(_origin(event), event["message"], Anchor.parse(event["ledger"]))
                self._taken_identities.add(event["message"])
            if event["event"] == "refused" and "message" in event:
                self.refused.add(event["message"])

    def take(self, path: Path, message: Message | tuple[Header, str]) -> bool:
        """Take a message whose signature and content were checked; False where the same one was taken before.

        What is refused is noted, so that the next visit leaves that message out. Raises FileContentError, see ``Taken.take``.
        """
        header, identity = message[0], message[1]
        try:
            fresh = self._taken.take(path, header, identity)
        except FileContentError as error:
            self.refuse(identity, error)
        if fresh:
            self._note("took", header, identity, ledger=str(header.ledger))
            self._taken_identities.add(identity)
        return fresh

    def took(self, identity: str) -> bool:
        """Whether a message was taken before."""
        return identity in self._taken_identities

    def refuse(self, identity: str, error: FileContentError) -> NoReturn:
        """Note that a genuine message is refused, and raise the error."""
        self._append({**refusal(error), "message": identity})
        self.refused.add(identity)
        error.logged = True  # type: ignore[attr-defined]
        raise error

    @contextmanager
    def faults_of(self, identity: str, kind: type[FileContentError] = SignedFaultError) -> Iterator[None]:
        """Refuse a message for good where the block finds its sender at fault, see ``refuse``."""
        try:
            yield
        except kind as error:
            self.refuse(identity, error)

    def note_sent(self, header: Header, identity: str) -> None:
        """Note a message that the party sends, and what it tells of the ledger. Helpers tell of this log instead."""
        told = {} if KINDS[header.kind].sender == HELPER else {"ledger": str(header.ledger)}
        self._note("sent", header, identity, **told)

    @property
    def last_told(self) -> Anchor | None:
        """What the party's last message, of whatever study, told of its ledger; None where no line of the log says so."""
        events = (entry.event for entry in reversed(self._log.entries))
        told = (event["ledger"] for event in events if event.get("event") == "sent" and "ledger" in event)
        return next(map(Anchor.parse, told), None)

    def sent(self, kind: str, round: int, attempt: int | None = None) -> list[str]:
        """Return the identities of the messages of a kind that the party sent in a round, or in one attempt of it."""
        events = [event for event in self._events() if event["event"] == "sent"]
        return [
            event["message"]
            for event in events
            if (event["kind"], event["round"]) == (kind, round) and attempt in (None, event["attempt"])
        ]

    def note(self, event: Mapping[str, Any]) -> None:
        """Note another event of the study, of public fields."""
        self._append(event)

    def _note(self, event: str, header: Header, identity: str, **more: Any) -> None:
        fields = {name: getattr(header, name) for name in _FIELDS}
        self._append({"event": event, **fields, "message": identity, **more})

    def _append(self, event: Mapping[str, Any]) -> None:
        self._log.append({**event, "study": self._study_id})

    def _events(self) -> list[Mapping[str, Any]]:
        return [entry.event for entry in self._log.entries if entry.event.get("study") == self._study_id]


def _origin(event: Mapping[str, Any]) -> Origin:
    return Origin(*(event[name] for name in _FIELDS))
