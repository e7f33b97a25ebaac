"""The secret sample of a sampled round: coins on the root, and the shards with the slots that were drawn. Nothing here is public."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from distqexp.arrays import BoolArray, NewArrays
from distqexp.artefacts.derived import sample_failure
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.errors import BudgetError
from distqexp.mechanism.coins import toss_coins, toss_insecure_coins
from distqexp.privacy.ledger.coins import CoinOwner
from distqexp.problem.identity import Digest, plain_digest
from distqexp.problem.sampling import room_for_sample, sampled_slots
from distqexp.problem.slots import SlotMap
from distqexp.stages.charging import Charging, round_key
from distqexp.stages.shards import Shards

Toss = Callable[[RoundState, str, int, str], BoolArray]
"""``toss(state, shard, units, fingerprint)`` returns the coins of a round for the units of a shard, (units,); runs on the root."""


@dataclass(frozen=True)
class Secrets:
    """What only the keeper of the private shards can do.

    Attributes:
        digest: The digest of the records' fingerprints, called on the root.
        toss: Tosses the coins of a sampled round; None where no round is sampled.
    """

    digest: Digest = plain_digest
    toss: Toss | None = None


def secrets_of(plan: Plan, charging: Charging | None, role: str) -> Secrets:
    """Return the secrets of a run or a site: a keyed digest, and coins that its ledger keeps until they are forgotten.

    Args:
        plan: The plan.
        charging: The ledger and its books, on the root; None elsewhere, where nothing is asked of the secrets.
        role: Who charges: "release" at the curator, "site-SHARD" at a site.
    """
    if charging is None:
        return Secrets()
    ledger, seed, sampling = charging.ledger, charging.noise_seed, plan.config.mechanism.sampling

    def toss(state: RoundState, shard: str, units: int, fingerprint: str) -> BoolArray:
        if seed is not None:
            return toss_insecure_coins(units, sampling, seed, state.round, shard)
        records = f"{state.identity()}/{fingerprint}".encode()
        return ledger.coins(
            coin_owner(plan, charging, role, state.round), shard, records, lambda: toss_coins(units, sampling)
        )

    return Secrets(ledger.keyed_digest, toss)


def coin_owner(plan: Plan, charging: Charging, role: str, round: int) -> CoinOwner:
    """Return the round that the ledger keeps coins for."""
    return CoinOwner(charging.universe, charging.population_of(plan), round_key(plan, round, role))


def forget_coins(plan: Plan, charging: Charging, role: str, rounds: range) -> None:
    """Erase the coins of rounds whose sums are released or handed on."""
    if plan.config.mechanism.sampled:
        for round in rounds:
            charging.ledger.forget_coins(coin_owner(plan, charging, role, round))


@contextmanager
def forgetting_refused(plan: Plan, charging: Charging, role: str, round: int) -> Iterator[None]:
    """Erase the coins of a round whose charge, inside, the ledger refuses: nothing will ever be released with them."""
    try:
        yield
    except BudgetError:
        forget_coins(plan, charging, role, range(round, round + 1))
        raise


def insecure_toss(plan: Plan, noise_seed: int) -> Toss:
    """Return coins for rehearsals on public records. NOT PRIVATE."""
    sampling = plan.config.mechanism.sampling
    return lambda state, shard, units, _: toss_insecure_coins(units, sampling, noise_seed, state.round, shard)


def drawn_shards(plan: Plan, state: RoundState, shards: Shards, secrets: Secrets, engine: Engine) -> Shards:
    """Return the shards with the slots of the units that take part in a round. Collective.

    Without sampled rounds these are the shards themselves. The slots are filled up to a size that the slot map alone
    determines; the fingerprints include the coins, so that no checkpoint of other coins is ever taken up.
    """
    toss, mechanism = secrets.toss, plan.config.mechanism
    if not mechanism.sampled:
        return shards
    micro_batch, failure = plan.config.engine.micro_batch, sample_failure(plan.config)

    def draw() -> NewArrays:
        if toss is None:
            raise ValueError("a sampled round without coins; expected secrets that toss them")
        arrays: NewArrays = {}
        for i, (source, mark) in enumerate(zip(shards.sources, shards.fingerprints, strict=True)):
            coins = toss(state, source.data.shard or "all", source.slots.units, mark)
            room = room_for_sample(source.slots, micro_batch, mechanism.sampling, failure)
            slots = sampled_slots(source.slots, coins, micro_batch, room)
            coin_digest = secrets.digest(mark.encode(), b"coins", np.packbits(coins).tobytes())
            arrays |= {
                f"rows-{i}": slots.rows,
                f"unit-{i}": slots.unit,
                f"mark-{i}": np.frombuffer(coin_digest.hex().encode(), dtype=np.uint8),
            }
        return arrays

    drawn = arrays_from_root(engine, draw)
    sources = tuple(
        dataclasses.replace(source, slots=SlotMap(rows=drawn[f"rows-{i}"], unit=drawn[f"unit-{i}"]))
        for i, source in enumerate(shards.sources)
    )
    return Shards(sources, tuple(bytes(drawn[f"mark-{i}"]).decode() for i in range(len(sources))))
