"""Progress: which stage, which share of it, how long still. No private figure.

On a terminal a bar (rich); elsewhere plain flushed lines at fixed shares; beside both ``progress.jsonl`` in
the output folder with the same events. The number of events depends on the stages and on the shares they
pass, never on time or data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from distqexp.storage.atomic import storage_error

FILE_NAME = "progress.jsonl"
MARKS = 10
"""A stage reports each time that it passes a multiple of 1/MARKS."""


@dataclass(frozen=True)
class ProgressEvent:
    """One report. share: of the stage, 0 to 1. seconds: since the stage began. seconds_left: None when unknown.

    time: seconds since the epoch. round: from 0, None for stages outside the rounds.
    """

    stage: str
    round: int | None
    share: float
    seconds: float
    seconds_left: float | None
    time: float


class Progress:
    """Reports of one run. Use as a context manager: leaving it ends the last stage.

    out: folder of progress.jsonl (None: no file), appended to. rounds: for the text "round 2/3".
    silent: no output, no file, no callback (ranks other than 0); stages are still timed.
    stream: where lines go, standard error by default. callback: called with each event.

    Raises StorageError when progress.jsonl can't be written.
    """

    def __init__(
        self,
        out: Path | None = None,
        *,
        rounds: int | None = None,
        silent: bool = False,
        callback: Callable[[ProgressEvent], None] | None = None,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._file = None if out is None or silent else out / FILE_NAME
        self._rounds = rounds
        self._silent = silent
        self._callback = callback
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._stage: str | None = None
        self._round: int | None = None
        self._started = 0.0
        self._mark = 0
        self._bar = _Bar(self._stream) if not silent and self._stream.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def stage(self, name: str, round: int | None = None) -> None:
        """End the running stage and begin another one."""
        self._end(finished=True)
        self._stage, self._round, self._started, self._mark = name, round, self._clock(), 0
        self._report(0.0)

    def advance(self, share: float) -> None:
        """The running stage is done to ``share`` (0 to 1; never backwards). Public: from counts of pieces."""
        if self._stage is None or self._silent:
            return
        share = min(max(share, 0.0), 1.0)
        if self._bar is not None:
            self._bar.show(self._title(), share)
        while self._mark < MARKS - 1 and share >= (self._mark + 1) / MARKS:
            self._mark += 1
            self._report(self._mark / MARKS)

    def say(self, text: str) -> None:
        """A line of public text between the stages' own; neither in the file nor to the callback."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.say(text)
        else:
            self._stream.write(f"distqexp: {text}\n")
            self._stream.flush()

    def close(self, *, finished: bool = True) -> None:
        """End the running stage (``finished``: with its last event) and give the terminal back."""
        self._end(finished)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _end(self, finished: bool) -> None:
        if self._stage is None:
            return
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + self._clock() - self._started
        if finished:
            self._report(1.0)
        self._stage = None

    def _report(self, share: float) -> None:
        if self._silent or self._stage is None:
            return
        seconds = self._clock() - self._started
        left = seconds * (1 - share) / share if share > 0 else None
        event = ProgressEvent(self._stage, self._round, share, round(seconds, 3), left and round(left, 3), time.time())
        if self._bar is not None:
            self._bar.show(self._title(), share)
        else:
            self._stream.write(_line(self._title(), event) + "\n")
            self._stream.flush()
        if self._file is not None:
            _append(self._file, dataclasses.asdict(event))
        if self._callback is not None:
            self._callback(event)

    def _title(self) -> str:
        if self._round is None:
            return str(self._stage)
        of = f"/{self._rounds}" if self._rounds is not None else ""
        return f"{self._stage}, round {self._round + 1}{of}"


def _line(title: str, event: ProgressEvent) -> str:
    if event.share == 0:
        return f"distqexp: {title}: started"
    if event.share == 1:
        return f"distqexp: {title}: done in {_duration(event.seconds)}"
    return f"distqexp: {title}: {event.share:.0%}, {_duration(event.seconds_left or 0.0)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        # Not through a link: it could have this append to any file of the user's.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    except OSError as error:
        raise storage_error(path, error) from error


class _Bar:
    """The bar of a terminal: one line a stage, the finished ones stay."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=Console(file=stream))
        self._bars.start()
        self._task: Any = None
        self._title = ""

    def show(self, title: str, share: float) -> None:
        """Move the bar of ``title`` to ``share``; a new title begins a new bar."""
        if self._task is None or title != self._title:
            self._title, self._task = title, self._bars.add_task(title, total=1.0)
        self._bars.update(self._task, completed=share)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._bars.stop()
