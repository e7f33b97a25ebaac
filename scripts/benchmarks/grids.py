"""What the settings of each method are chosen from: the axes of its search, and where the search begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.search import Axis, doubling, half_decade, listed, rates

CLIP_LIMIT = 2
"""So many half decades may be added at either end of the clips."""
DOUBLINGS = 3
"""So many doublings may be added at either end of other axes."""


@dataclass(frozen=True)
class Space:
    """The axes of a method's search, the settings that don't change, and the numbers that the search begins with."""

    axes: Sequence[Axis]
    fixed: dict[str, Any]
    start: dict[str, int]


@dataclass(frozen=True)
class Grid:
    """What settings are chosen from. Rates and clips are numbers of half decades, steps of doublings; batch 0 is all records."""

    batches: Sequence[int]
    momenta: Sequence[float]
    epochs: Sequence[int]
    sgd_rates: Sequence[int]
    adam_rates: Sequence[int]
    clips: Sequence[int]
    steps: Sequence[int]

    def opacus(self, records: int, adam: bool) -> Space:
        """DP-SGD or DP-Adam: rate, clip, momentum, batch and epochs, from the middle of each, all records in a batch."""
        sizes = sorted({min(batch or records, records) for batch in self.batches})
        momenta = (0.0,) if adam else self.momenta
        axes = [
            rates(self.adam_rates if adam else self.sgd_rates),
            _clips(self.clips, slides=not adam),
            listed("momentum", momenta, lambda momentum: round(2 * math.log10(1 - momentum))),
            listed("batch", sizes),
            listed("epochs", sorted(self.epochs)),
        ]
        start = _middles(axes) | {"batch": len(sizes) - 1, "momentum": len(axes[2].indices) - 1}
        return Space(axes, {"optimiser": "adam" if adam else "sgd"}, start)

    def descent(self, records: int) -> Space:
        """Gradient descent on all records with the exact noise of composed Gaussians: rate, clip and number of steps."""
        axes = [
            rates(self.sgd_rates),
            _clips(self.clips, slides=True),
            _doublings("epochs", self.steps, 0, lambda index: 2**index),
        ]
        return Space(axes, {"optimiser": "sgd", "momentum": 0.0, "batch": records, "noise": "gdp"}, _middles(axes))

    def plain(self) -> Space:
        """Adam without noise or clip: the rate alone."""
        axes = [rates(self.adam_rates)]
        fixed = {"optimiser": "adam", "momentum": 0.0, "batch": 256, "epochs": 20}
        return Space(axes, fixed, _middles(axes))


def objective() -> Space:
    """Objective perturbation: regularisation, bound on features, clip of gradients as a share of it, damping of the whitening."""
    axes = [
        _half_decades("regularisation", range(-2, 3)),
        _doublings("bound", range(-1, 2)),
        Axis("clip", doubling, range(-3, 1), least=-3 - DOUBLINGS, beside=1),
        _half_decades("damping", range(-2, 3)),
    ]
    return Space(axes, {}, {"regularisation": 0, "bound": 0, "clip": -1, "damping": 0})


def newton() -> Space:
    """DP-Newton: floor of the Hessian's eigenvalues, clips of gradient and Hessian, steps, the Hessian's share, damping."""
    axes = [
        _half_decades("floor", range(-2, 3)),
        _doublings("clip", range(-2, 2)),
        _doublings("hessian_clip", range(-3, 1)),
        _doublings("steps", range(4), 0, lambda index: 2**index),
        listed("share", (0.01, 0.1, 0.3, 0.5)),
        _half_decades("damping", range(-2, 3)),
    ]
    return Space(axes, {}, _middles(axes))


def _clips(indices: Sequence[int], slides: bool) -> Axis:
    limits = (min(indices) - CLIP_LIMIT, max(indices) + CLIP_LIMIT) if len(indices) > 1 else (None, None)
    return Axis(
        "clip", half_decade, indices, *limits, slide=lambda index: -index if slides else 0, beside=1 if slides else 0
    )


def _half_decades(name: str, indices: Sequence[int]) -> Axis:
    return Axis(name, half_decade, indices, min(indices) - DOUBLINGS, max(indices) + DOUBLINGS)


def _doublings(name: str, indices: Sequence[int], least: int | None = None, value: Any = doubling) -> Axis:
    fewest = min(indices) - DOUBLINGS if least is None else least
    limits = (fewest, max(indices) + DOUBLINGS) if len(indices) > 1 else (None, None)
    return Axis(name, value, indices, *limits)


def _middles(axes: Sequence[Axis]) -> dict[str, int]:
    return {axis.name: sorted(axis.indices)[len(axis.indices) // 2] for axis in axes}
