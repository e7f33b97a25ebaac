"""Three integer counts of each unit for diagnostics: whether it is clipped, its loss, and that it counts at all. Private."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.gradients.batching import Batch, flatten_views, pad_records
from distqexp.problem.hiding import private_rows
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network

COUNTS = 3
"""The number of counts that a unit has."""


class UnitCounters:
    """Counts for every unit, each a whole number from 0 to ``counter``.

    A unit's loss is the mean over its present records, cut off at ``largest_loss``. It depends on that unit alone, to the
    last bit, as its gradient does: micro-batches have one padded shape, and absent records are masked.

    Args:
        network: The model at the parameters of the round.
        loss: The training loss.
        micro_batch: The number of records in a batch, padding included.
        counter: The largest count. Public.
        largest_loss: The loss that counts ``counter``, and above which losses are cut off. Public.
    """

    def __init__(self, network: Network, loss: Loss, micro_batch: int, counter: int, largest_loss: float) -> None:
        self.network = network
        self.loss = loss
        self.micro_batch = micro_batch
        self.counter = counter
        self.largest_loss = largest_loss

    def watch(self) -> Watch:
        """Return a new watch over one piece."""
        return Watch(self)

    def losses(self, batch: Batch) -> tuple[FloatArray, BoolArray]:
        """Return the loss of each record, a mean over its views, and which records are present, (records,). Private.

        Absent records have a loss of 0.
        """
        records = batch[0]
        inputs, targets, present = pad_records(records, self.micro_batch)
        inputs, targets = flatten_views(inputs, targets, records.views)
        blank = torch.zeros((), dtype=torch.float64, device=self.network.device)
        losses = private_rows(self._values, [inputs, targets], len(inputs), blank)
        if records.views:
            losses = losses.reshape(len(present), records.views).mean(dim=1)
        is_present = present.cpu().numpy()
        values = losses.cpu().numpy()
        # Each record's loss is cut off too: infinite ones, and those that are not a number, count as the largest.
        values = np.where(np.isnan(values), self.largest_loss, np.clip(values, 0.0, self.largest_loss))
        count = len(records)
        return np.where(is_present, values, 0.0)[:count], is_present[:count]

    def _values(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            outputs = self.network.call(inputs)
            with self.loss.kept():
                return self.loss.value(outputs, targets.to(outputs.device)).double()


class Watch:
    """Takes the losses of a piece's batches on their way to the gradients, and counts the piece's units afterwards."""

    def __init__(self, counters: UnitCounters) -> None:
        self._counters = counters
        self._losses: list[FloatArray] = []
        self._present: list[BoolArray] = []
        self._units: list[IntegerArray] = []

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, and keep the losses of each."""
        for batch in batches:
            self.see(batch)
            yield batch

    def see(self, batch: Batch) -> None:
        """Keep the losses of a batch."""
        losses, present = self._counters.losses(batch)
        self._losses.append(losses)
        self._present.append(present)
        self._units.append(batch[1])

    def counts(self, good: BoolArray, clipped: BoolArray) -> IntegerArray:
        """Return the counts of the piece's units, (units, 3) int64, each from 0 to ``counter``.

        Args:
            good: Which units have a vector that counts at all, (units,).
            clipped: Which units have a vector that the clip shortens, (units,).
        """
        unit = np.concatenate(self._units)
        starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]])
        losses = np.add.reduceat(np.concatenate(self._losses), starts)
        records = np.add.reduceat(np.concatenate(self._present).astype(np.int64), starts)
        valid = good & (records > 0)
        means = np.where(valid, losses / np.maximum(records, 1), 0.0) / self._counters.largest_loss
        shares = np.stack([valid & clipped, np.clip(means, 0.0, 1.0), valid], axis=1)
        return np.rint(shares * self._counters.counter).astype(np.int64)
