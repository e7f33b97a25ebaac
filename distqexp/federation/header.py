"""The header of a signed message: which kinds there are, who may send them, and how a header is read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.keys import NAME
from distqexp.privacy.ledger.head import FIRST_PREVIOUS, Anchor
from distqexp.storage.canonical import canonical_json

SCHEMA = 1
DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST_COUNT = 10**9
"""The largest round or attempt."""

NO_ENTRIES = Anchor(0, FIRST_PREVIOUS)
"""The newest entry of an empty ledger."""

COORDINATOR, SITE, HELPER = "coordinator", "site", "helper"


class Kind(NamedTuple):
    """What holds for all messages of a kind.

    Attributes:
        sender: The role of the sender.
        recipient: The role of the recipient, to whom alone the content is readable; None for everybody.
        masks: Whether it belongs to studies with masks, or to those without; None for both.
    """

    sender: str
    recipient: str | None
    masks: bool | None = None

    @property
    def sealed(self) -> bool:
        """Whether the content is sealed to its recipient; outside the file it is private then."""
        return self.recipient is not None


KINDS: Mapping[str, Kind] = {
    "study": Kind(COORDINATOR, None),
    "plan": Kind(COORDINATOR, None),
    "sketch": Kind(SITE, COORDINATOR, masks=False),
    "masked": Kind(SITE, COORDINATOR, masks=True),
    "seed": Kind(SITE, HELPER, masks=True),
    "closing": Kind(COORDINATOR, None),
    "answer": Kind(HELPER, COORDINATOR, masks=True),
    "sums": Kind(COORDINATOR, COORDINATOR),
    "release": Kind(COORDINATOR, None),
    "void": Kind(COORDINATOR, None),
}
"""Masked vectors are sealed too: less the helpers' answers they are the exact sum."""


@dataclass(frozen=True)
class Envelope:
    """The fields of a header that the sender chooses.

    Attributes:
        kind: One of KINDS.
        study: The identity of the study.
        plan_id: The plan that the study fixes.
        round: The round, from 0.
        attempt: The attempt of the round, from 0.
        recipient: The name of the party that it is for; None for everybody.
        ledger: The newest entry of the sender's ledger or log.
        receipts: The identities of messages that the sender acknowledges or builds on.
    """

    kind: str
    study: str
    plan_id: str
    round: int = 0
    attempt: int = 0
    recipient: str | None = None
    ledger: Anchor = NO_ENTRIES
    receipts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields. Raises UsageError."""
        if self.kind not in KINDS:
            raise UsageError(f"kind {ascii(self.kind)[:40]}: expected one of {', '.join(KINDS)}")
        for name in ("round", "attempt"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
                raise UsageError(f"{name} {ascii(value)[:40]}: expected a whole number from 0 to {LARGEST_COUNT}")
        for digest in (self.study, self.plan_id, *self.receipts):
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise UsageError(f"identity {ascii(digest)[:80]}: expected 64 hexadecimal digits")
        _require_recipient(self.kind, self.recipient)


@dataclass(frozen=True)
class Header(Envelope):
    """A whole header.

    Attributes:
        sender: The name of the party that signs.
        length: The bytes of the content, as it is in the file.
        sha256: The SHA-256 of the content, as it is in the file.
        nonce: 32 random bytes, so that no two messages have one identity.
    """

    sender: str = field(kw_only=True)
    length: int = field(kw_only=True)
    sha256: str = field(kw_only=True)
    nonce: str = field(kw_only=True)

    def __post_init__(self) -> None:
        """Check the fields. Raises UsageError."""
        super().__post_init__()
        if not isinstance(self.sender, str) or not NAME.fullmatch(self.sender):
            raise UsageError(f"sender {ascii(self.sender)[:80]}: expected the name of a party")
        if type(self.length) is not int or not 0 <= self.length < 1 << 62:
            raise UsageError(f"length {ascii(self.length)[:40]}: expected a number of bytes")
        for digest in (self.sha256, self.nonce):
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise UsageError("digest or nonce: expected 64 hexadecimal digits")

    @staticmethod
    def of(envelope: Envelope, sender: str, length: int, sha256: str) -> Header:
        """Return the header of a content, with a fresh nonce."""
        return Header(**vars(envelope), sender=sender, length=length, sha256=sha256, nonce=os.urandom(32).hex())

    def to_bytes(self) -> bytes:
        """Return the header as canonical JSON."""
        tree = {**vars(self), "schema": SCHEMA, "ledger": str(self.ledger), "receipts": list(self.receipts)}
        return canonical_json(tree)

    @staticmethod
    def parse(path: Path, text: bytes) -> Header:
        """Return the header that the bytes are the canonical form of. Raises FileContentError."""
        try:
            tree: dict[str, Any] = json.loads(text)
            schema = tree.pop("schema")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise FileContentError(f"{path}: its header can't be read; damaged: copy it again") from None
        if schema != SCHEMA:
            raise FileContentError(
                f"{path}: schema {ascii(schema)[:20]}, this distqexp reads {SCHEMA}; use the version that wrote it"
            )
        try:
            header = Header(**{**tree, "ledger": Anchor.parse(tree["ledger"]), "receipts": tuple(tree["receipts"])})
            canonical = header.to_bytes() == text
        except UsageError as error:
            raise FileContentError(f"{path}: its header is refused: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError):
            canonical = False
        if not canonical:
            raise FileContentError(f"{path}: its header is not as distqexp writes it; damaged or forged: get it again")
        return header


def _require_recipient(kind: str, recipient: str | None) -> None:
    addressed = KINDS[kind].recipient is not None
    if addressed != (recipient is not None) or (recipient is not None and not NAME.fullmatch(str(recipient))):
        wanted = "the name of a party" if addressed else "none, it is for everybody"
        raise UsageError(f"recipient {ascii(recipient)[:80]} of a {kind}: expected {wanted}")
