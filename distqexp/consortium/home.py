"""A party's own folder: its keys, its log, and what it keeps of each study. Private, mode 0700; nobody else gets any of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation.keys import Card, Identity, read_name, require_name
from distqexp.federation.log import Log
from distqexp.privacy.ledger.files import default_path
from distqexp.storage.atomic import storage_error, write_atomic

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
        self._complete(identity)
        return identity

    def require_new(self, name: str) -> None:
        """Raise UsageError where a party can't have this name, or there is one already."""
        require_name(name)
        if self._keys.exists():
            raise UsageError(
                f"{self.folder}: a party's keys are there, of {read_name(self._keys)}; expected none: distqexp site card shows whose; for "
                f"another party set {HOME_VARIABLE}, the folder of one party, to another folder in all its commands"
            )

    def identity(self, ask: Ask) -> Identity:
        """Read the party's keys; what a killed ``create`` left out is made of them.

        Raises UsageError where there are none, or the passphrase is wrong, StorageError where others may look into the folder.
        """
        self.name()
        self._refuse_open(self.folder)
        identity = Identity.read(self._keys, ask)
        self._complete(identity)
        return identity

    def name(self) -> str:
        """Read the party's name, which needs no passphrase. Raises UsageError where there are no keys, FileContentError."""
        if not self._keys.exists():
            raise UsageError(f"{self.folder}: no keys of a party; expected some: distqexp site init NAME")
        return read_name(self._keys)

    def card(self, ask: Ask = lambda: None) -> Card:
        """Read the party's card, which needs no passphrase where it is there; else it is made of the keys, see ``identity``."""
        path = self.card_path(self.name())
        return Card.read(path) if path.exists() else self.identity(ask).card

    def card_path(self, name: str) -> Path:
        """Return the file of the party's card."""
        return self.folder / f"{name}.card"

    def _complete(self, identity: Identity) -> None:
        """Write the log's first line and the card where they are missing. A log that is lost later stays lost."""
        begun = self.studies() or (self.log_path.exists() and self.log_path.stat().st_size)
        if not begun:
            Log(self.log_path, identity).append(
                {"event": "init", "name": identity.name, "fingerprint": identity.card.fingerprint}
            )
        if not self.card_path(identity.name).exists():
            write_atomic(self.card_path(identity.name), identity.card.to_bytes() + b"\n")

    def log(self, identity: Identity) -> Log:
        """Return the party's log, which begins with the keys. Raises FileContentError where it is missing."""
        if not self.log_path.exists() or not self.log_path.stat().st_size:
            raise FileContentError(
                f"{self.log_path}: missing, yet {identity.name} has keys; expected the log that began with them, which tells what was "
                "sent and answered: restore it"
            )
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
        self._refuse_open(folder)

    @staticmethod
    def _refuse_open(folder: Path) -> None:
        if folder.stat().st_mode & 0o077:
            raise StorageError(f"{folder}: mode {folder.stat().st_mode & 0o777:03o}; expected 700: chmod 700 {folder}")
