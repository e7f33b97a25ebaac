"""Bisection that always ends on the safe side."""

from __future__ import annotations

from collections.abc import Callable

RELATIVE_WIDTH = 1e-14


def last_holding(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The point nearest to ``outside`` at which a monotone predicate was seen to hold.

    ``holds(inside)`` is taken to be true and ``holds(outside)`` false. The value returned is one at which the
    predicate was evaluated and held (or ``inside`` itself), never an interpolation.
    """
    while abs(outside - inside) > RELATIVE_WIDTH * max(abs(inside), abs(outside)):
        middle = inside + (outside - inside) / 2
        if middle in (inside, outside):
            break
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside
