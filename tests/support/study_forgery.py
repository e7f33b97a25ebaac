"""Messages of a study, replaced by others that say nearly the same."""

from __future__ import annotations

from pathlib import Path

from studies import StudyFolders

from distqexp.federation.header import Envelope
from distqexp.federation.keys import Identity
from distqexp.federation.messages import SUFFIX, peek, write_message
from distqexp.federation.study import Study


def message(study: StudyFolders, pattern: str) -> Path:
    """The one message of a pattern."""
    (path,) = study.exchange.glob(f"{pattern}*{SUFFIX}")
    return path


def content_of(path: Path) -> bytes:
    return path.read_bytes()[-peek(path)[0].length :]


def replaced(folders: StudyFolders, path: Path, identity: Identity, content: bytes, **changes: object) -> Path:
    """In the place of a message, one that says the same but what is changed, signed by ``identity``."""
    header = peek(path)[0]
    fields = {name: getattr(header, name) for name in Envelope.__dataclass_fields__}
    path.unlink()
    return write_message(folders.exchange, identity, Envelope(**{**fields, **changes}), content)[0]  # type: ignore[arg-type]


def the_study(study: StudyFolders) -> Study:
    return Study.parse(study.root / "study.toml", (study.root / "study.toml").read_bytes())
