"""A helper: it answers once a round, for one signed list of sites, and writes that down before it answers.

A coordinator that got answers for two lists of one round would know the difference of their sums: the vector of a single site,
perhaps. So a helper refuses a second list for as long as its log exists. A later attempt of the round, which is needed where
another helper lost its seeds, is answered for the same sites only: the answers then unmask the same sum once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import LARGEST_CLOSING, Closing
from distqexp.federation.header import Header
from distqexp.federation.keys import Identity
from distqexp.federation.log import Log, OpenLog
from distqexp.federation.masks import SEED_BYTES, MaskContext, stream_sums
from distqexp.federation.messages import Message, check_message, peek, read_message, write_message
from distqexp.federation.study import Study

ANSWER = "answer"
"""The event of an answer in the helper's log."""


class Helper:
    """One helper of a study, with its keys and its log."""

    def __init__(self, study: Study, identity: Identity, log: Log) -> None:
        """Take the helper's part. Raises UsageError where the identity is none of the study's helpers."""
        if study.roster.get(identity.name) != identity.card or identity.name not in study.helper_names:
            raise UsageError(
                f"study {study.name}: {identity.name} with key {identity.card.signing[:16]}; expected a helper of it"
            )
        self._study = study
        self._identity = identity
        self._log = log

    def answer(self, closing: Path, seeds: Iterable[Path], folder: Path) -> tuple[Path, str]:
        """Answer the coordinator's closing of a round with the sums of this helper's streams over the listed sites.

        Args:
            closing: The coordinator's signed list.
            seeds: The messages with the sites' seeds, in any order; those of other rounds or sites are left out.
            folder: Where the answer is written.

        Returns:
            The path and the identity of the answer. The same list asked again gives the same sums.

        Raises:
            FileContentError: The list or a seed is not signed as it should be, has too few, unknown or double sites, lacks a
                site's seed, or is another list than the one that was answered in this round.
        """
        study = self._study
        message = read_message(closing, study.expects("closing"), study.roster, LARGEST_CLOSING)
        listing = Closing.parse(closing, bytes(message.content), study)
        header = message.header
        if header.round >= study.rounds:
            raise FileContentError(f"{closing}: round {header.round}; expected 0 to {study.rounds - 1}")
        context = MaskContext.of(study, header.round, header.attempt)
        opened = self._open_seeds(closing, listing, seeds, context)
        with self._log.locked() as log:
            self._refuse_another_list(closing, log, header, listing)
            if not self._answered(log, header, attempt=True):
                log.append(self._event(message, listing))
            anchor = log.anchor
        rows = stream_sums(opened, context, self._identity.name, listing.entries)
        at = (header.round, header.attempt)
        envelope = study.envelope("answer", at, ledger=anchor, receipts=(message.identity,))
        content = rows.astype("<u8", copy=False).data
        return write_message(folder, self._identity, envelope, content, study.coordinator)

    def require_known(self, answers: Iterable[Path]) -> None:
        """Raise FileContentError where an answer that this helper signed is of an attempt that its log has no answer for.

        The log was put back then, and would let a second list pass. Files that others signed say nothing of this helper.
        """
        with self._log.locked() as log:
            unknown = [path for path in answers if not self._answered(log, peek(path)[0], attempt=True)]
        for path in filter(self._is_mine, unknown):
            raise FileContentError(
                f"{path}: an answer of {self._identity.name} that the log here doesn't know; expected one that it has: the home here was "
                "put back to an older time, or somebody else has the key: restore it"
            )

    def _is_mine(self, path: Path) -> bool:
        """Whether this helper signed an answer, in this study."""
        header = peek(path)[0]
        try:
            expected = self._study.expects("answer", round=header.round, attempt=header.attempt)
            return check_message(path, expected, self._study.roster)[0].sender == self._identity.name
        except FileContentError:
            return False

    def _open_seeds(
        self, closing: Path, listing: Closing, paths: Iterable[Path], context: MaskContext
    ) -> dict[str, bytes]:
        """Return the seeds of the listed sites, in the list's order, from the very messages that the list names."""
        name = self._identity.name
        expected = self._study.expects("seed", recipient=name, round=context.round, attempt=context.attempt)
        wanted = {one.seeds[name]: one.site for one in listing.listed}
        opened: dict[str, bytes] = {}
        for path in paths:
            try:
                known = peek(path)[1]
            except FileContentError:
                continue  # whatever lies there, it is no seed of the list
            if known in wanted:
                message = read_message(path, expected, self._study.roster, SEED_BYTES, self._identity)
                site = wanted[known]
                if message.header.sender != site:
                    raise FileContentError(f"{path}: sender {message.header.sender}; expected {site}, as the list says")
                if len(message.content) != SEED_BYTES:
                    raise FileContentError(
                        f"{path}: {len(message.content)} bytes; expected a seed of {SEED_BYTES}: ask {site}"
                    )
                opened[site] = bytes(message.content)
        missing = [site for site in listing.sites if site not in opened]
        if missing:
            raise FileContentError(
                f"{closing}: no seed of {', '.join(missing)[:200]} is here that the list names; expected one of every listed site: "
                "get them, or let the coordinator void the round"
            )
        return {site: opened[site] for site in listing.sites}

    def _refuse_another_list(self, closing: Path, log: OpenLog, header: Header, listing: Closing) -> None:
        for event in self._answered(log, header, attempt=False):
            same_attempt = event["attempt"] == header.attempt
            if event["sites"] != list(listing.sites) or (same_attempt and event["list"] != header.sha256):
                raise FileContentError(
                    f"{closing}: round {header.round} was answered in attempt {event['attempt']} for {len(event['sites'])} sites, "
                    f"list {event['list'][:16]}; found {len(listing.sites)} sites, list {header.sha256[:16]}: a second list would "
                    "give sites away; ask the coordinator"
                )

    def _answered(self, log: OpenLog, header: Header, *, attempt: bool) -> list[Any]:
        """Return the answers to this round, or to this attempt of it."""
        events = [entry.event for entry in log.entries if entry.event.get("event") == ANSWER]
        return [
            event
            for event in events
            # Two studies on one plan ask for the same vectors, so a plan's round has one list, whatever the study.
            if header.plan_id == event["plan"]
            and header.round == event["round"]
            and (not attempt or event["attempt"] == header.attempt)
        ]

    def _event(self, message: Message, listing: Closing) -> dict[str, Any]:
        header = message.header
        return {
            "event": ANSWER,
            "study": header.study,
            "plan": header.plan_id,
            "round": header.round,
            "attempt": header.attempt,
            "closing": message.identity,
            "list": header.sha256,
            "sites": list(listing.sites),
        }
