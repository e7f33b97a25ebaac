"""``distqexp init``: a commented config for a public table. No private file is opened."""

from __future__ import annotations

import difflib
import json
import math
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqexp.config import Config, config_from_tree
from distqexp.errors import UsageError
from distqexp.problem.readers.base import existing_file
from distqexp.problem.readers.codings import FIRST_DAY, suggestion
from distqexp.problem.schema import fit_schema
from distqexp.stages.folder import new_file
from distqexp.stages.table_facts import Column, TableFacts, read_facts
from distqexp.storage.atomic import write_atomic

MOST_CLASSES = 100
"""Whole numbers from 0 up to fewer than this are classes, others are quantities."""


_CODED_WORDS = ("categories, an input for each", "yes or no", "dates, as days")


@dataclass(frozen=True)
class Start:
    """What somebody has who writes a first config.

    Attributes:
        table: The public table.
        target: The column of the label.
        out: The config to write.
        unit: The column of the unit ids; None where every record is a unit.
        private: The private table, which need not be there; it is not opened.
        test: The table of evaluation records, if any; it is not opened.
        epsilon: The epsilon of the run.
        units: About how many units the private table has; None: as many as the public one.
        encoding: How letters are stored in the tables; None for UTF-8, or UTF-16 with its mark.
    """

    table: Path
    target: str
    out: Path
    unit: str | None = None
    private: Path = Path("private.csv")
    test: Path | None = None
    epsilon: float = 1.0
    units: int | None = None
    encoding: str | None = None


def write_config(start: Start) -> list[str]:
    """Write the config, and return lines on what was found and what to do next.

    Raises:
        UsageError: A column isn't there, the label can't be learnt, there are no units, or there is something at ``out`` already.
        FileContentError: The public table can't be used.
    """
    new_file(start.out)
    if start.units is not None and start.units < 1:
        raise UsageError(f"--units {start.units}: expected about how many people the private table has, 1 or more")
    existing_file(str(start.table), "TABLE")
    facts = read_facts(start.table, start.unit, start.encoding)
    for option, name in (("--target", start.target), ("--unit", start.unit)):
        if name is not None and name not in facts.columns:
            near = difflib.get_close_matches(name, facts.columns, n=1, cutoff=0.0)[0]
            raise UsageError(f"{option} {name}: no such column in {start.table}; the nearest is {near}")
    loss, outputs, found = _task(facts.columns[start.target], start.table)
    left_out = dict(_left_out(facts, start))
    text = _text(start, facts, loss, outputs, left_out, inputs=1)
    base = start.out.absolute().parent
    schema = fit_schema(_config(text, base).data.public, loss=loss)  # type: ignore[arg-type]
    inputs = math.prod(schema.input_shape or (1,))
    text = _text(start, facts, loss, outputs, left_out, inputs=inputs)
    _config(text, base)
    write_atomic(start.out, text.encode())
    unit = (
        f"{facts.units:,} units by {start.unit}"
        if start.unit
        else "each row a unit of its own: name a column by --unit if people have several"
    )
    return [
        f"{start.table}: {facts.rows:,} rows, {inputs} inputs, {unit}",
        f"{start.target}: {found}: {loss}",
        *(
            f"{words}: {', '.join(names)}"
            for words, names in zip(_CODED_WORDS, _coded(facts, start, left_out).values(), strict=True)
            if names
        ),
        *(f"left out: {name}: {reason}" for name, reason in left_out.items()),
        f"{start.out}: written; look through it, above all {'' if start.units else 'privacy.units and '}data.private.path",
        f"next: distqexp plan {start.out} --out plan.h5   (free of cost)   then: distqexp fit {start.out}",
    ]


def _config(text: str, base: Path) -> Config:
    return config_from_tree(tomllib.loads(text), base)


