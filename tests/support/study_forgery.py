"""Messages of a study, replaced by others that say nearly the same."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

from studies import StudyFolders

from distqexp.federation.header import Envelope
from distqexp.federation.keys import Identity
from distqexp.federation.messages import MAGIC, SUFFIX, file_name, identity_of, peek, write_message
from distqexp.federation.sealing import opened
from distqexp.federation.study import Study


def message(study: StudyFolders, pattern: str) -> Path:
    """The one message of a pattern."""
    (path,) = study.exchange.glob(f"{pattern}*{SUFFIX}")
    return path


def content_of(folders: StudyFolders, path: Path) -> bytes:
    """What is in a message, opened with its recipient's keys."""
    header = peek(path)[0]
    stored = path.read_bytes()[-header.length :]
    if header.recipient is None:
        return stored
    return b"".join(opened(path, [stored], folders.identity(header.recipient), header, header.sender))


def replaced(folders: StudyFolders, path: Path, identity: Identity, content: bytes, **changes: object) -> Path:
    """In the place of a message, one that says the same but what is changed, sealed and signed by ``identity``."""
    header = peek(path)[0]
    fields = {name: getattr(header, name) for name in Envelope.__dataclass_fields__}
    path.unlink()
    envelope = Envelope(**{**fields, **changes})  # type: ignore[arg-type]
    to = None if envelope.recipient is None else folders.identity(envelope.recipient).card
    return write_message(folders.exchange, identity, envelope, content, to)[0]


def stolen(folders: StudyFolders, path: Path, thief: Identity, **changes: Any) -> Path:
    """A message as it stands, sealed content and all, signed by another party in its own name."""
    header = dataclasses.replace(peek(path)[0], sender=thief.name, **changes)
    text, content = header.to_bytes(), path.read_bytes()[-header.length :]
    target = folders.exchange / file_name(header, identity_of(text))
    target.write_bytes(
        MAGIC + struct.pack(">I", len(text)) + text + thief.sign(b"distqexp signed message 1\n" + text) + content
    )
    return target


def the_study(study: StudyFolders) -> Study:
    return Study.parse(study.root / "study.toml", (study.root / "study.toml").read_bytes())
