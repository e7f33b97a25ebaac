"""What a party accepted, for good: the study, the plan, and what only a site knows. Later messages are held against it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from distqexp.consortium.home import Home
from distqexp.consortium.journal import refusal
from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation.study import Study
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import canonical_json
from distqexp.storage.hdf5 import read_header

PLAN_FILE = "plan.h5"
STUDY_FILE = "study.toml"


@dataclass(frozen=True)
class Pins:
    """What a party accepted of a study. Kept in its own folder.

    Attributes:
        study: The identity of the study.
        study_message: The identity of its signed message.
        plan_id: The plan.
        plan_message: The identity of the plan's signed message.
        population: At a site, its own name of the plan's population; None where the party is no site.
        elsewhere: At a site, whether its patients may be at other sites too.
    """

    study: str
    study_message: str
    plan_id: str
    plan_message: str
    population: str | None = None
    elsewhere: bool = False

    def write(self, folder: Path) -> None:
        """Write the pins into the party's folder of the study."""
        write_atomic(folder / "accepted.json", canonical_json(asdict(self)) + b"\n", private=True)

    @staticmethod
    def read(folder: Path) -> Pins | None:
        """Read the pins; None where nothing was accepted. Raises FileContentError."""
        path = folder / "accepted.json"
        if not path.exists():
            return None
        try:
            return Pins(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            raise FileContentError(f"{path}: damaged; expected what distqexp study accept wrote: restore it") from None


def read_own_study(folder: Path) -> Study:
    """Read the study in a party's own folder of it. Raises FileContentError."""
    path = folder / STUDY_FILE
    try:
        return Study.parse(path, path.read_bytes())
    except FileNotFoundError:
        raise FileContentError(f"{path}: missing; expected the study that was accepted: restore the home") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error


def accepted(home: Home) -> list[Pins]:
    """Return what the party of a home accepted, of all its studies. Raises FileContentError."""
    return [pins for pins in map(Pins.read, home.studies()) if pins is not None]


_IN_THE_STUDY = {
    "plan": "which fixes how sums leave this site; expected it in the study alone",
    "void": "which anybody may have made; expected the one that its coordinator signed",
}
"""Why a file by hand is refused, by its kind, and what is expected in its place."""


def refuse_pinned(file: Path, home: Home | None = None, *, kind: str = "plan") -> None:
    """Raise FileContentError for a plan, or a void, of a study that the party accepted: outside it nothing is signed or masked."""
    home = home or Home()
    everything = accepted(home)
    if not everything or not file.exists():  # whoever reads the file says that there is none
        return
    plan_id = read_header(file, kind=kind).plan_id
    for pins in everything:
        if pins.plan_id == plan_id:
            error = FileContentError(
                f"{file}: the {kind} of a study that was accepted here, {_IN_THE_STUDY[kind]}: distqexp study sketch FOLDER"
            )
            _note(home, pins, error)
            raise error


def _note(home: Home, pins: Pins, error: FileContentError) -> None:
    """Write the refusal into the party's log, where its keys can be read without a passphrase: nobody is asked for one by a refusal."""
    with suppress(UsageError, StorageError):
        log = home.log(home.identity(lambda: None))
        log.append({**refusal(error), "study": pins.study})
