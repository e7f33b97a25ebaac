"""The table of runs, trials.csv: a row for each run, written anew after each run, so that tune can go on where it stopped."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqexp.config.running import LISTS
from distqexp.errors import FileContentError, UsageError
from distqexp.storage.atomic import write_atomic

NAME = "trials.csv"
KEYS = tuple(LISTS)
FIELDS = ("task", "epsilon", *KEYS, "seed", "metric", "score", "loss", "seconds", "note")
LOWER_IS_BETTER = ("log_loss", "mean_squared_error", "loss")


@dataclass(frozen=True)
class Run:
    """One run of a setting.

    Attributes:
        seed: The seed of its noise.
        metric: The name of the metric.
        score: The value of the metric; None where the run diverged.
        loss: Log loss or mean squared error; None where the run diverged.
        seconds: How long the run took.
        note: Why it has no score; otherwise empty.
    """

    seed: int
    metric: str
    score: float | None
    loss: float | None
    seconds: float
    note: str = ""

    @property
    def value(self) -> float:
        """The score, with its sign turned where lower is better; minus infinity where the run diverged."""
        if self.score is None or not math.isfinite(self.score):
            return -math.inf
        return -self.score if self.metric in LOWER_IS_BETTER else self.score


@dataclass(frozen=True)
class Summary:
    """The runs of one setting.

    Attributes:
        values: The value of every tunable key in the setting.
        runs: The runs, one for each seed of the noise.
    """

    values: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> int:
        """The number of runs."""
        return len(self.runs)

    @property
    def mean(self) -> float:
        """The mean of the runs' values (higher is better); minus infinity when one diverged."""
        return _mean([run.value for run in self.runs])

    @property
    def error(self) -> float:
        """The standard error of the mean over seeds; 0 for one seed, or when a run diverged."""
        if self.seeds < 2 or self.mean == -math.inf:
            return 0.0
        squares = sum((run.value - self.mean) ** 2 for run in self.runs)
        return math.sqrt(squares / (self.seeds - 1) / self.seeds)

    @property
    def loss(self) -> float:
        """The mean loss; infinite when one diverged."""
        return _mean([math.inf if run.loss is None else run.loss for run in self.runs])

    @property
    def rank(self) -> tuple[float, float]:
        """What settings are compared by: the mean less its standard error, then the smaller loss. Higher is better."""
        return (self.mean - self.error, -self.loss)

    @property
    def score(self) -> float:
        """The mean of the metric itself; not a number when one diverged."""
        if self.mean == -math.inf:
            return math.nan
        return -self.mean if self.runs[0].metric in LOWER_IS_BETTER else self.mean


class Trials:
    """All runs of a folder.

    Args:
        path: The file of the table, which is read where it exists.
        task: A digest of everything that a run's result depends on besides its row.

    Raises:
        FileContentError: The file is no table of trials.
        UsageError: The file has runs of another task.
    """

    def __init__(self, path: Path, task: str) -> None:
        self.path = path
        self.task = task
        self._rows = _read(path, task) if path.exists() else []

    def add(self, epsilon: float, values: Mapping[str, Any], run: Run) -> None:
        """Add a run to the table, and write the table at once."""
        results = {"metric": run.metric, "score": run.score, "loss": run.loss, "seconds": round(run.seconds, 3)}
        row = {"task": self.task, "epsilon": epsilon, **values, "seed": run.seed, **results, "note": run.note}
        self._rows.append({name: _text(row[name]) for name in FIELDS})
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomic(self.path, text.getvalue().encode())

    def of(self, epsilon: float, values: Mapping[str, Any], metric: str, seeds: int) -> Summary:
        """Return the runs of one setting with seeds below ``seeds``, by seed, as if later ones had not been made yet."""
        query = {"epsilon": _text(epsilon), "metric": metric, **{name: _text(values[name]) for name in KEYS}}
        rows = [row for row in self._rows if all(row[name] == text for name, text in query.items())]
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
