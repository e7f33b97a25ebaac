"""A party in a visit: its own folder, its keys, the study that it accepted, and the folder that the parties exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distqexp.consortium.exchange import Found, deliver, found_in, look, of_study, sent_messages
from distqexp.consortium.home import Ask, Home
from distqexp.consortium.journal import Journal, OpenJournal
from distqexp.consortium.pins import PLAN_FILE, Pins, read_own_study
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import LARGEST_CLOSING, Closing
from distqexp.federation.header import KINDS, Header
from distqexp.federation.keys import Identity
from distqexp.federation.messages import (
    LARGEST_FILE,
    Expected,
    Message,
    check_message,
    extract_message,
    peek,
    read_message,
)
from distqexp.federation.study import Study

VOID_TAKEN = "void-taken.h5"
"""A site's copy of the void that ended its study."""


@dataclass(frozen=True)
class Party:
    """A party of a study that it accepted.

    Attributes:
        identity: Its keys.
        study: The study, from its own copy.
        pins: What it accepted.
        own: Its own folder of the study. Private.
        folder: The folder that the parties exchange.
        journal: Its log of the study.
    """

    identity: Identity
    study: Study
    pins: Pins
    own: Path
    folder: Path
    journal: Journal

    @property
    def name(self) -> str:
        """The party's name."""
        return self.identity.name

    @property
    def plan_file(self) -> Path:
        """The party's own copy of the plan."""
        return self.own / PLAN_FILE

    @property
    def sketch_kind(self) -> str:
        """The kind of message that a site's sums come in, which the study fixes."""
        return "masked" if self.study.trust.has_masks else "sketch"

    def release_file(self, round: int) -> Path:
        """The party's own copy of a round's release."""
        return self.own / f"release-{round:03d}.h5"

    def release_files(self, rounds: int) -> tuple[Path, ...]:
        """The party's own copies of the releases of the first rounds."""
        return tuple(self.release_file(round) for round in range(rounds))

    def require_role(self, names: Sequence[str], role: str) -> None:
        """Raise UsageError unless the party is one of ``names``."""
        if self.name not in names:
            raise UsageError(f"study {self.study.name}: {self.name} is here; expected {role}: {', '.join(names[:5])}")

    def messages(self, journal: OpenJournal) -> list[Found]:
        """Return the folder's messages without those that were refused. Raises FileContentError for one that can't be the study's."""
        messages = [one for one in of_study(found_in(self.folder), self.study) if one.identity not in journal.refused]
        for path, header, identity in messages:
            if header.kind in ("study", "plan") and identity not in (self.pins.study_message, self.pins.plan_message):
                raise FileContentError(
                    f"{path}: another {header.kind} than the one accepted, message {identity[:16]}; expected the folder without it: "
                    f"ask {self.study.coordinator.name}"
                )
        return messages

    def check(self, found: Found, *, content: bool = True) -> None:
        """Check a message without opening it, see ``check_message``. Raises FileContentError."""
        checked = check_message(found.path, self._expected(found), self.study.roster, content=content)
        self._require_same(found, checked[1])

    def read(self, found: Found, largest: int) -> Message:
        """Read a message to this party and check its signature, sender, content and place in the study. Raises FileContentError."""
        message = read_message(found.path, self._expected(found), self.study.roster, largest, self.identity)
        self._require_same(found, message.identity)
        return message

    def extract(self, found: Found, out: Path, largest: int = LARGEST_FILE) -> tuple[Header, str]:
        """Write a message's content to a file, checked as by ``read``, in pieces."""
        checked = extract_message(found.path, self._expected(found), self.study.roster, out, self.identity, largest)
        self._require_same(found, checked[1])
        return checked

    def _expected(self, found: Found) -> Expected:
        header = found.header
        recipient = header.recipient if KINDS[header.kind].recipient == "helper" else None
        return self.study.expects(header.kind, recipient=recipient, round=header.round, attempt=header.attempt)

    @staticmethod
    def _require_same(found: Found, identity: str) -> None:
        if identity != found.identity:
            raise FileContentError(f"{found.path}: it changed while it was read; expected a file that nobody writes")

    def closing(self, found: Found) -> Closing:
        """Read a closing and check it, see ``read``; return its list."""
        return Closing.parse(found.path, bytes(self.read(found, LARGEST_CLOSING).content), self.study)

    def take(
        self, journal: OpenJournal, found: Found, largest: int, check: Callable[[Path, Message], object] | None = None
    ) -> Message:
        """Read, check and take a message, see ``read`` and ``OpenJournal.take``; what ``check`` refuses is not taken."""
        with journal.faults_of(found.identity):
            message = self.read(found, largest)
        if check is not None:
            with journal.faults_of(found.identity, FileContentError):
                check(found.path, message)
        journal.take(found.path, message)
        return message

    def sent_files(self, journal: OpenJournal, kinds: Sequence[str], round: int, attempt: int) -> list[Path]:
        """Return the party's copies of what it sent in an attempt of a round; a copy that is gone is left out."""
        identities = {identity for kind in kinds for identity in journal.sent(kind, round, attempt)}
        paths = sent_messages(self.own)
        return [path for path in paths if peek(path)[1] in identities]

    def send(self, journal: OpenJournal, paths: Sequence[Path]) -> list[Path]:
        """Note messages in the log, and only then copy them into the folder; return where they are. A repeat copies again."""
        for path in paths:
            header, identity = peek(path)
            if identity not in journal.sent(header.kind, header.round, header.attempt):
                journal.note_sent(header, identity)
        return self.deliver(paths)

    def deliver(self, paths: Sequence[Path]) -> list[Path]:
        """Copy messages that the log knows into the folder; return where they are. Raises FileContentError for a damaged copy."""
        for path in paths:
            found = Found(path, *peek(path))
            deliver(path, self.folder, check=partial(self.check, found))
        return [self.folder / path.name for path in paths]


def open_party(folder: Path, ask: Ask, home: Home | None = None) -> Party:
    """Return the party of this home in the study of a folder.

    Raises:
        UsageError: There are no keys here, or the study was not accepted.
        FileContentError: The folder holds another study, or the party's own copies were changed.
    """
    home = home or Home()
    identity = home.identity(ask)
    stated = sorted({found.header.study for found in look(folder)[0]})
    known = [study_id for study_id in stated if Pins.read(home.study_folder(study_id)) is not None]
    if not stated:
        raise UsageError(f"{folder}: no message in it; expected the folder of a study")
    if not known:
        raise UsageError(
            f"{folder}: study {stated[0][:16]} was not accepted by {identity.name}; accept it first: distqexp study accept {folder}"
        )
    own = home.study_folder(known[0])
    pins = Pins.read(own)
    study = read_own_study(own)
    if pins is None or (study.study_id, study.plan_id) != (pins.study, pins.plan_id):
        raise FileContentError(f"{own}: its study is not the one accepted, {known[0][:16]}; restore the folder")
    if study.roster.get(identity.name) != identity.card:
        raise FileContentError(
            f"{own}: {identity.name} is not in the study with the key that is here; restore the keys"
        )
    return Party(identity, study, pins, own, folder, Journal(home.log(identity), study.study_id))