def _task(target: Column, table: Path) -> tuple[str, int, str]:
    """Return the loss, the number of outputs, and what the label is, in words."""
    if target.count == 0:
        raise UsageError(f"{table}: column {target.name} is empty; expected labels in the public table")
    if not target.numbers:
        return _task_of_words(target, table)
    numbers = sorted({float(value) for value in target.values})
    if not target.many and target.whole and numbers[0] >= 0 and numbers[-1] < MOST_CLASSES:
        classes = int(numbers[-1]) + 1
        if numbers == [0.0, 1.0]:
            return "binary-cross-entropy", 1, "0 and 1"
        if classes == len(numbers) and classes > 2:
            return "cross-entropy", classes, f"{classes} classes"
    if len(numbers) < 2:
        raise UsageError(f"{table}: column {target.name}: found one value only; expected at least two to tell apart")
    return "mean-squared-error", 1, f"a quantity from {numbers[0]:g} to {numbers[-1]:g}"


def _task_of_words(target: Column, table: Path) -> tuple[str, int, str]:
    """The same of a label of texts: its classes are those of the public table, in the order of the alphabet."""
    words, some = sorted(target.values), ", ".join(sorted(target.values)[:4])
    if target.many or len(words) > MOST_CLASSES or 2 * len(words) > target.count:
        raise UsageError(
            f"{table}: column {target.name}: found free texts ({some}); expected numbers, or classes that come more than once each"
        )
    if len(words) < 2:
        raise UsageError(f"{table}: column {target.name}: found one value only; expected at least two to tell apart")
    found = f"{len(words)} classes ({some}{', and so on' if len(words) > 4 else ''})"
    return ("binary-cross-entropy", 1, found) if len(words) == 2 else ("cross-entropy", len(words), found)


def _left_out(facts: TableFacts, start: Start) -> Iterator[tuple[str, str]]:
    """Yield the columns that can be no feature as they are, with the reason."""
    for column in facts.columns.values():
        if column.name in (start.target, start.unit):
            continue
        if column.count == 0:
            yield column.name, "empty"
        elif not column.numbers and _coding(column) == "exclude":
            yield column.name, f"free texts, such as {min(column.values)!r}"
        elif column.numbers and column.looks_like_an_id:
            yield column.name, "looks like an id: if people have several rows of one id, name it by --unit"


def _coding(column: Column) -> str:
    """Return how a column of texts may be meant: levels, boolean, days, or exclude."""
    kind, _ = suggestion([*sorted(column.values)] * 2)
    few = 2 * len(column.values) <= column.count
    return "exclude" if column.many or (kind == "levels" and not few) else kind


def _coded(facts: TableFacts, start: Start, left_out: Collection[str]) -> dict[str, list[str]]:
    """Return the columns of texts that are features, by how they are meant."""
    found: dict[str, list[str]] = {"levels": [], "boolean": [], "days": []}
    for column in facts.columns.values():
        if not column.numbers and column.name not in (start.target, start.unit, *left_out):
            found[_coding(column)].append(column.name)
    return found


def _text(start: Start, facts: TableFacts, loss: str, outputs: int, left_out: dict[str, str], *, inputs: int) -> str:
    """Return the config as text. Keys whose defaults serve are left out where a config may do without them."""
    head = "".join(_head(start, facts, loss, outputs, left_out, inputs))
    try:
        _config(head, start.out.absolute().parent)
    except UsageError:
        return head + _method(inputs * outputs)
    return head


