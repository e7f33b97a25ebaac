"""A log is a chain that its party signs: what is altered, removed, added by others or torn is found, with its line."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from federations import identity

from distqexp.errors import FileContentError, StorageError, UsageError
from distqexp.federation.log import Log, verify_log
from distqexp.privacy.ledger.head import Anchor
from distqexp.storage.canonical import canonical_json

NORTH, SOUTH = identity("north"), identity("south")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The log of a party with five events."""
    log = Log(tmp_path / "north.log", NORTH)
    for number in range(5):
        assert log.append({"event": "test", "number": number}).number == number + 1
    return log.path


def test_events_come_back_in_order_and_the_file_is_for_its_owner(path: Path) -> None:
    entries = verify_log(path, NORTH.card)
    assert [entry.event["number"] for entry in entries] == list(range(5))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for entry in entries:
        assert verify_log(path, NORTH.card, Anchor(entry.number, entry.hash)) == entries
    with pytest.raises(UsageError, match="no such file"):
        verify_log(path.with_name("missing"), NORTH.card)


def altered(change: Callable[[dict[str, object]], None]) -> Callable[[list[bytes]], list[bytes]]:
    def apply(lines: list[bytes]) -> list[bytes]:
        tree = json.loads(lines[2])
        change(tree)
        return [*lines[:2], canonical_json(tree), *lines[3:]]

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:2] + lines[3:], "line 3 is number 4"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 is number 2"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4 is number 3"),
        (lambda lines: [*lines[:3], b"", *lines[3:]], "line 4 is not as distqexp writes it"),
        (
            lambda lines: [*lines[:2], lines[2].replace(b":", b": ", 1), *lines[3:]],
            "line 3 is not as distqexp writes it",
        ),
        (altered(lambda tree: tree.update(event={"event": "other"})), "line 3 does not have the hash"),
        (altered(lambda tree: tree.update(time="2020-01-01T00:00:00+00:00")), "line 3 does not have the hash"),
        (altered(lambda tree: tree.update(hash="00" * 32)), "line 3 does not have the hash"),
        (altered(lambda tree: tree.update(previous="00" * 32)), "line 3 is number 3 after '0000"),
        (altered(lambda tree: tree.update(signature="00" * 64)), "line 3 is not signed by north"),
        (altered(lambda tree: tree.update(signature="00")), "line 3 is not as distqexp writes it"),
    ],
)
def test_the_first_fault_is_named_by_its_line(
    path: Path, change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    for act in (lambda: verify_log(path, NORTH.card), lambda: Log(path, NORTH).append({"event": "more"})):
        with pytest.raises(FileContentError, match=words) as caught:
            act()
        assert caught.value.exit_code == 3


def test_another_partys_line_is_refused(path: Path) -> None:
    other = Log(path.with_name("other"), SOUTH)
    other.append({"event": "test", "number": 0})
    with pytest.raises(FileContentError, match="line 1 is not signed by north"):
        verify_log(other.path, NORTH.card)


def test_a_shorter_log_is_seen_by_whoever_noted_its_anchor(path: Path) -> None:
    whole = verify_log(path, NORTH.card)
    noted = Anchor(5, whole[-1].hash)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    verify_log(path, NORTH.card)
    with pytest.raises(FileContentError, match=r"line 4 .* expected line 5 .* put back"):
        verify_log(path, NORTH.card, noted)
    Log(path, NORTH).append({"event": "another history"})
    with pytest.raises(FileContentError, match="put back"):
        verify_log(path, NORTH.card, noted)


def test_a_torn_last_line_is_found_and_mended_on_request_alone(path: Path) -> None:
    whole = path.read_bytes()
    log = Log(path, NORTH)
    assert log.mend() == 0
    path.write_bytes(whole[:-10])
    for act in (lambda: verify_log(path, NORTH.card), lambda: log.append({"event": "more"})):
        with pytest.raises(FileContentError, match=r"line 5 is cut short.*north takes it out with distqexp log mend"):
            act()
    assert path.read_bytes() == whole[:-10]
    assert log.mend() > 0
    assert log.append({"event": "more"}).number == 5
    assert [entry.event["event"] for entry in verify_log(path, NORTH.card)] == ["test"] * 4 + ["more"]


def test_a_short_write_is_an_error_and_no_confirmed_event(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write = os.write
    monkeypatch.setattr("distqexp.federation.log.os.write", lambda descriptor, data: write(descriptor, data[:30]))
    with pytest.raises(StorageError, match=r"cut short.*distqexp log mend"):
        Log(path, NORTH).append({"event": "more"})
    monkeypatch.undo()
    with pytest.raises(FileContentError, match="line 6 is cut short"):
        verify_log(path, NORTH.card)


def test_many_may_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def work(worker: int) -> None:
        for number in range(10):
            Log(path, NORTH).append({"worker": worker, "number": number})

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = verify_log(path, NORTH.card)
    for worker in range(4):
        assert [e.event["number"] for e in entries if e.event["worker"] == worker] == list(range(10))
