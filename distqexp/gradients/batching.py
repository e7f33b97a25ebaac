"""Micro-batches of one fixed shape, and the sums of records by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.problem.records import Records

Batch = tuple[Records, IntegerArray]
"""Records, and the number of each record's unit, (records,)."""


def sum_by_unit(
    batches: Iterable[Batch], vectors_of: Callable[[Records], tuple[FloatArray, BoolArray]]
) -> tuple[FloatArray, BoolArray]:
    """Sum the vectors of a piece's records by unit. Private.

    Args:
        batches: The batches of the piece. Where there are several, all of them must hold the same single unit.
        vectors_of: Gives the vector of each record, (records, n), and which of them are finite, (records,).

    Returns:
        The sums, (units, n), and which units have finite records alone, (units,).

    Raises:
        UsageError: The piece has no records, or several batches and several units.
    """
    sums: FloatArray | None = None
    finite: BoolArray | None = None
    last_unit = None
    for records, unit in batches:
        vectors, good = vectors_of(records)
        starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]])
        batch_sums = vectors if len(starts) == len(unit) else np.add.reduceat(vectors, starts, axis=0)
        batch_finite = good if len(starts) == len(unit) else np.logical_and.reduceat(good, starts)
        if sums is None or finite is None:
            sums, finite, last_unit = batch_sums, batch_finite, unit[0]
            continue
        if len(sums) != 1 or len(starts) != 1 or unit[0] != last_unit:
            raise UsageError("piece: several batches hold several units; expected one unit in a piece of many batches")
        sums, finite = sums + batch_sums, finite & batch_finite
    if sums is None or finite is None:
        raise UsageError("piece: no records; expected at least one")
    return sums, finite


def pad_records(records: Records, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs, targets and presence of exactly ``micro_batch`` records, with absent records of zeros added at the end."""
    sides = (records.inputs, records.targets, records.present)
    inputs, targets, present = (pad_inputs(side, micro_batch) for side in sides)
    return inputs, targets, present


def pad_inputs(tensor: torch.Tensor, micro_batch: int) -> torch.Tensor:
    """Return a tensor (n, ...) as (micro_batch, ...), with zeros added at the end. Raises UsageError where it is longer."""
    missing = micro_batch - len(tensor)
    if missing < 0:
        raise UsageError(f"micro-batch: {len(tensor)} records; expected at most {micro_batch}")
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor


def flatten_views(inputs: torch.Tensor, targets: torch.Tensor, views: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Make every view a record of its own, (B views, ...), the views of a record side by side. None for ``views``: no change."""
    if views is None:
        return inputs, targets
    return inputs.flatten(0, 1), targets.repeat_interleave(views, dim=0)
