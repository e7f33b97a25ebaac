"""Counter-based public randomness: every word has an address, so any window of a stream can be generated on its own.

The generator is Philox-4x64-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
through numpy's bit generator. Only its raw words are used: their stream is the same in all numpy versions, unlike the
distributions built on them. Nothing here is secret, and nothing here may be used as privacy noise.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.special import ndtri

from distqexp.errors import UsageError

UInt32Array = np.ndarray[tuple[int], np.dtype[np.uint32]]
Int8Array = np.ndarray[tuple[int], np.dtype[np.int8]]
Float64Array = np.ndarray[tuple[int], np.dtype[np.float64]]

WORDS_A_COUNTER = 8  # one Philox counter value gives four 64-bit outputs, read as eight 32-bit words
NORMAL_GRID_BITS = 16  # normal entries are multiples of 2^-16


def stream_key(*parts: str | int) -> bytes:
    """Return the 16-byte key of the public stream that ``parts`` name.

    The key is the start of the SHA-256 of an unambiguous encoding: each part carries its type and its length, so
    ("ab", "c"), ("a", "bc"), ("1",) and (1,) name four different streams. Seeds are never added or multiplied.
    """
    digest = hashlib.sha256()
    for part in parts:
        tag, content = (b"i", str(int(part)).encode()) if isinstance(part, int) else (b"s", part.encode())
        digest.update(tag + len(content).to_bytes(8, "big") + content)
    return digest.digest()[:16]


def raw_words(key: bytes, first: int, count: int) -> UInt32Array:
    """Return the words ``first`` to ``first + count - 1`` of the stream of ``key``, uint32 (count,).

    A word does not depend on the window in which it is asked for. Raises UsageError for a key that is not 16 bytes long
    or for a negative window.
    """
    if len(key) != 16 or first < 0 or count < 0:
        raise UsageError(
            f"random stream: key of {len(key)} bytes, window {first} + {count}; expected 16 bytes and numbers from 0 up"
        )
    counter, skip = divmod(first, WORDS_A_COUNTER)
    pairs = (skip + count + 1) // 2
    generator = np.random.Philox(key=int.from_bytes(key, "little"), counter=counter)
    outputs = np.asarray(generator.random_raw(pairs), dtype="<u8")
    return outputs.view("<u4")[skip : skip + count].astype(np.uint32, copy=False)


def standard_normal_entries(key: bytes, first: int, count: int) -> Float64Array:
    """Return the entries ``first`` to ``first + count - 1`` of a standard normal stream: float64 (count,), one word each."""
    return normal_quantiles(raw_words(key, first, count))


def normal_quantiles(words: UInt32Array) -> Float64Array:
    """Return the normal quantiles of (word + 1/2) / 2^32, rounded to multiples of 2^-16: float64, at most 6.34 in size.

    Rounding makes the entries exact in float32 and portable: over all 2^32 words no quantile lies nearer to a
    rounding boundary than 5e-15 of its size, so every library that is accurate to 20 units in the last place
    gives the same entries.
    """
    quantiles = words + 0.5
    quantiles *= 2.0**-32
    entries: Float64Array = ndtri(quantiles)
    entries *= 2.0**NORMAL_GRID_BITS
    np.rint(entries, out=entries)
    entries *= 2.0**-NORMAL_GRID_BITS
    return entries


def random_signs(key: bytes, first: int, count: int) -> Int8Array:
    """Return the entries ``first`` to ``first + count - 1`` of a stream of fair signs: int8 (count,), one bit each."""
    word, skip = divmod(first, 32)
    words = raw_words(key, word, (skip + count + 31) // 32).astype("<u4", copy=False)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[skip : skip + count]
    return 2 * bits.view(np.int8) - 1
