"""The two products that a randomised range finder takes with the gradients of public records, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.gradients.batching import pad_records
from distqexp.problem.derivatives import per_example_gradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


class RangeSums:
    """Computes G W and G^T Q, where column s of G (d, n) is the gradient of the record in slot s. For public records only.

    The column of a record that is absent or has an entry that is not finite is zero. Gradients are of the network's own type, on
    its device; products are float64. ``prepare`` is that of ``UnitGradients``.
    """

    def __init__(
        self, *, network: Network, loss: Loss, micro_batch: int, prepare: Callable[[torch.Tensor], None] | None = None
    ) -> None:
        self.prepare = prepare
        self.network = network
        self.loss = loss
        self.micro_batch = micro_batch

    def combine(self, records: Records, weights: FloatArray) -> torch.Tensor:
        """Return the records' part of G W: their gradients times ``weights`` (records, width), float64 (d, width)."""
        rows = torch.from_numpy(weights).to(self.network.device)
        return self._gradients(records).T @ rows

    def coefficients(self, records: Records, basis: torch.Tensor) -> FloatArray:
        """Return the records' rows of G^T Q, float64 (records, width). ``basis``: Q, float64 (d, width) on the network's device."""
        return np.asarray((self._gradients(records) @ basis).cpu().numpy())

    def _gradients(self, records: Records) -> torch.Tensor:
        inputs, targets, present = pad_records(records, self.micro_batch)
        if self.prepare is not None:
            self.prepare(torch.zeros_like(inputs[:1]))
        gradients = per_example_gradients(
            self.network, self.loss, inputs, targets, count=len(records), private=False
        ).detach()
        keep = torch.isfinite(gradients).all(dim=1) & present.to(gradients.device)
        # Replaced before any product: 0 x NaN is NaN.
        return torch.where(keep[:, None], gradients, 0.0)[: len(records)].to(torch.float64)
