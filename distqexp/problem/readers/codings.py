"""Columns whose entries are read as numbers by a rule: categories, days and truth values. The rules are public."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from distqexp.problem.readers.entries import is_missing

_WHOLE = re.compile(r"([+-]?\d+)\.0*", re.ASCII)
_DAY = 86_400.0

TRUE = frozenset({"true", "t", "yes", "y", "1"})
"""Texts that stand for true in a column that is declared boolean, in upper or lower case."""
FALSE = frozenset({"false", "f", "no", "n", "0"})
"""Texts that stand for false."""

UNKNOWN_CLASS = -1.0
"""What a label that is none of the declared classes is read as: out of range for every loss."""


FIRST_DAY = "2000-01-01"
"""Dates become days since this one where nobody says another; any other does as well."""


@dataclass(frozen=True)
class Coding:
    """How the entries of a column become numbers.

    Attributes:
        column: the column.
        kind: "levels" (a category: the number of its level, and the number behind the last one for a level that isn't listed), "boolean"
            (0 or 1), "days" (days since a day), or "classes" (a label: the number of its class).
        values: the levels or classes in order, or the one day, as YYYY-MM-DD; empty for booleans.
    """

    column: str
    kind: Literal["levels", "boolean", "days", "classes"]
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many inputs of the model the column becomes: one, or one for each level and one for all that aren't listed."""
        return len(self.values) + 1 if self.kind == "levels" else 1

    def numbers(self, entries: Iterable[Any]) -> list[float | None]:
        """Return the number of each entry: NaN for a missing one, None where the rule says nothing of it.

        An entry is a text, None, or a value of a typed column. The number depends on the entry alone.
        """
        if self.kind in ("levels", "classes"):
            place = {text: float(number) for number, text in enumerate(self.values)}
            other = float(len(self.values)) if self.kind == "levels" else UNKNOWN_CLASS
            texts = [level_text(entry) for entry in entries]
            return [math.nan if text is None else place.get(text, other) for text in texts]
        read = _truth if self.kind == "boolean" else self._days
        return [math.nan if _is_none(entry) else read(entry) for entry in entries]

    def _days(self, entry: Any) -> float | None:
        moment = moment_of(entry)
        if moment is None:
            return None
        return (moment - datetime.fromisoformat(self.values[0])).total_seconds() / _DAY


def level_text(entry: Any) -> str | None:
    """Return the one text of a category, however it is stored: 3, 3.0, "3" and " 3.0" are "3". None for a missing one.

    What isn't legible becomes a text that no list of levels has.
    """
    if _is_none(entry):
        return None
    if isinstance(entry, bool):
        return str(entry).lower()
    text = unicodedata.normalize("NFC", str(entry)).strip()
    match = _WHOLE.fullmatch(text)
    return match[1] if match else text


def moment_of(entry: Any) -> datetime | None:
    """Return the day, and the time where there is one, of a date or of a text in ISO 8601 such as 2024-05-31; None for others."""
    if isinstance(entry, str):
        try:
            entry = datetime.fromisoformat(entry.strip())
        except ValueError:
            return None
    if isinstance(entry, datetime):
        return entry.astimezone(UTC).replace(tzinfo=None) if entry.tzinfo else entry
    return datetime(entry.year, entry.month, entry.day) if isinstance(entry, date) else None


def suggestion(
    entries: Sequence[str], most: int = 64
) -> tuple[Literal["boolean", "days", "levels", "exclude"], tuple[str, ...]]:
    """Say how a public column of texts may be meant, with the levels or the first day.

    Args:
        entries: the texts of the column, missing ones among them.
        most: a column with more different texts than this is no category.
    """
    texts = sorted({text for entry in entries if (text := level_text(entry)) is not None})
    if texts and all(text.lower() in TRUE | FALSE for text in texts):
        return "boolean", tuple(texts)
    moments = [moment_of(text) for text in texts]
    if texts and None not in moments:
        return "days", (min(str(moment)[:10] for moment in moments),)
    return ("levels", tuple(texts)) if len(texts) <= most and 2 * len(texts) <= len(entries) else ("exclude", ())


def _truth(entry: Any) -> float | None:
    text = (level_text(entry) or "").lower()
    return 1.0 if text in TRUE else 0.0 if text in FALSE else None


def _is_none(entry: Any) -> bool:
    """Whether there is no entry. An illegible text is one."""
    if isinstance(entry, str):
        return is_missing(entry)
    return entry is None or bool(entry != entry)
