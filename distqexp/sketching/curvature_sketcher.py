"""One piece of private records to one integer vector that holds the gradient's sum and the packed Gram matrix.

Private curvature: each unit's generalised Gauss-Newton matrix V^T V comes from factors V, one row an output (docs/proofs/guarantee.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from distqexp.arrays import IntegerArray
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch
from distqexp.gradients.joint import gradients_and_factors, lipschitz_sizes
from distqexp.sketching.integers import norms_upwards, truncate_to_grid

ROUNDINGS = 3
"""Grid steps of the clip that are kept for the two roundings upwards of the integer check."""


class CurvatureSketcher:
    """Clips each unit's gradient and factors together, so that its utility is C-Lipschitz on the ball; rounds, checks, sums.

    c = min(1, C / (||g|| + R trace(V^T V))). Both are truncated toward zero on their grids; then norm and trace are checked
    in integers against ``clip_integer``, and a unit that fails is zero. step and clip_integer: of the gradients' grid. radius: R.
    factor_step, price, largest_trace: of the factors' grid (mechanism/factor_grid.py). All public.
    """

    def __init__(
        self, gradients: UnitGradients, *, step: float, clip_integer: int, radius: float, factor_step: float, price: float,
        largest_trace: int,
    ) -> None:  # fmt: skip
        self.gradients = gradients
        self.step = step
        self.clip_integer = clip_integer
        self.radius = radius
        self.factor_step = factor_step
        self.price = price
        self.largest_trace = largest_trace

    def sketch(self, batches: Iterable[Batch]) -> IntegerArray:
        """int64 (k + k(k+1)/2,), over the units of one piece. Private. Wraps modulo 2^64, never saturates."""
        linear, rows, _ = self.unit_integers(batches)
        # Exact in float64: no partial sum exceeds the traces together, which the grid keeps below 2^53 a micro-batch of units.
        exact = rows.astype(np.float64)
        gram = (exact.T @ exact)[np.triu_indices(linear.shape[1])].astype(np.int64)
        return np.concatenate([linear.sum(axis=0, dtype=np.int64), gram])

    def unit_integers(self, batches: Iterable[Batch]) -> tuple[IntegerArray, IntegerArray, IntegerArray]:
        """(units, k) gradients, (rows, k) factors and the unit of each row, of one piece. Private."""
        held = list(batches)
        with np.errstate(over="ignore", invalid="ignore"):  # a warning would tell of the data
            vectors, rows, unit, good = gradients_and_factors(self.gradients, held)
            sizes = lipschitz_sizes(vectors, rows, unit, self.radius)
            good = good & np.isfinite(sizes)
            clip = max(self.clip_integer - ROUNDINGS, 0) * self.step * (1.0 - 1e-12)
            share = np.where(good, np.minimum(1.0, clip / np.maximum(np.where(good, sizes, clip), clip)), 0.0)
        # Both factors of every product are replaced before it: 0 x NaN would be NaN.
        linear = truncate_to_grid(np.where(good[:, None], vectors, 0.0) * share[:, None], self.step, self.clip_integer)
        scaled = np.where(good[unit][:, None], rows, 0.0) * np.sqrt(share)[unit][:, None]
        integers = truncate_to_grid(scaled, self.factor_step, self._largest_entry)
        keep = self._within(linear, integers, unit)
        linear[~keep] = 0
        integers[~keep[unit]] = 0
        return linear, integers, unit

    @property
    def _largest_entry(self) -> int:
        return int(self.largest_trace**0.5) + 1

    def _within(self, linear: IntegerArray, rows: IntegerArray, unit: IntegerArray) -> npt.NDArray[np.bool_]:
        """Whether each unit's Lipschitz constant is within the clip, decided on its integers."""
        # Entries are bounded, so float64 sums can't overflow; beyond 2^53 they are far above the bound, exact below it.
        traces = np.bincount(unit, np.square(rows.astype(np.float64)).sum(axis=1), minlength=len(linear))
        cost = np.ceil(traces * self.price * (1.0 + 2.0**-50))
        within: npt.NDArray[np.bool_] = (traces <= self.largest_trace) & (
            norms_upwards(linear) + cost <= self.clip_integer
        )
        return within
