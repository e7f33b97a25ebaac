"""Whether the records of one call go together: the same form, shape or columns, and columns of the same kind. No entry is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distqexp.errors import UsageError
from distqexp.live.spool import Spooled
from distqexp.problem.readers.base import some


def require_agreement(
    sources: Mapping[str, Spooled], features: Sequence[str] | None, columns: Mapping[str, Any]
) -> None:
    """Refuse records that can't be fitted together, before anything is planned.

    Args:
        sources: The spooled records by argument, the private ones among them.
        features: The feature columns that were asked for; None for all.
        columns: What the settings say of columns; how declared ones are written is not judged here.

    Raises:
        UsageError: With the argument, what was found and what was expected; all columns at once.
    """
    model = "public" if "public" in sources else "private"
    first = sources[model]
    names = tuple(features or first.features)
    for where, source in sources.items():
        if (source.shape is None) != (first.shape is None):
            kinds = {found.shape is None: argument for argument, found in sources.items()}
            raise UsageError(
                f"{where}: {kinds[True]} is a DataFrame and {kinds[False]} is not; expected one form for all: give DataFrames, or "
                "arrays of their features"
            )
        if _takes_tokens(source) != _takes_tokens(first):
            kind = "tokens (input_ids)" if _takes_tokens(first) else "numbers"
            raise UsageError(
                f"{where}: found another kind than {model} ones, which are {kind}; expected one kind for all"
            )
        if source.shape != first.shape:
            raise UsageError(
                f"{where}: records of shape {source.shape}; {model} ones are of shape {first.shape}; expected one shape"
            )
        if source.shape is None:
            _require_columns(where, source, model, names, features is not None)
            _require_kinds(where, source, first if "public" in sources else None, names, columns)


def _takes_tokens(source: Spooled) -> bool:
    return "tokens" in source.tree["columns"]


def _require_columns(where: str, source: Spooled, model: str, names: Sequence[str], asked: bool) -> None:
    missing = [name for name in names if name not in source.types]
    if missing:
        wanted = "the features that are named" if asked else f"the columns of {model}"
        raise UsageError(
            f"{where}: no column {some(missing, 20)}; expected {wanted}: correct the DataFrame, or list others: features=[...]"
        )
    more = [] if asked else [name for name in source.features if name not in names]
    if more:
        raise UsageError(
            f"{where}: column {some(more, 20)} is not in {model}; expected the same columns in both: drop it, or list the features: "
            "features=[...]"
        )
    if not names:
        raise UsageError(f"{where}: no column but the target; expected features")


def _require_kinds(
    where: str, source: Spooled, public: Spooled | None, names: Sequence[str], columns: Mapping[str, Any]
) -> None:
    """Refuse columns of texts or dates where numbers are meant, as every record would count as unusable."""
    declared = set(_declared(columns))
    wrong = [name for name in names if name not in declared and not _fits(source, public, name)]
    if not wrong:
        return
    kinds = " and ".join(sorted({source.types[name] for name in wrong}))
    if public is None:
        raise UsageError(
            f"{where}: column {some(wrong, 20)} holds {kinds}; without public records, which tell what they mean, expected numbers, or the "
            'meaning declared: settings={"columns": {"levels": {...}, "booleans": [...], "dates": {...}}}'
        )
    raise UsageError(
        f"{where}: column {some(wrong, 20)} holds {kinds}, and another kind in public; expected the same in both: convert it, such as by "
        "pandas.to_numeric(column, errors='coerce'), which leaves gaps where a text is no number"
    )


def _fits(source: Spooled, public: Spooled | None, name: str) -> bool:
    kind = source.types[name]
    if public is None:
        return kind in ("numbers", "nothing")
    meant = public.coded.get(name)
    if source is public or kind == "nothing" or public.types[name] == "nothing":
        return True
    if meant == "days":
        return kind != "numbers"
    return meant is not None or kind == public.types[name]


def _declared(columns: Mapping[str, Any]) -> Iterator[str]:
    for key in ("categorical", "levels", "dates", "booleans", "exclude"):
        yield from columns.get(key, ())
