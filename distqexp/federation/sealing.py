"""Contents that one party alone can read: X25519 with a fresh key, HKDF, and ChaCha20Poly1305 over pieces of a fixed size.

    fresh public key, 32 bytes | sealed pieces, each of PIECE bytes and a tag; the last one may be shorter

The key is used for one message, and is bound to whom it is from and for, and to its place in the study: a content that somebody
else signs as his own, or sends again in another round, can't be opened. A piece's nonce is its number and whether it is the last
one, so none can be left out, repeated or moved (Hoang, Reyhanitabar, Rogaway and Vizár 2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from distqexp.errors import FileContentError
from distqexp.federation.header import Envelope
from distqexp.federation.keys import Card, Identity
from distqexp.storage.canonical import canonical_json

PIECE = 1 << 20
"""The bytes of a piece before it is sealed."""

KEY_BYTES = 32
TAG_BYTES = 16


def sealed_length(length: int) -> int:
    """Return the bytes that a content of ``length`` bytes takes when it is sealed."""
    return KEY_BYTES + length + TAG_BYTES * max(1, -(-length // PIECE))


class Seal:
    """Seals one content, as often as it is asked for, always to the same bytes."""

    def __init__(self, to: Card, envelope: Envelope, sender: str) -> None:
        """Draw a fresh key for one content from ``sender`` to the party with that card."""
        fresh = X25519PrivateKey.generate()
        self._public = fresh.public_key().public_bytes_raw()
        key = derived(fresh.exchange(to.agreement_key()), _label(envelope, sender, self._public, to))
        self._cipher = ChaCha20Poly1305(key)

    def pieces(self, content: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        """Yield the sealed bytes of a content, which comes in parts of any size."""
        yield self._public
        waiting, number = bytearray(), 0
        for part in content:
            waiting += part
            while len(waiting) > PIECE:  # what is left at the end is the last piece, so one whole piece waits
                yield self._cipher.encrypt(_nonce(number, last=False), bytes(waiting[:PIECE]), None)
                del waiting[:PIECE]
                number += 1
        yield self._cipher.encrypt(_nonce(number, last=True), bytes(waiting), None)


def opened(
    path: Path, sealed: Iterable[bytes | memoryview], reader: Identity, envelope: Envelope, sender: str
) -> Iterator[bytes]:
    """Yield the content of a message from ``sender`` to this party, piece by piece, each checked; the sealed bytes come in parts.

    Raises FileContentError where it is sealed to another party, from another one, or for another place, or was altered.
    """
    waiting, cipher, number = bytearray(), None, 0
    try:
        for part in sealed:
            waiting += part
            if cipher is None and len(waiting) >= KEY_BYTES:
                public = bytes(waiting[:KEY_BYTES])
                shared = reader.agreement.exchange(X25519PublicKey.from_public_bytes(public))
                cipher = ChaCha20Poly1305(derived(shared, _label(envelope, sender, public, reader.card)))
                del waiting[:KEY_BYTES]
            while cipher is not None and len(waiting) > PIECE + TAG_BYTES:
                yield cipher.decrypt(_nonce(number, last=False), bytes(waiting[: PIECE + TAG_BYTES]), None)
                del waiting[: PIECE + TAG_BYTES]
                number += 1
        if cipher is None:
            raise InvalidTag
        yield cipher.decrypt(_nonce(number, last=True), bytes(waiting), None)
    except (InvalidTag, ValueError):
        raise FileContentError(
            f"{path}: its content can't be opened by {reader.name}; expected one that {sender} sealed to {envelope.recipient} for round "
            f"{envelope.round}, attempt {envelope.attempt}: ask {sender} to send it again"
        ) from None


def derived(secret: bytes, label: bytes) -> bytes:
    """Return the 32-byte key that HKDF-SHA-256 gives for a secret and a label."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=label).derive(secret)


def _label(envelope: Envelope, sender: str, public: bytes, to: Card) -> bytes:
    """Return the bytes that a key is bound to."""
    place = [
        envelope.kind,
        envelope.study,
        envelope.plan_id,
        envelope.round,
        envelope.attempt,
        sender,
        envelope.recipient,
    ]
    return b"distqexp sealed content 1\n" + canonical_json(place) + public + bytes.fromhex(to.agreement)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
