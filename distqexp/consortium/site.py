"""A site's visit in a round: it takes what the coordinator sent, sketches its records once, charges its ledger, and sends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Sketch
from distqexp.consortium.books import is_charged, newest_entry, require_charged, require_told
from distqexp.consortium.exchange import Found
from distqexp.consortium.home import Ask
from distqexp.consortium.journal import OpenJournal
from distqexp.consortium.news import listed_before, take_news
from distqexp.consortium.party import VOID_TAKEN, Party, open_party
from distqexp.consortium.visits import one_visit
from distqexp.engines.base import Engine
from distqexp.engines.collectives import on_root_only, require
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.contribution import contribute
from distqexp.federation.messages import peek, write_message
from distqexp.federation.plain_words import all_released
from distqexp.federation.study import Trust
from distqexp.privacy.ledger import Ledger
from distqexp.stages.by_hand import SketchOrder, sketch_shard
from distqexp.stages.void import Void, accept


@dataclass(frozen=True)
class Records:
    """A site's private records, as ``api.sketch`` describes them."""

    data: Path | None = None
    labels: Path | None = None
    tokenizer: Path | None = None
    blank: Path | None = None
    weights: Path | None = None
    on_remarks: Callable[[Sequence[str]], None] | None = None


@dataclass(frozen=True)
class _Work:
    """What a visit has to do: lines to say where nothing is to be sent, else what to sketch first, if anything."""

    lines: tuple[str, ...] = ()
    order: SketchOrder | None = None
    round: int = 0
    attempt: int = 0


def sketch_visit(folder: Path, records: Records, ask: Ask, engine: Engine) -> list[str]:
    """Make a site's visit; return lines for people, of public facts. Collective: every rank calls it.

    A round that was sent is never sketched again: its messages are copied into the folder once more. A repeat that the coordinator
    asked for is the same vector under new masks, without a charge.

    Raises:
        UsageError: The party is no site, or nothing is to be sketched here.
        FileContentError: A message, the plan or the records are refused; the log says so.
        BudgetError: The rounds don't fit what the site has left; no record was read.
    """
    with ExitStack() as held:
        party = on_root_only(engine, lambda: held.enter_context(one_visit(open_party(folder, ask))))

        def begin() -> _Work:
            mine = require(party)
            with mine.journal.refusals(), mine.journal.open() as journal:
                return _begin(mine, journal, records)

        work = engine.on_root(begin)
        if work.lines:
            return list(work.lines)
        if work.order is not None:
            with party.journal.refusals(of_records=True) if party else nullcontext():
                sketch_shard(replace(work.order, on_remarks=records.on_remarks), engine)
        return engine.on_root(lambda: _send(require(party), work.round, work.attempt))


def _begin(party: Party, journal: OpenJournal, records: Records) -> _Work:
    study = party.study
    party.require_role(study.site_names, "a site")
    _require_accepted(party)
    require_told(journal)
    messages = party.messages(journal)
    standing = take_news(party, journal, messages)
    for earlier in range(standing.round):
        _remove_sketch(party, earlier)
    if standing.void is not None:
        return _Work(lines=tuple(_ended(party, journal, standing.void)))
    if standing.round == study.rounds:
        lines = (f"study {study.name}: {all_released(study)}; nothing is left to do here", _how_to_verify(party))
        return _Work(lines=lines)
    round, attempt = standing.round, standing.attempt
    if sent := _sent_before(party, journal, messages, (round, attempt)):
        left_out = standing.closed is not None and party.name not in party.closing(standing.closed).sites
        more = "; but it was closed before that came, which is in no sum: its charge stays" if left_out else ""
        return _Work(lines=(sent + more,))
    if standing.closed is not None:
        raise FileContentError(
            f"study {study.name}: round {round}, attempt {attempt} was closed without {party.name}; expected nothing to be sent for it: "
            "wait for its release"
        )
    if attempt and party.name not in listed_before(party, messages, round, attempt):
        raise UsageError(
            f"study {study.name}: attempt {attempt} of round {round} is for the sites of the attempt before; expected {party.name} to "
            "wait for its release"
        )
    sketch = _sketch_file(party, round)
    if attempt and not sketch.exists():
        raise FileContentError(
            f"{sketch}: missing, yet round {round} was sent before; expected the same sums again, since others would give away how they "
            "differ: restore it, or wait for the release"
        )
    order = SketchOrder(
        party.plan_file, records.data, sketch, releases=party.release_files(round), shard=party.name, labels=records.labels,
        tokenizer=records.tokenizer, blank=records.blank, population=party.pins.population, weights=records.weights,
    )  # fmt: skip
    return _Work(order=None if sketch.exists() else order, round=round, attempt=attempt)


def _how_to_verify(party: Party) -> str:
    own = party.own
    return f"the model, once the coordinator hands it out: distqexp verify MODEL {own}/plan.h5 {own}/release-*.h5"


