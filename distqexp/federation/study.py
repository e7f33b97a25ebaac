"""A study: who takes part, what is computed under which guarantee, and whom a site has to trust. Public, signed, fixed.

A study is TOML in one canonical form, so that it has one identity. The coordinator signs it; every later message carries its
identity, so nothing of it can change afterwards: no party, no mode of trust, no figure.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.header import COORDINATOR, DIGEST, HELPER, KINDS, LARGEST_COUNT, NO_ENTRIES, SITE, Envelope
from distqexp.federation.keys import Card, Identity, require_name
from distqexp.federation.messages import Expected, peek, read_message, write_message
from distqexp.federation.quorum import COUNTS
from distqexp.kinds import Adjacency
from distqexp.privacy.ledger.head import Anchor
from distqexp.storage.canonical import canonical_json

SCHEMA = 1
LARGEST_STUDY = 1 << 22
"""The bytes that a study has at most; one of 200 sites takes 80 thousand."""

_CARD_FIELDS = ("name", "signing", "agreement", "signature")


class Trust(StrEnum):
    """Whom a site has to trust. The value is the text that stands in studies."""

    CURATOR = "trusted-curator"
    """The coordinator sees every site's exact sums, and draws the noise."""
    MASKS = "helper-masks"
    """The coordinator sees the exact sum of all sites alone, and draws the noise."""
    SHARED_NOISE = "helper-masks-distributed-noise"
    """The coordinator sees the noisy sum alone; every site draws a share of the noise."""

    @property
    def has_masks(self) -> bool:
        """Whether helpers are needed."""
        return self is not Trust.CURATOR


