"""Dates that aren't written as YYYY-MM-DD, which no reader takes: found in public tables, so that people are told how to write them."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import date

from distqexp.problem.readers.codings import moment_of

_PARTED = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?:[ T]\d{1,2}:\d{2}.*)?", re.ASCII)
_LAST_MONTH = 12


def dates_in_words(entries: Collection[str]) -> str | None:
    """Return how to write a column's entries where all are dates in one form, as 29.08.2021 or 08/29/2021; None for others.

    Which of day and month comes first is said only where an entry leaves no doubt.
    """
    found = [_PARTED.fullmatch(entry) for entry in entries]
    parts = [(int(match[1]), int(match[3]), int(match[4])) for match in found if match]
    if not entries or len(parts) < len(found) or len({match[2] for match in found if match}) > 1:
        return None
    texts: list[tuple[tuple[int, int, int], str]] = sorted(zip(parts, entries, strict=True))
    for first, second in ((0, 1), (1, 0)):
        sure = [(part, text) for part, text in texts if part[first] > _LAST_MONTH]
        if sure and all(_date(part[2], part[second], part[first]) for part, _ in texts):
            (part, text), day = sure[0], first
            return f"dates as {text}: write them as {_date(part[2], part[1 - day], part[day])}, in every file"
    doubtful = all(max(part[:2]) <= _LAST_MONTH for part in parts)
    return f"dates as {texts[0][1]}: write them as YYYY-MM-DD, in every file" if doubtful else None


def are_dates(entries: Collection[str]) -> bool:
    """Whether all entries are dates, in any form that is known here."""
    return bool(entries) and (dates_in_words(entries) is not None or None not in map(moment_of, entries))


def _date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None
