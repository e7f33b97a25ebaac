"""Where the draws of continuous laws take their random numbers from: the operating system, or a seed in tests."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from distqexp.mechanism.rounded_normal import energies, middles

UNIFORM_BITS = 53


class Randomness(Protocol):
    """A stream of random numbers. What comes out is secret until it is part of a release."""

    def normal(self, count: int) -> NDArray[np.float64]:
        """``count`` independent standard normal numbers."""

    def uniform(self) -> float:
        """A number in (0, 1]."""


class SystemRandomness:
    """A ChaCha20 key stream, keyed by the operating system's entropy. Normal numbers by Box and Muller.

    The laws are those of ideal real arithmetic; as floats the numbers are on a finite set, and no normal one exceeds 9.5. They must not
    leave the mechanism but rounded: their last bits tell them from other floats.
    """

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        self._stream = Cipher(algorithms.ChaCha20(os.urandom(32), os.urandom(16)), mode=None).encryptor()

    def normal(self, count: int) -> NDArray[np.float64]:
        """As the protocol's."""
        pairs = (count + 1) // 2
        words = self._words(2 * pairs)
        radius = np.sqrt(2.0 * energies(words[:pairs])[0])
        angle = 2.0 * math.pi * middles(words[pairs:])
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def uniform(self) -> float:
        """As the protocol's."""
        return float(middles(self._words(1))[0])

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes of the stream."""
        return self._stream.update(bytes(count))

    def _words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.bytes(8 * count), dtype="<u8")


class SeededRandomness:
    """NOT PRIVATE: a Philox stream, the same for the same (seed, round). Normal numbers by the inverse distribution function."""

    def __init__(self, seed: int, round: int) -> None:
        self._philox = seeded_stream(f"distqexp insecure draws/{seed}/{round}")

    def normal(self, count: int) -> NDArray[np.float64]:
        """As the protocol's."""
        return seeded_normals(self._philox, count)

    def uniform(self) -> float:
        """As the protocol's."""
        return float(_open_uniforms(self._philox, 1)[0])


def seeded_stream(name: str) -> np.random.Philox:
    """NOT PRIVATE: the Philox stream of that name."""
    key = hashlib.sha256(name.encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little"))


def seeded_normals(philox: np.random.Philox, count: int) -> NDArray[np.float64]:
    """NOT PRIVATE: the next ``count`` standard normal numbers of a stream."""
    return np.asarray(ndtri(_open_uniforms(philox, count)), dtype=np.float64)


def _open_uniforms(philox: np.random.Philox, count: int) -> NDArray[np.float64]:
    """Strictly between 0 and 1."""
    words = philox.random_raw(count) >> np.uint64(64 - UNIFORM_BITS)
    return (words.astype(np.float64) + 0.5) * 2.0**-UNIFORM_BITS
