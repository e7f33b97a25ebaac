"""What a site sends in an attempt of a round: a seed to each helper, and its masked vector to the coordinator, sealed to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distqexp.arrays import IntegerArray
from distqexp.errors import UsageError
from distqexp.federation.header import NO_ENTRIES
from distqexp.federation.keys import Identity
from distqexp.federation.masks import MaskContext, fresh_seeds, masked
from distqexp.federation.messages import write_message
from distqexp.federation.study import Study
from distqexp.privacy.ledger.head import Anchor


@dataclass(frozen=True)
class Contribution:
    """The files of one contribution: the masked vector's, and the seed's for each helper."""

    masked: Path
    seeds: Mapping[str, Path]


def contribute(
    study: Study,
    identity: Identity,
    vector: IntegerArray,
    attempt: tuple[int, int],
    folder: Path,
    ledger: Anchor = NO_ENTRIES,
) -> Contribution:
    """Mask a site's vector under fresh seeds, and write everything that the site sends.

    Args:
        study: The study.
        identity: The site's keys.
        vector: The site's integers, int64 (k,). Private. A repeat of the round must pass the same ones, noise included.
        attempt: The round, and its attempt.
        folder: Where the messages are written.
        ledger: The newest entry of the site's ledger.

    Raises:
        UsageError: The identity is none of the study's sites, the study has no masks, or the vector is not as it should be.
        StorageError: A file can't be written.
    """
    if study.roster.get(identity.name) != identity.card or identity.name not in study.site_names:
        raise UsageError(
            f"study {study.name}: {identity.name} with key {identity.card.signing[:16]}; expected one of its sites"
        )
    context = MaskContext.of(study, *attempt)
    seeds = fresh_seeds(context)
    rows = masked(vector, seeds, context, identity.name)
    paths: dict[str, Path] = {}
    receipts: list[str] = []
    for card in study.helpers:
        envelope = study.envelope("seed", attempt, recipient=card.name, ledger=ledger)
        paths[card.name], known = write_message(folder, identity, envelope, seeds[card.name], card)
        receipts.append(known)
    envelope = study.envelope("masked", attempt, ledger=ledger, receipts=tuple(receipts))
    path, _ = write_message(folder, identity, envelope, rows.astype("<u8", copy=False).data, study.coordinator)
    return Contribution(path, paths)
