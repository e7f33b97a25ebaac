"""One piece of private records to one integer sum: by unit, or by micro-batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from distqexp.errors import UsageError
from distqexp.sketching.block_gradients import BlockGradients
from distqexp.sketching.clip import clip_units
from distqexp.sketching.integers import round_sum, round_to_grid
from distqexp.sketching.unit_gradients import Batch, UnitGradients


class Sketcher:
    """Clips each unit to ``clip`` (whitened Euclidean norm), rounds it to the grid, sums in int64.

    clip, step and clip_integer are public. One unit moves the sum by at most ``clip_integer`` in Euclidean
    norm (zero-out, add-remove), exactly; under replace-one by at most twice that.
    """

    def __init__(
        self, gradients: UnitGradients | BlockGradients, *, clip: float, step: float, clip_integer: int
    ) -> None:
        self.gradients = gradients
        self.clip = clip
        self.step = step
        self.clip_integer = clip_integer

    def sketch(self, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
        """The int64 sum (k,) over the units of one piece. Private. Wraps modulo 2^64, never saturates."""
        total: npt.NDArray[np.int64] = self.unit_integers(batches).sum(axis=0, dtype=np.int64)
        return total

    def unit_integers(self, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
        """Each unit's integers, (units, k) int64. Private."""
        vectors, finite = self.gradients.of_piece(batches)
        return round_to_grid(clip_units(vectors, finite, self.clip), self.step, self.clip_integer)


class BatchSketcher:
    """Clips each record (a unit of its own) and sums a micro-batch layer by layer in float64; rounds the sum to the grid.

    clip, step, cancellation and largest_terms are public. One unit moves the sum by at most what ``mechanism.batch_sums`` says, in
    Euclidean norm (docs/proofs/batches.md): zero-out and replace-one alone, where every other unit keeps its micro-batch.
    """

    def __init__(
        self, gradients: BlockGradients, *, clip: float, step: float, cancellation: float, largest_terms: int
    ) -> None:
        self.gradients = gradients
        self.clip = clip
        self.step = step
        self.cancellation = cancellation
        self.largest_terms = largest_terms

    def sketch(self, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
        """The int64 sum (k,) over the micro-batches of one piece. Private. Wraps modulo 2^64, never saturates."""
        total = np.zeros(self.gradients.k, dtype=np.int64)
        for records, unit in batches:
            if len(np.unique(unit)) != len(unit):
                raise UsageError(
                    'unit: one of several records; expected single records: set mechanism.rounding = "unit"'
                )
            found = self.gradients.clipped_sum(records, self.clip, self.cancellation, self.largest_terms)
            total += round_sum(found, self.step)
        return total
