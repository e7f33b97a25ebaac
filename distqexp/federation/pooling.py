"""What a coordinator does with masked vectors: it takes one of each site, closes the attempt, and unmasks the sum alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distqexp.arrays import IntegerArray
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.closing import LARGEST_CLOSING, Closing, Listed
from distqexp.federation.header import NO_ENTRIES
from distqexp.federation.keys import Identity
from distqexp.federation.masks import MaskContext, WordArray, unmasked
from distqexp.federation.messages import Message, read_message, write_message
from distqexp.federation.receiving import Taken
from distqexp.federation.study import Study
from distqexp.privacy.ledger.head import Anchor


class Pool:
    """The masked vectors of one attempt of a round, added up as they come. One vector is in memory at a time."""

    def __init__(
        self, study: Study, identity: Identity, attempt: tuple[int, int], entries: int, taken: Taken | None = None
    ) -> None:
        """Begin with no site. ``identity`` has the coordinator's keys; ``taken`` remembers messages over rounds.

        Raises UsageError where the identity is not the coordinator's, and for a round that the study lacks.
        """
        if identity.card != study.coordinator:
            raise UsageError(
                f"study {study.name}: pooled by {identity.name}; expected its coordinator {study.coordinator.name}"
            )
        self._study = study
        self._identity = identity
        self._attempt = attempt
        self._taken = Taken() if taken is None else taken
        self._context = MaskContext.of(study, *attempt)
        self._entries = entries
        self._listed: dict[str, Listed] = {}
        self._total: WordArray = np.zeros((len(self._context.groups), entries), dtype=np.uint64)
        self._closing = ""
        self._answers: dict[str, WordArray] = {}

    @property
    def masked_bytes(self) -> int:
        """The bytes of a site's masked vectors."""
        return self._total.nbytes

    def add(self, path: Path) -> bool:
        """Take a site's masked vector; False where it was taken before.

        Raises FileContentError where it is not what this attempt expects, is a second one of its site, or comes after the closing.
        """
        study, (round, attempt) = self._study, self._attempt
        expected = study.expects("masked", round=round, attempt=attempt)
        return self.add_message(path, read_message(path, expected, study.roster, self.masked_bytes, self._identity))

    def add_message(self, path: Path, message: Message) -> bool:
        """Take a masked vector of this attempt that was read and checked already; otherwise as ``add``."""
        study, (round, attempt), header = self._study, self._attempt, message.header
        if len(message.content) != self.masked_bytes:
            raise FileContentError(
                f"{path}: {len(message.content)} bytes; expected {self.masked_bytes} of {self._entries} entries"
            )
        if len(header.receipts) != len(study.helpers):
            raise FileContentError(
                f"{path}: {len(header.receipts)} seeds; expected one for each of {len(study.helpers)} helpers"
            )
        if self._closing and header.sender not in self._listed:
            raise FileContentError(
                f"{path}: {header.sender} came after round {round}, attempt {attempt} was closed; it is not in it"
            )
        if not self._taken.take(path, header, message.identity):
            return False
        seeds = dict(zip(study.helper_names, header.receipts, strict=True))
        self._listed[header.sender] = Listed(header.sender, message.identity, seeds)
        self._total += np.frombuffer(message.content, dtype="<u8").reshape(self._total.shape)
        return True

    def close(self, folder: Path, ledger: Anchor = NO_ENTRIES) -> tuple[Path, str]:
        """Write the signed list of the sites that were taken; nothing can be added afterwards. Returns its path and identity.

        Raises UsageError where the sites are too few.
        """
        study = self._study
        if len(self._listed) < study.k_min:
            raise UsageError(
                f"study {study.name}: {len(self._listed)} sites sent their vectors; expected at least {study.k_min}: wait for "
                "others, or void the round"
            )
        envelope = study.envelope("closing", self._attempt, ledger=ledger)
        path, self._closing = write_message(folder, self._identity, envelope, self._list().to_bytes())
        return path, self._closing

    def closed_before(self, path: Path) -> None:
        """Go on from a closing that was written before, with the same vectors. Raises FileContentError where it lists others."""
        study, (round, attempt) = self._study, self._attempt
        expected = study.expects("closing", round=round, attempt=attempt)
        message = read_message(path, expected, study.roster, LARGEST_CLOSING)
        if Closing.parse(path, bytes(message.content), study) != self._list():
            raise FileContentError(
                f"{path}: it lists other vectors than the {len(self._listed)} here; expected the same: get them"
            )
        self._closing = message.identity

    def _list(self) -> Closing:
        return Closing(self._entries, tuple(self._listed[name] for name in sorted(self._listed)))

    def add_answer(self, path: Path, message: Message) -> None:
        """Take a helper's answer that was read and checked as a message.

        Raises FileContentError where it is to another list, or has another length.
        """
        self._answers[message.header.sender] = self._rows(path, message)

    def _rows(self, path: Path, message: Message) -> WordArray:
        if message.header.receipts != (self._closing,):
            receipt = message.header.receipts[0][:16] if message.header.receipts else "none"
            raise FileContentError(f"{path}: answers closing {receipt}; expected {self._closing[:16] or 'none yet'}")
        if len(message.content) != self.answer_bytes:
            raise FileContentError(
                f"{path}: {len(message.content)} bytes; expected {self.answer_bytes} of {self._entries} entries"
            )
        return np.frombuffer(message.content, dtype="<u8").reshape(-1, self._entries)

    @property
    def answer_bytes(self) -> int:
        """The bytes of a helper's answer."""
        return len(self._context.groups_of(self._context.helpers[0])) * 8 * self._entries

    def unmask(self, answers: Iterable[Path] = ()) -> IntegerArray:
        """Return the sum over the listed sites, int64 (entries,), from the answers of a quorum of helpers.

        ``answers`` are read beside those that were taken. Raises FileContentError where they don't fit together, see ``add_answer``.
        """
        study, (round, attempt) = self._study, self._attempt
        expected = study.expects("answer", round=round, attempt=attempt)
        found = dict(self._answers)
        for path in answers:
            message = read_message(path, expected, study.roster, self.answer_bytes, self._identity)
            found[message.header.sender] = self._rows(path, message)
        return unmasked(self._total, found, self._context)
