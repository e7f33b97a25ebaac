"""How many helpers take masks off together, and how many of them may collude with the coordinator.

A quorum of q out of n helpers can take the masks off. With fewer than q the coordinator lacks a mask of every site. But it may
also show helpers lists that differ. Two quorums have at least 2 q - n helpers in common; if one of these is honest, it answers
one list alone, and so there is one sum (docs/proofs/consortium.md, section 3). All helpers but one are a quorum, so that one may
be missing; of two helpers both are.
"""

from __future__ import annotations

COUNTS = (2, 3, 4)
"""The numbers of helpers that a study may have."""


def quorum(helpers: int) -> int:
    """Return how many helpers take masks off together."""
    return max(2, helpers - 1)


def withstood(helpers: int) -> int:
    """Return how many helpers may collude with a coordinator that cheats, and it still learns one sum and nothing else."""
    return min(quorum(helpers) - 1, 2 * quorum(helpers) - helpers - 1)
