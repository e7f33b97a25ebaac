"""The sketcher of private curvature: a piece of records to one integer vector of gradient sums and a packed Gram matrix.

The generalised Gauss-Newton matrix V^T V of each unit comes from factors V with a row for each output (docs/proofs/guarantee.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch
from distqexp.gradients.joint import gradients_and_factors, lipschitz_sizes
from distqexp.sketching.integers import norms_upwards, truncate_to_grid

ROUNDINGS = 3
"""How many grid steps of the clip are reserved for the two roundings upwards of the integer check."""


class CurvatureSketcher:
    """Clips each unit's gradient and factors together, so that its utility is C-Lipschitz on the ball; rounds, checks, sums.

    A unit is scaled by c = min(1, C / (||g|| + R trace(V^T V))), its gradient by c and its factors by the root of c. Both are
    truncated toward zero on their grids; then norm and trace are checked in integers against ``clip_integer``, and a unit that
    fails is zero.

    Args:
        gradients: The gradients and factors of units, whitened.
        step: The step of the gradients' grid.
        clip_integer: C in steps of the gradients' grid.
        trust_radius: R, the radius of the ball.
        factor_step: The step of the factors' grid (mechanism/factor_grid.py).
        price: How many steps of the clip a trace of one factor step squared costs.
        largest_trace: The largest trace that the clip allows, in factor steps squared.
    """

    def __init__(
        self, gradients: UnitGradients, *, step: float, clip_integer: int, trust_radius: float, factor_step: float, price: float,
        largest_trace: int,
    ) -> None:  # fmt: skip
        self.gradients = gradients
        self.step = step
        self.clip_integer = clip_integer
        self.trust_radius = trust_radius
        self.factor_step = factor_step
        self.price = price
        self.largest_trace = largest_trace

    def sketch(self, batches: Iterable[Batch]) -> IntegerArray:
        """Return the sum over the units of one piece, int64 (k + k(k+1)/2,), which wraps modulo 2^64. Private."""
        linear, rows, _ = self.unit_integers(batches)
        # Exact in float64: no partial sum exceeds the sum of traces, which the grid keeps below 2^53 for a micro-batch of units.
        exact = rows.astype(np.float64)
        gram = (exact.T @ exact)[np.triu_indices(linear.shape[1])].astype(np.int64)
        return np.concatenate([linear.sum(axis=0, dtype=np.int64), gram])

    def unit_integers(self, batches: Iterable[Batch]) -> tuple[IntegerArray, IntegerArray, IntegerArray]:
        """Return the integers of one piece: gradients (units, k), factors (rows, k), and the unit of each row. Private."""
        piece = list(batches)
        with np.errstate(all="ignore"):  # a warning would tell of the data
            vectors, rows, unit, good = gradients_and_factors(self.gradients, piece)
            sizes = lipschitz_sizes(vectors, rows, unit, self.trust_radius)
            good = good & np.isfinite(sizes)
            clip = max(self.clip_integer - ROUNDINGS, 0) * self.step * (1.0 - 1e-12)
            share = np.where(good, np.minimum(1.0, clip / np.maximum(np.where(good, sizes, clip), clip)), 0.0)
        # Both factors of every product are replaced before it: 0 x NaN would be NaN.
        linear = truncate_to_grid(np.where(good[:, None], vectors, 0.0) * share[:, None], self.step, self.clip_integer)
        factors = np.where(good[unit][:, None], rows, 0.0) * np.sqrt(share)[unit][:, None]
        integers = truncate_to_grid(factors, self.factor_step, self._largest_entry)
        keep = self._within(linear, integers, unit)
        linear[~keep] = 0
        integers[~keep[unit]] = 0
        return linear, integers, unit

    @property
    def _largest_entry(self) -> int:
        return int(self.largest_trace**0.5) + 1

    def _within(self, linear: IntegerArray, rows: IntegerArray, unit: IntegerArray) -> BoolArray:
        """Return which units' Lipschitz constants are within the clip, decided on integers, (units,)."""
        # Entries are bounded, so float64 sums can't overflow. Below 2^53 they are exact; above, far beyond the bound.
        traces = np.bincount(unit, np.square(rows.astype(np.float64)).sum(axis=1), minlength=len(linear))
        cost = np.ceil(traces * self.price * (1.0 + 2.0**-50))
        within: BoolArray = (traces <= self.largest_trace) & (norms_upwards(linear) + cost <= self.clip_integer)
        return within
