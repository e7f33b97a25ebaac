"""Seeds that only a helper can read: X25519 with a fresh key, HKDF, and ChaCha20Poly1305 bound to the context of the mask."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from distqexp.errors import FileContentError
from distqexp.federation.keys import Card, Identity
from distqexp.federation.masks import SEED_BYTES, MaskContext, derived

_KEY_BYTES = 32
SEALED_BYTES = _KEY_BYTES + SEED_BYTES + 16
"""The bytes of a sealed seed: the fresh public key, the seed, and the tag."""


def seal(seed: bytes, helper: Card, context: MaskContext, site: str) -> bytes:
    """Return the seed, sealed to a helper for one context and site."""
    fresh = X25519PrivateKey.generate()
    public = fresh.public_key().public_bytes_raw()
    label = context.label("seed", site, helper.name)
    key = derived(fresh.exchange(helper.agreement_key()), label + public + bytes.fromhex(helper.agreement))
    return public + ChaCha20Poly1305(key).encrypt(bytes(12), seed, label)  # the key is used once


def unseal(path: Path, sealed: bytes, helper: Identity, context: MaskContext, site: str) -> bytes:
    """Return the seed that a site sealed to this helper. Raises FileContentError where it is for another helper or context."""
    public, text = sealed[:_KEY_BYTES], sealed[_KEY_BYTES:]
    label = context.label("seed", site, helper.name)
    try:
        shared = helper.agreement.exchange(X25519PublicKey.from_public_bytes(public))
        key = derived(shared, label + public + bytes.fromhex(helper.card.agreement))
        seed = ChaCha20Poly1305(key).decrypt(bytes(12), text, label)
    except (InvalidTag, ValueError):
        seed = b""
    if len(seed) != SEED_BYTES:
        raise FileContentError(
            f"{path}: the seed of {site} can't be opened; expected one sealed to {helper.name} for round {context.round}, attempt "
            f"{context.attempt}: ask {site} to send it again"
        )
    return seed
