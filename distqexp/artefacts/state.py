"""The public state of a round: everything that a shard needs to sketch it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import Arrays, FloatArray
from distqexp.mechanism.factor_grid import FactorGrid
from distqexp.mechanism.grid import Grid
from distqexp.storage.canonical import state_identity


@dataclass(frozen=True)
class RoundState:
    """Everything that a shard needs to sketch one round. All of it is public.

    Attributes:
        round: The number of the round, from 0.
        theta: float64 (d,), the parameters that the quadratic is expanded at.
        clip: The clip C, in whitened units.
        grid: The round's grid: step, integer clip, noise scale and mu.
        precision: The arrays of the public precision.
        subspace: The arrays of a subspace made from public data; empty for one that a seed gives.
        velocity: float64 (d,), the last move of the released parameters; None without momentum and in the first round.
        factors: The grid of the private curvature's factors, or None where the curvature is public.
    """

    round: int
    theta: FloatArray
    clip: float
    grid: Grid
    precision: Arrays
    subspace: Arrays = field(default_factory=dict)
    velocity: FloatArray | None = None
    factors: FactorGrid | None = None

    def header(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON types."""
        header = {"round": self.round, "clip": self.clip, "grid": asdict(self.grid)}
        return header | ({"factors": asdict(self.factors)} if self.factors else {})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays, under their names in a file."""
        arrays = {f"precision/{name}": array for name, array in self.precision.items()}
        if self.velocity is not None:
            arrays["velocity"] = self.velocity
        return {"theta": self.theta} | arrays | {f"subspace/{name}": array for name, array in self.subspace.items()}

    def identity(self) -> str:
        """Return the SHA-256 of the whole state. It gives away a site that worked from another release than the others."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return state_identity(self.header(), self.arrays())

    @staticmethod
    def restore(header: Mapping[str, Any], arrays: Arrays) -> RoundState:
        """Rebuild a state from its header() and arrays()."""
        return RoundState(
            round=int(header["round"]),
            theta=np.asarray(arrays["theta"], dtype=np.float64),
            clip=float(header["clip"]),
            grid=Grid(**header["grid"]),
            precision=under(arrays, "precision/"),
            subspace=under(arrays, "subspace/"),
            velocity=np.asarray(arrays["velocity"], dtype=np.float64) if "velocity" in arrays else None,
            factors=FactorGrid(**header["factors"]) if "factors" in header else None,
        )


def under(arrays: Arrays, prefix: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays whose names begin with ``prefix``, under their names without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
