"""The folder that the parties exchange: signed messages in files, copied by whatever way they trust, in any order, again and again.

A file's name says what it is and ends with its identity, so copies of one message meet, and nothing is ever written over.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO, NamedTuple

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.header import KINDS, Header
from distqexp.federation.messages import SUFFIX, file_name, peek
from distqexp.federation.study import Study
from distqexp.storage.atomic import write_atomic


class Found(NamedTuple):
    """A message in the folder, as its header states it; nothing is checked yet."""

    path: Path
    header: Header
    identity: str


def found_in(folder: Path) -> list[Found]:
    """Return all messages of a folder, by name. Raises UsageError where there is no such folder, FileContentError for other files."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected the one that the study's parties exchange")
    return [Found(path, *peek(path)) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def found_of(folder: Path, study: Study) -> list[Found]:
    """Return all messages of a study's folder. Raises FileContentError where one states another study, plan or sender."""
    messages = found_in(folder)
    for path, header, known in messages:
        for what, stated, expected in (
            ("study", header.study, study.study_id),
            ("plan", header.plan_id, study.plan_id),
        ):
            if stated != expected:
                raise FileContentError(
                    f"{path}: of {what} {stated[:16]}; expected {expected[:16]}: it is a message of another study: take it out"
                )
        if header.sender not in study.roster:
            raise FileContentError(
                f"{path}: sender {header.sender}; expected a party of study {study.name}: take it out"
            )
        if KINDS[header.kind].masks not in (None, study.trust.has_masks):
            raise FileContentError(
                f"{path}: a {header.kind} with trust {str(study.trust)!r}; expected none: the study fixes its mode: take it out"
            )
        if path.name != file_name(header, known):
            raise FileContentError(
                f"{path}: its name is not that of the message in it, {file_name(header, known)}; copied by hand? Take it out"
            )
    return messages


def deliver(path: Path, folder: Path) -> None:
    """Copy a message into the folder, atomically; a copy that is there already stays."""
    target = folder / path.name
    if target.exists() and target.stat().st_size == path.stat().st_size:
        return

    def fill(copy: BinaryIO) -> None:
        with path.open("rb") as source:
            shutil.copyfileobj(source, copy)

    write_atomic(target, fill)
