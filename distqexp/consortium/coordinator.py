"""The coordinator's visits: it closes a round over the sites that sent, and sends a round again or voids it for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.consortium.books import is_charged, newest_entry, require_told
from distqexp.consortium.exchange import Found, sent_messages
from distqexp.consortium.home import Ask
from distqexp.consortium.journal import OpenJournal
from distqexp.consortium.news import AGAIN, COORDINATOR_KINDS, Standing, answered_before, listed_before, standing_of
from distqexp.consortium.party import Party, open_party
from distqexp.consortium.visits import one_visit
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import Closing, Listed
from distqexp.federation.messages import peek, write_message
from distqexp.federation.plain_words import all_released
from distqexp.federation.pooling import Pool
from distqexp.federation.study import Study, Trust
from distqexp.privacy.ledger import Ledger
from distqexp.stages.by_hand import state_identity, void_next

_LARGEST_OVERHEAD = 1 << 26
"""The bytes of a sketch file beside its sums."""


def open_coordinator(folder: Path, ask: Ask) -> Party:
    """Return the coordinator of a folder's study. Raises UsageError where the party here is another, see ``open_party``."""
    party = open_party(folder, ask)
    party.require_role((party.study.coordinator.name,), "its coordinator")
    return party


def standing_here(party: Party, journal: OpenJournal) -> tuple[Standing, list[Found]]:
    """Return where the study stands by what the coordinator itself sent, and the folder's messages; its own are copied there again.

    Raises FileContentError where the own ledger was put back, or the folder has a message in the coordinator's name that its log does
    not know.
    """
    require_told(journal)
    own = sent_messages(party.own)
    known = [path for path in own if _is_sent(party, journal, path)]
    party.deliver(known)
    messages = party.messages(journal)
    for found in messages:
        path, header, identity = found
        if header.kind in COORDINATOR_KINDS and identity not in journal.sent(header.kind, header.round):
            party.check(found)  # a stranger's says nothing about this home
            raise FileContentError(
                f"{path}: a {header.kind} of {party.name} that the log here doesn't know; expected one that was sent: the home here was "
                "put back to an older time, or somebody else has the key: restore it"
            )
    return standing_of(messages), messages


def _is_sent(party: Party, journal: OpenJournal, path: Path) -> bool:
    header, identity = peek(path)
    if header.kind in ("study", "plan"):
        return identity in (party.pins.study_message, party.pins.plan_message)  # a killed sign may have left others
    return identity in journal.sent(header.kind, header.round)


def close(folder: Path, ask: Ask) -> list[str]:
    """Close the current attempt of a round over the sites that sent; return lines for people.

    A message that can't be taken ends the visit with its reason, which the log keeps. Where its sender signed it, the next visit
    leaves it out: a late one, a second one, one of a ledger that was put back.

    Raises:
        UsageError: Too few sites sent, or all rounds are released.
        FileContentError: A message is refused.
    """
    with one_visit(open_coordinator(folder, ask)) as party, party.journal.refusals(), party.journal.open() as journal:
        standing, messages = standing_here(party, journal)
        _require_going_on(party, standing)
        at = (standing.round, standing.attempt)
        _refuse_late(party, journal, messages, standing)
        if standing.closed is not None:
            return [_closed_line(party, standing.closed)]
        incoming = [
            one
            for one in messages
            if (one.header.kind, one.header.round, one.header.attempt) == (party.sketch_kind, *at)
        ]
        _refuse_newcomers(party, journal, messages, incoming, at)
        anchor = newest_entry()
        if party.study.trust.has_masks:
            pool = Pool(party.study, party.identity, at, Plan.read(party.plan_file).width)
            _require_seeds(party, messages, incoming)
            for found in incoming:
                party.take(journal, found, pool.masked_bytes, pool.add_message)
            path, _ = pool.close(party.own / "sent", anchor)
        else:
            closing = _listed_sketches(party, journal, incoming, standing)
            envelope = party.study.envelope("closing", at, ledger=anchor)
            path, _ = write_message(party.own / "sent", party.identity, envelope, closing.to_bytes())
        (sent,) = party.send(journal, [path])
        return [_closed_line(party, Found(sent, *peek(sent)))]


def _require_seeds(party: Party, messages: list[Found], incoming: list[Found]) -> None:
    """Raise FileContentError where a seed that a site's vector names is not here: no helper could answer, and no round be released."""
    here = {one.identity for one in messages if one.header.kind == "seed"}
    for path, header, _ in incoming:
        missing = sum(known not in here for known in header.receipts)
        if missing:
            raise FileContentError(
                f"{path}: {missing} of the {len(header.receipts)} seeds that it names are not here; expected all: copy them, or take it "
                f"out to close without {header.sender}"
            )


