"""Weights that a plan names by digest instead of holding them: whoever reads the plan has a copy of the pretrained model.

What follows from them is left out as well: the parameters of a round, and the last move. A round is then known by its lineage,
the digest of all noisy sums that led to it, whose parameters every machine computes for itself. All of it is public.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import Arrays, FloatArray, IntegerArray
from distqexp.storage.canonical import array_digest, canonical_json

EMBEDDED = 1 << 26
"""The bytes of weights and float64 parameters that a plan holds itself; those of a larger model are named."""

START = "plan"
"""The lineage of round 0, of a plan that names weights."""

NOT_HERE: FloatArray = np.zeros(0)
"""Stands for parameters that a file leaves out, until they are computed."""

Named = Mapping[str, Mapping[str, Any]]
"""By the name of a tensor: its type, its shape and its SHA-256 (``array_digest``)."""


def described(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the type, shape and SHA-256 of an array, as JSON types."""
    return {"type": array.dtype.str, "shape": list(array.shape), "sha256": array_digest(array)}


def unlike(named: Named, arrays: Arrays) -> str | None:
    """Return the first name whose array is missing or has another digest; None where all are those that were named."""
    names: Iterable[str] = (
        name for name, one in named.items() if name not in arrays or described(arrays[name]) != dict(one)
    )
    return next(iter(names), None)


def next_lineage(lineage: str | None, noisy_sums: IntegerArray, halvings: int, kept: int) -> str | None:
    """Return the lineage of the round after one of this lineage; None where the plan holds its weights itself.

    Args:
        lineage: The lineage of the round that was released.
        noisy_sums: What it released.
        halvings: How often the guard halved its move.
        kept: How many eighths of the way were kept.
    """
    if lineage is None:
        return None
    text = canonical_json([lineage, array_digest(noisy_sums), halvings, kept])
    return hashlib.sha256(b"distqexp lineage\n" + text).hexdigest()
