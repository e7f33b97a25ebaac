"""The coordinator's release of a closed round: the sum over the listed sites, one draw, and a signed file with receipts."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic
from distqexp.config import Config
from distqexp.consortium.books import newest_entry
from distqexp.consortium.coordinator import (
    open_coordinator,
    pooled_sums,
    remove_exact_sums,
    standing_here,
    taken_sketch,
)
from distqexp.consortium.exchange import Found
from distqexp.consortium.home import Ask
from distqexp.consortium.journal import OpenJournal
from distqexp.consortium.party import Party
from distqexp.consortium.visits import one_visit
from distqexp.engines.base import Engine
from distqexp.engines.collectives import on_root_only, require
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import Closing
from distqexp.federation.header import Header
from distqexp.federation.messages import peek, write_message
from distqexp.federation.plain_words import in_plain_words
from distqexp.federation.pooling import Pool
from distqexp.federation.quorum import quorum
from distqexp.federation.study import Study
from distqexp.stages.by_hand import ReleaseOrder, export_run, release_round, state_identity
from distqexp.stages.pool import pool_files
from distqexp.storage.atomic import write_atomic


def release(
    folder: Path, ask: Ask, engine: Engine, *, config: Config | None = None, weights: Path | None = None
) -> list[str]:
    """Release the closed round: unmask or add up, charge, draw once, sign. Collective; returns lines for people, public.

    Another call releases nothing again: the same file is copied into the folder.

    Raises:
        UsageError: The round is not closed, or the study has ended.
        FileContentError: A listed message is missing, an answer is refused, or too few helpers answered.
        BudgetError: The round doesn't fit what the population has left; nothing was drawn.
    """
    with ExitStack() as held:
        party = on_root_only(engine, lambda: held.enter_context(one_visit(open_coordinator(folder, ask))))

        def begin() -> tuple[int, int, str, ReleaseOrder | None]:
            mine = require(party)
            with mine.journal.refusals(), mine.journal.open() as journal:
                return _begin(mine, journal, config, weights)

        round, attempt, closing, order = engine.on_root(begin)
        if order is not None:
            with party.journal.refusals() if party else nullcontext():
                release_round(order, engine)
        return engine.on_root(lambda: _send(require(party), round, attempt, closing))


def _begin(
    party: Party, journal: OpenJournal, config: Config | None, weights: Path | None
) -> tuple[int, int, str, ReleaseOrder | None]:
    """Return the round, its attempt, the identity of its closing, and what is to be released, if it isn't yet."""
    standing, messages = standing_here(party, journal)
    study, round, attempt = party.study, standing.round, standing.attempt
    if standing.closed is None:
        raise UsageError(
            f"study {study.name}: round {round}, attempt {attempt} is not closed; expected a closing: distqexp study close {party.folder}"
        )
    out = party.release_file(round)
    if out.exists():
        return round, attempt, standing.closed.identity, None
    quadratic = pooled_sums(party, round)
    closing = party.closing(standing.closed)
    plan = Plan.read(party.plan_file)
    if study.trust.has_masks:
        sums = _unmasked(party, journal, messages, closing, standing.closed)
        state = state_identity(party.plan_file, party.release_files(round), weights)
        pooled = Quadratic(plan.plan_id, round, state, sums)
    else:
        pooled = pool_files(plan, _taken_again(party, messages, closing), closing.sites)
    pooled.write(quadratic)
    previous = party.release_files(round)
    return (
        round,
        attempt,
        standing.closed.identity,
        ReleaseOrder(party.plan_file, quadratic, out, previous=previous, config=config, weights=weights),
    )


def _taken_again(party: Party, messages: list[Found], closing: Closing) -> list[Path]:
    """Return the listed sites' sketches, from their very messages where the coordinator's own copies are gone. Private."""
    by_identity = {one.identity: one for one in messages}
    for one in closing.listed:
        copy = taken_sketch(party, one.site)
        if not copy.exists() and one.masked in by_identity:
            party.extract(by_identity[one.masked], copy)
    return [taken_sketch(party, site) for site in closing.sites]


