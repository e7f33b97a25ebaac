"""Gradients whitened layer by layer, and then across layers. Private."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray
from distqexp.geometry.precisions.base import AcrossBlocks
from distqexp.gradients.batching import Batch
from distqexp.gradients.by_layer import BlockGradients


class AcrossGradients:
    """Computes quickly what ``UnitGradients`` computes, for a whitening by blocks with a map across them after it.

    Args:
        gradients: The gradients whitened by blocks.
        across: The map. Public.
    """

    def __init__(self, gradients: BlockGradients, across: AcrossBlocks) -> None:
        self.gradients, self.across = gradients, across

    def of_piece(self, batches: Iterable[Batch]) -> tuple[FloatArray, BoolArray]:
        """Return a piece's whitened vectors, (units, k), and which are finite, (units,), as ``UnitGradients.of_piece`` does."""
        vectors, finite = self.gradients.of_piece(batches)
        with np.errstate(all="ignore"):  # a warning would tell of the data
            mapped = self.across.apply(torch.from_numpy(vectors)).numpy()
            finite = finite & np.isfinite(mapped).all(axis=1)
            np.copyto(mapped, 0.0, where=~finite[:, None])
        return mapped, finite
