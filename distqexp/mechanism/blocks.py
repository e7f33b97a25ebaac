"""Noise by blocks of coordinates: whoever has a round's source can draw the noise of any block of it, again and again.

A source is 32 secret bytes from the operating system. It is stored in the place of the noise that follows from it, so that any
number of processes can draw, each its own blocks, and another number of them draws the same. Block b has the stream of ChaCha20 with
the source for its key and b for its nonce: as independent as the parts of one such stream (docs/proofs/discrete-sampler.md, section 5).
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import IntegerArray
from distqexp.errors import FileContentError
from distqexp.kinds import Noise
from distqexp.mechanism.noise import draw_continuous, draw_discrete, insecure_name, scaled
from distqexp.mechanism.randomness import SystemRandomness, philox, seeded_key, seeded_normals

Source = NDArray[np.uint8]
"""How noise follows from the secret, one byte, and the secret, 32 bytes. Private, until its noise is part of a release."""

SEEDED, SAMPLED = 0, 1
"""How: from a seed, or by the samplers of ``noise``. A sampler that makes other numbers of the same bits takes a new value."""


def new_source(noise: Noise, noise_seed: int | None, round: int) -> Source:
    """Return a round's source, uint8 (33,), from the operating system's entropy.

    With a ``noise_seed`` it is that of the seeded stream: NOT PRIVATE.
    """
    if noise_seed is None:
        how, secret = SAMPLED, os.urandom(32)
    else:
        how, secret = SEEDED, seeded_key(insecure_name(noise_seed, round, noise))
    return np.frombuffer(bytes([how]) + secret, dtype=np.uint8)


def noise_of_block(source: Source, number: int, place: slice, sigma: int, noise: Noise) -> IntegerArray:
    """Return the noise of block ``number`` at ``place``, int64 (coordinates of the block,): the same at every call. Private.

    Raises FileContentError for a source of a version that draws in another way.
    """
    how, secret, count = int(source[0]), source[1:].tobytes(), place.stop - place.start
    if how == SEEDED:
        return scaled(seeded_normals(philox(secret, skipped=place.start), count), sigma)
    if how != SAMPLED:
        raise FileContentError(
            f"stored noise: drawn in way {how}; expected {SAMPLED}: another distqexp drew it, resume with that one"
        )
    randomness = SystemRandomness(secret, number)
    if noise == Noise.DISCRETE:
        return draw_discrete(count, sigma, randomness)
    return draw_continuous(count, float(sigma), randomness)
