"""The head in the ledger's folder: a ledger file put back alone is seen, one lost entry is redone, a noted head tells the rest."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_child import EVENT, SUMS, reserve
from run_harness import Commands

from distqexp import api
from distqexp.errors import BudgetError, DistqexpError, FileContentError, StorageError, UsageError
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.ledger import chain as ledger_chain
from distqexp.privacy.ledger import head as ledger_head

NOISE = np.array([10, -20, 30, -40, 50], dtype=np.int64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books" / "ledger.sqlite"


def folder_of(path: Path) -> Path:
    return path.with_name(path.name + ".files")


STEPS: list[Callable[[Ledger], Any]] = [
    lambda ledger: ledger.set_cap("ward", 2.0, 1e-4),
    reserve,
    lambda ledger: ledger.persist_noise(reserve(ledger), NOISE),
    lambda ledger: ledger.commit(reserve(ledger), SUMS + NOISE),
    lambda ledger: ledger.set_cap("other", 0.5, 1e-6),
]
"""Five entries: cap, reserve, draw, commit, cap."""


def copies(path: Path, steps: int = len(STEPS)) -> list[bytes]:
    """The ledger file before the first step and after each; the folder stays at the last."""
    found = []
    with Ledger.open(path) as ledger:
        found.append(path.read_bytes())
        for step in STEPS[:steps]:
            step(ledger)
            found.append(path.read_bytes())
    return found


def refused(path: Path, *words: str) -> None:
    """Opening it and everything that opens it is exit 3, in one line with the remedy."""
    for act in (lambda: Ledger.open(path), lambda: api.ledger_verify(ledger=path), lambda: api.ledger_head(path)):
        with pytest.raises(FileContentError) as caught:
            act()
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
        for word in (
            *words,
            "restore the ledger and its folder together from the newest backup",
            "where there is none",
        ):
            assert word in str(caught.value)


@pytest.mark.parametrize("entries", range(len(STEPS) - 1))
def test_a_ledger_put_back_by_two_entries_or_more_is_refused(path: Path, entries: int) -> None:
    older = copies(path)[entries]
    path.write_bytes(older)
    refused(path, f"{entries} entries", "entry 5")
    assert path.read_bytes() == older


@pytest.mark.parametrize("steps", range(1, len(STEPS) + 1))
def test_a_ledger_put_back_by_one_entry_is_brought_up_to_date(path: Path, steps: int) -> None:
    """Whatever the entry was: the same history, the same state of the charge, and nothing drawn anew."""
    *_, older, newest = copies(path, steps)
    with Ledger.open(path) as ledger:
        history, states = ledger.export(), [row.state for row in ledger.rows()]
    path.write_bytes(older)
    with Ledger.open(path) as ledger:
        assert ledger.export() == history
        assert [row.state for row in ledger.rows()] == states
        if states:
            assert (reserve(ledger).id, reserve(ledger).state) == (2, states[0])
            assert ledger.export() == history
        ledger.verify()
    assert len(history) == steps
    assert newest != older


def test_an_open_ledger_that_is_put_back_is_refused_at_its_next_step(path: Path) -> None:
    older = copies(path)[2]
    with Ledger.open(path) as ledger:
        path.write_bytes(older)
        for act in (ledger.rows, ledger.head, lambda: reserve(ledger, key="plan/1")):
            with pytest.raises(FileContentError, match="put back to an older copy"):
                act()


def test_an_emptied_or_deleted_ledger_is_refused(path: Path) -> None:
    copies(path)
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(FileContentError, match="gone or empty"):
            Ledger.open(path)
        path.unlink(missing_ok=True)


def test_without_its_mark_too_a_folder_refuses_a_new_ledger(path: Path) -> None:
    copies(path)
    path.unlink()
    (folder_of(path) / "begun").unlink()
    refused(path, "0 entries", "entry 5")


def test_a_missing_or_damaged_head_is_refused(path: Path) -> None:
    copies(path)
    head = folder_of(path) / "head"
    assert head.stat().st_mode & 0o777 == 0o600
    whole = head.read_bytes()
    step = max(1, len(whole) // 60)
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), step)]
    for content in [*damaged, b"", whole[:-1], whole[:40], whole + b"\0", whole.replace(b'"number":5', b'"number":3')]:
        head.write_bytes(content)
        refused(path, "its seal is not the one expected")
    head.unlink()
    refused(path, "head: missing")
    head.write_bytes(whole)
    Ledger.open(path).close()


def test_a_head_of_another_ledger_or_history_is_refused(path: Path, tmp_path: Path) -> None:
    copies(path)
    other = tmp_path / "elsewhere" / "ledger.sqlite"
    copies(other)
    whole = (folder_of(path) / "head").read_bytes()
    (folder_of(path) / "head").write_bytes((folder_of(other) / "head").read_bytes())
    refused(path, "its seal is not the one expected")
    (folder_of(path) / "head").write_bytes(whole)
    # One ledger, copied with its folder, goes on in two ways.
    twin = tmp_path / "twin" / "ledger.sqlite"
    shutil.copytree(path.parent, twin.parent)
    for at, name in ((path, "a"), (twin, "b")):
        with Ledger.open(at) as ledger:
            ledger.set_cap(name, 1.0, 1e-5)
    own = path.read_bytes()
    shutil.copy(twin, path)
    refused(path, "entry 6 has hash", "not of one history")
    # One entry less than the head, but not the entry that the head follows.
    with Ledger.open(twin) as ledger:
        ledger.set_cap("more", 1.0, 1e-5)
    shutil.copy(folder_of(twin) / "head", folder_of(path) / "head")
    path.write_bytes(own)
    refused(path, "6 entries", "entry 7")


def test_a_folder_put_back_alone_loses_no_charge_and_is_brought_up_to_date(path: Path, tmp_path: Path) -> None:
    copies(path)
    shutil.copytree(folder_of(path), tmp_path / "older")
    with Ledger.open(path) as ledger:
        middle = path.read_bytes()
        for number in (1, 2, 3):
            reserve(ledger, key=f"plan/{number}", population=f"ward-{number}")
    rows = [row.id for row in Ledger.open(path).rows()]
    shutil.rmtree(folder_of(path))
    shutil.copytree(tmp_path / "older", folder_of(path))
    assert [row.id for row in Ledger.open(path).rows()] == rows == [2, 6, 7, 8]
    path.write_bytes(middle)
    refused(path, "5 entries", "entry 8")


# --- ledgers of earlier versions -------------------------------------------------------------------------------


def as_before(path: Path) -> None:
    """The ledger as a version before the head left it."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    (folder_of(path) / "head").unlink()
    (folder_of(path) / "begun").write_bytes(b"")


