"""Progress: marks come at one cadence and tell of no private count, the file holds the same events, other ranks are silent."""

from __future__ import annotations

import errno
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import make_config, random_table

from distqexp.api import fit
from distqexp.errors import StorageError
from distqexp.report.progress import INTERVAL, Progress, ProgressEvent


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


class Silence(threading.Event):
    """What a ticker waits for, without waiting: it never wakes to write a mark."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(None)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the marks is the test's: ``write_marks`` is called by it alone."""
    monkeypatch.setattr("distqexp.report.progress.threading.Event", Silence)
    monkeypatch.setattr("distqexp.report.progress.time.time", lambda: 1_000_003.25)


def run(progress: Progress, clock: Clock, steps: list[tuple[float, float]], marks_at: float = 1.0) -> None:
    """A plan of 2 s, a sketch whose ``steps`` take seconds and reach shares, another of 75 s. Marks are looked for every ``marks_at`` s."""

    def wait(seconds: float) -> None:
        until = clock.now + seconds
        while clock.now < until:
            clock.now = min(until, clock.now + marks_at)
            progress.write_marks()

    with progress:
        progress.stage("plan")
        wait(2)
        progress.stage("sketch", 0)
        for seconds, share in steps:
            wait(seconds)
            progress.advance(share)
        progress.stage("sketch", 1)
        wait(75)


STEPS = [(4.0, 0.25), (4.0, 0.5), (13.0, 0.5), (4.5, 1.0)]


def test_lines_and_file_hold_the_same_events(tmp_path: Path, by_hand: None) -> None:
    clock, stream, events = Clock(), io.StringIO(), list[ProgressEvent]()
    progress = Progress(tmp_path, rounds=2, counts_public=True, stream=stream, clock=clock, callback=events.append)
    run(progress, clock, STEPS)
    lines = stream.getvalue().splitlines()
    assert lines[:6] == [
        "distqexp: plan: started",
        "distqexp: plan: done in 2 s",
        "distqexp: sketch, round 1/2: started",
        "distqexp: sketch, round 1/2: 50%, 10 s left",
        "distqexp: sketch, round 1/2: 50%, 20 s left",
        "distqexp: sketch, round 1/2: done in 26 s",
    ]
    assert lines[7] == "distqexp: sketch, round 2/2: running for 10 s"
    assert lines[-1] == "distqexp: sketch, round 2/2: done in 1 min 15 s"
    stored = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert stored == [vars(event) for event in events]
    assert len(stored) == len(lines) == 2 + 4 + 9
    assert [entry["seconds"] for entry in stored[6:]] == [0, 10, 20, 30, 40, 50, 60, 70, 75]
    assert stored[3] == {
        "stage": "sketch", "round": 0, "share": 0.5, "seconds": 10.0, "seconds_left": 10.0, "time": 1_000_013.25,
    }  # fmt: skip
    assert progress.seconds == {"plan": 2.0, "sketch": 100.5}


def written(folder: Path, steps: list[tuple[float, float]], marks_at: float, public: bool) -> tuple[str, str, float]:
    clock, stream = Clock(), io.StringIO()
    folder.mkdir()
    progress = Progress(folder, counts_public=public, stream=stream, clock=clock)
    run(progress, clock, steps, marks_at)
    return stream.getvalue(), (folder / "progress.jsonl").read_text(), progress.seconds["sketch"]


def test_with_private_counts_nothing_depends_on_the_pieces_of_the_work(tmp_path: Path, by_hand: None) -> None:
    """However many micro-batches share the same tens of seconds, and however late the thread of the marks comes: the same bytes."""
    works = [STEPS, [(25.5, 1.0)], [(25.1, 1.0)], [(0.026, step / 1000) for step in range(1000)], [(26.7, 0.5)]]
    pauses = [1.0, 30.0, 0.25, 1.0, 40.0]
    found = {
        written(tmp_path / str(number), steps, marks_at, public=False)
        for number, (steps, marks_at) in enumerate(zip(works, pauses, strict=True))
    }
    assert len(found) == 1
    ((text, file, seconds),) = found
    assert seconds == 110.0
    entries = [json.loads(line) for line in file.splitlines()]
    assert {entry["share"] for entry in entries if entry["seconds"] > 0} == {None, 1.0}
    assert all(entry["seconds"] % INTERVAL == entry["time"] % INTERVAL == 0 for entry in entries)
    assert all(entry["seconds_left"] in (None, 0.0) for entry in entries)
    assert "sketch, round 1: running for 10 s" in text
    assert "%" not in text
    assert "sketch, round 1: done within 30 s" in text


def test_with_public_counts_a_mark_tells_the_share(tmp_path: Path, by_hand: None) -> None:
    halves, tenths = (written(tmp_path / name, steps, 1.0, public=True) for name, steps in (
        ("a", [(9.0, 0.5), (16.0, 1.0)]), ("b", [(2.5, i / 10) for i in range(1, 11)])
    ))  # fmt: skip
    assert ["50%" in halves[0], "30%" in halves[0], "30%" in tenths[0], "70%" in tenths[0]] == [True, False, True, True]
    assert len(halves[0].splitlines()) == len(tenths[0].splitlines()) == 15


