"""Whitened gradients of privacy units by automatic differentiation, in micro-batches of one fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.batching import Batch, flatten_views, pad_records, sum_by_unit
from distqexp.problem.derivatives import loss_curvature_factors, per_example_gradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


class UnitGradients:
    """Maps the records of each unit to one vector L^{-1} P^T grad, at fixed parameters.

    On one kind of hardware with one thread count, a unit's vector depends on that unit alone, to the last bit:
    micro-batches have one padded shape, absent records are fed as zeros and masked out, records are summed in slot
    order, and every later step works row by row.

    Args:
        network: The model at the parameters of the round.
        loss: The training loss.
        whitening: The map to whitened coordinates. Public.
        micro_batch: The number of records in a batch, padding included.
        prepare: Learns, for a record (1, ...) like those to come, whether torch.func can take the model (``Worker.learn``).
        private: Whether the records are private: what the model raises for one of them is then hidden.
    """

    def __init__(
        self,
        *,
        network: Network,
        loss: Loss,
        whitening: Whitening,
        micro_batch: int,
        prepare: Callable[[torch.Tensor], None] | None = None,
        private: bool = True,
    ) -> None:
        self.network = network
        self.loss = loss
        self.whitening = whitening
        self.micro_batch = micro_batch
        self.prepare = prepare
        self.private = private

    def of_piece(self, batches: Iterable[Batch]) -> tuple[FloatArray, BoolArray]:
        """Return the whitened vectors of one piece, (units, k), and which of them are finite, (units,). Private.

        Each of ``batches`` has at most ``micro_batch`` records, and the slots of a unit are contiguous. A piece of more
        than one batch must hold a single unit.
        """
        with np.errstate(all="ignore"):  # a warning would tell of the data
            sums, finite = sum_by_unit(batches, self._record_vectors)
        rows = np.zeros((max(self.micro_batch, len(sums)), self.whitening.k))
        np.copyto(rows[: len(sums)], sums, where=finite[:, None])
        units = len(sums)
        del sums  # as long as the rows: of a large sketch there is room for few of these at once
        vectors = self.whitening.whiten(torch.from_numpy(rows).to(self.network.device)).cpu().numpy()[:units]
        return vectors, finite & np.isfinite(vectors).all(axis=1)

    def curvature_factors(self, records: Records) -> torch.Tensor:
        """Return the rows of S^T J P of each record, (records, r, k) float64; those of absent records are zero."""
        return self._curvature_factors(records)[0][: len(records)]

    def whitened_factors(self, records: Records) -> tuple[FloatArray, BoolArray]:
        """Return the rows of S^T J P L^{-T} of each record, (records, r, k), and which records are finite, (records,). Private.

        Absent and non-finite records have rows of zeros. A record's rows depend on that record alone, just as the vectors of
        ``of_piece`` depend on their units alone.
        """
        factors, finite = self._curvature_factors(records)
        count, width, k = factors.shape
        factors = self.whitening.whiten(factors.reshape(-1, k)).reshape(count, width, k)
        rows = factors.cpu().numpy()
        good = finite.cpu().numpy() & np.isfinite(rows).all(axis=(1, 2))
        return np.where(good[:, None, None], rows, 0.0)[: len(records)], good[: len(records)]

    def _curvature_factors(self, records: Records) -> tuple[torch.Tensor, torch.Tensor]:
        """Return factors (micro_batch, r, k), zero for absent and non-finite records; and which records are absent or finite."""
        inputs, targets, present = pad_records(records, self.micro_batch)
        inputs, targets = self._prepared(inputs, targets, records.views)
        count = len(records) * (records.views or 1)
        factors = loss_curvature_factors(self.network, self.loss, inputs, count=count, private=self.private)
        if records.views:  # the mean over views
            factors = factors.reshape(len(present), -1, factors.shape[2]) / records.views**0.5
        present = present.to(factors.device)
        finite = torch.isfinite(factors).all(dim=2).all(dim=1)
        # Replaced before the product: no NaN or infinity reaches a neighbour.
        factors = torch.where((finite & present)[:, None, None], factors, 0.0)
        rows = factors.reshape(-1, factors.shape[-1])
        coordinates = self.whitening.project(rows).reshape(factors.shape[0], factors.shape[1], self.whitening.k)
        finite = (finite | ~present) & torch.isfinite(coordinates).all(dim=2).all(dim=1)
        return torch.where((finite & present)[:, None, None], coordinates, 0.0), finite

    def _record_vectors(self, records: Records) -> tuple[FloatArray, BoolArray]:
        """Return the projected gradient of each record, (records, k), and which of them are finite, (records,)."""
        count = len(records.present)
        inputs, targets, present = pad_records(records, self.micro_batch)
        inputs, targets = self._prepared(inputs, targets, records.views)
        gradients = per_example_gradients(
            self.network, self.loss, inputs, targets, count=count * (records.views or 1), private=self.private
        )
        if records.views:
            gradients = gradients.reshape(len(present), records.views, -1).mean(dim=1)
        present = present.to(gradients.device)
        good = torch.isfinite(gradients).all(dim=1) | ~present
        # `where` before any product, so that no NaN or infinity reaches a neighbour or survives a zero factor.
        gradients = torch.where((good & present)[:, None], gradients, 0.0)
        vectors = self.whitening.project(gradients)[:count].cpu().numpy()
        finite = good[:count].cpu().numpy() & np.isfinite(vectors).all(axis=1)
        np.copyto(vectors, 0.0, where=~finite[:, None])
        return vectors, finite

    def _prepared(
        self, inputs: torch.Tensor, targets: torch.Tensor, views: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets with every view as a record of its own, once the way of differentiating them is known."""
        inputs, targets = flatten_views(inputs, targets, views)
        if self.prepare is not None:
            self.prepare(torch.zeros_like(inputs[:1]))
        return inputs, targets
