"""Columns of a site's table that the plan doesn't have: they are left aside, and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distqexp.artefacts.plan import Plan
from distqexp.config import DataConfig
from distqexp.problem.readers.table import TableReader
from distqexp.problem.sources import Readers
from distqexp.stages.inputs import check_files


def extra_columns(plan: Plan, data: DataConfig, readers: Readers) -> list[str]:
    """Return the names of the columns of a table that would be features, and aren't the plan's.

    There are none where a feature of the plan is missing: such a table is refused as a whole, and the message names both.
    """
    check_files("data.private", data)
    reader = readers.of(data, private=True)
    if not isinstance(reader, TableReader) or data.columns.features is not None:
        return []
    extra = [name for name in reader.names if name not in plan.schema.names]
    return extra if set(plan.schema.names) <= set(reader.names) else []


def without_columns(data: DataConfig, names: Sequence[str]) -> DataConfig:
    """Return the source without these columns."""
    if not names:
        return data
    return replace(data, columns=replace(data.columns, exclude=(*data.columns.exclude, *names)))


def line_of_extra(names: Sequence[str], data: DataConfig) -> str:
    """Return the line that names columns which are left aside."""
    return f"distqexp: {data.path}: not the plan's columns, ignored: {', '.join(map(repr, names))}"