def _head(
    start: Start, facts: TableFacts, loss: str, outputs: int, left_out: dict[str, str], inputs: int
) -> Iterator[str]:
    base = start.out.absolute().parent
    units = start.units or facts.units
    delta = 10.0 ** -math.ceil(math.log10(units) + 1)
    columns = _columns(start, facts, list(left_out), _coded(facts, start, left_out))
    signs = (
        ("separator", facts.dialect.separator, ","),
        ("decimal", facts.dialect.decimal, "."),
        ("encoding", facts.dialect.encoding, "utf-8"),
    )
    dialect = "".join(f"{key} = {_quoted(sign)}\n" for key, sign, usual in signs if sign != usual)
    yield f"# Written by distqexp init from {start.table.name}, a public table. All of this file is public.\n"
    yield "# Every key is in docs/config.md. Plan it first: distqexp plan is free of cost and says what to expect.\n\n"
    yield "[model]\n# The model, and how it is fitted to the public records before the private ones are touched.\n"
    yield 'factory = "distqexp.problem.models:logistic"\n'
    yield f"args = {{ inputs = {inputs}, outputs = {outputs} }}\nloss = {_quoted(loss)}\n"
    yield 'pretrain = { epochs = 100, optimiser = "lbfgs", learning_rate = 1.0, weight_decay = 0.01 }\n\n'
    yield "[data]\n# The name that the ledger keeps the budget of these people under: the same in every config about them.\n"
    yield f"population = {_quoted(start.private.name.partition('.')[0] or 'private')}\n\n"
    if left_out:
        yield "# Left out of the features:\n"
        yield "".join(f"#   {' '.join(name.split())}: {reason}\n" for name, reason in left_out.items())
    for role, path, words in (
        (
            "public",
            start.table,
            "Public records, like the private ones: what is fitted before, scales, the noise's shape.",
        ),
        ("private", start.private, "The sensitive records. They have the same columns."),
        ("eval", start.test, "Records that metrics are computed on. The guarantee doesn't cover these metrics."),
    ):
        if path is not None:
            place = _quoted(os.path.relpath(path.absolute(), base))
            yield f'# {words}\n[data.{role}]\nformat = "csv"\npath = {place}\n{dialect}{columns}\n'
    if start.test is None:
        yield "# For accuracy before and after, name records that are in neither file: [data.eval], as above.\n\n"
    yield "[privacy]\n# What whoever is protected gives away at most: smaller is safer. Below 1 is strong, above 8 weak.\n"
    yield f"epsilon = {start.epsilon!r}\n# Well below 1 / units.\ndelta = {delta!r}\n"
    yield f"# About how many {start.unit or 'record'}s the private table has: a public figure, never counted from it.\n"
    yield "" if start.units else "# This is the number of the public table: correct it.\n"
    yield f"units = {units}\n"


def _columns(start: Start, facts: TableFacts, left_out: Sequence[str], coded: Mapping[str, Sequence[str]]) -> str:
    unit = (
        f"# All rows of one {start.unit} are protected together.\nunit = {_quoted(start.unit)}\n" if start.unit else ""
    )
    exclude = f", exclude = [{', '.join(map(_quoted, left_out))}]" if left_out else ""
    words = "".join(
        f", {key} = [{', '.join(map(_quoted, coded[kind]))}]"
        for kind, key in (("levels", "categorical"), ("boolean", "booleans"))
        if coded[kind]
    )
    label = facts.columns[start.target]
    classes = "" if label.numbers else f", classes = [{', '.join(map(_quoted, sorted(label.values)))}]"
    days = ", ".join(f"{_quoted(name)} = {_quoted(FIRST_DAY)}" for name in coded["days"])
    dates = f", dates = {{ {days} }}" if days else ""
    return f"{unit}columns = {{ target = {_quoted(start.target)}{classes}{exclude}{words}{dates} }}\n"


def _method(parameters: int) -> str:
    """Return the method's keys that a config can't do without."""
    dense = (
        '\n[precision]\n# The shape of the noise, from public curvature.\nkind = "dense"\n'
        if parameters <= 2000
        else ""
    )
    return (
        "\n[mechanism]\n# More rounds go further, each with more noise. distqexp tune finds better figures on public records.\n"
        f"rounds = 4\nclip_quantile = 0.8\n{dense}"
    )


def _quoted(text: Any) -> str:
    """Return a text as TOML has it, which is as JSON has it but for one character."""
    return json.dumps(str(text)).replace("\x7f", "\\u007f")