def taken_sketch(party: Party, site: str) -> Path:
    """Return where the coordinator keeps a site's sketch of the current round. Private."""
    return party.own / f"taken-{site}.h5"


def pooled_sums(party: Party, round: int) -> Path:
    """Return where the coordinator keeps a round's sum over the sites until it is released. Private."""
    return party.own / f"quadratic-{round:03d}.h5"


def remove_exact_sums(party: Party, round: int) -> None:
    """Remove what a round that ended was, or would have been, released from."""
    for path in (pooled_sums(party, round), *(taken_sketch(party, site) for site in party.study.site_names)):
        path.unlink(missing_ok=True)


def _closed_line(party: Party, closed: Found) -> str:
    study, header = party.study, closed.header
    names = party.closing(closed).sites
    asked = (
        f": each of {', '.join(study.helper_names)} runs distqexp helper answer {closed.path}" if study.helpers else ""
    )
    return (
        f"study {study.name}: round {header.round}, attempt {header.attempt} is closed over {', '.join(names)}{asked}"
    )


def _listed_sketches(party: Party, journal: OpenJournal, incoming: list[Found], standing: Standing) -> Closing:
    """Take the sites' sketches, without masks, each held against the plan, its sender's shard, and what its units can add up to."""
    study, plan = party.study, Plan.read(party.plan_file)
    state = state_identity(party.plan_file, party.release_files(standing.round))
    listed: list[Listed] = []
    for found in sorted(incoming, key=lambda one: one.header.sender):
        header, copy = found.header, taken_sketch(party, found.header.sender)
        try:
            with journal.faults_of(found.identity):
                checked = party.extract(found, copy, _LARGEST_OVERHEAD + 16 * plan.width)
            with journal.faults_of(found.identity, FileContentError):
                _require_sketch(found.path, Sketch.read(copy, plan), header.sender, plan, standing.round, state)
        except FileContentError:
            copy.unlink(missing_ok=True)
            raise
        journal.take(found.path, checked)
        listed.append(Listed(header.sender, found.identity, {}))
    if len(listed) < study.k_min:
        raise UsageError(
            f"study {study.name}: {len(listed)} sites sent their sketches; expected at least {study.k_min}: wait for others, or void the "
            "round: distqexp study void"
        )
    return Closing(plan.width, tuple(listed))


def _require_sketch(path: Path, sketch: Sketch, sender: str, plan: Plan, round: int, state: str) -> None:
    """Raise FileContentError for a sketch of another shard, round or state, an unfinished one, or one too long for its units."""
    for what, found, expected in (
        ("shard", sketch.shard, sender),
        ("round", sketch.round, round),
        ("state", sketch.state[:16], state[:16]),
        ("finished", bool(sketch.done.all()), True),
    ):
        if found != expected:
            raise FileContentError(f"{path}: {what} {found}; expected {expected}: ask {sender}")
    most = float(plan.config.privacy.units) * plan.state.grid.sensitivity
    if not np.linalg.norm(sketch.sums[: plan.coordinates].astype(np.float64)) <= most * (1 + 1e-9):
        raise FileContentError(
            f"{path}: its sums are longer than the study's units with the clip can make them; expected at most units times clip: "
            f"{sender} sent no sketch of its records, ask"
        )


def _require_going_on(party: Party, standing: Standing) -> None:
    study = party.study
    if standing.void is not None:
        raise UsageError(
            f"study {study.name}: round {standing.round} is void; expected a study that goes on: make another one"
        )
    if standing.round == study.rounds:
        raise UsageError(f"study {study.name}: {all_released(study)}; nothing is left to do but distqexp study export")


def _refuse_late(party: Party, journal: OpenJournal, messages: list[Found], standing: Standing) -> None:
    """Refuse a site's message of an attempt that is closed or over and doesn't list it, and one of a round still to come."""
    at = (standing.round, standing.attempt)
    for found in messages:
        header, stated = found.header, (found.header.round, found.header.attempt)
        if header.kind not in ("masked", "sketch") or journal.took(found.identity):
            continue
        if stated < at or (stated == at and standing.closed is not None):
            party.check(found, content=False)
            journal.refuse(
                found.identity,
                FileContentError(
                    f"{found.path}: {header.sender} sent it for round {header.round}, attempt {header.attempt}, which was closed without "
                    f"it; expected round {standing.round}, attempt {standing.attempt}: it came late, or again, and is in no sum"
                ),
            )
        if stated > at:
            raise FileContentError(
                f"{found.path}: round {header.round}, attempt {header.attempt}; expected {standing.round}, attempt {standing.attempt}: it "
                "is from a time that hasn't come; take it out"
            )


