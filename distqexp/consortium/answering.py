"""A helper's visit: one command on one file, the coordinator's closing; the answer goes back into the folder."""

from __future__ import annotations

from pathlib import Path

from distqexp.artefacts.plan import Plan
from distqexp.consortium.exchange import Found, sent_messages
from distqexp.consortium.home import Ask, Home
from distqexp.consortium.party import Party, open_party
from distqexp.consortium.visits import one_visit
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import Closing
from distqexp.federation.helper import Helper
from distqexp.federation.masks import SEED_BYTES
from distqexp.federation.messages import peek


def answer(closing: Path, ask: Ask, home: Home | None = None) -> list[str]:
    """Answer a closing, once a round; return lines for people. The same closing again gives the same file.

    Raises:
        UsageError: The party is no helper, or did not accept the study.
        FileContentError: The closing or a seed is refused: another list than the one answered, too few sites, a wrong signer.
    """
    if closing.is_dir():
        raise UsageError(
            f"{closing}: a folder; expected the file of a closing in it: distqexp study status {closing} names it"
        )
    home = home or Home()
    party = open_party(closing.parent, ask, home)
    party.require_role(party.study.helper_names, "a helper")
    with one_visit(party), party.journal.refusals():
        header, identity = peek(closing)
        if header.kind != "closing":
            raise FileContentError(f"{closing}: a {header.kind}; expected a closing of the coordinator")
        found = Found(closing, header, identity)
        listed = party.closing(found)
        helper = Helper(party.study, party.identity, home.log(party.identity))
        _require_answerable(party, helper, found, listed)
        with party.journal.open() as journal:
            earlier = list(party.sent_files(journal, ("answer",), header.round, header.attempt))
        earlier = [path for path in earlier if peek(path)[0].receipts == (identity,)]
        if earlier:
            (sent,) = party.deliver(earlier)
            return [f"study {party.study.name}: round {header.round} was answered before: {sent.name}"]
        seeds = _take_seeds(party, listed)
        path, _ = helper.answer(closing, seeds, party.own / "sent")
        with party.journal.open() as journal:
            (sent,) = party.send(journal, [path])
    return [f"study {party.study.name}: round {header.round} is answered for {', '.join(listed.sites)}: {sent.name}"]


def _require_answerable(party: Party, helper: Helper, closing: Found, listed: Closing) -> None:
    """Refuse a closing of another width than the plan's, one whose attempt is void, and any where the log here was put back."""
    width = Plan.read(party.plan_file).width
    if listed.entries != width:
        raise FileContentError(
            f"{closing.path}: vectors of {listed.entries} entries; expected {width}, as the plan has it: ask "
            f"{party.study.coordinator.name}"
        )
    with party.journal.open() as journal:
        messages = party.messages(journal)
    own = sent_messages(party.own)
    helper.require_known([*own, *(one.path for one in messages if one.header.kind == "answer")])
    for found in messages:
        header = found.header
        if header.kind == "void" and header.round == closing.header.round and header.attempt >= closing.header.attempt:
            party.check(found)
            raise FileContentError(
                f"{closing.path}: round {header.round}, attempt {closing.header.attempt} is void; expected a closing of an attempt that "
                f"goes on: {found.path.name} says so"
            )


def _take_seeds(party: Party, listed: Closing) -> list[Path]:
    """Take the listed sites' seeds for this helper; others in the folder are not its concern."""
    wanted = {one.seeds[party.name] for one in listed.listed}
    paths: list[Path] = []
    with party.journal.open() as journal:
        for found in party.messages(journal):
            if found.identity in wanted and found.header.kind == "seed" and found.header.recipient == party.name:
                party.take(journal, found, SEED_BYTES)
                paths.append(found.path)
    return paths
