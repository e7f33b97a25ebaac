"""Entries of tables that are texts: which of them are numbers, and which are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "null", "none"})
"""Texts of a table that stand for no value, in any case."""

UNREADABLE = np.inf
"""What a private entry that is no number is read as: no record can hold it, and nothing is imputed for it."""


def is_missing(text: str) -> bool:
    """Whether a text stands for no value."""
    return text.strip().lower() in MISSING


def number_of(text: str) -> float | None:
    """The double nearest to a text, NaN for a missing one; None where it is no number."""
    if "_" in text:  # float() takes 1_000 for a number
        return None
    try:
        return float(text)
    except ValueError:
        return np.nan if is_missing(text) else None


def decoded(content: bytes) -> str:
    """UTF-8; bytes that are none are kept as lone surrogates, which no number and no ``legible`` text has."""
    return content.decode("utf-8", "surrogateescape")


def legible(text: str | None) -> str | None:
    """A text that stands for itself: None for a missing one and for one that is no UTF-8."""
    if text is None or is_missing(text):
        return None
    return None if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text) else text


def numbers_of(texts: Iterable[str | None]) -> list[float | None]:
    """As number_of, of each; NaN for None."""
    return [np.nan if text is None else number_of(text) for text in texts]


def as_array(numbers: Sequence[float | None], unreadable: float) -> NDArray[np.float64]:
    """Numbers, with ``unreadable`` in the place of None."""
    return np.array([unreadable if number is None else number for number in numbers], dtype=np.float64)
