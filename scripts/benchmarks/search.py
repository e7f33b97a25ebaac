"""The best of a space of settings, one axis at a time, where the best may not lie at an edge that could be moved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FURTHEST = 6
"""At most so many learning rates are added at either end: below some rate nothing moves, and every smaller one is as good."""
SWEEPS = 6
"""At most so many sweeps over all axes."""

Point = dict[str, int]
Score = Callable[[dict[str, Any]], float | None]


@dataclass(frozen=True)
class Axis:
    """One setting, its values numbered in order.

    Attributes:
        name: The setting.
        value: The value of a number.
        indices: The numbers that the first sweep tries.
        least: The smallest number that may be added when the best so far is the smallest; None: none is added.
        most: The largest number that may be added when the best so far is the largest; None: none is added.
        slide: By how much the first axis (the learning rate) moves, less what it is at the old number: where a clip that
            binds is tripled, the same rate is a step three times as long.
        beside: So many numbers of the first axis on either side are tried with each number of this one.
    """

    name: str
    value: Callable[[int], Any]
    indices: Sequence[int]
    least: int | None = None
    most: int | None = None
    slide: Callable[[int], int] = field(default=lambda index: 0)
    beside: int = 0

    @property
    def lowest(self) -> int:
        """The smallest number that is ever tried."""
        return min(self.indices) if self.least is None else self.least

    @property
    def highest(self) -> int:
        """The largest number that is ever tried."""
        return max(self.indices) if self.most is None else self.most


@dataclass(frozen=True)
class Best:
    """The best setting of a search.

    Attributes:
        setting: The setting.
        score: Its score.
        at_edge: The axes that could be added to whose best number is the last that may be.
        complete: Whether every score that was asked for is known.
        converged: Whether the last sweep changed nothing.
        tried: The number of settings that were scored.
    """

    setting: dict[str, Any]
    score: float
    at_edge: tuple[str, ...]
    complete: bool
    converged: bool
    tried: int


def half_decade(index: int) -> float:
    """Return 10^(index / 2), to three digits: the learning rates and clips of all searches."""
    return float(f"{10 ** (index / 2):.3g}")


def doubling(index: int) -> float:
    """Return 2^index."""
    return float(2.0**index)


def rates(indices: Sequence[int]) -> Axis:
    """Return the axis of learning rates, half decades, with up to FURTHEST more at either end."""
    return Axis("learning_rate", half_decade, indices, min(indices) - FURTHEST, max(indices) + FURTHEST)


def listed(name: str, values: Sequence[Any], slide: Callable[[Any], int] = lambda value: 0) -> Axis:
    """Return an axis of these values alone, each of them once; ``slide`` is of a value."""
    distinct = list(dict.fromkeys(values))
    return Axis(name, lambda index: distinct[index], range(len(distinct)), slide=lambda index: slide(distinct[index]))


def climb(axes: Sequence[Axis], start: Mapping[str, int], fixed: Mapping[str, Any], score: Score) -> Best | None:
    """Return the best setting that a search one axis at a time finds, from the point ``start``.

    The first sweep tries all numbers of every axis, the later ones the neighbours of the best point; while the best number
    of an axis is the last that was tried, the next one is tried. After each axis on which the point moved, the first axis
    is searched anew. The search ends when a sweep changes nothing, or as soon as a score isn't known.

    Args:
        axes: The axes. The first one is the learning rate, or what stands for it.
        start: A number on each axis.
        fixed: Settings that all points share.
        score: What is made large; NaN is worse than all, None is not known now.

    Returns:
        The best, or None when nothing is known.
    """
    return _Climb(axes, dict(start), fixed, score).run()


class _Climb:
    """One search: the point where it is, and every score so far."""

    def __init__(self, axes: Sequence[Axis], point: Point, fixed: Mapping[str, Any], score: Score) -> None:
        self.axes, self.point, self.fixed, self._score = axes, point, fixed, score
        self.known: dict[str, float | None] = {}

    def run(self) -> Best | None:
        first, *others = self.axes
        converged = False
        for sweep in range(SWEEPS):
            before = dict(self.point)
            self._line(first, whole=sweep == 0)
            for axis in others:
                if self._line(axis, whole=sweep == 0):
                    self._line(first, whole=False)
            converged = self.point == before and sweep > 0
            if converged or None in self.known.values():
                break
        known = [value for value in self.known.values() if value is not None]
        if not known:
            return None
        complete = len(known) == len(self.known)
        found = self.known[self._name(self.point)]
        return Best(
            setting=self._setting(self.point),
            score=-math.inf if found is None else found,
            at_edge=tuple(axis.name for axis in self.axes if self._at_edge(axis)),
            complete=complete,
            converged=converged and complete,
            tried=len(known),
        )

    def _line(self, axis: Axis, whole: bool) -> bool:
        """Search one axis from the point, move the point to the best, and say whether it moved."""
        if None in self.known.values():
            return False
        here = self.point[axis.name]
        numbers = {here, *(axis.indices if whole else (here - 1, here + 1))}
        row = {n: self._best_at(axis, n) for n in sorted(numbers) if axis.lowest <= n <= axis.highest}
        while all(value is not None for value, _ in row.values()):
            best = _inner_best(row)
            new = best + 1 if best == max(row) else best - 1
            if new in row or not axis.lowest <= new <= axis.highest:
                break
            row[new] = self._best_at(axis, new)
        row = {n: pair for n, pair in row.items() if pair[0] is not None}
        if not row:
            return False
        value, point = row[_inner_best(row)]
        current = row.get(here, (None, {}))[0]
        better = current is None or (value is not None and value > current)
        if point == self.point or not (better or (value == current and here in (min(row), max(row)))):
            return False
        self.point = point
        return True

    def _best_at(self, axis: Axis, number: int) -> tuple[float | None, Point]:
        """The best score, and its point, with this number on the axis and the first axis moved along."""
        first = self.axes[0]
        moved = {**self.point, axis.name: number}
        if axis is first or number == self.point[axis.name]:
            return self._value(moved), moved
        along = moved[first.name] + axis.slide(number) - axis.slide(self.point[axis.name])
        found = []
        for offset in sorted(range(-axis.beside, axis.beside + 1), key=abs):
            point = {**moved, first.name: min(max(along + offset, first.lowest), first.highest)}
            found.append((self._value(point), point))
        if any(value is None for value, _ in found):
            return None, moved
        return max(found, key=lambda pair: -math.inf if pair[0] is None else pair[0])

    def _value(self, point: Point) -> float | None:
        name = self._name(point)
        if name not in self.known:
            found = self._score(self._setting(point))
            self.known[name] = -math.inf if found is not None and math.isnan(found) else found
        return self.known[name]

    def _at_edge(self, axis: Axis) -> bool:
        number = self.point[axis.name]
        return number in (axis.least, axis.most)

    def _setting(self, point: Point) -> dict[str, Any]:
        return {**self.fixed, **{axis.name: axis.value(point[axis.name]) for axis in self.axes}}

    def _name(self, point: Point) -> str:
        return json.dumps([point[axis.name] for axis in self.axes])


def _inner_best(row: Mapping[int, tuple[float | None, Point]]) -> int:
    """The number of a line's highest score; of equal ones an inner number, then the smaller."""
    known = [(value, min(row) < number < max(row), -number) for number, (value, _) in row.items() if value is not None]
    return -max(known)[2]
