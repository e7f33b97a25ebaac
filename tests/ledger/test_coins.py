"""The ledger keeps the coins of a sampled round: the same for a resumed round, sealed, private, and gone when they are forgotten."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from distqexp.errors import BudgetError, FileContentError
from distqexp.kinds import Adjacency
from distqexp.mechanism.coins import toss_coins
from distqexp.privacy.events import GaussianRelease, cost
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.ledger.coins import CoinOwner

MU = 0.2
OWNER = CoinOwner("private", "icu", "release/plan/0")
OTHERS = [
    CoinOwner("insecure-seed-1", "icu", "release/plan/0"),
    CoinOwner("private", "other", "release/plan/0"),
    CoinOwner("private", "icu", "release/plan/1"),
    CoinOwner("private", "icu", "site-a/plan/0"),
]


def toss() -> NDArray[np.bool_]:
    return toss_coins(500, 0.5)


def coin_files(path: Path) -> list[Path]:
    return sorted(Path(f"{path}.files").glob("coins-*"))


def test_coins_are_tossed_once_and_kept_over_processes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        first = ledger.coins(OWNER, "all", b"records", toss)
        assert np.array_equal(ledger.coins(OWNER, "all", b"records", toss), first)
    with Ledger.open(path) as ledger:
        assert np.array_equal(ledger.coins(OWNER, "all", b"records", toss), first)
    [file] = coin_files(path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not [word for word in ("plan", "icu", "release") if word in file.name]


def test_every_round_shard_and_population_has_its_own(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        tosses = [ledger.coins(owner, "all", b"records", toss).tobytes() for owner in (OWNER, *OTHERS)]
        tosses.append(ledger.coins(OWNER, "other", b"records", toss).tobytes())
    assert len(set(tosses)) == len(OTHERS) + 2


def test_other_records_get_other_coins(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        first = ledger.coins(OWNER, "all", b"records", toss)
        second = ledger.coins(OWNER, "all", b"other records", toss)
        assert not np.array_equal(first, second)
        assert np.array_equal(ledger.coins(OWNER, "all", b"other records", toss), second)
    assert len(coin_files(tmp_path / "ledger.sqlite")) == 1


def test_forgotten_coins_are_gone_in_every_shard_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        first = [ledger.coins(OWNER, shard, b"records", toss) for shard in ("a", "b")]
        others = [ledger.coins(owner, "a", b"records", toss) for owner in OTHERS]
        ledger.forget_coins(OWNER)
        assert len(coin_files(path)) == len(OTHERS)
        assert all(
            np.array_equal(ledger.coins(owner, "a", b"records", toss), coins)
            for owner, coins in zip(OTHERS, others, strict=True)
        )
        assert not np.array_equal(ledger.coins(OWNER, "a", b"records", toss), first[0])


def test_damaged_coins_and_coins_of_another_round_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ledger.coins(OWNER, "all", b"records", toss)
        [file] = coin_files(path)
        content = bytearray(file.read_bytes())
        content[200] ^= 1
        file.write_bytes(content)
        with pytest.raises(FileContentError, match="its seal does not fit"):
            ledger.coins(OWNER, "all", b"records", toss)
        content[200] ^= 1
        file.write_bytes(content)
        ledger.coins(OTHERS[2], "all", b"records", toss)
        other = next(item for item in coin_files(path) if item != file)
        other.write_bytes(content)
        with pytest.raises(FileContentError, match="its seal does not fit"):
            ledger.coins(OTHERS[2], "all", b"records", toss)


def charge(round: int, sampling: float, plan: str = "plan", mu: float = MU) -> Charge:
    event = GaussianRelease(mu, 3, 1e6, sampling, 1e-9 if sampling < 1 else 0.0)
    return Charge(f"release/{plan}/{round}/state", Adjacency.ZERO_OUT, event, unit="record")


def test_rows_carry_mu_and_the_rate_and_compose_over_runs(tmp_path: Path) -> None:
    path, cap = tmp_path / "ledger.sqlite", Cap(1.0, 1e-5)
    rounds = [charge(round, 0.05, plan) for plan in ("first", "second") for round in range(4)]
    for run in (rounds[:4], rounds[4:]):
        with Ledger.open(path) as ledger:
            for item in run:
                ledger.reserve(item, population="icu", cap=cap, sums=np.arange(3))
    with Ledger.open(path) as ledger:
        assert [(row.event.mu, row.event.sampling, row.event.failure) for row in ledger.rows("icu")] == [
            (MU, 0.05, 1e-9)
        ] * 8  # type: ignore[union-attr]
        spent = ledger.spent("icu")
        whole = cost([GaussianRelease(MU, 3, 1e6)] * 8).guarantee()
        assert cost([charge(0, 0.05).event] * 8).guarantee().epsilon(1e-5) == spent.epsilon(1e-5)
        assert spent.epsilon(1e-5) < 0.2 * whole.epsilon(1e-5)
        assert spent.failure == pytest.approx(8e-9)
        body = ledger.export()[0]["body"]
        assert (body["mu"], body["sampling"], body["failure"]) == (MU, 0.05, 1e-9)
        ledger.verify()


def test_the_cap_counts_sampled_rounds_as_what_they_are(tmp_path: Path) -> None:
    """One round too many is refused; for everybody the first one is."""
    cap, all_rounds = Cap(1.0, 1e-5), [charge(round, 0.05, mu=0.9) for round in range(20)]
    most = max(n for n in range(1, 20) if cost([item.event for item in all_rounds[:n]]).guarantee().delta(1.0) <= 1e-5)
    assert 2 < most < 19
    with Ledger.open(tmp_path / "sampled.sqlite") as ledger:
        for item in all_rounds[:most]:
            ledger.reserve(item, population="icu", cap=cap, sums=np.arange(3))
        with pytest.raises(BudgetError, match="budget spent"):
            ledger.reserve(all_rounds[most], population="icu", cap=cap, sums=np.arange(3))
        assert len(ledger.rows("icu")) == most
    with Ledger.open(tmp_path / "everybody.sqlite") as ledger, pytest.raises(BudgetError, match="budget spent"):
        ledger.reserve(charge(0, 1.0, mu=0.9), population="icu", cap=cap, sums=np.arange(3))


def test_a_second_release_of_a_round_is_charged_as_if_everybody_took_part(tmp_path: Path) -> None:
    """One sample may stand behind both, as after a kill; the same sums again cost nothing, and the next round is sampled anew."""
    event = GaussianRelease(MU, 3, 100.0, sampling=0.1, failure=1e-12)
    cap = Cap(5.0, 1e-5)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:

        def reserve(round: int, number: int) -> float:
            charge = Charge(f"release/plan/{round}/state", Adjacency.ZERO_OUT, event)
            sums = np.array([number, 0, 0], dtype=np.int64)
            reservation = ledger.reserve(charge, population="icu", cap=cap, sums=sums)
            [row] = [row for row in ledger.rows("icu") if row.id == reservation.id]
            assert isinstance(row.event, GaussianRelease)
            assert row.event.failure == event.failure
            return row.event.sampling

        owner = CoinOwner("private", "icu", "release/plan/0")
        ledger.coins(owner, "all", b"records", toss)
        assert reserve(0, 1) == 0.1
        assert reserve(0, 2) == 1.0  # on the coins of the first
        assert [reserve(0, number) for number in (1, 2)] == [0.1, 1.0]
        assert len(ledger.rows("icu")) == 2
        ledger.coins(owner, "other", b"records", toss)  # newer coins of another shard don't make those of this one new
        assert reserve(0, 3) == 1.0
        ledger.forget_coins(owner)
        assert reserve(0, 4) == 1.0  # on coins that are gone
        ledger.coins(owner, "all", b"records", toss)
        assert reserve(0, 5) == 0.1
        assert reserve(0, 6) == 1.0
        assert reserve(1, 1) == 0.1
        ledger.verify()


def test_a_second_release_of_a_round_is_refused_where_only_a_sampled_one_would_fit(tmp_path: Path) -> None:
    event = GaussianRelease(1.0, 3, 1e6, sampling=0.01)
    cap = Cap(cost([event, event]).guarantee().epsilon(1e-5) * 1.01, 1e-5)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        charge = Charge("release/plan/0/state", Adjacency.ZERO_OUT, event)
        ledger.reserve(charge, population="icu", cap=cap, sums=np.array([1, 0, 0]))
        with pytest.raises(
            BudgetError, match="same secret sample, so that this one is charged as if everybody took part"
        ):
            ledger.reserve(charge, population="icu", cap=cap, sums=np.array([2, 0, 0]))
        assert len(ledger.rows("icu")) == 1
