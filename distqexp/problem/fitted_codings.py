"""Which columns of a table are no numbers, and how they are read: declared in the config, with levels from public records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from distqexp.arrays import IntegerArray
from distqexp.config import DataConfig
from distqexp.config.data import SEPARATORS
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers import Reader
from distqexp.problem.readers.base import some
from distqexp.problem.readers.codings import Coding, level_text
from distqexp.problem.readers.dialect import Dialect
from distqexp.problem.readers.table import TableReader

MOST_LEVELS = 1000
"""A public column with more levels than this is no category, but an id or free text."""
_ROWS_AT_ONCE = 1 << 14
_KINDS = ("levels", "boolean", "days", "classes")


def fitted_codings(data: DataConfig, reader: Reader, rows: IntegerArray) -> tuple[Coding, ...]:
    """Return the codings that a public source declares, with the levels of its records at ``rows`` where none are declared.

    Raises UsageError for a declared column that is no feature, FileContentError for one of too many levels; all are named.
    """
    roles = data.columns
    if not (roles.coded or roles.classes):
        return ()
    if not isinstance(reader, TableReader):  # texts and folders of images have coded labels alone
        return codings_of(data, {})
    absent = [name for name in roles.coded if name not in reader.names]
    if absent:
        raise UsageError(
            f"data.public.columns: {some(absent)} in categorical, levels, dates or booleans; expected feature columns of {reader.path}, "
            f"which are {some(reader.names, 20)}; correct the names"
        )
    declared = dict(roles.levels)
    free = [name for name in roles.categorical if name not in declared]
    levels: dict[str, set[str]] = {name: set() for name in free}
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        for name, entries in zip(free, reader.entries(free, rows[first : first + _ROWS_AT_ONCE]), strict=True):
            levels[name] |= {text for entry in entries if (text := level_text(entry)) is not None}
    many = [name for name in free if len(levels[name]) > MOST_LEVELS]
    if many:
        raise FileContentError(
            f"{reader.path}: categorical columns {some(many, 20)} have more than {MOST_LEVELS} levels; expected categories: list ids and "
            "free texts in data.*.columns.exclude, or declare their common levels in data.public.columns.levels"
        )
    return codings_of(data, {name: tuple(sorted(texts)) for name, texts in levels.items()})


def declared_codings(data: DataConfig) -> tuple[Coding, ...]:
    """Return the codings that a private source declares where there is no public one. Raises UsageError for undeclared levels."""
    roles = data.columns
    free = [name for name in roles.categorical if name not in dict(roles.levels)]
    if free:
        raise UsageError(
            f"data.private.columns.categorical: {some(free)} without data.public; expected their levels, which never come from private "
            "records: declare them in data.private.columns.levels"
        )
    absent = [name for name in roles.coded if name not in (roles.features or ())]
    if absent:
        raise UsageError(
            f"data.private.columns: {some(absent)} in levels, dates or booleans; expected columns of data.private.columns.features"
        )
    return codings_of(data, {})


def codings_of(data: DataConfig, levels: Mapping[str, tuple[str, ...]]) -> tuple[Coding, ...]:
    """Return the codings of declared columns, in the order of the keys; ``levels`` are those of columns that declare none.

    Folders of images have none: their classes have a place of their own in the schema.
    """
    roles = data.columns
    if data.format == "images":
        return ()
    declared = dict(roles.levels)
    names = dict.fromkeys([*roles.categorical, *declared])
    codings = [Coding(name, "levels", _texts(declared.get(name, levels.get(name, ())))) for name in names]
    codings += [Coding(name, "days", (day,)) for name, day in roles.dates]
    codings += [Coding(name, "boolean") for name in roles.booleans]
    if roles.classes and roles.target is not None:
        codings.append(Coding(roles.target, "classes", _texts(roles.classes)))
    return tuple(codings)


def refuse_other_codings(data: DataConfig, codings: Sequence[Coding]) -> None:
    """Refuse a source that declares another reading of its columns than the plan's, which is the one that is used. Raises UsageError."""
    declared = codings_of(data, {coding.column: coding.values for coding in codings})
    plan = {coding.column if coding.kind != "classes" else data.columns.target: coding for coding in codings}
    others = [
        coding.column
        for coding in declared
        if coding.column not in plan
        or (coding.kind, coding.values) != (plan[coding.column].kind, plan[coding.column].values)
    ]
    if others:
        raise UsageError(
            f"data.*.columns: {some(others, 20)} in categorical, levels, dates, booleans or classes; expected what the plan says of "
            "them, from data.public.columns where there is one; declare the same there, or leave the keys out here"
        )


def need_codings(codings: Sequence[Coding], names: Sequence[str], dialect: Dialect | None) -> None:
    """Raise FileContentError unless the codings and the dialect of a schema that came from elsewhere are possible ones."""
    for coding in codings:
        texts = all(isinstance(text, str) for text in (coding.column, *coding.values))
        known = coding.kind == "classes" or coding.column in names
        if not (texts and coding.kind in _KINDS and known and len(set(coding.values)) == len(coding.values)):
            raise _damaged("codings must be of the features")
        if coding.kind == "days" and not _is_day(coding.values):
            raise _damaged("days must be counted from a day")
    if len({coding.column for coding in codings}) != len(codings):
        raise _damaged("a column has two codings")
    if dialect is not None and not (
        dialect.separator in SEPARATORS and dialect.decimal in (".", ",") and isinstance(dialect.encoding, str)
    ):
        raise _damaged("dialect must be one of a CSV file")


def _texts(levels: Sequence[str]) -> tuple[str, ...]:
    """Return levels as ``level_text`` gives them, each once."""
    return tuple(dict.fromkeys(level_text(level) or level for level in levels))


def _is_day(values: Sequence[str]) -> bool:
    try:
        return len(values) == 1 and bool(date.fromisoformat(values[0]))
    except ValueError:
        return False


def _damaged(what: str) -> FileContentError:
    return FileContentError(f"schema: {what}; the plan is damaged, or of another program: make a new one")
