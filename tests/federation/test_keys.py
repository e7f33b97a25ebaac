"""Identities and cards: made once, for their owner alone, and not to be altered."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from distqexp.errors import FileContentError, UsageError
from distqexp.federation.keys import PASSPHRASE_VARIABLE, Card, Identity, passphrase_from, require_name


def test_an_identity_comes_back_and_its_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path, identity = tmp_path / "north.key", Identity.draw("north")
    identity.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    back = Identity.read(path)
    assert back.card == identity.card
    assert identity.card.verifies(back.sign(b"message"), b"message")
    assert back.agreement.private_bytes_raw() == identity.agreement.private_bytes_raw()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="nothing is overwritten"):
        Identity.draw("north").write(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["north.key"], "no unfinished file stays"
    path.chmod(0o640)
    with pytest.raises(UsageError, match="mode 0640, others may use it"):
        Identity.read(path)


def test_a_passphrase_encrypts_and_comes_from_a_file_or_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, identity = tmp_path / "key", Identity.draw("north")
    identity.write(path, "correct horse")
    assert b"PRIVATE" not in path.read_bytes()
    assert Identity.read(path, lambda: "correct horse").card == identity.card
    with pytest.raises(UsageError, match="no passphrase given"):
        Identity.read(path)
    with pytest.raises(UsageError, match="not the one expected"):
        Identity.read(path, lambda: "wrong horse")
    renamed = json.loads(path.read_bytes()) | {"name": "south"}
    path.write_bytes(json.dumps(renamed).encode())
    with pytest.raises(UsageError, match="not the one expected"):
        Identity.read(path, lambda: "correct horse")

    assert passphrase_from(lambda: "asked") == "asked"
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(secret))
    with pytest.raises(UsageError, match="others may use it"):
        passphrase_from()
    secret.chmod(0o600)
    assert passphrase_from(lambda: "asked") == "correct horse"
    secret.write_text("\n")
    with pytest.raises(UsageError, match="no passphrase in it"):
        passphrase_from()
    with pytest.raises(UsageError, match="empty"):
        identity.write(tmp_path / "other", "")


@pytest.mark.parametrize(
    "name", ["", "-north", "--help", "a" * 65, "north/south", "no rth", "Köln", "a.b", "a\n", None]
)
def test_names_are_plain(name: Any) -> None:
    with pytest.raises(UsageError, match="expected 1 to 64 letters"):
        require_name(name)


def test_a_card_with_another_name_or_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "north.card"
    card, other = Identity.draw("north").card, Identity.draw("south").card
    card.write(path)
    assert Card.read(path) == card
    assert path.read_bytes() == card.to_bytes() + b"\n"
    for change in ({"name": "south"}, {"agreement": other.agreement}, {"signing": other.signing}):
        path.write_text(json.dumps({**card.tree(), **change}))
        with pytest.raises(FileContentError, match="not signed by its own key"):
            Card.read(path)
    for change in ({"kind": "identity"}, {"schema": 2}, {"signing": 7}, {"signing": "AB" * 32}, {"name": "x/y"}):
        path.write_text(json.dumps({**card.tree(), **change}))
        with pytest.raises(FileContentError):
            Card.read(path)
    path.write_text("[" * 50_000)
    with pytest.raises(FileContentError, match="no card"):
        Card.read(path)


def test_keys_of_small_order_are_refused() -> None:
    card = Identity.draw("north").card
    eight = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"  # an Ed25519 point of order 8
    one = (1).to_bytes(32, "little").hex()
    for signing, agreement in (
        (eight, card.agreement),
        (one, card.agreement),
        (card.signing, one),
        (card.signing, "00" * 32),
    ):
        with pytest.raises(UsageError, match="small order"):
            Card("north", signing, agreement, card.signature)