def _require_accepted(party: Party) -> None:
    """Refuse the coordinator's own site until it said what only a site knows: signing the study asked for none of it."""
    if party.pins.population is None:
        raise UsageError(
            f"study {party.study.name}: {party.name} signed it, and is a site of it too; expected its acceptance first: distqexp study "
            f"accept {party.folder} --coordinator {party.name}.card, with --elsewhere or --not-elsewhere"
        )


def _sent_before(party: Party, journal: OpenJournal, messages: list[Found], at: tuple[int, int]) -> str:
    """Copy what was sent in an attempt of a round into the folder again; return a line that says so, an empty one if nothing was.

    Raises FileContentError where something that was sent is gone both here and there.
    """
    study, kinds = party.study, (party.sketch_kind, "seed")
    if not journal.sent(party.sketch_kind, *at):
        return ""
    copies = party.sent_files(journal, kinds, *at)
    party.deliver(copies)
    missing = {identity for kind in kinds for identity in journal.sent(kind, *at)} - {peek(path)[1] for path in copies}
    for found in messages:
        if found.identity in missing:
            party.check(found)  # it is there, and whole
            missing.remove(found.identity)
    what = f"study {study.name}: round {at[0]}, attempt {at[1]} was sent"
    if missing:
        again = f", or let {study.coordinator.name} repeat the round under new masks: distqexp study repeat"
        raise FileContentError(
            f"{what}, but {len(missing)} of its messages are neither in the home here nor in the exchanged folder; expected all that "
            f"the log names: restore the home{again if study.trust.has_masks else ''}"
        )
    return f"{what}; its messages are in {party.folder}"


def _sketch_file(party: Party, round: int) -> Path:
    return party.own / f"sketch-{round:03d}.h5"


def _remove_sketch(party: Party, round: int) -> None:
    """Remove a round's exact sums, and what an interrupted sketch left of them."""
    sketch = _sketch_file(party, round)
    sketch.unlink(missing_ok=True)
    _handed_on_file(party, round).unlink(missing_ok=True)
    shutil.rmtree(sketch.with_name(sketch.name + ".parts"), ignore_errors=True)


def _handed_on_file(party: Party, round: int) -> Path:
    return party.own / f"handed-on-{round:03d}.h5"


def _without_pieces(party: Party, round: int) -> Path:
    """Write the sketch as it is sent, without the number of its pieces: a sealed file's length would tell that of the records."""
    sketch, path = (
        Sketch.read(_sketch_file(party, round), Plan.read(party.plan_file), own=True),
        _handed_on_file(party, round),
    )
    replace(sketch, done=np.ones(1, dtype=np.bool_)).write(path)
    return path


def _send(party: Party, round: int, attempt: int) -> list[str]:
    """Sign what the site sends in an attempt of a round: its sketch, or its masked vector and a seed to each helper."""
    study, at, outbox = party.study, (round, attempt), party.own / "sent"
    sketch = _sketch_file(party, round)
    anchor = newest_entry()
    with party.journal.refusals(), party.journal.open() as journal:
        if sent_meanwhile := _sent_before(party, journal, [], at):
            return [sent_meanwhile]
        require_charged(study.name, f"site-{party.name}", study.plan_id, round)
        if study.trust.has_masks:
            sums = Sketch.read(sketch, Plan.read(party.plan_file), own=True).sums
            contribution = contribute(study, party.identity, sums, at, outbox, anchor)
            paths = [*contribution.seeds.values(), contribution.masked]  # the last one in the log tells that all are
        else:
            envelope = study.envelope("sketch", at, ledger=anchor)
            handed_on = _without_pieces(party, round)
            paths = [write_message(outbox, party.identity, envelope, handed_on, study.coordinator)[0]]
            handed_on.unlink()
        sent = party.send(journal, paths)
    names = ", ".join(path.name for path in sent)
    how = "sent again under new masks, without a charge" if attempt else "charged and sent"
    return [f"study {study.name}: round {round} is {how}: {names}"]


def _ended(party: Party, journal: OpenJournal, found: Found) -> list[str]:
    """Take the charge of a void round back, once; return lines that say so."""
    study, round = party.study, found.header.round
    copy = party.own / VOID_TAKEN
    party.extract(found, copy)
    void = Void.read(copy)
    if (void.plan_id, void.round) != (study.plan_id, round):
        raise FileContentError(f"{found.path}: a void of round {void.round}; expected round {round}: ask for it again")
    back = "nothing was charged for it here"
    with Ledger.open() as ledger:
        if is_charged(ledger, f"site-{party.name}", study.plan_id, round):
            back = "its charge here stays: the share of the noise was drawn"
            if study.trust is not Trust.SHARED_NOISE:
                accept(void, ledger)
                journal.note({"event": "given-back", "round": round, "message": found.identity})
                back = "its charge here is given back"
    _remove_sketch(party, round)
    return [f"study {study.name}: round {round} is void: it is never released, and the study ends; {back}"]
