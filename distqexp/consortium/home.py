"""A party's own folder: its keys, its log, and what it keeps of each study. Private, mode 0700; nobody else gets any of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from distqexp.errors import StorageError, UsageError
from distqexp.federation.keys import Card, Identity, require_name
from distqexp.federation.log import Log
from distqexp.privacy.ledger.files import default_path
from distqexp.storage.atomic import storage_error

HOME_VARIABLE = "DISTQEXP_HOME"
"""The environment variable with a party's own folder."""

Ask = Callable[[], str | None]
"""Asks a person for a passphrase; None where there is nobody to ask."""


class Home:
    """The folder of one party."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take ``folder``, or what DISTQEXP_HOME names, or ``party`` beside the ledger. It need not exist yet."""
        named = os.environ.get(HOME_VARIABLE)
        default = Path(named).expanduser() if named else default_path().parent / "party"
        self.folder = (folder or default).absolute()

    @property
    def _keys(self) -> Path:
        return self.folder / "identity.json"

    @property
    def log_path(self) -> Path:
        """The file of the party's log."""
        return self.folder / "log.jsonl"

    def create(self, name: str, passphrase: str | None) -> Identity:
        """Draw a party's keys and begin its log. Raises UsageError where there is a party already, or the passphrase is empty."""
        self.require_new(name)
        if passphrase == "":
            raise UsageError("passphrase: empty; expected at least one character, or none at all")
        self._make(self.folder)
        identity = Identity.draw(name)
        identity.write(self._keys, passphrase)
        self.log(identity).append({"event": "init", "name": name, "fingerprint": identity.card.fingerprint})
        self.card_path(identity.card).write_bytes(identity.card.to_bytes() + b"\n")
        return identity

    def require_new(self, name: str) -> None:
        """Raise UsageError where a party can't have this name, or there is one already."""
        require_name(name)
        if self._keys.exists():
            whose = ", ".join(path.stem for path in sorted(self.folder.glob("*.card"))) or "a party without a card"
            raise UsageError(
                f"{self.folder}: a party's keys are there, of {whose}; expected none: {HOME_VARIABLE} names the folder of one party; "
                "for another one here, set it to another folder, in all its commands"
            )

    def identity(self, ask: Ask) -> Identity:
        """Read the party's keys. Raises UsageError where there are none, or the passphrase is wrong."""
        if not self._keys.exists():
            raise UsageError(f"{self.folder}: no keys of a party; expected some: distqexp site init NAME")
        return Identity.read(self._keys, ask)

    def card(self) -> Card:
        """Read the party's card, which needs no passphrase. Raises UsageError where there is none."""
        cards = sorted(self.folder.glob("*.card"))
        if len(cards) != 1:
            raise UsageError(f"{self.folder}: {len(cards)} cards; expected the party's own: distqexp site init NAME")
        return Card.read(cards[0])

    def card_path(self, card: Card) -> Path:
        """Return the file of the party's card."""
        return self.folder / f"{card.name}.card"

    def log(self, identity: Identity) -> Log:
        """Return the party's log."""
        return Log(self.log_path, identity)

    def studies(self) -> list[Path]:
        """Return the folders of the studies that the party takes part in."""
        return sorted(path for path in (self.folder / "studies").glob("*") if path.is_dir())

    def study_folder(self, study_id: str) -> Path:
        """Return the folder of a study; it need not exist."""
        return self.folder / "studies" / study_id[:32]

    def make_study_folder(self, study_id: str) -> Path:
        """Make the folder of a study, with one for what was sent. Raises StorageError."""
        folder = self.study_folder(study_id)
        for path in (folder.parent, folder, folder / "sent"):
            self._make(path)
        return folder

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=folder == self.folder, exist_ok=True)
        except FileExistsError:
            raise UsageError(f"{folder}: it is a file; expected a folder: move it away") from None
        except OSError as error:
            raise storage_error(folder, error) from error
        if folder.stat().st_mode & 0o077:
            raise StorageError(f"{folder}: mode {folder.stat().st_mode & 0o777:03o}; expected 700: chmod 700 {folder}")