def test_the_thread_writes_marks_by_itself_and_callbacks_stay_in_the_run_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an interval of 20 ms, until there are three marks: no advance is needed for one to be written."""
    monkeypatch.setattr("distqexp.report.progress.INTERVAL", 0.02)
    threads, events = set(), list[ProgressEvent]()

    def callback(event: ProgressEvent) -> None:
        threads.add(threading.current_thread())
        events.append(event)

    file = tmp_path / "progress.jsonl"
    with Progress(tmp_path, counts_public=True, stream=io.StringIO(), callback=callback) as progress:
        progress.stage("sketch", 0)
        progress.advance(0.5)
        delivered = len(events)  # on a busy machine marks are written before this thread gets here
        while len(file.read_text().splitlines()) < delivered + 3:
            assert threading.active_count() >= 2
            threading.Event().wait(0.005)
        assert len(events) == delivered
        progress.advance(0.6)
        assert [event.share for event in events[delivered : delivered + 3]] == [0.5, 0.5, 0.5]
    assert threads == {threading.main_thread()}
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    assert stored == [vars(event) for event in events]
    assert [entry["seconds"] for entry in stored[:-1]] == [pytest.approx(0.02 * n) for n in range(len(stored) - 1)]


def test_what_the_thread_can_not_write_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqexp.report.progress.INTERVAL", 0.02)

    def work() -> None:
        with Progress(tmp_path, stream=io.StringIO()) as progress:
            progress.stage("sketch", 0)
            (tmp_path / "progress.jsonl").unlink()
            (tmp_path / "progress.jsonl").symlink_to(tmp_path / "elsewhere")
            while True:
                progress.advance(0.5)
                threading.Event().wait(0.005)

    with pytest.raises(StorageError, match=r"progress\.jsonl"):
        work()
    assert not (tmp_path / "elsewhere").exists()


def test_other_ranks_are_silent_but_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str], by_hand: None) -> None:
    clock, events = Clock(), list[ProgressEvent]()
    progress = Progress(tmp_path, silent=True, clock=clock, callback=events.append)
    run(progress, clock, STEPS)
    assert progress.seconds == {"plan": 10.0, "sketch": 110.0}  # rounded up: counts are private unless said otherwise
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


@pytest.mark.parametrize("public", [True, False])
def test_a_terminal_gets_a_bar_and_the_same_file(tmp_path: Path, by_hand: None, public: bool) -> None:
    clock, stream = Clock(), Terminal()
    run(Progress(tmp_path, rounds=2, counts_public=public, stream=stream, clock=clock), clock, STEPS)
    assert "sketch, round 2/2" in stream.getvalue()
    assert "distqexp: plan: started" not in stream.getvalue()
    assert ("50%" in stream.getvalue()) == public
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 15


def test_a_terminal_s_bar_moves_with_the_marks_alone(by_hand: None) -> None:
    """Whatever is told in between, and however often: the same drawing."""
    drawn = set()
    for shares in ([0.5], [0.01 * step for step in range(51)]):
        clock, stream = Clock(), Terminal()
        with Progress(counts_public=True, stream=stream, clock=clock) as progress:
            progress.stage("sketch", 0)
            before = stream.getvalue()
            for share in shares:
                progress.advance(share)
            assert stream.getvalue() == before
            clock.now += 10
            progress.write_marks()
            assert stream.getvalue() != before
        drawn.add(stream.getvalue().count("50%"))
    assert len(drawn) == 1


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


# --- whole runs --------------------------------------------------------------------------------------------


def whole_run(
    folder: Path, patients: int, capsys: pytest.CaptureFixture[str]
) -> tuple[str, list[dict[str, object]], dict[str, float]]:
    """Standard error, the events without the clock, and the seconds of an add-remove run with micro-batches of 8 units."""
    folder.mkdir()
    random_table("logistic", [1] * patients, seed=patients).write(folder / "private.h5")
    random_table("logistic", [1] * 30, seed=2).write(folder / "public.h5")
    privacy = {"epsilon": 1.0, "delta": 1e-5, "units": 40, "adjacency": "add-remove"}
    config = make_config(folder, "logistic", privacy=privacy, mechanism={"clip": 0.05, "rounds": 2})
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        result = fit(config, folder / "out")
    assert result is not None
    stored = [json.loads(line) for line in (folder / "out" / "progress.jsonl").read_text().splitlines()]
    assert all(entry["time"] % INTERVAL == entry["seconds"] % INTERVAL == 0 for entry in stored)
    marks = [entry for entry in stored if entry["share"] is None]
    assert all(entry["seconds_left"] is None for entry in marks)
    ends = [{**entry, "time": 0, "seconds": 0} for entry in stored if entry not in marks]
    error = re.sub(r"(done within|running for) [0-9a-z ]+", r"\1 a while", capsys.readouterr().err)
    where = "distqexp: model: "  # which names the folder
    lines = [line for line in error.splitlines() if "running for" not in line and not line.startswith(where)]
    return "\n".join(lines), ends, result.summary()["seconds"]


def test_a_run_s_progress_is_the_same_for_64_65_128_and_129_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under add-remove, and 8, 9, 16 and 17 micro-batches: all but how many tens of seconds it took."""
    found = [whole_run(tmp_path / str(patients), patients, capsys) for patients in (64, 65, 128, 129)]
    assert all(run[:2] == found[0][:2] for run in found)
    assert "sketch, round 2/2: done within a while" in found[0][0]
    assert all(value % INTERVAL == 0 for run in found for value in run[2].values())
    shares = [(event["stage"], event["share"]) for event in found[0][1]]
    assert shares == [
        (stage, share) for stage in ("plan", *(["sketch", "pool", "release"] * 2), "export") for share in (0.0, 1.0)
    ]
