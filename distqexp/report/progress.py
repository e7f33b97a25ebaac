"""Progress: which stage is running, and while it lasts a mark every INTERVAL seconds. No report holds a private figure.

A terminal shows a bar (rich), a notebook one for the whole run, other streams get plain flushed lines; ``progress.jsonl`` in the output
folder gets the same events.
Stages begin and end with an event. In between a clock sets off the marks, whatever the work is: marks at shares of the work would tell, by
their times, how many micro-batches there are. Where counts are public (``counts_public``) a mark carries the share that is finished.
Elsewhere the share is a function of private counts: marks carry none, and times are whole multiples of INTERVAL. How long a stage takes
as a whole is not hidden.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from distqexp.errors import StorageError
from distqexp.report.notebook import NotebookBar, in_notebook
from distqexp.storage.atomic import storage_error

FILE_NAME = "progress.jsonl"
_WARNING = "distqexp: warning: "
INTERVAL = 10.0
"""Seconds between the marks of a stage."""


@dataclass(frozen=True)
class ProgressEvent:
    """One report: a stage begins or ends, or a mark in between.

    With private counts ``seconds`` and ``time`` are rounded up to multiples of INTERVAL.

    Attributes:
        stage: The name of the stage.
        round: The number of the round, from 0; None for stages outside the rounds.
        share: The finished share of the stage, 0 where it begins, 1 where it ends; None in a mark of a stage with private counts.
        seconds: Seconds since the stage began; in a mark a whole multiple of INTERVAL.
        seconds_left: How many seconds the stage will still take; None when unknown.
        time: Seconds since the epoch.
    """

    stage: str
    round: int | None
    share: float | None
    seconds: float
    seconds_left: float | None
    time: float


class Progress:
    """The reports of one run. Use it as a context manager: leaving it ends the last stage.

    Marks are written by a thread of their own, which ends with the stage.

    Args:
        out: The folder of progress.jsonl, which is appended to; no file when None.
        rounds: The number of rounds, for the text "round 2/3".
        counts_public: Whether counts are public, see the module.
        silent: Whether to leave out all output, the file and the callback (on ranks other than 0); stages are still timed.
        callback: Called with each event, in the thread that calls the methods: with marks when that thread next calls one.
        stream: Where lines go; standard error when None. A ``StringIO`` keeps them from people who get the events by the callback.
        clock: Returns seconds that never go back.

    Attributes:
        wording: What lines are put through before they are printed.
        warnings: The warnings among the lines, each once, without their first words.

    Raises:
        StorageError: progress.jsonl can't be written; raised by the methods.
    """

    def __init__(
        self,
        out: Path | None = None,
        *,
        rounds: int | None = None,
        counts_public: bool = False,
        silent: bool = False,
        callback: Callable[[ProgressEvent], None] | None = None,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = None if out is None or silent else out / FILE_NAME
        self._rounds = rounds
        self._public = counts_public
        self._silent = silent
        self._callback = callback
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self.wording: Callable[[str], str] = str
        self.warnings: list[str] = []
        self._stage: str | None = None
        self._round: int | None = None
        self._start = 0.0  # when the stage began, by the clock
        self._start_time = 0.0  # when the stage began, by the time of day
        self._seconds: dict[str, float] = {}
        self._share = 0.0
        self._marks = 0
        self._lock = threading.RLock()  # guards all attributes that change
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self._events: list[ProgressEvent] = []
        self._failure: BaseException | None = None
        self._bar: _Bar | NotebookBar | None = None
        if not silent and stream is None and in_notebook():
            self._bar = NotebookBar(rounds)
        elif not silent and self._stream.isatty():
            self._bar = _Bar(self._stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(finished=kind is None)
        except StorageError:
            if kind is None:  # otherwise people hear of the error that ends the run
                raise

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each stage took, all rounds together; rounded up to multiples of INTERVAL where counts are private."""
        return {stage: seconds if self._public else _up(seconds) for stage, seconds in self._seconds.items()}

    def stage(self, name: str, round: int | None = None) -> None:
        """End the running stage and begin another one."""
        self._end(finished=True)
        with self._lock:
            self._stage, self._round, self._share, self._marks = name, round, 0.0, 0
            self._start, self._start_time = self._clock(), time.time()
            self._report(0.0, 0.0)
        self._deliver()
        if not self._silent:
            self._ended = threading.Event()
            self._ticker = threading.Thread(
                target=self._tick, args=(self._ended,), name="distqexp progress", daemon=True
            )
            self._ticker.start()

    def advance(self, share: float) -> None:
        """Note that the running stage is finished to ``share`` (0 to 1). The next mark shows it where counts are public."""
        with self._lock:
            self._share = max(self._share, min(max(share, 0.0), 1.0))
        self._deliver()

    def write_marks(self) -> None:
        """Write the marks that are due: one for each whole INTERVAL since the stage began. The marks' thread calls this."""
        with self._lock:
            total = 0 if self._stage is None else int((self._clock() - self._start) / INTERVAL)
            while self._marks < total:
                self._marks += 1
                self._report(self._share if self._public else None, self._marks * INTERVAL)

    def say(self, text: str) -> None:
        """Print a line of public text between the lines of the stages. Neither the file nor the callback gets it."""
        self.write([text if self._bar is not None else f"distqexp: {text}"])

    def write(self, lines: Iterable[str]) -> None:
        """Print lines of public text as they are, as ``say`` does."""
        if self._silent:
            return
        with self._lock:
            for line in map(self.wording, lines):
                warning = line.removeprefix(_WARNING)
                if warning != line and warning not in self.warnings:
                    self.warnings.append(warning)
                if self._bar is not None:
                    self._bar.say(line)
                else:
                    self._stream.write(f"{line}\n")
            if self._bar is None:
                self._stream.flush()

    def warn(self, lines: Sequence[str]) -> None:
        """Print lines of warning as ``write`` does, and on standard error where a stream keeps the other lines from people."""
        self.write(lines)
        if not self._silent and self._bar is None and self._stream is not sys.stderr:
            sys.stderr.write("".join(f"{self.wording(line)}\n" for line in lines))
            sys.stderr.flush()

    def close(self, *, finished: bool = True) -> None:
        """End the running stage, with its last event where it is ``finished``, and give the terminal back."""
        try:
            self._end(finished)
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _end(self, finished: bool) -> None:
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None
        with self._lock:
            if self._stage is None:
                return
            seconds = self._clock() - self._start
            try:
                if finished and not self._silent:
                    self.write_marks()
                    self._report(1.0, seconds)
            finally:
                self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + seconds
                self._stage = None
        self._deliver()

    def _tick(self, ended: threading.Event) -> None:
        """Write the marks, in a thread of its own that wakes at each whole INTERVAL of the stage until it ends."""
        while True:
            with self._lock:
                pause = self._start + (self._marks + 1) * INTERVAL - self._clock()
            if ended.wait(max(pause, 0.0)):
                return
            try:
                self.write_marks()
            except Exception as error:  # noqa: BLE001 - the run's own thread raises it
                self._failure = error
                return

    def _deliver(self) -> None:
        """In the caller's thread, call back with waiting events and raise what went wrong in the thread of the marks."""
        with self._lock:
            failure, self._failure = self._failure, None
            events, self._events = self._events, []
        if self._callback is not None:
            for event in events:
                self._callback(event)
        if failure is not None:
            raise failure

    def _report(self, share: float | None, seconds: float) -> None:
        if self._silent or self._stage is None:
            return
        remaining = seconds * (1 - share) / share if share and (self._public or share == 1) else None
        event = ProgressEvent(
            self._stage, self._round, share, self._coarse(seconds), remaining and round(remaining, 3),
            self._coarse(self._start_time + seconds),
        )  # fmt: skip
        if self._bar is not None:
            self._bar.show(self._title(), share)
        else:
            self.write([_line(self._title(), event, self._public)])
        if self._file is not None:
            _append(self._file, dataclasses.asdict(event))
        self._events.append(event)

    def _coarse(self, seconds: float) -> float:
        return round(seconds, 3) if self._public else _up(seconds)

    def _title(self) -> str:
        if self._round is None:
            return str(self._stage)
        total = f"/{self._rounds}" if self._rounds is not None else ""
        return f"{self._stage}, round {self._round + 1}{total}"


