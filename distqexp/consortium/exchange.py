"""The folder that the parties exchange: signed messages in files, copied by whatever way they trust, in any order, again and again.

A file's name says what it is and ends with its identity, so copies of one message meet, and nothing is ever written over.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.header import KINDS, Header
from distqexp.federation.messages import SUFFIX, file_digest, file_name, peek
from distqexp.federation.study import Study
from distqexp.storage.atomic import write_atomic

_MOST_TOLD = 5
"""How many files that are no messages a visit names."""


class Found(NamedTuple):
    """A message in the folder, as its header states it; nothing is checked yet."""

    path: Path
    header: Header
    identity: str


def look(folder: Path) -> tuple[list[Found], list[str]]:
    """Return all messages of a folder, by name, and why each other file of that suffix is none.

    What has no header was signed by nobody, so it accuses nobody, and may not stop anybody's visit.

    Raises UsageError where there is no such folder, StorageError where a file can't be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected the one that the study's parties exchange")
    messages: list[Found] = []
    others: list[str] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            messages.append(Found(path, *peek(path)))
        except (FileContentError, UsageError) as error:  # the latter where somebody takes it out at this moment
            others.append(str(error))
    return messages, others


def found_in(folder: Path) -> list[Found]:
    """Return all messages of a folder, see ``look``, and tell on standard error what is left out."""
    messages, others = look(folder)
    for reason in others[:_MOST_TOLD]:
        note(f"left out of this visit, nobody signed it: {reason}")
    if len(others) > _MOST_TOLD:
        note(f"left out of this visit, nobody signed them: {len(others) - _MOST_TOLD} more files of {folder}")
    return messages


def note(text: str) -> None:
    """Tell people one line on standard error. Names of files in it are others' and may hold anything."""
    sys.stderr.write(f"distqexp: {''.join(one if one.isprintable() else '?' for one in text)}\n")


def of_study(messages: list[Found], study: Study) -> list[Found]:
    """Return the messages of a study's folder. Raises FileContentError where one states another study, plan or sender."""
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


def sent_messages(own: Path) -> list[Path]:
    """Return a party's own copies of what it sent in a study, from its folder of it, sorted."""
    return sorted((own / "sent").glob(f"*{SUFFIX}"))


def deliver(path: Path, folder: Path, *, check: Callable[[], object] = lambda: None) -> None:
    """Copy a message into the folder, atomically; the same file that is there already stays, and another one is replaced, with a note.

    ``check`` is called before anything is written, and raises where the own copy is damaged itself.

    Raises FileContentError where a folder stands in its place.
    """
    target = folder / path.name
    if target.is_dir() and not target.is_symlink():
        raise FileContentError(f"{target}: a folder; expected the message that was sent, or nothing: take it out")
    there = os.path.lexists(target)
    if there and _has_digest(target, file_digest(path)):
        return
    check()
    if there:
        note(f"{target}: damaged, not the message that was sent; the own copy takes its place")

    def fill(copy: BinaryIO) -> None:
        with path.open("rb") as source:
            shutil.copyfileobj(source, copy)

    write_atomic(target, fill)
    target.chmod(0o644)  # parties with accounts of their own read it, and what is private in it is sealed


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return file_digest(path) == digest
    except (FileContentError, UsageError):  # no file, or taken out at this moment
        return False
