"""A batch of records as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distqexp.problem.schema import Schema


@dataclass
class Records:
    """A batch of records in slot order. Private when they come from private data: never printed, logged or stored.

    Attributes:
        inputs: float32 (n, ...), or int64 (n, 2, L), tokens and their mask of ones and zeros; (n, views, ...) with views.
        targets: int64 (n,), class numbers, or float32 (n,) or (n, o).
        present: bool (n,). A record that is blank, non-finite, without a token or without a target is not present: its inputs and
            target are zeros (for tokens, the mask begins with a 1), and it must contribute nothing.
        views: the number of views of a record, where it has several: its loss is the mean of theirs.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    present: torch.Tensor
    views: int | None = None

    def __len__(self) -> int:
        return len(self.present)

    def __repr__(self) -> str:
        return f"Records(n={len(self)}, inputs={tuple(self.inputs.shape[1:])})"


def concatenate(parts: Sequence[Records]) -> Records:
    """Join several batches without views into one, in this order."""
    return Records(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.present for part in parts]),
    )


def blank_inputs(schema: Schema, count: int) -> torch.Tensor:
    """Return the inputs of ``count`` absent records: zeros, but for tokens the mask begins with a 1.

    The shape is (count, *schema.input_shape).
    """
    shape = schema.input_shape or ()
    inputs = torch.zeros(count, *shape, dtype=torch.int64 if schema.tokens else torch.float32)
    if schema.tokens:
        inputs[:, 1, 0] = 1
    return inputs
