"""Warnings of what is most likely a mistake in the data or in what the config says of them. Public facts alone are looked at."""

from __future__ import annotations

from collections.abc import Sequence

from distqexp.artefacts.plan import Plan
from distqexp.problem.readers.base import some
from distqexp.problem.sources import DataSource

_FAR = 4
"""privacy.units is far from the units of the slots where one is more than this many times the other."""


def table_warnings(plan: Plan) -> list[str]:
    """Return lines of warning about the public records of a plan: columns that look like ids, and missing labels."""
    schema, lines = plan.schema, []
    if schema.id_like:
        one = len(schema.id_like) == 1
        names = f"{some(schema.id_like)} look{'s like an id' if one else ' like ids'}"
        if plan.config.unit == "record":
            lines.append(
                f"data.public: {names}, but is a feature, and each row is protected as a unit of its own; where it says who is protected, "
                f'set unit = "{schema.id_like[0]}" in data.public, data.private and data.eval; else list it in their columns.exclude'
            )
        else:
            lines.append(
                f"data.public: {names}, but is a feature; list it in the columns.exclude of every source if it is one"
            )
    if schema.unlabelled:
        lines.append(f"data.public: {schema.unlabelled:,} records have no label and are left out")
    return [f"distqexp: warning: {line}" for line in lines]


def count_warnings(plan: Plan, sources: Sequence[DataSource]) -> list[str]:
    """Return lines of warning about the number of slots and units of private sources, where these are public.

    Under add-remove they are private, and nothing is said. Where only some of the plan's shards are here, units that are in the others
    aren't missed.

    Args:
        plan: the plan.
        sources: the private sources that are here.
    """
    if not plan.config.privacy.adjacency.counts_public:
        return []
    lines = []
    for source in sources:
        if source.slots.slots == 0:
            shard = f"shard {source.data.shard!r}" if source.data.shard else "data.private"
            lines.append(f"{shard}: no record is selected by rows and where; it adds nothing to the sums")
    actual, stated = sum(source.slots.units for source in sources), plan.config.privacy.units
    whole = len(sources) == len(plan.config.shards)
    if actual and (actual > _FAR * stated or (whole and stated > _FAR * actual)):
        lines.append(
            f"privacy.units: {stated:,}, while the slots are those of {actual:,} units; steps are for privacy.units: correct it and plan "
            "again if it is wrong"
        )
    return [f"distqexp: warning: {line}" for line in lines]
