"""The random numbers behind draws of continuous laws: from the operating system, or from a seed in tests."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from distqexp.arrays import FloatArray
from distqexp.mechanism.rounded_normal import energies, middles

UNIFORM_BITS = 53
"""The bits of a uniform number of a seeded stream."""


class Randomness(Protocol):
    """A stream of random numbers. Its output is secret until it is part of a release."""

    def normal(self, count: int) -> FloatArray:
        """Return the next ``count`` independent standard normal numbers."""

    def uniform(self) -> float:
        """Return the next uniform number, in (0, 1]."""


class SystemRandomness:
    """A ChaCha20 key stream, keyed by the operating system's entropy. Normal numbers are made by Box and Muller's method.

    The laws are those of ideal real arithmetic. As floats the numbers are in a finite set, and no normal one exceeds 9.5.
    They may leave the mechanism only after rounding, since their last bits distinguish them from other floats.
    """

    def __init__(self, key: bytes | None = None, number: int = 0) -> None:
        """Begin a stream: a new one or, where there is a ``key`` from the system's entropy (32 bytes), its stream of that number."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

        # The first four bytes are the counter of blocks, which may not overflow: from zero it lasts for 256 GiB.
        nonce = bytes(4) + (os.urandom(12) if key is None else number.to_bytes(12, "little"))
        self._stream = Cipher(algorithms.ChaCha20(key or os.urandom(32), nonce), mode=None).encryptor()

    def normal(self, count: int) -> FloatArray:
        """Return the next ``count`` independent standard normal numbers."""
        pairs = (count + 1) // 2
        words = self._words(2 * pairs)
        radius = np.sqrt(2.0 * energies(words[:pairs])[0])
        angle = 2.0 * math.pi * middles(words[pairs:])
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def uniform(self) -> float:
        """Return the next uniform number, in (0, 1]."""
        return float(middles(self._words(1))[0])

    def bytes(self, count: int) -> bytes:
        """Return the next ``count`` bytes of the stream."""
        return self._stream.update(bytes(count))

    def _words(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.bytes(8 * count), dtype="<u8")


class SeededRandomness:
    """NOT PRIVATE: a Philox stream that is the same for the same (noise_seed, round).

    Normal numbers are made by the inverse distribution function.
    """

    def __init__(self, noise_seed: int, round: int) -> None:
        self._philox = seeded_stream(f"distqexp insecure draws/{noise_seed}/{round}")

    def normal(self, count: int) -> FloatArray:
        """Return the next ``count`` independent standard normal numbers."""
        return seeded_normals(self._philox, count)

    def uniform(self) -> float:
        """Return the next uniform number, strictly between 0 and 1."""
        return float(_open_uniforms(self._philox, 1)[0])


def seeded_stream(name: str) -> np.random.Philox:
    """Return the Philox stream of that name. NOT PRIVATE."""
    return philox(seeded_key(name))


def seeded_key(name: str) -> bytes:
    """Return the 32 bytes that the seeded stream of that name follows from. NOT PRIVATE."""
    return hashlib.sha256(name.encode()).digest()


def philox(key: bytes, skipped: int = 0) -> np.random.Philox:
    """Return the Philox stream of a key without its first numbers, whose count is a multiple of 4. NOT PRIVATE."""
    stream = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    stream.advance(skipped // 4)  # it makes four numbers at a time
    return stream


def seeded_normals(philox: np.random.Philox, count: int) -> FloatArray:
    """Return the next ``count`` standard normal numbers of a seeded stream. NOT PRIVATE."""
    return np.asarray(ndtri(_open_uniforms(philox, count)), dtype=np.float64)


def _open_uniforms(philox: np.random.Philox, count: int) -> FloatArray:
    """Return uniform numbers strictly between 0 and 1."""
    words = philox.random_raw(count) >> np.uint64(64 - UNIFORM_BITS)
    return (words.astype(np.float64) + 0.5) * 2.0**-UNIFORM_BITS
