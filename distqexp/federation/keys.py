"""A party's identity: an Ed25519 key that signs, an X25519 key that seeds are sealed to, and the card that shows both.

The private keys are in one file of mode 0600, as PKCS8 PEM texts in JSON. With a passphrase they are encrypted with
ChaCha20Poly1305 under a key that scrypt makes of it: PKCS8's own encryption stretches a passphrase by 2,048 rounds of SHA-256
only. The card is public. It is signed by its own key, so that nobody can give it another name or agreement key, but who
stands behind it has to be found out in another way: compare fingerprints by telephone, for example.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import canonical_json

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
PASSPHRASE_VARIABLE = "DISTQEXP_PASSPHRASE_FILE"
"""The environment variable with the path of a file whose first line is the passphrase."""

LARGEST_FILE = 1 << 16
"""The bytes that a card or an identity has at most."""

_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}
_CARD_DOMAIN = b"distqexp card 1\n"
_PRIME = 2**255 - 19


def require_name(name: object) -> str:
    """Return a party's name. Raises UsageError unless it is 1 to 64 of the letters A-Z and a-z, digits, "_" and "-", which isn't first."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            f"name {ascii(name)[:80]}: expected 1 to 64 letters A-Z or a-z, digits, '_' or '-', and no '-' at its beginning"
        )
    return name


def read_name(path: Path) -> str:
    """Read the name in a file of private keys, without a passphrase. Raises FileContentError."""
    try:
        return require_name(_read_tree(path, "identity", ("name",))["name"])
    except UsageError as error:
        raise FileContentError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Card:
    """The public side of an identity.

    Attributes:
        name: The party's name.
        signing: The Ed25519 public key, 64 hexadecimal digits.
        agreement: The X25519 public key, 64 hexadecimal digits.
        signature: The signature of all this by the signing key, 128 hexadecimal digits.
    """

    name: str
    signing: str
    agreement: str
    signature: str

    def __post_init__(self) -> None:
        """Check every field. Raises UsageError."""
        require_name(self.name)
        for field, digits in (("signing", 64), ("agreement", 64), ("signature", 128)):
            value = getattr(self, field)
            if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
                raise UsageError(
                    f"card of {self.name}: {field} {ascii(value)[:40]}; expected {digits} hexadecimal digits in lower case"
                )
        if _of_small_order(bytes.fromhex(self.agreement)) or _of_small_order(_montgomery(bytes.fromhex(self.signing))):
            raise UsageError(
                f"card of {self.name}: a key of small order, which anybody can use; expected one that was drawn"
            )
        if not self.verifies(bytes.fromhex(self.signature), _CARD_DOMAIN + canonical_json(self._signed())):
            raise UsageError(
                f"card of {self.name}: it is not signed by its own key {self.signing[:16]}; it was altered: get it again"
            )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the card, in hexadecimal digits: what people compare."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def tree(self) -> dict[str, Any]:
        """Return the card as a JSON tree."""
        return {**self._signed(), "signature": self.signature}

    def to_bytes(self) -> bytes:
        """Return the card as canonical JSON."""
        return canonical_json(self.tree())

    def write(self, path: Path) -> None:
        """Write the card to a new file. Raises UsageError where there is one."""
        write_atomic(path, self.to_bytes() + b"\n", new=True)

    @staticmethod
    def read(path: Path) -> Card:
        """Read a card and check it. Raises FileContentError, or UsageError where there is no such file."""
        tree = _read_tree(path, "card", ("name", "signing", "agreement", "signature"))
        try:
            return Card(tree["name"], tree["signing"], tree["agreement"], tree["signature"])
        except UsageError as error:
            raise FileContentError(f"{path}: {error}") from None

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature of the message is this party's."""
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing)).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def agreement_key(self) -> X25519PublicKey:
        """Return the public key that seeds are sealed to."""
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.agreement))

    def _signed(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": "card",
            "name": self.name,
            "signing": self.signing,
            "agreement": self.agreement,
        }