def _refuse_newcomers(
    party: Party, journal: OpenJournal, messages: list[Found], incoming: list[Found], at: tuple[int, int]
) -> None:
    """Refuse sites in a later attempt that the one before didn't list: the helpers answer for the same sites alone.

    Raises UsageError where a listed one is missing and a helper answered already.
    """
    if at[1] == 0:
        return
    listed = listed_before(party, messages, *at)
    missing = sorted(set(listed) - {one.header.sender for one in incoming})
    if missing and answered_before(messages, at):
        raise UsageError(
            f"study {party.study.name}: {', '.join(missing)} did not send attempt {at[1]} of round {at[0]}; expected every site of the "
            "attempt before, as a helper answered for these: wait, or void the round: distqexp study void"
        )
    for found in incoming:
        if found.header.sender not in listed and not journal.took(found.identity):
            party.check(found, content=False)
            journal.refuse(
                found.identity,
                FileContentError(
                    f"{found.path}: {found.header.sender} in attempt {at[1]} of round {at[0]}; expected {', '.join(listed)}, as the one "
                    "before lists them: it is in no sum"
                ),
            )


def _refuse_charged(party: Party, round: int) -> None:
    """Refuse to ask for a round again once its release is charged: other vectors would meet the same draw, or a second one."""
    with Ledger.open() as ledger:
        charged = is_charged(ledger, "release", party.study.plan_id, round)
    if charged or party.release_file(round).exists():
        raise FileContentError(
            f"study {party.study.name}: round {round} is charged for its release; expected a round before that: finish it with "
            "distqexp study release"
        )


def repeat(folder: Path, ask: Ask) -> list[str]:
    """Ask the listed sites to send a closed round again, under new masks, without a charge: where seeds or answers were lost.

    Raises UsageError where the attempt is not closed, or the study has no masks.
    """
    with one_visit(open_coordinator(folder, ask)) as party, party.journal.refusals(), party.journal.open() as journal:
        standing, _ = standing_here(party, journal)
        _require_going_on(party, standing)
        if standing.closed is None or not party.study.trust.has_masks:
            raise UsageError(
                f"study {party.study.name}: round {standing.round}, attempt {standing.attempt} is not closed, or has no masks; expected a "
                "closed one whose helpers can't answer"
            )
        _refuse_charged(party, standing.round)
        sent = _send_void(party, journal, standing, AGAIN)
    return [f"study {party.study.name}: the listed sites are asked to send round {standing.round} again: {sent.name}"]


def void(folder: Path, ask: Ask, sure: Callable[[str], bool] = lambda consequences: True) -> list[str]:
    """Give up, for ever, a round that was never drawn, and with it the study; the sites get their charge of the round back.

    ``sure`` is told what that means before anything is written. Raises UsageError where it says no, FileContentError where the round
    was drawn or released.
    """
    with one_visit(open_coordinator(folder, ask)) as party, party.journal.refusals(), party.journal.open() as journal:
        standing, _ = standing_here(party, journal)
        _require_going_on(party, standing)
        study, round = party.study, standing.round
        consequences = _consequences(study, round)
        if not sure(consequences):
            raise UsageError(
                f"study {study.name}: round {round} is not voided, as was answered; expected yes, or --yes"
            )
        file = party.own / "void.h5"
        # Until a release is tried the coordinator's ledger has no reason to know the plan.
        untried = round == 0 and not pooled_sums(party, round).exists()
        try:
            made = void_next(party.plan_file, file, releases=party.release_files(round), untried=untried)
        except UsageError as error:  # a draw stands behind it: what was asked for is refused, not misspelt
            raise FileContentError(str(error)) from None
        remove_exact_sums(party, round)
        told = party.own / "void-told.h5"  # an entry's own hash would confirm guesses of the ledger's entries
        replace(made, entry=newest_entry()).write(told)
        sent = _send_void(party, journal, standing, told)
        told.unlink()
    return [
        f"study {study.name}: round {round} is void: it is never released, and the study ends: {sent.name}",
        consequences,
    ]


def _consequences(study: Study, round: int) -> str:
    """Say what a void of a round means for everybody, in one line."""
    back = "stays paid, as the shares of the noise were drawn" if study.trust is Trust.SHARED_NOISE else "is given back"
    paid = f"rounds 0 to {round - 1}, which are released, stay" if round > 1 else "round 0, which is released, stays"
    return (
        f"study {study.name}: with round {round} of {study.rounds} void no model can come of it, for ever, and no further round; what "
        f"sites were charged for round {round} {back}{f'; {paid} paid' if round else ''}"
    )


def _send_void(party: Party, journal: OpenJournal, standing: Standing, content: bytes | Path) -> Path:
    receipts = () if standing.closed is None else (standing.closed.identity,)
    at = (standing.round, standing.attempt)
    envelope = party.study.envelope("void", at, ledger=newest_entry(), receipts=receipts)
    path, _ = write_message(party.own / "sent", party.identity, envelope, content)
    return party.send(journal, [path])[0]
