"""What the coordinator did since the last visit, as another party takes it: closings, voids and releases, in order, each checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.consortium.exchange import Found
from distqexp.consortium.journal import OpenJournal
from distqexp.consortium.party import Party
from distqexp.errors import FileContentError
from distqexp.federation.closing import LARGEST_CLOSING, Closing
from distqexp.stages.void import refuse_false_void

AGAIN = b"again"
"""The content of a void after which the same round is sent again, under new masks."""

LARGEST_VOID = 1 << 20


COORDINATOR_KINDS = ("closing", "void", "release")
"""The kinds in which a coordinator tells of a round's attempt, in the order in which it sends them."""


@dataclass(frozen=True)
class Standing:
    """Where a study stands.

    Attributes:
        round: The round that comes next; the number of rounds after the last release.
        attempt: Its attempt.
        closed: The closing of that attempt, if there is one.
        void: The void that ends the study, if there is one.
    """

    round: int = 0
    attempt: int = 0
    closed: Found | None = None
    void: Found | None = None


def of_coordinator(messages: list[Found]) -> list[Found]:
    """Return what tells of rounds, as the coordinator sent it: by round, attempt, and kind."""
    return sorted(
        (one for one in messages if one.header.kind in COORDINATOR_KINDS),
        key=lambda one: (one.header.round, one.header.attempt, COORDINATOR_KINDS.index(one.header.kind)),
    )


def standing_of(messages: list[Found]) -> Standing:
    """Return where a study stands by what its coordinator's messages state; nothing is checked."""
    standing = Standing()
    for found in of_coordinator(messages):
        standing = _after(standing, found)
    return standing


def _after(standing: Standing, found: Found) -> Standing:
    """Return where a study stands after the next message of its coordinator."""
    header = found.header
    if header.kind == "release" and header.round == standing.round:
        return Standing(header.round + 1)
    if (header.round, header.attempt) != (standing.round, standing.attempt):
        return standing
    if header.kind == "closing":
        return replace(standing, closed=found)
    if header.length == len(AGAIN):
        return Standing(header.round, header.attempt + 1)
    return replace(standing, void=found)


def listed_before(party: Party, messages: list[Found], round: int, attempt: int) -> tuple[str, ...]:
    """Return the sites that the closing of the attempt before lists: a later attempt is for them alone."""
    for found in messages:
        if (found.header.kind, found.header.round, found.header.attempt) == ("closing", round, attempt - 1):
            return party.closing(found).sites
    return ()


def answered_before(messages: list[Found], at: tuple[int, int]) -> bool:
    """Whether a helper's answer to an earlier attempt of a round is here: that helper answers for the same sites alone."""
    return any(
        one.header.kind == "answer" and one.header.round == at[0] and one.header.attempt < at[1] for one in messages
    )


def take_news(party: Party, journal: OpenJournal, messages: list[Found]) -> Standing:
    """Take all of the coordinator's messages in order, keep the releases, and return where the study stands.

    A message is taken after all that were sent before it: one that is copied late would seem to come from a ledger that was put back.

    Raises FileContentError where a message is forged, a second one, or tells of a ledger that was put back: the coordinator's, or
    this party's own, if a closing lists a message that its log does not know. Also where earlier messages are not here yet.
    """
    closings: dict[tuple[int, int], tuple[Found, Closing]] = {}
    standing = Standing()
    for found in of_coordinator(messages):
        header, at = found.header, (found.header.round, found.header.attempt)
        _require_earlier(party, journal, found, standing, closings)
        if header.kind == "closing":
            content = party.take(journal, found, LARGEST_CLOSING).content
            closings[at] = (found, Closing.parse(found.path, bytes(content), party.study))
            _refuse_unknown_own(party, journal, found, closings[at][1])
        elif header.kind == "void":
            _take_void(party, journal, found)
        else:
            _take_release(party, journal, found, closings.get(at))
        standing = _after(standing, found)
    _require_releases(party, standing.round)
    return standing


def _require_earlier(
    party: Party,
    journal: OpenJournal,
    found: Found,
    standing: Standing,
    closings: Mapping[tuple[int, int], tuple[Found, Closing]],
) -> None:
    """Raise FileContentError unless what was sent before a message is here: earlier rounds, and the closing that it builds on."""
    header, at = found.header, (found.header.round, found.header.attempt)
    ahead = at > (standing.round, standing.attempt)
    builds_on_closing = header.kind == "release" or (header.kind == "void" and header.receipts)
    if not ahead and not (builds_on_closing and at not in closings and not journal.took(found.identity)):
        return
    party.check(found)
    missing = (
        f"what came of round {standing.round}, attempt {standing.attempt}"
        if ahead
        else f"the closing of round {at[0]}, attempt {at[1]}, that it builds on"
    )
    raise FileContentError(f"{found.path}: it is here without {missing}; expected that first: copy the folder whole")


def _take_void(party: Party, journal: OpenJournal, found: Found) -> None:
    """Take a void, unless its round is released."""
    if not journal.took(found.identity) and party.release_file(found.header.round).exists():
        party.check(found)
        journal.refuse(
            found.identity,
            FileContentError(
                f"{found.path}: it voids round {found.header.round}, whose release was taken here; expected no void after a draw: ask "
                f"{party.study.coordinator.name}"
            ),
        )
    party.take(journal, found, LARGEST_VOID)


def _take_release(party: Party, journal: OpenJournal, found: Found, closing: tuple[Found, Closing] | None) -> None:
    """Take a release that builds on the very messages of its round's closing, and keep it."""
    header, target = found.header, party.release_file(found.header.round)
    if closing is None or (journal.took(found.identity) and target.exists()):
        return
    expected = (closing[0].identity, *(one.masked for one in closing[1].listed))
    received = party.own / "received.h5"
    kept = party.extract(found, received)
    if header.receipts != expected:
        journal.refuse(
            found.identity,
            FileContentError(
                f"{found.path}: it acknowledges {len(header.receipts)} messages; expected the closing and the {len(expected) - 1} that "
                f"it lists: ask {party.study.coordinator.name}"
            ),
        )
    journal.take(found.path, kept)
    received.replace(target)
    if party.name in party.study.site_names:
        plan = Plan.read(party.plan_file)
        refuse_false_void(plan, Release.read(target, plan), None)


def _refuse_unknown_own(party: Party, journal: OpenJournal, found: Found, closing: Closing) -> None:
    """Refuse a list with a message in this party's name that its log does not know."""
    listed = {one.site: one.masked for one in closing.listed}
    mine = listed.get(party.name)
    if mine is None or party.name not in party.study.site_names:
        return
    if mine not in journal.sent(party.sketch_kind, found.header.round, found.header.attempt):
        journal.refuse(
            found.identity,
            FileContentError(
                f"{found.path}: it lists message {mine[:16]} of {party.name}, which the log here doesn't know; expected one that was "
                "sent: the ledger and the log here were put back to an older time, or somebody else has the key: restore them"
            ),
        )


def _require_releases(party: Party, rounds: int) -> None:
    for path in party.release_files(rounds):
        if not path.exists():
            raise FileContentError(
                f"{path}: missing; expected the release as it came; take it from the folder again: restore the home"
            )
