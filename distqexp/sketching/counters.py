"""Each unit's three counts for private diagnostics: clipped or not, its loss, that it is there. Private, in integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from distqexp.arrays import BoolArray
from distqexp.gradients.batching import Batch, flattened, pad_records
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network

FloatArray = npt.NDArray[np.float64]
IntegerArray = npt.NDArray[np.int64]


COUNTS = 3
"""How many counts a unit has."""


class UnitCounters:
    """Counts of 0 to ``counter`` for every unit. counter, largest_loss: public.

    A unit's loss is the mean over its records that are there, cut off at ``largest_loss``. It depends on that unit alone, to the
    last bit, as its gradient does: micro-batches have one padded shape, and absent records are masked.
    """

    def __init__(self, network: Network, loss: Loss, micro_batch: int, counter: int, largest_loss: float) -> None:
        self.network = network
        self.loss = loss
        self.micro_batch = micro_batch
        self.counter = counter
        self.largest_loss = largest_loss

    def watch(self) -> Watch:
        """A new watch over one piece."""
        return Watch(self)

    def losses(self, batch: Batch) -> tuple[FloatArray, BoolArray]:
        """The loss of each record (mean over its views), 0 for absent ones, and which are there, (records,). Private."""
        records = batch[0]
        inputs, targets, present = pad_records(records, self.micro_batch)
        inputs, targets = flattened(inputs, targets, records.views)
        with torch.no_grad():
            outputs = self.network.module(self.network.prepare(inputs))
            found = self.loss.value(outputs, targets.to(outputs.device)).double()
        if records.views:
            found = found.reshape(len(present), records.views).mean(dim=1)
        there = present.cpu().numpy()
        values = found.cpu().numpy()
        # Cut off record by record too: an infinite loss is the largest, and one that is not a number counts as much.
        values = np.where(np.isnan(values), self.largest_loss, np.clip(values, 0.0, self.largest_loss))
        count = len(records)
        return np.where(there, values, 0.0)[:count], there[:count]


class Watch:
    """Sees the batches of a piece on their way to the gradients, and counts its units afterwards."""

    def __init__(self, counters: UnitCounters) -> None:
        self._counters = counters
        self._losses: list[FloatArray] = []
        self._there: list[BoolArray] = []
        self._units: list[npt.NDArray[np.int64]] = []

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches."""
        for batch in batches:
            self.see(batch)
            yield batch

    def see(self, batch: Batch) -> None:
        """Keep the losses of a batch."""
        losses, there = self._counters.losses(batch)
        self._losses.append(losses)
        self._there.append(there)
        self._units.append(batch[1])

    def counts(self, good: BoolArray, clipped: BoolArray) -> IntegerArray:
        """(units, 3) int64, each from 0 to counter. good: whose vector counts at all; clipped: whose was shortened, (units,)."""
        unit = np.concatenate(self._units)
        starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]])
        losses = np.add.reduceat(np.concatenate(self._losses), starts)
        records = np.add.reduceat(np.concatenate(self._there).astype(np.int64), starts)
        counts = good & (records > 0)
        means = np.where(counts, losses / np.maximum(records, 1), 0.0) / self._counters.largest_loss
        found = np.stack([counts & clipped, np.clip(means, 0.0, 1.0), counts], axis=1)
        return np.rint(found * self._counters.counter).astype(np.int64)
