"""What is wrong with the columns of a public table, all at once, and the lines of a config that mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from distqexp.problem.readers.base import some
from distqexp.problem.readers.codings import FALSE, Coding, level_text, suggestion
from distqexp.problem.readers.entries import number_of

_DAY = "2000-01-01"
"""The day that a suggested line counts from; any other does as well."""
_MOST_CLASSES = 20


class Table(Protocol):
    """The part of a reader that a complaint needs."""

    target: str
    codings: dict[str, Coding]


def complaint(table: Table, entries: Mapping[str, Sequence[Any]], known: Sequence[str]) -> str:
    """Return what is wrong with the columns of a public table, and how to mend it, in one line.

    Args:
        table: the reader of the table.
        entries: the entries of each feature column and of the label, as ``TableReader.entries`` returns them.
        known: columns that are known to have a wrong entry, whether or not it is among ``entries``.
    """
    unread = {name: _unread_share(table.codings.get(name), column) for name, column in entries.items()}
    wrong = [name for name in known if name not in entries]
    wrong += [name for name in entries if unread[name] > 0 or name in known]
    coded = [name for name in wrong if name in table.codings]
    single = len(wrong) == 1
    words = (
        f"column{'' if single else 's'} {some(wrong, 20)}: {'an entry is' if single else 'entries are'} not a number"
    )
    words += f", or not what {some(coded)} {'is' if len(coded) == 1 else 'are'} declared to hold" if coded else ""
    texts = [name for name in wrong if name not in coded and unread.get(name, 0.0) >= 0.5]
    lines = _lines(table, {name: entries[name] for name in texts})
    recoded = [name for name in wrong if name not in texts]
    remedies = [f"recode {some(recoded, 20)}, or list it in data.*.columns.exclude"] if recoded else []
    remedies += [] if lines or remedies else [f"recode {some(wrong, 20)}"]
    if lines:
        remedies.append(
            f"add to data.public.columns: {', '.join(lines)}; what is excluded there is excluded in data.private and data.eval too"
        )
    return f"{words}; expected numbers, or blanks where missing; {'; '.join(remedies)}"


def _unread_share(coding: Coding | None, column: Sequence[Any]) -> float:
    """Return the share of a column's entries that are there and aren't read."""
    texts = [entry for entry in column if level_text(entry) is not None]
    numbers = coding.numbers(texts) if coding else [_number(entry) for entry in texts]
    return sum(number is None for number in numbers) / max(1, len(texts))


def _number(entry: Any) -> float | None:
    if isinstance(entry, str):
        return number_of(entry.replace(",", ".", 1) if "." not in entry else entry)
    try:
        return float(entry)
    except (TypeError, ValueError):
        return None


def _lines(table: Table, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return the keys of a config that read these columns of texts, as they may be meant."""
    found: dict[str, list[str]] = {"boolean": [], "days": [], "levels": [], "exclude": []}
    lines = []
    for name, entries in columns.items():
        kind, values = suggestion([str(entry) for entry in entries if entry is not None])
        if name == table.target:
            if kind in ("boolean", "levels") and len(values) <= _MOST_CLASSES:
                order = sorted(values, key=lambda text: (text.lower() not in FALSE, text))
                lines.append(f"classes = {_list(order)}")
        else:
            found[kind].append(name)
    for kind, word in (("levels", "categorical"), ("boolean", "booleans"), ("exclude", "exclude")):
        lines += [f"{word} = {_list(found[kind])}"] if found[kind] else []
    if found["days"]:
        lines.append("dates = { " + ", ".join(f'{_key(name)} = "{_DAY}"' for name in found["days"]) + " }")
    return lines


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join('"' + name.replace('"', '\\"') + '"' for name in names) + "]"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else '"' + name.replace('"', '\\"') + '"'
