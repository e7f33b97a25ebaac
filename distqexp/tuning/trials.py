"""The table of runs, trials.csv: one row a run, written anew after each, so that tune can go on where it stopped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqexp.config.tuning import LISTS
from distqexp.errors import FileContentError, UsageError
from distqexp.storage.atomic import write_atomic

NAME = "trials.csv"
KEYS = tuple(LISTS)
FIELDS = ("task", "epsilon", *KEYS, "seed", "metric", "score", "loss", "seconds", "note")
LOWER_IS_BETTER = ("log_loss", "mean_squared_error")


@dataclass(frozen=True)
class Run:
    """One run. score: the metric. loss: log loss or mean squared error. Both None, and a note, where it diverged."""

    seed: int
    metric: str
    score: float | None
    loss: float | None
    seconds: float
    note: str = ""

    @property
    def value(self) -> float:
        """Higher is better; minus infinity where it diverged."""
        if self.score is None or not math.isfinite(self.score):
            return -math.inf
        return -self.score if self.metric in LOWER_IS_BETTER else self.score


@dataclass(frozen=True)
class Summary:
    """The runs of one setting. error: the standard error of the mean over seeds, 0 for one seed."""

    values: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def mean(self) -> float:
        """Mean of the runs' values (higher is better); minus infinity when one diverged."""
        return _mean([run.value for run in self.runs])

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        if self.seeds < 2 or self.mean == -math.inf:
            return 0.0
        squares = sum((run.value - self.mean) ** 2 for run in self.runs)
        return math.sqrt(squares / (self.seeds - 1) / self.seeds)

    @property
    def loss(self) -> float:
        """Mean loss; infinite when one diverged."""
        return _mean([math.inf if run.loss is None else run.loss for run in self.runs])

    @property
    def rank(self) -> tuple[float, float]:
        """What the choice goes by: the mean less its standard error, then the smaller loss."""
        return (self.mean - self.error, -self.loss)

    @property
    def score(self) -> float:
        """Mean of the metric itself; not a number when one diverged."""
        if self.mean == -math.inf:
            return math.nan
        return -self.mean if self.runs[0].metric in LOWER_IS_BETTER else self.mean


class Trials:
    """All runs of a folder. task: a digest of everything that a run's result depends on besides its row."""

    def __init__(self, path: Path, task: str) -> None:
        self.path = path
        self.task = task
        self._rows = _read(path, task) if path.exists() else []

    def add(self, epsilon: float, values: Mapping[str, Any], run: Run) -> None:
        """Store a run, at once."""
        measured = {"metric": run.metric, "score": run.score, "loss": run.loss, "seconds": round(run.seconds, 3)}
        row = {"task": self.task, "epsilon": epsilon, **values, "seed": run.seed, **measured, "note": run.note}
        self._rows.append({name: _text(row[name]) for name in FIELDS})
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.path, text.getvalue().encode())

    def of(self, epsilon: float, values: Mapping[str, Any], metric: str, seeds: int) -> Summary:
        """The runs of one setting with the seeds below ``seeds``, by seed: as if later ones had not been made yet."""
        wanted = {"epsilon": _text(epsilon), "metric": metric, **{name: _text(values[name]) for name in KEYS}}
        rows = [row for row in self._rows if all(row[name] == text for name, text in wanted.items())]
        runs = sorted((_run(row) for row in rows), key=lambda run: run.seed)
        return Summary(values, tuple(run for run in runs if run.seed < seeds))


def _read(path: Path, task: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileContentError(f"{path}: can't be read ({error}); take a new --out") from None
    if names != FIELDS or any(None in row.values() or None in row for row in rows):
        raise FileContentError(f"{path}: other columns than a table of trials; take a new --out")
    if any(row["task"] != task for row in rows):
        raise UsageError(f"{path}: runs of another config or of other public records; take a new --out")
    for row in rows:
        try:
            _run(row)
        except ValueError:
            raise FileContentError(f"{path}: a row isn't made of numbers; take a new --out") from None
    return rows


def _run(row: Mapping[str, str]) -> Run:
    score, loss = (float(row[name]) if row[name] else None for name in ("score", "loss"))
    return Run(int(row["seed"]), row["metric"], score, loss, float(row["seconds"]), row["note"])


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _mean(numbers: list[float]) -> float:
    return (
        math.fsum(numbers) / len(numbers)
        if numbers and all(map(math.isfinite, numbers))
        else (math.inf if any(number == math.inf for number in numbers) else -math.inf)
    )
