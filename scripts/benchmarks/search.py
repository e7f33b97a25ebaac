"""The best of a grid whose best may not lie at an edge of the learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]
FURTHEST = 6
"""At most so many rates are added at either end: below some rate nothing moves, and every smaller one is as good."""


@dataclass(frozen=True)
class Best:
    """The best setting of a grid. at_edge: no rate beyond it was tried. complete: every score of the grid is known."""

    setting: dict[str, Any]
    score: float
    at_edge: bool
    complete: bool
    tried: int


def half_decade(index: int) -> float:
    """10^(index / 2), to three digits: the learning rates of all grids."""
    return float(f"{10 ** (index / 2):.3g}")


def best_of_grid(
    lines: Sequence[Line], indices: Sequence[int], score: Callable[[dict[str, Any]], float | None]
) -> Best | None:
    """The best of ``lines`` x learning rates ``half_decade(index)``, by ``score`` (None: not known now).

    While the best of a line has its smallest or largest rate, the line gets one more there: so neither the best of all nor
    that of any line is at an edge. Of equal scores an inner one is taken. None when nothing is known.
    """
    scores = [{index: _score(score, line, index) for index in indices} for line in lines]
    for line, row in zip(lines, scores, strict=True):
        while None not in row.values():
            index = _best(row)
            new = index + 1 if index == max(row) else index - 1
            if new in row or not min(indices) - FURTHEST <= new <= max(indices) + FURTHEST:
                break
            row[new] = _score(score, line, new)
    bests = [
        (number, _best(row)) for number, row in enumerate(scores) if any(value is not None for value in row.values())
    ]
    if not bests:
        return None
    number, index = max(bests, key=lambda item: _number(scores[item[0]][item[1]]))
    row = scores[number]
    return Best(
        setting={**lines[number], "learning_rate": half_decade(index)},
        score=_number(row[index]),
        at_edge=index in (min(row), max(row)),
        complete=all(value is not None for row in scores for value in row.values()),
        tried=sum(map(len, scores)),
    )


def _best(row: Mapping[int, float | None]) -> int:
    """The rate of a line's highest score that is known; of equal ones an inner rate, then the smaller."""
    known = [(value, min(row) < index < max(row), -index) for index, value in row.items() if value is not None]
    return -max(known)[2]


def _score(score: Callable[[dict[str, Any]], float | None], line: Line, index: int) -> float | None:
    found = score({**line, "learning_rate": half_decade(index)})
    return -math.inf if found is not None and math.isnan(found) else found


def _number(value: float | None) -> float:
    return -math.inf if value is None else value
