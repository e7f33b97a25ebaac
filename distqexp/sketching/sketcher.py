"""The sketchers that turn a piece of private records into one integer sum, by unit or by micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.gradients.across import AcrossGradients
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch
from distqexp.gradients.by_layer import BlockGradients
from distqexp.sketching.clip import clip_units
from distqexp.sketching.counters import COUNTS, UnitCounters, Watch
from distqexp.sketching.integers import round_sum, round_to_grid

NUMBERS_AT_ONCE = 1 << 17
"""How many coordinates are clipped and rounded at a time: as many as a processor's cache holds."""


class Sketcher:
    """Clips each unit to a whitened Euclidean norm, rounds it to the grid, and sums in int64.

    One unit moves the sum by at most ``clip_integer`` in Euclidean norm, exactly, under zero-out and add-remove; under replace-one by
    at most twice that.

    Args:
        gradients: The whitened gradients of units.
        clip: C, in whitened units. Public.
        step: The step of the grid. Public.
        clip_integer: C in steps of the grid. Public.
        counters: The counters of diagnostics, if any. With them the sum is (k + 3,), and its last entries are theirs.
    """

    def __init__(
        self,
        gradients: UnitGradients | BlockGradients | AcrossGradients,
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

    def sketch(self, batches: Iterable[Batch]) -> IntegerArray:
        """Return the sum over the units of one piece, int64 (k,) or (k + 3,), which wraps modulo 2^64. Private."""
        total: IntegerArray | None = None
        for integers in self._integers(batches):
            part = integers.sum(axis=0, dtype=np.int64)
            total = part if total is None else np.add(total, part, out=total)
        return require_records(total)

    def unit_integers(self, batches: Iterable[Batch]) -> IntegerArray:
        """Return the integers of each unit, int64 (units, k) or (units, k + 3). Private."""
        return np.concatenate(list(self._integers(batches)))

    def _integers(self, batches: Iterable[Batch]) -> Iterator[IntegerArray]:
        """Yield the integers of each unit of a piece, some units at a time."""
        watch = self.counters.watch() if self.counters else None
        vectors, finite = self.gradients.of_piece(watch.over(batches) if watch else batches)
        size = max(1, NUMBERS_AT_ONCE // vectors.shape[1])
        counts = None if watch is None else self._counts(watch, vectors, finite)
        for first in range(0, len(vectors), size):
            part = slice(first, first + size)
            # Without names, which would keep these arrays while the next ones are made.
            yield self._rounded(vectors[part], finite[part], None if counts is None else counts[part])

    def _rounded(self, vectors: FloatArray, finite: BoolArray, counts: IntegerArray | None) -> IntegerArray:
        integers = round_to_grid(clip_units(vectors, finite, self.clip), self.step, self.clip_integer)
        return integers if counts is None else np.concatenate([integers, counts], axis=1)

    def _counts(self, watch: Watch, vectors: FloatArray, finite: BoolArray) -> IntegerArray:
        with np.errstate(all="ignore"):  # a warning would tell of the data
            norms = np.sqrt(np.square(vectors).sum(axis=1))
        return watch.counts(finite & np.isfinite(norms), norms > self.clip)


class BatchSketcher:
    """Clips each record (a unit of its own), sums a micro-batch layer by layer in float64, and rounds the sum to the grid.

    One unit moves the sum by at most the Euclidean norm that ``mechanism.rounding_slack`` gives (docs/proofs/batches.md). That holds
    under zero-out and replace-one alone, where every other unit stays in its micro-batch.

    Args:
        gradients: The whitened gradients, layer by layer.
        clip: C, in whitened units. Public.
        step: The step of the grid. Public.
        cancellation: How many times the clip the spread of a record may be. Public.
        largest_terms: How many terms a coordinate of a sum may have. Public.
        counters: The counters of diagnostics, if any. With them the sum is (k + 3,), and its last entries are theirs.
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

    def sketch(self, batches: Iterable[Batch]) -> IntegerArray:
        """Return the sum over the micro-batches of one piece, int64 (k,) or (k + 3,), which wraps modulo 2^64. Private."""
        total: IntegerArray | None = None
        counts = np.zeros(COUNTS, dtype=np.int64)
        for records, unit in batches:
            if len(np.unique(unit)) != len(unit):
                raise UsageError(
                    'unit: one of several records; expected single records: set mechanism.rounding = "unit"'
                )
            total, counted = self._added(total, (records, unit))
            counts += counted
        total = require_records(total)
        return np.concatenate([total, counts]) if self.counters else total

    def _added(self, total: IntegerArray | None, batch: Batch) -> tuple[IntegerArray, IntegerArray]:
        """Return the sum with that of one more micro-batch, and the counts of that, (3,), zeros without counters."""
        into = np.empty(self.gradients.k) if total is None else None
        found = self.gradients.clipped_sum(batch[0], self.clip, self.cancellation, self.largest_terms, into)
        for part, values in found.parts:
            integers = round_sum(values, self.step)
            if total is not None:
                np.add(total[part], integers, out=total[part])
        if into is not None:
            total = into.view(np.int64)  # where its parts were rounded
        assert total is not None
        if self.counters is None:
            return total, np.zeros(COUNTS, dtype=np.int64)
        watch = self.counters.watch()
        watch.see(batch)
        return total, watch.counts(found.good, found.weights < 1).sum(axis=0)


def require_records(total: IntegerArray | None) -> IntegerArray:
    """Return the sum over a piece. Raises UsageError where it is None, as the piece had no records."""
    if total is None:
        raise UsageError("piece: no records; expected at least one")
    return total
