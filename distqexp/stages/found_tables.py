"""Public tables, CSV, Parquet and saved datasets, for ``distqexp init``: columns, how they are meant, and texts that a tokenizer reads."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from distqexp.errors import UsageError
from distqexp.problem.readers.codings import FIRST_DAY, suggestion
from distqexp.problem.readers.tokenizer import open_tokenizer
from distqexp.stages.found import Found, listed, quoted, task_of
from distqexp.stages.found_dates import dates_in_words
from distqexp.stages.table_facts import Column, TableFacts, longest_list, read_facts

_CODED_WORDS = ("categories, an input for each", "yes or no", "dates, as days")
_LONGEST = 256
_SAMPLE = 2000
"""So many public texts say how long texts are."""

_TOKENS, _MASK = "input_ids", "attention_mask"


def found_table(
    path: Path, format: str, target: str | None, unit: str | None, encoding: str | None, tokenizer: Path | None
) -> Found:
    """Look at a public table. Raises UsageError for columns that aren't there or can't serve, FileContentError for its content."""
    facts = read_facts(path, unit, encoding, format)
    if target is None:
        raise UsageError(f"--target: not given; expected the column of the label in {path}: --target died")
    for option, name in (("--target", target), ("--unit", unit)):
        if name is not None and name not in facts.columns:
            near = difflib.get_close_matches(name, facts.columns, n=1, cutoff=0.0)[0]
            raise UsageError(f"{option} {name}: no such column in {path}; the nearest is {near}")
    task = task_of(facts.columns[target], path)
    classes = facts.columns[target]
    roles = f"target = {quoted(target)}" + ("" if classes.numbers else f", classes = {listed(sorted(classes.values))}")
    if tokenizer is not None:
        return _found_texts(path, facts, target, roles, tokenizer)
    if format == "arrow" and _TOKENS in facts.columns and facts.columns[_TOKENS].lists:
        return _found_tokens(path, facts, target, roles)
    left_out = dict(_left_out(facts, target, unit, coded=format != "arrow"))
    meant = _coded(facts, {target, unit, *left_out})
    exclude = f", exclude = {listed(left_out)}" if left_out else ""
    source = f"{_dialect(facts)}columns = {{ {roles}{exclude}{_codings(meant)} }}\n"
    remarks = (
        f"{words}: {', '.join(names)}" for words, names in zip(_CODED_WORDS, meant.values(), strict=True) if names
    )
    return Found(format, facts.rows, facts.units, task, source, remarks=tuple(remarks), left_out=left_out)


def mean_of_words(words: int, inputs: int, outputs: int) -> str:
    """Return the lines of [model] for tokens, whatever the number of inputs."""
    return (
        "# words: the size of the tokenizer's vocabulary. A model of save_pretrained serves as well: docs/models.md.\n"
        f'factory = "distqexp.problem.models:mean_of_words"\nargs = {{ words = {words}, outputs = {outputs} }}\n'
    )


def _found_texts(path: Path, facts: TableFacts, target: str, roles: str, tokenizer: Path) -> Found:
    free = [
        column for column in facts.columns.values() if column.name != target and not column.numbers and column.texts
    ]
    if not free:
        raise UsageError(f"--tokenizer: {path} has no column of texts; expected one")
    column = max(free, key=lambda column: column.letters / max(1, column.count))
    reader = open_tokenizer(str(tokenizer))
    lengths = [int(reader.tokens(text, _LONGEST)[1].sum()) for text in column.texts[:_SAMPLE]]
    length = min(_LONGEST, 8 * (int(np.quantile(lengths, 0.95)) // 8 + 1))
    source = (
        f"tokenizer = {{TOKENIZER}}\n{_dialect(facts)}# Longer texts are cut off at so many tokens.\n"
        f"columns = {{ {roles}, features = {listed([column.name])}, length = {length} }}\n"
    )
    task = task_of(facts.columns[target], path)
    model = partial(mean_of_words, reader.vocabulary)
    return Found("text", facts.rows, facts.units, task, source, model, remarks=(f"texts: {column.name}",))


def _found_tokens(path: Path, facts: TableFacts, target: str, roles: str) -> Found:
    mask = f', mask = "{_MASK}"' if _MASK in facts.columns else ""
    length = min(_LONGEST, 8 * ((longest_list(path, _TOKENS)[0] + 7) // 8))
    source = f'columns = {{ {roles}, features = ["{_TOKENS}"]{mask}, tokens = true, length = {length} }}\n'
    task = task_of(facts.columns[target], path)
    model = partial(mean_of_words, longest_list(path, _TOKENS)[1] + 1)
    return Found("arrow", facts.rows, facts.units, task, source, model, remarks=(f"tokens: {_TOKENS}",))


def _dialect(facts: TableFacts) -> str:
    signs = (
        ("separator", facts.dialect.separator, ","),
        ("decimal", facts.dialect.decimal, "."),
        ("encoding", facts.dialect.encoding, "utf-8"),
    )
    return "".join(f"{key} = {quoted(sign)}\n" for key, sign, usual in signs if sign != usual)


def _left_out(facts: TableFacts, target: str, unit: str | None, *, coded: bool) -> Iterator[tuple[str, str]]:
    """Yield the columns that can be no feature as they are, with the reason; ``coded`` says whether the format has codings."""
    for column in facts.columns.values():
        if column.name in (target, unit):
            continue
        if column.lists:
            yield column.name, "lists"
        elif column.count == 0:
            yield column.name, "empty"
        elif not column.numbers and (words := dates_in_words(column.values)):
            yield column.name, words
        elif not column.numbers and _coding(column) == "exclude":
            yield column.name, f"free texts, such as {min(column.values)!r}"
        elif not column.numbers and not coded:
            yield column.name, "texts: saved datasets have numbers alone; save it as Parquet, or encode it"
        elif column.numbers and column.looks_like_an_id:
            yield column.name, "looks like an id: if people have several rows of one id, name it by --unit"


def _coding(column: Column) -> str:
    """Return how a column of texts may be meant: levels, boolean, days, or exclude."""
    kind, _ = suggestion([*sorted(column.values)] * 2)
    few = 2 * len(column.values) <= column.count
    return "exclude" if column.many or (kind == "levels" and not few) else kind


def _coded(facts: TableFacts, others: Collection[str | None]) -> dict[str, list[str]]:
    """Return the columns of texts that are features, by how they are meant."""
    found: dict[str, list[str]] = {"levels": [], "boolean": [], "days": []}
    for column in facts.columns.values():
        if not column.numbers and column.name not in others:
            found[_coding(column)].append(column.name)
    return found


def _codings(coded: Mapping[str, Sequence[str]]) -> str:
    words = "".join(
        f", {key} = {listed(coded[kind])}"
        for kind, key in (("levels", "categorical"), ("boolean", "booleans"))
        if coded[kind]
    )
    days = ", ".join(f"{quoted(name)} = {quoted(FIRST_DAY)}" for name in coded["days"])
    return words + (f", dates = {{ {days} }}" if days else "")
