"""Micro-batches of one fixed shape, and the sums of records by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.problem.records import Records

Batch = tuple[Records, IntegerArray]
"""Records, and the unit of each."""


def sum_by_unit(
    batches: Iterable[Batch], of_records: Callable[[Records], tuple[FloatArray, BoolArray]]
) -> tuple[FloatArray, BoolArray]:
    """Sums of a piece's record vectors by unit, (units, n), and which units are finite throughout, (units,). Private."""
    sums: FloatArray | None = None
    finite: BoolArray | None = None
    last_unit = None
    for records, unit in batches:
        vectors, good = of_records(records)
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
    """Inputs, targets and presence of exactly ``micro_batch`` records, absent ones of zeros at the end."""
    count = len(records.present)
    if count > micro_batch:
        raise UsageError(f"micro-batch: {count} records; expected at most {micro_batch}")
    missing = micro_batch - count

    def grow(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor

    return grow(records.inputs), grow(records.targets), grow(records.present)


def flattened(inputs: torch.Tensor, targets: torch.Tensor, views: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Every view a record of its own, (B views, ...), the views of a record one after another; as they are without views."""
    if views is None:
        return inputs, targets
    return inputs.flatten(0, 1), targets.repeat_interleave(views, dim=0)