def _unmasked(
    party: Party, journal: OpenJournal, messages: list[Found], closing: Closing, closed: Found
) -> IntegerArray:
    """Return the sum over the listed sites, from their very messages and the helpers' answers. Private."""
    at = (closed.header.round, closed.header.attempt)
    by_identity = {one.identity: one for one in messages}
    missing = [one.site for one in closing.listed if one.masked not in by_identity]
    if missing:
        raise FileContentError(
            f"{party.folder}: the listed messages of {', '.join(missing)[:200]} are gone; expected them as they were closed: copy them"
        )
    pool = Pool(party.study, party.identity, at, closing.entries)
    for one in closing.listed:
        pool.add(by_identity[one.masked].path)
    pool.closed_before(closed.path)
    answers = [one for one in messages if one.header.kind == "answer" and (one.header.round, one.header.attempt) == at]
    for found in answers:
        party.take(journal, found, pool.answer_bytes, pool.add_answer)
    _require_quorum(party.study, at, {one.header.sender for one in answers})
    return pool.unmask()


def _require_quorum(study: Study, at: tuple[int, int], answered: set[str]) -> None:
    """Raise UsageError where too few helpers have answered yet."""
    missing = [name for name in study.helper_names if name not in answered]
    if len(answered) < quorum(len(study.helpers)):
        raise UsageError(
            f"study {study.name}: round {at[0]}, attempt {at[1]}: {', '.join(missing)} did not answer; expected the answers of "
            f"{quorum(len(study.helpers))} helpers: wait, or where one can't answer: distqexp study repeat"
        )


def _send(party: Party, round: int, attempt: int, closing_identity: str) -> list[str]:
    """Sign the release, with the closing and the listed messages as receipts, and remove what it was made from."""
    study = party.study
    anchor = newest_entry()
    with party.journal.refusals(), party.journal.open() as journal:
        (closed,) = party.sent_files(journal, ("closing",), round, attempt)
        found = Found(closed, *_checked(closed, closing_identity))
        closing = party.closing(found)
        receipts = (closing_identity, *(one.masked for one in closing.listed))
        paths = party.sent_files(journal, ("release",), round, attempt)
        if not paths:
            envelope = study.envelope("release", (round, attempt), ledger=anchor, receipts=receipts)
            paths = [write_message(party.own / "sent", party.identity, envelope, party.release_file(round))[0]]
        (sent,) = party.send(journal, paths)
    remove_exact_sums(party, round)
    names, left = ", ".join(closing.sites), study.rounds - round - 1
    more = f"{left} more to come" if left else f"the last one: distqexp study export {party.folder} --out model"
    return [f"study {study.name}: round {round} is released over {names}: {sent.name}; {more}"]


def _checked(path: Path, identity: str) -> tuple[Header, str]:
    header, known = peek(path)
    if known != identity:
        raise FileContentError(f"{path}: message {known[:16]}; expected closing {identity[:16]}: restore the home")
    return header, known


def export(
    folder: Path, out: Path, ask: Ask, *, config: Config | None = None, weights: Path | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Write the model, its certificate, and beside it the study and who could learn what. Returns certificate and metrics.

    Raises UsageError where a round is not released yet, or was voided.
    """
    party = open_coordinator(folder, ask)
    with party.journal.refusals():
        releases = [path for path in party.release_files(party.study.rounds) if path.exists()]
        if len(releases) < party.study.rounds:
            raise UsageError(_too_early(party, len(releases)))
        result = export_run(party.plan_file, releases, out, config=config, weights=weights)
        write_atomic(out / "study.toml", party.study.to_bytes())
        words = "".join(f"{line}\n" for line in in_plain_words(party.study))
        write_atomic(out / "who-could-learn-what.txt", words.encode())
    return result


def _too_early(party: Party, released: int) -> str:
    study = party.study
    if (party.own / "void.h5").exists():
        return f"study {study.name}: round {released} was voided; expected all {study.rounds} rounds released: no model can come of it"
    return (
        f"study {study.name}: {released} of {study.rounds} rounds released; expected all of them: distqexp study status "
        f"{party.folder} says what comes next"
    )
