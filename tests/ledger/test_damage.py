"""A ledger that was edited, damaged, lost in part or made by somebody else is refused; what it shows holds nothing private."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import sqlite3
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_child import NOISE, SMALL, SUMS, reserve

from distqexp.errors import FileContentError
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.files import LedgerFiles


def edit(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def history(path: Path, sums: np.ndarray[Any, Any], noise: np.ndarray[Any, Any]) -> str:
    """The export of a ledger with one release of these sums, without the times."""
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger, sums=sums)
        ledger.persist_noise(reservation, noise)
        ledger.commit(reservation, sums + noise)
        ledger.set_cap("ward", 2.0, 1e-4)
        return json.dumps([{**entry, "time": ""} for entry in ledger.export()])


def test_the_export_is_the_same_whatever_the_private_sums(tmp_path: Path) -> None:
    """Equal exports for other sums, noise and keys: no digest of them, keyed or not, can be inside."""
    first = history(tmp_path / "a" / "ledger.sqlite", SUMS, NOISE)
    assert first == history(tmp_path / "b" / "ledger.sqlite", SUMS * 7, NOISE - 9)
    assert hashlib.sha256(SUMS.tobytes()).hexdigest() not in first


def test_rows_hold_no_tag(ledger: Ledger, path: Path) -> None:
    reserve(ledger)
    with sqlite3.connect(path) as connection:
        (tag,) = connection.execute("SELECT tag FROM private_tags").fetchone()
    connection.close()
    assert len(tag) == 32
    assert tag.hex() not in json.dumps(ledger.export()) + repr(ledger.rows())
    key = (path.with_name("ledger.sqlite.files") / "key").read_bytes()
    assert key not in path.read_bytes()


def test_modes(path: Path) -> None:
    path.with_name("ledger.sqlite.files").mkdir(mode=0o755)
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger)
        ledger.persist_noise(reservation, NOISE)
    files = path.with_name("ledger.sqlite.files")
    assert stat.S_IMODE(files.stat().st_mode) == 0o700
    for file in (path, files / "key", files / "noise-1.npy"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE entries SET body = replace(body, '0.01', '0.001') WHERE number = 1"],
        ["UPDATE entries SET body = replace(body, 'ward', 'none') WHERE number = 2"],
        ["UPDATE entries SET hash = 'x' || substr(hash, 2) WHERE number = 1"],
        ["UPDATE entries SET previous = '0' WHERE number = 2"],
        ["DELETE FROM entries WHERE number = 1"],
        ["DELETE FROM entries WHERE number = 3"],
        ["DELETE FROM entries WHERE number = 3", "UPDATE head SET number = 2, hash = (SELECT hash FROM entries WHERE number = 2)"],
        ["DELETE FROM entries", "DELETE FROM head"],
        ["DELETE FROM entries"],
        ["DELETE FROM head"],
        ["UPDATE head SET seal = zeroblob(32)"],
        ["UPDATE head SET seal = 'text'"],
        ["DROP TABLE entries"],
        ["PRAGMA user_version = 3"],
    ],
)  # fmt: skip
def test_an_edited_ledger_is_refused_everywhere(path: Path, statements: list[str]) -> None:
    with Ledger.open(path) as ledger:
        for number in range(2):
            reservation = reserve(ledger, key=f"plan/{number}", event=SMALL)
        ledger.persist_noise(reservation, NOISE)
        ledger.verify()
        edit(path, *statements)
        with pytest.raises(FileContentError) as caught:
            ledger.verify()
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
        with pytest.raises(FileContentError):
            reserve(ledger)
    with pytest.raises(FileContentError):
        Ledger.open(path)


def test_times_are_shown_but_not_chained(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        assert ledger.rows()[0].time.endswith("+00:00")


def test_a_forged_tag_only_costs_another_charge(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger, event=SMALL)
    edit(path, "DELETE FROM private_tags")
    with Ledger.open(path) as ledger:
        assert reserve(ledger, event=SMALL).id == 2


@pytest.mark.parametrize("position", [0, 70, 130, 150, -1])
def test_damaged_arrays_are_refused(path: Path, position: int) -> None:
    files = path.with_name("ledger.sqlite.files")
    with Ledger.open(path) as ledger:
        reservation = reserve(ledger)
        ledger.persist_noise(reservation, NOISE)
        data = bytearray((files / "noise-1.npy").read_bytes())
        data[position] ^= 1
        (files / "noise-1.npy").write_bytes(data)
        for act in (lambda: ledger.noise(reservation), ledger.verify):
            with pytest.raises(FileContentError, match="seal does not fit"):
                act()
        (files / "noise-1.npy").unlink()
        with pytest.raises(FileContentError, match="missing"):
            ledger.noise(reservation)


@pytest.mark.parametrize("array", [NOISE, np.arange(9)[::2], np.array([True, False]), np.arange(3, dtype=np.uint8)])
def test_a_stored_array_is_what_numpy_saves_and_a_seal(path: Path, array: np.ndarray[Any, Any]) -> None:
    """The seal is HMAC-SHA-256 over purpose, owner and content, each after its length: files of older versions stay readable."""
    files = LedgerFiles(path)
    files.prepare()
    files.load_key(new=True)
    files.write("noise", 7, b"owner", array)
    saved = io.BytesIO()
    np.save(saved, array)
    parts = (b"noise", b"owner", saved.getvalue())
    message = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    stored = (files.folder / "noise-7.npy").read_bytes()
    assert stored == saved.getvalue() + hmac.new(files.key, message, hashlib.sha256).digest()
    read = files.read("noise", 7, b"owner")
    assert (read.dtype, read.tolist()) == (array.dtype, array.tolist())


def test_noise_of_a_lost_history_is_never_taken_for_other_sums(path: Path) -> None:
    """Whatever became of the entries, a draw belongs to the sums that it was drawn for."""
    with Ledger.open(path) as ledger:
        ledger.persist_noise(reserve(ledger, event=SMALL), NOISE)
        other = reserve(ledger, event=SMALL, sums=SUMS + 1)
        files = path.with_name("ledger.sqlite.files")
        (files / "noise-1.npy").rename(files / f"noise-{other.id}.npy")
        with pytest.raises(FileContentError, match="seal does not fit"):
            ledger.persist_noise(other, NOISE)
        with pytest.raises(FileContentError, match="seal does not fit"):
            reserve(ledger, event=SMALL, sums=SUMS + 1)


def test_a_folder_without_its_ledger_or_a_ledger_without_its_key(path: Path) -> None:
    files = path.with_name("ledger.sqlite.files")
    with Ledger.open(path) as ledger:
        ledger.persist_noise(reserve(ledger), NOISE)
    key, content = (files / "key").read_bytes(), path.read_bytes()
    path.unlink()
    with pytest.raises(FileContentError, match="gone or empty"):
        Ledger.open(path)
    path.write_bytes(content)
    (files / "key").unlink()
    with pytest.raises(FileContentError, match="0 bytes, the ledger's key has 32"):
        Ledger.open(path)
    (files / "key").write_bytes(bytes(32))
    with pytest.raises(FileContentError, match="seal of its head"):
        Ledger.open(path)
    (files / "key").write_bytes(key)
    with Ledger.open(path) as ledger:
        ledger.verify()


def test_a_file_that_is_no_ledger(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like a file" * 20)
    with pytest.raises(FileContentError, match="not readable as a ledger"):
        Ledger.open(path)
