"""Entries of tables that are texts: which of them are numbers, and which are missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from distqexp.arrays import FloatArray

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "null", "none"})
"""Texts of a table that stand for no value, in upper or lower case."""

UNREADABLE = np.inf
"""What a private entry that is no number is read as: no record can hold it, and nothing is imputed for it."""


def is_missing(text: str) -> bool:
    """Return whether a text stands for no value."""
    return text.strip().lower() in MISSING


def number_of(text: str) -> float | None:
    """Return the double nearest to a text, NaN for a missing one; None where the text is no number."""
    if "_" in text:  # float() takes 1_000 for a number
        return None
    try:
        return float(text)
    except ValueError:
        return np.nan if is_missing(text) else None


def decode_text(content: bytes) -> str:
    """Decode UTF-8. Other bytes become lone surrogates, which neither a number nor a ``legible_text`` has."""
    return content.decode("utf-8", "surrogateescape")


def legible_text(text: str | None) -> str | None:
    """Return the text itself, but None for a missing one and for one that wasn't UTF-8."""
    if text is None or is_missing(text):
        return None
    return None if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text) else text


def numbers_of(texts: Iterable[str | None]) -> list[float | None]:
    """Return ``number_of`` each text; NaN for None."""
    return [np.nan if text is None else number_of(text) for text in texts]


def as_array(numbers: Sequence[float | None], unreadable: float) -> FloatArray:
    """Return the numbers as an array, with ``unreadable`` in the place of None."""
    return np.array([unreadable if number is None else number for number in numbers], dtype=np.float64)
