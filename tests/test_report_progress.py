"""Progress: the number of lines is fixed, the file holds the same events, other ranks are silent."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest

from distqexp.errors import StorageError
from distqexp.report.progress import Progress, ProgressEvent


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(progress: Progress, clock: Clock, shares: list[float]) -> None:
    with progress:
        progress.stage("plan")
        clock.now += 2
        progress.stage("sketch", 0)
        for share in shares:
            clock.now += 1
            progress.advance(share)
        progress.stage("sketch", 1)
        clock.now += 75


def test_lines_and_file_hold_the_same_events(tmp_path: Path) -> None:
    clock, stream, events = Clock(), io.StringIO(), list[ProgressEvent]()
    progress = Progress(tmp_path, rounds=2, stream=stream, clock=clock, callback=events.append)
    run(progress, clock, [0.25, 0.5, 0.5, 1.0])
    lines = stream.getvalue().splitlines()
    assert lines[:5] == [
        "distqexp: plan: started",
        "distqexp: plan: done in 2 s",
        "distqexp: sketch, round 1/2: started",
        "distqexp: sketch, round 1/2: 10%, 9 s left",
        "distqexp: sketch, round 1/2: 20%, 4 s left",
    ]
    assert lines[-1] == "distqexp: sketch, round 2/2: done in 1 min 15 s"
    stored = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [entry["share"] for entry in stored] == [event.share for event in events]
    assert len(stored) == len(lines) == 2 + 11 + 2
    assert stored[3]["seconds_left"] == 9.0
    assert stored[3]["time"] > 0
    assert stored[3]["round"] == 0
    assert progress.seconds == {"plan": 2.0, "sketch": 79.0}


def test_the_number_of_lines_does_not_depend_on_how_often_or_when_it_is_told(tmp_path: Path) -> None:
    counts = set()
    for shares in ([1.0], [i / 1000 for i in range(1001)], [0.09, 0.41, 0.4, 0.95, 2.0], [1 / 3, 2 / 3, 1.0]):
        clock, stream = Clock(), io.StringIO()
        run(Progress(stream=stream, clock=clock), clock, shares)
        counts.add(len(stream.getvalue().splitlines()))
    assert counts == {15}


def test_other_ranks_are_silent_but_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock, events = Clock(), list[ProgressEvent]()
    progress = Progress(tmp_path, silent=True, clock=clock, callback=events.append)
    run(progress, clock, [1.0])
    assert progress.seconds["plan"] == 2.0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.stage("plan")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("distqexp: plan: started\n")


def test_a_stage_cut_short_by_an_error_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)

    def work() -> None:
        with progress:
            progress.stage("pool")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        work()
    assert stream.getvalue() == "distqexp: pool: started\n"
    assert "pool" in progress.seconds


def test_a_terminal_gets_a_bar_and_the_same_file(tmp_path: Path) -> None:
    clock, stream = Clock(), Terminal()
    run(Progress(tmp_path, rounds=2, stream=stream, clock=clock), clock, [0.5, 1.0])
    assert "sketch, round 2/2" in stream.getvalue()
    assert "distqexp: plan: started" not in stream.getvalue()
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 15


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for _ in range(2):
        with Progress(tmp_path, stream=io.StringIO()) as progress:
            progress.stage("plan")
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 4


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    progress = Progress(tmp_path, stream=io.StringIO())
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(StorageError, match="No space left"):
        progress.stage("plan")
