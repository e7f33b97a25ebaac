"""The methods of a ledger that keep the coins of sampled rounds, which are as secret as the noise."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from distqexp.arrays import BoolArray
from distqexp.privacy.ledger.books import Books
from distqexp.privacy.ledger.voiding import LedgerVoiding


class CoinOwner(NamedTuple):
    """The round that coins belong to.

    Attributes:
        universe: "private", or the name of a test run.
        population: The name that the budget is kept under.
        key: "ROLE/PLAN/ROUND".
    """

    universe: str
    population: str
    key: str


class LedgerCoins(LedgerVoiding):
    """The methods of a ledger for the coins of sampled rounds. Open one by ``Ledger.open``."""

    def coins(self, owner: CoinOwner, shard: str, records: bytes, toss: Callable[[], BoolArray]) -> BoolArray:
        """Return the coins of a round for the units of a shard, (units,); the first call tosses and stores them. Secret.

        A resumed round so takes the same units. Coins that were tossed for other records, or at another state of the round, are
        replaced: nothing that they chose was ever released, or their charge stands for itself.

        Args:
            owner: The round.
            shard: The name of the shard.
            records: What the coins were tossed for: the state of the round and the records. Private.
            toss: Tosses the coins.

        Raises:
            FileContentError: The stored coins were damaged.
        """
        name, seal = (
            self._coin_name(owner, shard),
            self._files.tag(b"coins", *(part.encode() for part in (*owner, shard))),
        )
        mark = np.frombuffer(self._files.tag(b"coin records", records), dtype=np.uint8)
        with self._chain.transaction():
            if self._files.exists("coins", name):
                stored = self._files.read("coins", name, seal)
                if hmac.compare_digest(stored[: len(mark)].tobytes(), mark.tobytes()):
                    return stored[len(mark) :].astype(np.bool_)
            coins = toss()
            if not self._files.exists("tossed", self._coin_name(owner, None)):
                count = self._charges_of(owner, Books(self._chain.entries()))
                self._files.write("tossed", self._coin_name(owner, None), self._count_seal(owner), np.array([count]))
            self._files.write("coins", name, seal, np.concatenate([mark, coins.astype(np.uint8)]))
        return coins

    def _is_fresh_sample(self, owner: CoinOwner, books: Books) -> bool:
        """Whether the coins of a round are here, and no release of the round was charged since the first of them was tossed."""
        name = self._coin_name(owner, None)
        if not self._files.exists("tossed", name):
            return False
        return int(self._files.read("tossed", name, self._count_seal(owner))[0]) == self._charges_of(owner, books)

    def _charges_of(self, owner: CoinOwner, books: Books) -> int:
        rows = books.charges(owner.universe, owner.population)
        return sum(row.key.rpartition("/")[0] == owner.key for row in rows)

    def _count_seal(self, owner: CoinOwner) -> bytes:
        return self._files.tag(b"coin charges", *(part.encode() for part in owner))

    def forget_coins(self, owner: CoinOwner) -> None:
        """Erase the coins of a round in every shard, once its release, or the sketch made with them, is stored."""
        for purpose in ("coins", "tossed"):
            self._files.erase_all(purpose, self._coin_name(owner, None))

    def _coin_name(self, owner: CoinOwner, shard: str | None) -> str:
        round_name = self._files.tag(b"coin round", *(part.encode() for part in owner)).hex()[:32]
        return round_name if shard is None else f"{round_name}-{self._files.tag(b'shard', shard.encode()).hex()[:16]}"