class Identity:
    """A party's private keys, in memory. They are never printed; ``card`` is what others get."""

    def __init__(self, name: str, signing: Ed25519PrivateKey, agreement: X25519PrivateKey) -> None:
        self.name = require_name(name)
        self._signing = signing
        self.agreement = agreement
        self.card = self._make_card()

    @staticmethod
    def draw(name: str) -> Identity:
        """Return a new identity from the operating system's entropy. Raises UsageError for a name that is not allowed."""
        return Identity(name, Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of a message, 64 bytes. The message begins with a domain of its own."""
        return self._signing.sign(message)

    def write(self, path: Path, passphrase: str | None = None) -> None:
        """Write both private keys to a new file of mode 0600.

        Args:
            path: The file.
            passphrase: Encrypts the keys; None leaves them to the mode of the file.

        Raises:
            UsageError: There is such a file, which is never overwritten, or the passphrase is empty.
            StorageError: The disk is full, or the folder can't be written.
        """
        keys = canonical_json({"signing": _pem(self._signing), "agreement": _pem(self.agreement)})
        tree: dict[str, Any] = {"schema": SCHEMA, "kind": "identity", "name": self.name}
        if passphrase is None:
            tree |= {"keys": keys.decode("ascii")}
        else:
            salt = os.urandom(16)
            # The key is used once, for these bytes, so the nonce may be constant.
            sealed = ChaCha20Poly1305(_stretched(passphrase, salt)).encrypt(bytes(12), keys, self.name.encode())
            tree |= {"salt": salt.hex(), "sealed": sealed.hex()}
        write_atomic(path, canonical_json(tree) + b"\n", private=True, new=True)

    @staticmethod
    def read(path: Path, passphrase: Callable[[], str | None] = lambda: None) -> Identity:
        """Read the private keys.

        Args:
            path: The file.
            passphrase: Is asked only where the keys are encrypted, see ``passphrase_from``.

        Raises:
            UsageError: There is no such file, others may read it, or the passphrase is missing or wrong.
            FileContentError: The file is damaged, or no identity.
        """
        _refuse_readable_by_others(path)
        tree = _read_tree(path, "identity", ("name",))
        damaged = FileContentError(
            f"{path}: its keys can't be read; expected an identity as distqexp wrote it: restore it"
        )
        try:
            name = require_name(tree["name"])
            keys = _opened(path, tree, passphrase) if "sealed" in tree else str(tree["keys"]).encode()
            pems = json.loads(keys)
            signing, agreement = (
                serialization.load_pem_private_key(pems[key].encode(), None) for key in ("signing", "agreement")
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            raise damaged from None
        if not isinstance(signing, Ed25519PrivateKey) or not isinstance(agreement, X25519PrivateKey):
            raise damaged
        return Identity(name, signing, agreement)

    def _make_card(self) -> Card:
        fields = {
            "schema": SCHEMA,
            "kind": "card",
            "name": self.name,
            "signing": _raw(self._signing.public_key()),
            "agreement": _raw(self.agreement.public_key()),
        }
        signature = self.sign(_CARD_DOMAIN + canonical_json(fields)).hex()
        return Card(self.name, str(fields["signing"]), str(fields["agreement"]), signature)


def passphrase_from(ask: Callable[[], str | None] = lambda: None) -> str | None:
    """Return the passphrase from the file that DISTQEXP_PASSPHRASE_FILE names, else from ``ask``; never from an argument.

    Raises UsageError where the file can't be read, where others may read it, and where its first line is empty.
    """
    name = os.environ.get(PASSPHRASE_VARIABLE)
    if not name:
        return ask()
    path = Path(name).expanduser()
    _refuse_readable_by_others(path)
    lines = _read_small(path).decode("utf-8", "surrogateescape").splitlines()
    if not lines or not lines[0]:
        raise UsageError(f"{path}: no passphrase in it; expected one in its first line ({PASSPHRASE_VARIABLE})")
    return lines[0]


def _stretched(passphrase: str, salt: bytes) -> bytes:
    if not passphrase:
        raise UsageError("passphrase: empty; expected at least one character, or none at all")
    return Scrypt(salt=salt, length=32, **_SCRYPT).derive(passphrase.encode("utf-8", "surrogateescape"))


def _opened(path: Path, tree: dict[str, Any], passphrase: Callable[[], str | None]) -> bytes:
    salt, sealed = bytes.fromhex(tree["salt"]), bytes.fromhex(tree["sealed"])
    answer = passphrase()
    if answer is None:
        raise UsageError(
            f"{path}: its keys are encrypted, no passphrase given; put it into a file: {PASSPHRASE_VARIABLE}=FILE"
        )
    try:
        return ChaCha20Poly1305(_stretched(answer, salt)).decrypt(bytes(12), sealed, tree["name"].encode())
    except InvalidTag:
        raise UsageError(f"{path}: the passphrase is not the one expected, or the file is damaged; try again") from None


def _refuse_readable_by_others(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; expected one of a party's own keys") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
    if mode & 0o077:
        raise UsageError(f"{path}: mode {mode:04o}, others may use it; expected 0600: chmod 600")


def _read_small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; check its path") from None
    except OSError as error:
        raise StorageError(f"{path}: can't be read ({error.strerror}); check its owner and mode") from error
    if len(content) > LARGEST_FILE:
        raise FileContentError(f"{path}: more than {LARGEST_FILE} bytes; expected a card, a key or a passphrase")
    return content


def _read_tree(path: Path, kind: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        tree = json.loads(_read_small(path))
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict) or tree.get("kind") != kind or any(field not in tree for field in fields):
        raise FileContentError(f"{path}: it is no {kind}, or damaged; expected a JSON object that distqexp wrote")
    if tree.get("schema") != SCHEMA:
        raise FileContentError(
            f"{path}: schema {ascii(tree.get('schema'))[:20]}, this distqexp reads {SCHEMA}; make it again"
        )
    return tree


def _pem(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode("ascii")


def _raw(key: Ed25519PublicKey | X25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()


def _montgomery(signing: bytes) -> bytes:
    """Return an Ed25519 point's coordinate u = (1 + y) / (1 - y) on the curve of X25519, of the same order (RFC 7748)."""
    y = (int.from_bytes(signing, "little") & (2**255 - 1)) % _PRIME
    return ((1 + y) * pow(1 - y, -1, _PRIME) % _PRIME if y != 1 else 0).to_bytes(32, "little")


def _of_small_order(point: bytes) -> bool:
    """Whether X25519 takes every private key and this point to zero."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        return True
    return False
