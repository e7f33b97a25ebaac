"""The public state of a round: everything that a shard needs to sketch it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import Arrays, FloatArray
from distqexp.artefacts.named import NOT_HERE
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
        lineage: What led to theta, where files leave theta and velocity out (``artefacts.named``); else None.
    """

    round: int
    theta: FloatArray
    clip: float
    grid: Grid
    precision: Arrays
    subspace: Arrays = field(default_factory=dict)
    velocity: FloatArray | None = None
    factors: FactorGrid | None = None
    lineage: str | None = None

    def header(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON types."""
        header: dict[str, Any] = {"round": self.round, "clip": self.clip, "grid": asdict(self.grid)}
        header |= {} if self.lineage is None else {"lineage": self.lineage}
        return header | ({"factors": asdict(self.factors)} if self.factors else {})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays, under their names in a file; with a lineage, those that don't follow from it."""
        arrays = {f"precision/{name}": array for name, array in self.precision.items()}
        arrays |= {f"subspace/{name}": array for name, array in self.subspace.items()}
        return arrays if self.lineage is not None else self._parameters() | arrays

    def _parameters(self) -> dict[str, npt.NDArray[Any]]:
        return {"theta": self.theta} | ({} if self.velocity is None else {"velocity": self.velocity})

    def with_parameters(
        self, theta: FloatArray, velocity: FloatArray | None, arrays: Arrays | None = None
    ) -> RoundState:
        """Return the state that a file left without its parameters, and without ``arrays`` that are those of another state."""
        complete = {} if arrays is None else dict(arrays)
        return replace(
            self,
            theta=theta,
            velocity=velocity,
            precision=under(complete, "precision/") | dict(self.precision),
            subspace=under(complete, "subspace/") | dict(self.subspace),
        )

    def identity(self) -> str:
        """Return the SHA-256 of the whole state. It gives away a site that worked from another release than the others."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return state_identity(self.header(), self.arrays())

    @staticmethod
    def restore(header: Mapping[str, Any], arrays: Arrays) -> RoundState:
        """Rebuild a state from its header() and arrays(); one with a lineage waits for ``with_parameters``."""
        lineage = header.get("lineage")
        return RoundState(
            round=int(header["round"]),
            theta=NOT_HERE if lineage is not None else np.asarray(arrays["theta"], dtype=np.float64),
            clip=float(header["clip"]),
            grid=Grid(**header["grid"]),
            precision=under(arrays, "precision/"),
            subspace=under(arrays, "subspace/"),
            velocity=np.asarray(arrays["velocity"], dtype=np.float64) if "velocity" in arrays else None,
            factors=FactorGrid(**header["factors"]) if "factors" in header else None,
            lineage=lineage,
        )


def under(arrays: Arrays, prefix: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays whose names begin with ``prefix``, under their names without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
