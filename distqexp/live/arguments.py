"""Arguments of ``fit`` that contradict each other, or say nothing: refused before a record is looked at. Public."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distqexp.errors import UsageError
from distqexp.live.spool import is_frame

_ARGUMENTS = {
    "privacy.epsilon": "epsilon",
    "privacy.delta": "delta",
    "privacy.units": "units",
    "data.population": "population",
    "data.private": "private",
    "data.public": "public",
    "data.eval": "evaluation",
    "data.eval_private": "evaluation_private",
    "data.record_shape": "private",
    "model.factory": "model",
    "model.loss": "loss",
    "columns.target": "target",
    "columns.features": "features",
    "columns.classes": "classes",
    "columns.standardise": "standardise",
}
"""Keys of a config for which ``fit`` has an argument: a second value for one thing would win or lose without a word."""


def refuse_second_values(settings: Mapping[str, Any]) -> None:
    """Raise UsageError where nested settings have a key that is an argument of its own."""
    for key, argument in _ARGUMENTS.items():
        section, name = key.split(".")
        table = settings.get(section)
        if isinstance(table, Mapping) and name in table:
            raise UsageError(
                f"settings: {key} is set; expected it as the argument {argument} alone, so that one value holds: {argument}=..."
            )


def refuse_idle_target(target: str | None, records: Iterable[Any]) -> None:
    """Raise UsageError for the name of a column where no records are a DataFrame, by themselves or with a column of targets."""
    held = [data[0] if isinstance(data, tuple | list) and len(data) else data for data in records]
    if target is not None and not any(is_frame(data) for data in held):
        raise UsageError(
            f"target: {target!r}, and no records are a DataFrame; expected it with DataFrames alone: leave it out, (features, targets) "
            "bring their targets"
        )


def require_units(units: int | None) -> None:
    """Raise UsageError for a public number of units below 1, which would say that there are none."""
    if isinstance(units, int | float) and not units >= 1:
        raise UsageError(f"units: found {units}; expected a public number of units, at least 1, or none to count them")
