"""Public feature columns that look like ids: most likely they say who is protected, and are no measurements."""

from __future__ import annotations

import re

import numpy as np

from distqexp.arrays import FloatArray

_WORDS = {
    "id",
    "ids",
    "pid",
    "uid",
    "mrn",
    "nr",
    "no",
    "key",
    "uuid",
    "guid",
    "identifier",
    "hadm",
    "case",
    "stay",
    "visit",
    "encounter",
}
_WORDS |= {"patient", "subject", "person", "participant", "member", "customer", "client", "admission"}
_FEWEST = 20
_SHARE = 0.2
"""A column whose name speaks of ids is one if so many of its entries differ."""


def looks_like_id(name: str, column: FloatArray) -> bool:
    """Return whether a public column of numbers looks like an id.

    Its numbers are whole, and either its name says so and many of them differ, or all differ and count the rows.

    Args:
        name: the name of the column.
        column: its numbers, float64 (n,), NaN where missing.
    """
    numbers = column[~np.isnan(column)]
    if len(numbers) < _FEWEST or not np.array_equal(numbers, np.floor(numbers)):
        return False
    distinct = len(np.unique(numbers))
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    if _WORDS & set(re.split(r"[\W_\d]+", words.lower())) or name.lower().endswith(("id", "_nr", "_no")):
        return distinct >= max(_FEWEST, _SHARE * len(numbers))
    return distinct == len(numbers) == len(column) and bool(numbers.max() - numbers.min() < 2 * len(numbers))
