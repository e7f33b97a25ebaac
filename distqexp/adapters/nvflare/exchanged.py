"""A party's copy of a study's folder: messages that FLARE brings are written there, as if somebody had copied them by hand."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distqexp.consortium.exchange import Found, found_in
from distqexp.consortium.news import of_coordinator
from distqexp.consortium.party import Party
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.header import Header
from distqexp.federation.messages import file_name, peek
from distqexp.storage.atomic import write_atomic


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other task of this machine is at work in a study's folder: two jobs would sketch a round twice."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected the one from which the study was accepted")
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def receive(
    party: Party,
    contents: Iterable[bytes],
    kinds: Sequence[str],
    sender: str | None = None,
    at: tuple[int, int] | None = None,
) -> list[Path]:
    """Write messages into the party's copy of the folder; return where they are.

    A message that anybody could have made up gets no file: it would stop every later visit. What a message means is checked by
    those who take it.

    Args:
        party: The party.
        contents: The bytes of the messages.
        kinds: The kinds that are expected here.
        sender: From whom; None for any party.
        at: Of which round and attempt; None for any.

    Raises:
        FileContentError: A message is damaged, not signed by its sender, or not one that is expected here.
    """
    paths: list[Path] = []
    incoming = party.folder / ".incoming"
    try:
        for content in contents:
            write_atomic(incoming, content, private=True)
            found = Found(incoming, *peek(incoming))
            _require_expected(party, found.header, kinds, sender, at)
            party.check(found)
            paths.append(party.folder / file_name(found.header, found.identity))
            os.replace(incoming, paths[-1])
    finally:
        incoming.unlink(missing_ok=True)
    return paths


def _require_expected(
    party: Party, header: Header, kinds: Sequence[str], sender: str | None, at: tuple[int, int] | None
) -> None:
    """Raise FileContentError unless a header states a message of the study that is expected here, and that is for this party to have."""
    study = party.study
    office = party.name == study.coordinator.name  # it carries what is for others
    expected: Sequence[tuple[str, object, Collection[object]]] = (
        ("study", header.study, (study.study_id,)),
        ("plan", header.plan_id, (study.plan_id,)),
        ("kind", header.kind, kinds),
        ("sender", header.sender, study.roster if sender is None else (sender,)),
        ("recipient", header.recipient, (None, party.name, *(study.helper_names if office else ()))),
        ("round and attempt", (header.round, header.attempt), ((header.round, header.attempt) if at is None else at,)),
    )
    for what, found, allowed in expected:
        if found not in allowed:
            raise FileContentError(
                f"task: a {header.kind} of {header.sender} with {what} {found}; expected {' or '.join(map(str, [*allowed][:5]))}: it "
                "is for another place or time"
            )


def sent_by(party: Party, name: str, kinds: Sequence[str], at: tuple[int, int]) -> list[Found]:
    """Return the messages of a sender in an attempt of a round; those that come first in ``kinds`` come first."""
    found = [
        one
        for one in found_in(party.folder)
        if one.header.sender == name and one.header.kind in kinds and (one.header.round, one.header.attempt) == at
    ]
    return sorted(found, key=lambda one: kinds.index(one.header.kind))


def news_of(party: Party) -> list[Found]:
    """Return what the study's coordinator told of rounds, in the order in which it did."""
    coordinator = party.study.coordinator.name
    return [one for one in of_coordinator(found_in(party.folder)) if one.header.sender == coordinator]
