"""Filters on columns, such as ``CCU == 1 and Age >= 18``. They are parsed, never evaluated as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distqexp.arrays import BoolArray, FloatArray
from distqexp.errors import UsageError

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>`[^`]+`)|(?P<text>'[^']*'|"[^"]*")|(?P<operator>==|!=|<=|>=|<|>)"""
    r"""|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))|(?P<name>[^\W\d][\w.\-/]*))"""
)


class Columns(Protocol):
    """The part of a reader that a filter needs."""

    def numbers(self, name: str) -> FloatArray: ...

    def texts(self, name: str) -> list[str | None]: ...


@dataclass(frozen=True)
class Comparison:
    """A comparison ``column operator value``, whose value is a number or a text."""

    column: str
    operator: str
    value: float | str

    def mask(self, columns: Columns) -> BoolArray:
        """Return bool (n,): the rows that satisfy it. A missing value satisfies no comparison, not even ``!=``."""
        compare = _OPERATORS[self.operator]
        if isinstance(self.value, str):
            texts = columns.texts(self.column)
            return np.fromiter((text is not None and compare(text, self.value) for text in texts), np.bool_, len(texts))
        numbers = columns.numbers(self.column)
        matches: BoolArray = compare(numbers, self.value) & ~np.isnan(numbers)
        return matches


def parse_filter(text: str) -> tuple[Comparison, ...]:
    """Parse comparisons (== != < <= > >=) of a column with a number or a quoted text, joined by ``and``.

    A column name with blanks or other signs stands between backticks. Raises UsageError for any other text.
    """
    tokens = _tokens(text)
    comparisons = []
    for start in range(0, len(tokens), 4):
        group = tokens[start : start + 4]
        kinds = [kind for kind, _ in group]
        complete = len(group) >= 3 and kinds[0] == "name" and kinds[1] == "operator" and kinds[2] in ("number", "text")
        continues = len(group) < 4 or (group[3] == ("name", "and") and start + 4 < len(tokens))
        if not complete or not continues:
            raise _refusal(text)
        value = float(group[2][1]) if kinds[2] == "number" else group[2][1]
        comparisons.append(Comparison(group[0][1], group[1][1], value))
    if not comparisons:
        raise _refusal(text)
    return tuple(comparisons)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _refusal(text)
        kind, token = match.lastgroup, match.group(match.lastgroup)
        if kind in ("quoted", "text"):
            token = token[1:-1]
        tokens.append(("name" if kind == "quoted" else kind, token))
        at = match.end()
    return tokens


def _refusal(text: str) -> UsageError:
    return UsageError(
        f"data.where: found {text!r}; expected comparisons such as CCU == 1 and Age >= 18: a column, one of "
        "== != < <= > >=, a number or a quoted text, joined by and"
    )
