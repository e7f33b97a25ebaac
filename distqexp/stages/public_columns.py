"""What a plan tells of the columns of the public table that it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distqexp.arrays import BoolArray, FloatArray
from distqexp.problem.schema import Schema


@dataclass(frozen=True)
class PublicColumns:
    """Moments of the values that public columns have, missing ones aside; a number a column, (width,). Public.

    Attributes:
        names: What the columns are called: one name each, or one for all.
        medians: Their medians.
        means: Their means.
        deviations: Their standard deviations.
        absent: The share of records that miss a value.
        comparable: bool (width,): whether values can be held against these moments: the column is a number that varies.
    """

    names: tuple[str, ...]
    medians: FloatArray
    means: FloatArray
    deviations: FloatArray
    absent: FloatArray
    comparable: BoolArray

    def name(self, at: int) -> str:
        """Return the name of a column, for a message."""
        return f"{self.names[at]!r}" if len(self.names) == len(self.means) else f"{self.names[0]!r}, entry {at}"


def columns_of(schema: Schema) -> PublicColumns:
    """Return what the schema of a table or of arrays tells of the raw features; it was fitted on public records.

    Means and scales in the schema are those of columns whose gaps the median fills. With the share of the gaps this gives the moments
    of the values that are there. A scale of exactly 1 stands for a column that doesn't vary, or that isn't standardised.
    """
    medians, means, scales = (
        np.array(part, dtype=np.float64) for part in (schema.medians, schema.means, schema.scales)
    )
    absent = np.array(schema.absent) if schema.absent else np.zeros(len(means))
    present = np.maximum(1 - absent, 1e-6)
    shift = (means - medians) / present
    second = (scales**2 + (means - medians) ** 2) / present
    deviations = np.sqrt(np.maximum(second - shift**2, scales**2))
    comparable = scales != 1.0
    comparable[list(schema.levels)] = False
    return PublicColumns(schema.names, medians, medians + shift, deviations, absent, comparable)


def targets_of(schema: Schema, name: str | None) -> PublicColumns:
    """Return what the schema tells of the targets of a regression, which it scales."""
    means, scales = np.array(schema.target_means), np.array(schema.target_scales)
    return PublicColumns((name or "labels",), means, means, scales, np.zeros(len(means)), scales != 1.0)