def test_an_older_ledger_is_taken_over_once(path: Path) -> None:
    copies(path)
    as_before(path)
    old = path.read_bytes()
    with Ledger.open(path) as ledger:
        assert ledger.head().number == 5
        assert reserve(ledger).state == "committed"
        ledger.set_cap("ward", 3.0, 1e-4)
    path.write_bytes(old)
    with Ledger.open(path) as ledger:  # one entry less: redone
        assert ledger.cap("ward") == Cap(3.0, 1e-4)
        ledger.set_cap("ward", 4.0, 1e-4)
    path.write_bytes(old)
    refused(path, "5 entries", "entry 7")
    (folder_of(path) / "head").unlink()
    refused(path, "head: missing")


def test_an_older_ledger_without_entries_is_taken_over(path: Path) -> None:
    Ledger.open(path).close()
    as_before(path)
    with Ledger.open(path) as ledger:
        assert ledger.head() == (0, "0" * 64)
        assert reserve(ledger).id == 1


@pytest.mark.parametrize("before", [True, False])
def test_a_takeover_that_is_killed_goes_on(path: Path, before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    copies(path)
    as_before(path)
    with monkeypatch.context() as patch:
        write = ledger_head.HeadFile.write

        def killed(file: ledger_head.HeadFile, head: ledger_head.Head) -> None:
            if not before:
                write(file, head)
            raise Killed

        patch.setattr(ledger_head.HeadFile, "write", killed)
        with pytest.raises(Killed):
            Ledger.open(path)
    with Ledger.open(path) as ledger:
        assert ledger.head().number == 5


# --- failures between the two writes ---------------------------------------------------------------------------


class Failing(sqlite3.Connection):
    """Fails at the statement that is set, as on a full disk; with what came before undone."""

    at = ""

    def execute(self, statement: str, *arguments: Any) -> Any:
        if Failing.at and statement.startswith(Failing.at):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(statement, *arguments)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Failing]]:
    connect = sqlite3.connect
    monkeypatch.setattr(
        ledger_chain.sqlite3, "connect", lambda *args, **options: connect(*args, factory=Failing, **options)
    )
    yield Failing
    Failing.at = ""


@pytest.mark.parametrize("at", ["COMMIT", "INSERT INTO entries", "INSERT INTO private_tags", "INSERT OR REPLACE"])
def test_a_charge_that_failed_after_its_head_stands_and_is_found(path: Path, failing: type[Failing], at: str) -> None:
    with Ledger.open(path) as ledger, Ledger.open(path) as other:
        failing.at = at
        with pytest.raises(StorageError):
            reserve(ledger)
        failing.at = ""
        with pytest.raises(BudgetError, match="1 releases on record"):  # another process sees it at once
            reserve(other, key="plan/1")
        again = reserve(ledger)
        assert (again.id, again.state) == (1, "reserved")
        assert len(ledger.export()) == 1


