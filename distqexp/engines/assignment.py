"""Which rank does which of several pieces of work of known costs, from plain data."""

from __future__ import annotations

from collections.abc import Sequence


def assign(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Return the numbers of the pieces that each rank does, in rising order.

    The dearest piece goes first, each to the rank that has least to do so far, of equal ones to the lowest. The rank with most to do then
    has at most 4/3 of what it would have in the best assignment (Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl.
    Math. 17, 1969).

    Args:
        costs: The cost of each piece, in any unit.
        ranks: The number of ranks, at least 1.
    """
    loads = [0.0] * ranks
    places: list[list[int]] = [[] for _ in range(ranks)]
    for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
        rank = loads.index(min(loads))
        loads[rank] += costs[piece]
        places[rank].append(piece)
    return [sorted(own) for own in places]
