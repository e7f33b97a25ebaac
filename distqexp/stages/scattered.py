"""The release of sums that are scattered by blocks over the ranks: charged and committed by the root, with noise drawn by all ranks.

A rank has the exact sums of its own blocks alone (on a resume the root also reads those of earlier sketch files). It adds their
noise, and only noisy sums travel to the root. What crosses before are the digests by which the ledger recognises the sums and, once
it is stored, the source of the noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray, NewArrays, blocks_of
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root, on_root_only, require
from distqexp.mechanism.blocks import Source, new_source
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.ledger.books import Reservation
from distqexp.privacy.ledger.recognised import BlockDigests, block_digest
from distqexp.stages.charging import Charging, charge
from distqexp.stages.release import stored_draw
from distqexp.stages.sampling import forgetting_refused

OwnSums = Mapping[int, IntegerArray]
"""The exact sums of a rank's own blocks, by the numbers of these. Private."""


def draw_by_blocks(
    plan: Plan, state: RoundState, own: IntegerArray, basis: bytes, charging: Charging | None, engine: Engine
) -> IntegerArray | None:
    """Return the noisy sums (plan.coordinates,) of a round on the root, None elsewhere, by the steps of ``draw_release``. Collective.

    The coins of a sampled round stay: without a quadratic a resumed run needs them until the release is stored.

    Args:
        plan: The plan, whose noise is drawn by blocks.
        state: The state of the round.
        own: The exact sums of this rank's blocks, one after the other, int64. Private.
        basis: What the parts of the units depend on, see ``Partition``. Private.
        charging: The ledger to charge, on the root; None elsewhere.
        engine: The engine.

    Raises:
        BudgetError: The population's cap doesn't allow the release.
        StoppedError: A stop was requested; a draw that is stored is used on ``--resume``.
    """
    rule, sums = plan.rule(state), _by_number(own, engine.own_blocks(plan.coordinates))
    numbers = range(len(blocks_of(plan.coordinates)))
    digests = tuple(digest.tobytes() for digest in engine.collect(_digest, sums, numbers))
    reservations: list[Reservation] = []

    def pay() -> NewArrays:
        books, known = require(charging), BlockDigests(plan.coordinates, digests)
        with forgetting_refused(plan, books, "release", state.round):
            reservation = charge(plan, state, known, books, "release", basis=basis)
        reservations.append(reservation)
        if reservation.state == "committed":
            return {}
        seed = books.noise_seed
        return {"source": stored_draw(books, reservation, lambda: new_source(rule.noise, seed, state.round))}

    source = arrays_from_root(engine, pay).get("source")
    noisy_sums: IntegerArray | None = None
    if source is not None:
        found = engine.collect(partial(_noisy, rule=rule, source=source), sums, numbers)
        noisy_sums = _assembled(found, plan.coordinates, engine)

    def commit() -> IntegerArray:
        books, (reservation,) = require(charging), reservations
        if noisy_sums is not None:
            books.ledger.commit(reservation, noisy_sums)
        return np.asarray(books.ledger.noisy_sums(reservation)) if noisy_sums is None else noisy_sums

    return on_root_only(engine, commit)


def _by_number(own: IntegerArray, places: Sequence[tuple[int, slice]]) -> OwnSums:
    sums, first = {}, 0
    for number, place in places:
        sums[number] = own[first : first + place.stop - place.start]
        first += place.stop - place.start
    return sums


def _digest(sums: OwnSums, number: int) -> FloatArray:
    return np.frombuffer(block_digest(sums[number]), dtype=np.float64)  # 32 bytes: engines collect them as four float64


def _noisy(sums: OwnSums, number: int, *, rule: ReleaseRule, source: Source) -> FloatArray:
    return rule.noisy_block(sums[number], source, number).view(np.float64)  # the same bits


def _assembled(blocks: Iterable[FloatArray], length: int, engine: Engine) -> IntegerArray | None:
    """Return the vector of all blocks on the root. Every rank has to go through the ``blocks`` that it collects."""
    whole = np.empty(length if engine.is_root else 0, dtype=np.int64)
    for block, place in zip(blocks, blocks_of(length), strict=engine.is_root):
        whole[place] = block.view(np.int64)
    return whole if engine.is_root else None