@dataclass(frozen=True)
class Study:
    """A study. Every field is public.

    Attributes:
        name: Its name.
        plan_id: The plan, which fixes the model, the rules and all noise.
        model: The SHA-256 of the pretrained weights, by which each site knows its own copy.
        coordinator: The card of the coordinator.
        sites: The cards of the sites, at most one a site.
        helpers: The cards of the helpers; a site may be one, the coordinator may not.
        k_min: The least number of sites whose sums are ever added up and released.
        epsilon: The epsilon of the whole study.
        delta: The delta of the whole study.
        unit: What is protected: the column of the unit ids, or "record".
        adjacency: Which datasets are neighbours.
        presence: At how many sites a unit may be.
        rounds: The number of rounds.
        trust: The mode of trust.
        tolerated: How many sites may be missing or collude, together, before distributed noise falls short; 0 in other modes.
    """

    name: str
    plan_id: str
    model: str
    coordinator: Card
    sites: tuple[Card, ...]
    helpers: tuple[Card, ...]
    k_min: int
    epsilon: float
    delta: float
    unit: str
    adjacency: Adjacency
    presence: int
    rounds: int
    trust: Trust
    tolerated: int = 0

    def __post_init__(self) -> None:
        """Check every field and how they fit together. Raises UsageError."""
        require_name(self.name)
        for field in ("plan_id", "model"):
            digest = getattr(self, field)
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise UsageError(f"study {self.name}: {field} {ascii(digest)[:80]}; expected 64 hexadecimal digits")
        if not isinstance(self.unit, str) or not 1 <= len(self.unit) <= 100 or not self.unit.isprintable():
            raise UsageError(f"study {self.name}: unit {ascii(self.unit)[:80]}; expected a column of ids, or record")
        self._check_parties()
        self._check_figures()
        self._check_trust()

    @property
    def study_id(self) -> str:
        """The identity of the study: the SHA-256 of its canonical form."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def roster(self) -> dict[str, Card]:
        """The cards of all parties by name."""
        return {card.name: card for card in (self.coordinator, *self.sites, *self.helpers)}

    @property
    def roster_digest(self) -> str:
        """The SHA-256 of the cards of all parties in their roles."""
        lists = [[self.coordinator], self.sites, self.helpers]
        return hashlib.sha256(canonical_json([[card.tree() for card in cards] for cards in lists])).hexdigest()

    @property
    def site_names(self) -> tuple[str, ...]:
        """The names of the sites, in the study's order."""
        return tuple(card.name for card in self.sites)

    @property
    def helper_names(self) -> tuple[str, ...]:
        """The names of the helpers, in the study's order."""
        return tuple(card.name for card in self.helpers)

    def expects(
        self, kind: str, *, recipient: str | None = None, round: int | None = None, attempt: int | None = None
    ) -> Expected:
        """Return what a message of a kind has to be in this study; its senders are those who have the role for it.

        ``recipient`` is named where it is a helper. Raises UsageError for a kind that the mode of trust does not have.
        """
        to = self._recipient(kind, recipient)
        return Expected(kind, self.study_id, self.plan_id, self._names(KINDS[kind].sender), to, round, attempt)

    def envelope(
        self,
        kind: str,
        attempt: tuple[int, int] = (0, 0),
        *,
        recipient: str | None = None,
        ledger: Anchor = NO_ENTRIES,
        receipts: tuple[str, ...] = (),
    ) -> Envelope:
        """Return the envelope of a message in this study.

        Args:
            kind: The kind.
            attempt: The round, and its attempt.
            recipient: The name of the recipient, where it is a helper.
            ledger: The newest entry of the sender's ledger or log.
            receipts: The identities of messages that the sender acknowledges or builds on.

        Raises:
            UsageError: The mode of trust does not have the kind, or the recipient has not the role for it.
        """
        to = self._recipient(kind, recipient)
        return Envelope(kind, self.study_id, self.plan_id, *attempt, to, ledger, receipts)

    def to_bytes(self) -> bytes:
        """Return the canonical form: TOML with the fields in one order."""
        figures = (
            "plan_id",
            "model",
            "k_min",
            "epsilon",
            "delta",
            "unit",
            "adjacency",
            "presence",
            "rounds",
            "trust",
            "tolerated",
        )
        lines = [f"schema = {SCHEMA}", f"name = {_toml(self.name)}"]
        lines += [f"{field} = {_toml(getattr(self, field))}" for field in figures]
        tables = [("[coordinator]", self.coordinator)]
        tables += [("[[sites]]", card) for card in self.sites] + [("[[helpers]]", card) for card in self.helpers]
        for heading, card in tables:
            lines += ["", heading, *(f"{field} = {_toml(getattr(card, field))}" for field in _CARD_FIELDS)]
        return ("\n".join(lines) + "\n").encode()

    @staticmethod
    def parse(path: Path, content: bytes) -> Study:
        """Return the study that the bytes are the canonical form of. Raises FileContentError."""
        try:
            tree = tomllib.loads(content.decode("utf-8"))
            schema = tree.pop("schema")
            if schema != SCHEMA:
                raise FileContentError(
                    f"{path}: schema {ascii(schema)[:20]}, this distqexp reads {SCHEMA}; make it again"
                )
            cards = {field: [Card(**card) for card in tree.pop(field, [])] for field in ("sites", "helpers")}
            study = Study(
                coordinator=Card(**tree.pop("coordinator")),
                sites=tuple(cards["sites"]),
                helpers=tuple(cards["helpers"]),
                adjacency=Adjacency(tree.pop("adjacency")),
                trust=Trust(tree.pop("trust")),
                **tree,
            )
            canonical = study.to_bytes()
        except UsageError as error:
            raise FileContentError(f"{path}: the study is refused: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FileContentError(f"{path}: it is no study, or damaged; expected one that distqexp wrote") from None
        if canonical != content:
            raise FileContentError(f"{path}: the study is not in its canonical form; expected it as distqexp wrote it")
        return study

    def _names(self, role: str) -> tuple[str, ...]:
        return {COORDINATOR: (self.coordinator.name,), SITE: self.site_names, HELPER: self.helper_names}[role]

    def _recipient(self, kind: str, recipient: str | None) -> str | None:
        """Return to whom a message of a kind goes. A study never falls back to a mode in which sites are less protected."""
        masks = KINDS[kind].masks
        if masks is not None and masks != self.trust.has_masks:
            raise UsageError(
                f"study {self.name}: a {kind} with trust {str(self.trust)!r}; expected none: the study fixes its mode"
            )
        role = KINDS[kind].recipient
        if role is None:
            return None
        names = self._names(role)
        to = names[0] if recipient is None and role == COORDINATOR else recipient
        if to not in names:
            raise UsageError(f"study {self.name}: a {kind} for {to}; expected {' or '.join(names[:5])}")
        return to

    def _check_parties(self) -> None:
        """Refuse one party under two names, two parties under one, and a coordinator that is a helper."""
        if not self.sites:
            raise UsageError(f"study {self.name}: no sites; expected at least one")
        for role, cards in (("site", self.sites), ("helper", self.helpers)):
            names = [card.name for card in cards]
            if len(set(names)) < len(names):
                raise UsageError(
                    f"study {self.name}: the same {role} twice in {', '.join(names)[:200]}; expected each once"
                )
        seen: dict[str, Card] = {}
        for card in (self.coordinator, *self.sites, *self.helpers):
            for mark in (f"name {card.name.lower()}", f"key {card.signing}", f"key {card.agreement}"):
                if seen.setdefault(mark, card) != card:
                    raise UsageError(
                        f"study {self.name}: {card.name} and {seen[mark].name} share the {mark[:24]}; expected names that differ "
                        "in more than case, and a party's keys under one name"
                    )
        if self.coordinator.name in self.helper_names:
            raise UsageError(
                f"study {self.name}: {self.coordinator.name} is coordinator and helper; expected a helper that is not the "
                "coordinator: it could take the masks off"
            )

    def _check_figures(self) -> None:
        for field, most in (("k_min", len(self.sites)), ("presence", len(self.sites)), ("rounds", LARGEST_COUNT)):
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value <= most:
                raise UsageError(
                    f"study {self.name}: {field} {ascii(value)[:40]}; expected a whole number from 1 to {most}"
                )
        if type(self.tolerated) is not int or not 0 <= self.tolerated < len(self.sites):
            raise UsageError(
                f"study {self.name}: tolerated {ascii(self.tolerated)[:40]}; expected a whole number from 0 to "
                f"{len(self.sites) - 1}, fewer than the sites"
            )
        if type(self.epsilon) is not float or not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise UsageError(
                f"study {self.name}: epsilon {ascii(self.epsilon)[:40]}; expected a number above 0, such as 2.0"
            )
        if type(self.delta) is not float or not 0 <= self.delta < 1:
            raise UsageError(
                f"study {self.name}: delta {ascii(self.delta)[:40]}; expected a number from 0.0 to below 1"
            )

    def _check_trust(self) -> None:
        """Refuse modes that do not keep what they promise."""
        helpers, sites = len(self.helpers), len(self.sites)
        wanted = COUNTS if self.trust.has_masks else (0,)
        if helpers not in wanted:
            raise UsageError(
                f"study {self.name}: {helpers} helpers; expected {', '.join(map(str, wanted))} with trust {str(self.trust)!r}"
            )
        if self.trust.has_masks and self.k_min < 2:
            raise UsageError(
                f"study {self.name}: k_min 1 with masks; expected 2 or more: a sum of one site hides nothing"
            )
        if self.trust is not Trust.SHARED_NOISE:
            if self.tolerated:
                raise UsageError(
                    f"study {self.name}: tolerated {self.tolerated} with trust {str(self.trust)!r}; expected 0: the coordinator "
                    "draws the noise, whoever is missing"
                )
            return
        if self.tolerated < 1:
            raise UsageError(
                f"study {self.name}: tolerated 0 with distributed noise; expected 1 or more: every site knows its own share"
            )
        if self.k_min < sites - self.tolerated:
            raise UsageError(
                f"study {self.name}: k_min {self.k_min} with {sites} sites of which {self.tolerated} may be missing; expected "
                f"{sites - self.tolerated} or more: fewer have too little noise"
            )
        if self.delta == 0:
            raise UsageError(f"study {self.name}: delta 0.0 with distributed noise; expected more than 0")


def sign_study(study: Study, identity: Identity, folder: Path) -> tuple[Path, str]:
    """Write the study as the coordinator's signed message; return its path and the message's identity.

    Raises UsageError where the identity is not the coordinator's.
    """
    if identity.card != study.coordinator:
        raise UsageError(
            f"study {study.name}: signed by {identity.name}; expected its coordinator {study.coordinator.name}"
        )
    return write_message(folder, identity, study.envelope("study"), study.to_bytes())


def read_study(path: Path, coordinator: Card) -> Study:
    """Read a signed study, of a coordinator whose card the reader has from elsewhere. Raises FileContentError."""
    claimed, _ = peek(path)
    if claimed.sender != coordinator.name:
        raise FileContentError(
            f"{path}: the card given is {coordinator.name}'s, and the study's coordinator is {claimed.sender}; expected the card of "
            f"{claimed.sender}: get it in another way than the study"
        )
    expected = Expected("study", claimed.study, claimed.plan_id, (coordinator.name,), None, 0, 0)
    message = read_message(path, expected, {coordinator.name: coordinator}, LARGEST_STUDY)
    study = Study.parse(path, bytes(message.content))
    pairs: Sequence[tuple[str, Any, Any]] = (
        ("study", message.header.study, study.study_id),
        ("plan_id", message.header.plan_id, study.plan_id),
        ("coordinator's key", study.coordinator.signing, coordinator.signing),
        ("coordinator's agreement key", study.coordinator.agreement, coordinator.agreement),
    )
    for what, found, wanted in pairs:
        if found != wanted:
            raise FileContentError(
                f"{path}: {what} {found}; expected {wanted}: ask {coordinator.name} for the study again"
            )
    return study


def _toml(value: str | int | float) -> str:
    """Return a text or a finite number as TOML; a text is printable, so JSON escapes nothing that TOML does not."""
    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, str) else repr(value)
