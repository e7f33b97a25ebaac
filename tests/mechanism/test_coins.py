"""The coins of sampled rounds: the right law is accepted and others are rejected, at a false alarm rate of 1e-6 at most."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from distqexp.errors import UsageError
from distqexp.mechanism import coins
from distqexp.mechanism.coins import toss_coins, toss_insecure_coins

FALSE_ALARM = 1e-6
COUNT = 400_000
Toss = Callable[[int, float], NDArray[np.bool_]]


def seeded(units: int, sampling: float) -> NDArray[np.bool_]:
    return toss_insecure_coins(units, sampling, 3, 0, "all")


def fits(found: NDArray[np.bool_], sampling: float) -> bool:
    """Whether the number of coins that fell, and that of equal neighbours, are those of independent coins of this law."""
    fell = int(found.sum())
    tails = [binom.cdf(fell, len(found), sampling), binom.sf(fell - 1, len(found), sampling)]
    pairs = found[0::2].astype(int) * 2 + found[1::2]
    expected = np.array([(1 - sampling) ** 2, *[sampling * (1 - sampling)] * 2, sampling**2]) * len(pairs)
    statistic = float((np.square(np.bincount(pairs, minlength=4) - expected) / expected).sum())
    return min(tails) > FALSE_ALARM / 4 and chi2.sf(statistic, 3) > FALSE_ALARM / 2


@pytest.mark.parametrize("sampling", [0.05, 0.125, 0.5, 0.97])
@pytest.mark.parametrize("toss", [toss_coins, seeded], ids=["system", "seeded"])
def test_the_law(toss: Toss, sampling: float) -> None:
    found = toss(COUNT, sampling)
    assert (found.dtype, found.shape) == (np.bool_, (COUNT,))
    assert fits(found, sampling)
    for wrong in (1.2 * sampling, 0.9 * sampling, 1 - sampling if sampling != 0.5 else 0.48):
        assert not fits(found, min(wrong, 0.999))


def test_coins_that_hang_together_are_rejected() -> None:
    assert not fits(np.repeat(toss_coins(COUNT // 2, 0.25), 2), 0.25)


def test_every_toss_is_another_one() -> None:
    first, second = toss_coins(1000, 0.5), toss_coins(1000, 0.5)
    assert 350 < int((first != second).sum()) < 650  # binomial: beyond with probability below 1e-20


def test_seeded_coins_depend_on_seed_round_and_shard_alone() -> None:
    kinds = [(3, 0, "a"), (4, 0, "a"), (3, 1, "a"), (3, 0, "b")]
    tosses = [toss_insecure_coins(200, 0.5, *kind).tobytes() for kind in kinds]
    assert len(set(tosses)) == len(kinds)
    assert tosses == [toss_insecure_coins(200, 0.5, *kind).tobytes() for kind in kinds]


def test_the_probability_is_rounded_down_to_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype="<u8")

    class Fixed:
        def bytes(self, count: int) -> bytes:
            return words.tobytes()[:count]

    monkeypatch.setattr(coins, "SystemRandomness", Fixed)
    assert toss_coins(4, 0.5).tolist() == [True, True, False, False]
    assert toss_coins(4, np.nextafter(0.5, 0)).tolist() == [True, False, False, False]
    assert toss_coins(4, 1.0).all()
    assert toss_coins(0, 0.5).shape == (0,)


@pytest.mark.parametrize("sampling", [0.0, -0.1, 1.5, float("nan")])
def test_no_probability(sampling: float) -> None:
    with pytest.raises(UsageError, match=r"mechanism\.sampling"):
        toss_coins(3, sampling)
