"""The coins of sampled rounds: one for each unit, of a public probability. They are as secret as the noise.

Whoever knows a coin, or how many fell, knows more than the accounting of samples allows for (docs/proofs/sampled.md).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray
from distqexp.errors import UsageError
from distqexp.mechanism.randomness import SystemRandomness, seeded_stream


def toss_coins(units: int, sampling: float) -> BoolArray:
    """Return which of ``units`` units take part, bool (units,), by the operating system's entropy. Secret.

    Each takes part with probability floor(2^64 sampling) / 2^64, independently of all others. Raises UsageError unless
    ``sampling`` is a probability above 0.
    """
    words = np.frombuffer(SystemRandomness().bytes(8 * units), dtype="<u8")
    return _below(words, sampling)


def toss_insecure_coins(units: int, sampling: float, noise_seed: int, round: int, shard: str) -> BoolArray:
    """Return reproducible coins for tests, bool (units,), of the same law. NOT PRIVATE."""
    stream = seeded_stream(f"distqexp insecure coins/{noise_seed}/{round}/{shard}")
    return _below(np.asarray(stream.random_raw(units), dtype=np.uint64).reshape(units), sampling)


def _below(words: NDArray[np.uint64], sampling: float) -> BoolArray:
    if not 0 < sampling <= 1:
        raise UsageError(f"mechanism.sampling: found {sampling!r}; expected a probability, above 0 and at most 1")
    threshold = math.floor(Fraction(sampling) * 2**64)
    if threshold == 2**64:
        return np.ones(len(words), dtype=np.bool_)
    return words < np.uint64(threshold)