@pytest.mark.parametrize("at", ["COMMIT", "INSERT INTO entries", "INSERT OR REPLACE"])
def test_draw_and_commit_that_failed_after_their_heads_happen_once(path: Path, failing: type[Failing], at: str) -> None:
    with Ledger.open(path) as ledger:
        first = reserve(ledger)
        failing.at = at
        with pytest.raises(StorageError):
            ledger.persist_noise(first, NOISE)
        failing.at = ""
        drawn = reserve(ledger)
        assert drawn.state == "drawn"
        assert ledger.noise(drawn).tolist() == NOISE.tolist()
        failing.at = at
        with pytest.raises(StorageError):
            ledger.commit(drawn, SUMS + NOISE)
        failing.at = ""
        ledger.commit(drawn, SUMS + NOISE)
        assert [entry["body"]["action"] for entry in ledger.export()] == ["reserve", "draw", "commit"]
        assert not list(folder_of(path).glob("noise-*"))


def test_a_charge_whose_head_could_not_be_written_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("full")

    with Ledger.open(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(ledger_head.HeadFile, "write", full)
            with pytest.raises(StorageError):
                reserve(ledger)
        assert ledger.rows() == []
        assert reserve(ledger, key="plan/1").id == 1


def test_a_transaction_has_one_entry_at_most(path: Path) -> None:
    """Two would need a head that carries both."""
    body = {"action": "cap", "population": "ward", "epsilon": 1.0, "delta": 0.0}
    with Ledger.open(path) as ledger, ledger._chain.transaction():
        entries = ledger._chain.entries()
        ledger._chain.append(body, entries)
        with pytest.raises(ValueError, match="second entry"):
            ledger._chain.append(body, entries)


# --- a head noted elsewhere --------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("DISTQEXP_LEDGER", str(path))
    return Commands(capsys)


def test_both_put_back_together_are_seen_by_a_noted_head_only(path: Path, tmp_path: Path, run: Commands) -> None:
    with Ledger.open(path) as ledger:
        ledger.set_cap("ward", 2.0, 1e-4)
        shutil.copytree(path.parent, tmp_path / "backup")
        early = run.done("ledger", "head").out
        reserve(ledger)
        hashes = [entry["hash"] for entry in ledger.export()]
    noted = run.done("ledger", "head").out
    assert (early, noted) == (f"1:{hashes[0]}\n", f"2:{hashes[1]}\n")
    for head in (noted, early, f"0:{'0' * 64}"):
        assert "holds the noted head" in run.done("ledger", "verify", "--head", head).out
    shutil.rmtree(path.parent)
    shutil.copytree(tmp_path / "backup", path.parent)
    run.done("ledger", "verify")  # nothing on the machine can tell
    said = run.distqexp("ledger", "verify", "--head", noted.strip())
    said.refused(3, "1 entries", "entry 2", hashes[1], "restore the ledger and its folder together")
    with Ledger.open(path) as ledger:
        reserve(ledger, event=EVENT, key="plan/another")
        other = ledger.head()
    run.distqexp("ledger", "verify", "--head", noted.strip()).refused(3, "entry 2", other.hash, hashes[1])
    run.done("ledger", "verify", "--head", early.strip())


@pytest.mark.parametrize(
    "head", ["", "5", "5:", ":", "x:" + "0" * 64, "5:" + "g" * 64, "5:" + "0" * 63, "-1:" + "0" * 64]
)
def test_a_malformed_head_is_a_usage_error(head: str, path: Path, run: Commands) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    run.distqexp("ledger", "verify", f"--head={head}").refused(2, "expected N:HASH", "distqexp ledger head")
    with pytest.raises(UsageError):
        api.ledger_verify(head)


def test_no_ledger_no_head(path: Path, run: Commands) -> None:
    run.distqexp("ledger", "head").refused(2, "no ledger there")
    assert not path.exists()


def test_refusals_of_the_ledger_reach_every_command_that_opens_it(path: Path, run: Commands) -> None:
    path.write_bytes(copies(path)[0])
    for words in (
        ("ledger", "show"),
        ("ledger", "head"),
        ("ledger", "verify"),
        ("ledger", "cap", "ward", "--epsilon", "9", "--delta", "0"),
    ):
        run.distqexp(*words).refused(3, "put back to an older copy")
    with pytest.raises(DistqexpError):
        Ledger.open()
