"""Masks with helpers: a site's vector plus streams of random numbers, which helpers take off from sums over sites alone.

A site draws a seed per helper and round. For every group of helpers that is a quorum it sends its vector plus one stream of each
of these helpers' seeds, modulo 2^64: one masked vector with two helpers, three with three (any two of them unmask one), four
with four (any three do). A stream belongs to one group: what a helper says about a list of sites for one group tells nothing
about another, so helpers that are shown different lists give nothing away (docs/proofs/consortium.md, section 3). Sums are
exact: arithmetic is that of integers modulo 2^64, like the wrapping of int64.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from distqexp.arrays import IntegerArray
from distqexp.errors import FileContentError, UsageError
from distqexp.federation.quorum import quorum
from distqexp.federation.sealing import derived
from distqexp.federation.study import Study
from distqexp.storage.canonical import canonical_json

SEED_BYTES = 32
LARGEST_VECTOR = 1 << 31
"""The entries that a masked vector has at most, well within one ChaCha20 stream of 2^38 bytes."""

WordArray = NDArray[np.uint64]
"""Integers modulo 2^64."""

_BLOCK = 1 << 16
"""How many numbers of a stream are made at a time."""


@dataclass(frozen=True)
class MaskContext:
    """What a mask is bound to. Public.

    Attributes:
        study: The identity of the study.
        plan_id: The plan.
        round: The round.
        attempt: The attempt of the round.
        roster: The digest of all cards in their roles.
        helpers: The names of the helpers, in the study's order.
    """

    study: str
    plan_id: str
    round: int
    attempt: int
    roster: str
    helpers: tuple[str, ...]

    @staticmethod
    def of(study: Study, round: int, attempt: int) -> MaskContext:
        """Return the context of one attempt of a round. Raises UsageError for a study without masks or a round out of range."""
        if not study.trust.has_masks:
            raise UsageError(f"study {study.name}: trust {str(study.trust)!r}; expected one with masks")
        if not 0 <= round < study.rounds:
            raise UsageError(f"study {study.name}: round {round}; expected 0 to {study.rounds - 1}")
        return MaskContext(study.study_id, study.plan_id, round, attempt, study.roster_digest, study.helper_names)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The groups of helpers that are a quorum; each can unmask one of a site's masked vectors."""
        return tuple(combinations(self.helpers, quorum(len(self.helpers))))

    def groups_of(self, helper: str) -> tuple[tuple[str, ...], ...]:
        """Return the groups that a helper belongs to."""
        return tuple(group for group in self.groups if helper in group)

    def label(self, purpose: str, site: str, helper: str, *more: str) -> bytes:
        """Return the bytes that a key is bound to."""
        fields: list[Any] = [purpose, self.study, self.plan_id, self.round, self.attempt, self.roster]
        return b"distqexp masks 1\n" + canonical_json([*fields, list(self.helpers), site, helper, *more])


def fresh_seeds(context: MaskContext) -> dict[str, bytes]:
    """Return a new secret seed per helper, from the operating system's entropy."""
    return {helper: os.urandom(SEED_BYTES) for helper in context.helpers}


def masked(vector: IntegerArray, seeds: Mapping[str, bytes], context: MaskContext, site: str) -> WordArray:
    """Return a site's masked vectors, one row for each group of helpers that is a quorum.

    Args:
        vector: The site's integers, int64 (k,). Private.
        seeds: The secret seed of every helper, drawn for this vector and never used again.
        context: What the masks are bound to.
        site: The name of the site.

    Returns:
        uint64 (groups, k). Where a seed of every group is unknown it is uniform, whatever the vector is.
    """
    if vector.dtype != np.int64 or vector.ndim != 1 or not 1 <= vector.size <= LARGEST_VECTOR:
        raise UsageError(f"vector of type {vector.dtype} and shape {vector.shape}; expected int64 and one dimension")
    rows = np.tile(vector.view(np.uint64), (len(context.groups), 1))
    for row, group in zip(rows, context.groups, strict=True):
        for helper in group:
            _add_stream(row, seeds[helper], context, site, helper, group)
    return rows


def stream_sums(seeds: Mapping[str, bytes], context: MaskContext, helper: str, size: int) -> WordArray:
    """Return what a helper answers: for each of its groups, the sum of its streams over the sites.

    Args:
        seeds: The helper's secret seed of each listed site, by the name of the site.
        context: What the masks are bound to.
        helper: The name of the helper.
        size: The entries of a vector.

    Returns:
        uint64 (groups of the helper, size).
    """
    groups = context.groups_of(helper)
    rows = np.zeros((len(groups), size), dtype=np.uint64)
    for site, seed in seeds.items():
        for row, group in zip(rows, groups, strict=True):
            _add_stream(row, seed, context, site, helper, group)
    return rows


def unmasked(total: WordArray, answers: Mapping[str, WordArray], context: MaskContext) -> IntegerArray:
    """Return the sum over the listed sites, int64 (k,).

    Args:
        total: The sum of the listed sites' masked vectors, uint64 (groups, k).
        answers: The answers of a quorum of helpers, or more, for the same list.
        context: What the masks are bound to.

    Raises:
        FileContentError: Fewer helpers answered than a quorum, or the answers of more don't fit together.
    """
    found: IntegerArray | None = None
    for number, group in enumerate(context.groups):
        if not all(helper in answers for helper in group):
            continue
        row = total[number].copy()
        for helper in group:
            row -= answers[helper][context.groups_of(helper).index(group)]
        sums = row.view(np.int64)
        if found is not None and not np.array_equal(found, sums):
            raise FileContentError(
                f"answers of {', '.join(sorted(answers))}: the groups of helpers give different sums; expected the same: a helper "
                "or a site is at fault; ask all of them, and void the round"
            )
        found = sums
    if found is None:
        raise FileContentError(
            f"answers of {', '.join(sorted(answers)) or 'no helper'}; expected those of {quorum(len(context.helpers))} helpers"
        )
    return found


def _add_stream(
    row: WordArray, seed: bytes, context: MaskContext, site: str, helper: str, group: Sequence[str]
) -> None:
    """Add a stream to a row, in place. Each key is used for one stream, so the nonce may be constant."""
    key = derived(seed, context.label("mask", site, helper, *group))
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    zeros = bytes(8 * min(_BLOCK, row.size))
    for first in range(0, row.size, _BLOCK):
        part = row[first : first + _BLOCK]
        part += np.frombuffer(encryptor.update(zeros[: 8 * part.size]), dtype="<u8")
