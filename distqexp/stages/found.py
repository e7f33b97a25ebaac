"""What ``distqexp init`` finds in public records, whatever their form: enough for the sections of a config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distqexp.errors import UsageError
from distqexp.stages.found_dates import are_dates
from distqexp.stages.table_facts import Column

MOST_CLASSES = 100
"""Whole numbers from 0 up to fewer than this are classes, others are quantities."""


class Task(NamedTuple):
    """What is learnt: the loss, the number of outputs, and what the label is, in words."""

    loss: str
    outputs: int
    words: str


def logistic(inputs: int, outputs: int) -> str:
    """Return the lines of [model] for a linear model."""
    return f'factory = "distqexp.problem.models:logistic"\nargs = {{ inputs = {inputs}, outputs = {outputs} }}\n'


@dataclass(frozen=True)
class Found:
    """A public source of records.

    Attributes:
        format: What ``data.*.format`` is.
        rows: How many rows it has.
        units: How many different units, or rows where no unit was named.
        task: What is learnt.
        source: Further lines of a [data.*] section.
        model: The lines of [model] for so many inputs and outputs.
        shape: What ``data.record_shape`` is; None where it is left to the records.
        remarks: Lines on how columns are meant.
        left_out: Columns that are no features, with the reason.
    """

    format: str
    rows: int
    units: int
    task: Task
    source: str
    model: Callable[[int, int], str] = logistic
    shape: tuple[int, ...] | None = None
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def task_of(target: Column, table: Path) -> Task:
    """Return what is learnt from a label. Raises UsageError where nothing can be."""
    if target.count == 0:
        raise UsageError(f"{table}: column {target.name} is empty; expected labels in the public table")
    if not target.numbers:
        return _task_of_words(target, table)
    numbers = sorted({float(value) for value in target.values})
    if not target.many and target.whole and numbers[0] >= 0 and numbers[-1] < MOST_CLASSES:
        classes = int(numbers[-1]) + 1
        if numbers == [0.0, 1.0]:
            return Task("binary-cross-entropy", 1, "0 and 1")
        if classes == len(numbers) and classes > 2:
            return Task("cross-entropy", classes, f"{classes} classes")
    if len(numbers) < 2:
        raise UsageError(f"{table}: column {target.name}: found one value only; expected at least two to tell apart")
    return Task("mean-squared-error", 1, f"a quantity from {numbers[0]:g} to {numbers[-1]:g}")


def quoted(text: Any) -> str:
    """Return a text as TOML has it, which is as JSON has it but for one character."""
    return json.dumps(str(text)).replace("\x7f", "\\u007f")


def listed(names: Any) -> str:
    """Return texts as an array of TOML."""
    return f"[{', '.join(map(quoted, names))}]"


def _task_of_words(target: Column, table: Path) -> Task:
    """The same of a label of texts: its classes are those of the public table, in the order of the alphabet."""
    if are_dates(target.values):
        raise UsageError(
            f"{table}: column {target.name}: found dates ({min(target.values)}); expected numbers or classes: write numbers instead, "
            "such as days since a date"
        )
    words, some = sorted(target.values), ", ".join(sorted(target.values)[:4])
    if target.many or len(words) > MOST_CLASSES or 2 * len(words) > target.count:
        raise UsageError(
            f"{table}: column {target.name}: found free texts ({some}); expected numbers, or classes that come more than once each"
        )
    if len(words) < 2:
        raise UsageError(f"{table}: column {target.name}: found one value only; expected at least two to tell apart")
    found = f"{len(words)} classes ({some}{', and so on' if len(words) > 4 else ''})"
    return Task("binary-cross-entropy", 1, found) if len(words) == 2 else Task("cross-entropy", len(words), found)
