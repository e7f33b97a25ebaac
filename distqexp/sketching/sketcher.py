"""One piece of private records to one integer sum: by unit, or by micro-batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from distqexp.errors import UsageError
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch
from distqexp.gradients.by_layer import BlockGradients
from distqexp.sketching.clip import clip_units
from distqexp.sketching.counters import COUNTS, UnitCounters
from distqexp.sketching.integers import round_sum, round_to_grid


class Sketcher:
    """Clips each unit to ``clip`` (whitened Euclidean norm), rounds it to the grid, sums in int64.

    clip, step and clip_integer are public. One unit moves the sum by at most ``clip_integer`` in Euclidean
    norm (zero-out, add-remove), exactly; under replace-one by at most twice that. counters: with them the sum is (k + 3,), its
    last entries those of diagnostics.
    """

    def __init__(
        self,
        gradients: UnitGradients | BlockGradients,
        *,
        clip: float,
        step: float,
        clip_integer: int,
        counters: UnitCounters | None = None,
    ) -> None:
        self.gradients = gradients
        self.clip = clip
        self.step = step
        self.clip_integer = clip_integer
        self.counters = counters

    def sketch(self, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
        """The int64 sum (k,), or (k + 3,), over the units of one piece. Private. Wraps modulo 2^64, never saturates."""
        total: npt.NDArray[np.int64] = self.unit_integers(batches).sum(axis=0, dtype=np.int64)
        return total

    def unit_integers(self, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
        """Each unit's integers, (units, k) or (units, k + 3), int64. Private."""
        watch = self.counters.watch() if self.counters else None
        vectors, finite = self.gradients.of_piece(watch.over(batches) if watch else batches)
        integers = round_to_grid(clip_units(vectors, finite, self.clip), self.step, self.clip_integer)
        if watch is None:
            return integers
        with np.errstate(over="ignore", invalid="ignore"):  # a warning would tell of the data
            norms = np.sqrt(np.square(vectors).sum(axis=1))
        return np.concatenate([integers, watch.counts(finite & np.isfinite(norms), norms > self.clip)], axis=1)


class BatchSketcher:
    """Clips each record (a unit of its own) and sums a micro-batch layer by layer in float64; rounds the sum to the grid.

    clip, step, cancellation and largest_terms are public. One unit moves the sum by at most what ``mechanism.batch_sums`` says, in
    Euclidean norm (docs/proofs/batches.md): zero-out and replace-one alone, where every other unit keeps its micro-batch.
    """

    def __init__(
        self,
        gradients: BlockGradients,
        *,
        clip: float,
        step: float,
        cancellation: float,
        largest_terms: int,
        counters: UnitCounters | None = None,
    ) -> None:
        self.gradients = gradients
        self.clip = clip
        self.step = step
        self.cancellation = cancellation
        self.largest_terms = largest_terms
        self.counters = counters

    def sketch(self, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
        """The int64 sum (k,), or (k + 3,), over the micro-batches of one piece. Private. Wraps modulo 2^64, never saturates."""
        total: npt.NDArray[np.int64] | None = None
        counts = np.zeros(COUNTS, dtype=np.int64)
        for records, unit in batches:
            if len(np.unique(unit)) != len(unit):
                raise UsageError(
                    'unit: one of several records; expected single records: set mechanism.rounding = "unit"'
                )
            found, weights, good = self.gradients.clipped_sum_and_weights(
                records, self.clip, self.cancellation, self.largest_terms
            )
            rounded = round_sum(found, self.step)
            total = rounded if total is None else np.add(total, rounded, out=total)
            if self.counters is not None:
                watch = self.counters.watch()
                watch.see((records, unit))
                counts += watch.counts(good, weights < 1).sum(axis=0)
        if total is None:
            raise UsageError("piece: no records; expected at least one")
        return np.concatenate([total, counts]) if self.counters else total