def _up(seconds: float) -> float:
    return math.ceil(seconds / INTERVAL) * INTERVAL


def _line(title: str, event: ProgressEvent, public: bool) -> str:
    if event.share == 1:
        return f"distqexp: {title}: done {'in' if public else 'within'} {duration(event.seconds)}"
    if event.seconds == 0:
        return f"distqexp: {title}: started"
    if event.share is None or event.seconds_left is None:
        return f"distqexp: {title}: running for {duration(event.seconds)}"
    return f"distqexp: {title}: {event.share:.0%}, {duration(event.seconds_left)} left"


def duration(seconds: float) -> str:
    """Write whole seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        # Links are not followed: one could make this append to any file of the user's.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    except OSError as error:
        raise storage_error(path, error) from error


class _Bar:
    """The bar of a terminal: one line for each stage, which stays when the stage ends. It is drawn on each call, never in between."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(file=stream), auto_refresh=False)
        self._bars.start()
        self._task: Any = None
        self._title = ""

    def show(self, title: str, share: float | None) -> None:
        """Move the bar of ``title`` to ``share`` (None when unknown); a new title begins a new bar."""
        if self._task is None or title != self._title:
            self._title, self._task = title, self._bars.add_task(title, total=1.0)
        if share is None:
            self._bars.update(self._task, total=None)
        else:
            self._bars.update(self._task, total=1.0, completed=share)
        self._bars.refresh()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._bars.stop()
