"""Whitened gradients of privacy units, micro-batch by micro-batch, every batch of one fixed shape."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.batching import Batch, flattened, pad_records, sum_by_unit
from distqexp.problem.derivatives import loss_curvature_factors, per_example_gradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


class UnitGradients:
    """Maps records to one vector L^{-1} P^T grad a unit, at fixed parameters.

    A unit's vector depends on that unit alone, to the last bit, on one kind of hardware with one thread
    count: micro-batches have one padded shape, absent records are fed as zeros and masked out, records are
    summed in slot order, and every later step works row by row.
    """

    def __init__(self, *, network: Network, loss: Loss, whitening: Whitening, micro_batch: int) -> None:
        self.network = network
        self.loss = loss
        self.whitening = whitening
        self.micro_batch = micro_batch

    def of_piece(self, batches: Iterable[Batch]) -> tuple[FloatArray, BoolArray]:
        """Whitened vectors (units, k) of one piece, and which of them are finite, (units,). Private.

        ``batches`` holds (records, unit index of each record), at most micro_batch records each, the slots of a
        unit contiguous. A piece of more than one batch must hold a single unit.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a warning would tell of the data
            sums, finite = sum_by_unit(batches, self._projected)
        padded = np.zeros((max(self.micro_batch, len(sums)), self.whitening.k))
        padded[: len(sums)] = np.where(finite[:, None], sums, 0.0)
        padded = self.whitening.whiten(torch.from_numpy(padded)).numpy()
        vectors = padded[: len(sums)]
        return vectors, finite & np.isfinite(vectors).all(axis=1)

    def curvature_factors(self, records: Records) -> torch.Tensor:
        """Rows of S^T J P for each record, (records, r, k) float64; zero for absent records."""
        return self._curvature_factors(records)[0][: len(records)]

    def whitened_factors(self, records: Records) -> tuple[FloatArray, BoolArray]:
        """Rows of S^T J P L^{-T} for each record, (records, r, k), and which records' are finite, (records,). Private.

        Zero for absent and non-finite records. A record's rows depend on that record alone, as the vectors of ``of_piece`` do.
        """
        factors, finite = self._curvature_factors(records)
        count, width, k = factors.shape
        factors = self.whitening.whiten(factors.reshape(-1, k)).reshape(count, width, k)
        rows = factors.cpu().numpy()
        good = finite.cpu().numpy() & np.isfinite(rows).all(axis=(1, 2))
        return np.where(good[:, None, None], rows, 0.0)[: len(records)], good[: len(records)]

    def _curvature_factors(self, records: Records) -> tuple[torch.Tensor, torch.Tensor]:
        """(micro_batch, r, k), zero for absent and non-finite records; and which are absent or finite."""
        inputs, targets, present = pad_records(records, self.micro_batch)
        factors = loss_curvature_factors(self.network, self.loss, flattened(inputs, targets, records.views)[0])
        if records.views:  # the mean over views
            factors = factors.reshape(len(present), -1, factors.shape[2]) / records.views**0.5
        present = present.to(factors.device)
        finite = torch.isfinite(factors).all(dim=2).all(dim=1)
        # Replaced before the product: no NaN or infinity reaches a neighbour.
        factors = torch.where((finite & present)[:, None, None], factors, 0.0)
        rows = factors.reshape(-1, factors.shape[-1])
        projected = self.whitening.project(rows).reshape(factors.shape[0], factors.shape[1], self.whitening.k)
        finite = (finite | ~present) & torch.isfinite(projected).all(dim=2).all(dim=1)
        return torch.where((finite & present)[:, None, None], projected, 0.0), finite

    def _projected(self, records: Records) -> tuple[FloatArray, BoolArray]:
        count = len(records.present)
        inputs, targets, present = pad_records(records, self.micro_batch)
        gradients = per_example_gradients(self.network, self.loss, *flattened(inputs, targets, records.views))
        if records.views:
            gradients = gradients.reshape(len(present), records.views, -1).mean(dim=1)
        good = torch.isfinite(gradients).all(dim=1) | ~present
        # `where` before any product, so that no NaN or infinity reaches a neighbour or survives a zero factor.
        gradients = torch.where((good & present)[:, None], gradients, 0.0)
        projected = self.whitening.project(gradients).cpu().numpy()
        finite = good.cpu().numpy() & np.isfinite(projected).all(axis=1)
        return np.where(finite[:, None], projected, 0.0)[:count], finite[:count]
