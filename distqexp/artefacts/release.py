"""A release: the noisy sums of a round, the new parameters, and what the next round needs. Public."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import Arrays, FloatArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import check_release
from distqexp.artefacts.restoring import charged_to_everybody, restored
from distqexp.artefacts.state import RoundState, under
from distqexp.errors import FileContentError
from distqexp.mechanism.diagnostics import Diagnostics, estimates
from distqexp.mechanism.grid import Grid
from distqexp.privacy.expenses import Part
from distqexp.storage.hdf5 import read_file, write_file


@dataclass(frozen=True)
class Release:
    """A released round: the noisy sums, the new parameters, and what the next round needs. Public.

    noisy_sums: int64 (plan.coordinates,), in grid units; minus the point itself, rounded to the grid, with a trust region.
    theta: (d,) float64, theta_{r+1}.
    used: the state that the round was sketched at, without its arrays. next_state: None after the last round.
    insecure_seed: set when the noise came from a seed: then nothing about the release is private.
    everybody: whether it is charged to everybody, though its round is about one part: units may have changed their parts.
    """

    plan_id: str
    round: int
    noisy_sums: IntegerArray
    theta: FloatArray
    used: Mapping[str, Any]
    next_state: RoundState | None
    insecure_seed: int | None
    everybody: bool = False

    def header(self) -> dict[str, Any]:
        """The scalars, as JSON types."""
        return {
            "round": self.round,
            "used": dict(self.used),
            "next": self.next_state.header() if self.next_state else None,
            "insecure_seed": self.insecure_seed,
            "everybody": self.everybody,
            "privacy": "NOT PRIVATE: noise from a seed" if self.insecure_seed is not None else "as the plan says",
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, under names that a file can carry."""
        arrays: dict[str, npt.NDArray[Any]] = {"noisy_sums": self.noisy_sums, "theta": self.theta}
        if self.next_state:
            arrays |= {f"next/{name}": array for name, array in self.next_state.arrays().items() if name != "theta"}
        return arrays

    @staticmethod
    def restore(plan: Plan, header: Mapping[str, Any], arrays: Arrays) -> Release:
        """Inverse of header() and arrays(). Raises FileContentError or UsageError when anything is not as the plan gives it."""
        theta = np.asarray(arrays["theta"], dtype=np.float64)
        noisy_sums = np.asarray(arrays["noisy_sums"])
        if theta.shape != (plan.d,) or noisy_sums.shape != (plan.coordinates,):
            raise FileContentError(
                f"release: theta {theta.shape}, noisy sums {noisy_sums.shape}; the plan expects ({plan.d},) and ({plan.coordinates},)"
            )
        following = header["next"]
        state = None if following is None else RoundState.restore(following, under(arrays, "next/") | {"theta": theta})
        release = Release(
            plan_id=plan.plan_id,
            round=int(header["round"]),
            noisy_sums=noisy_sums,
            theta=theta,
            used=header["used"],
            next_state=state,
            insecure_seed=header["insecure_seed"],
            everybody=charged_to_everybody(header, plan.config.mechanism.parts),
        )
        check_release(plan, release, header, arrays)
        return release

    def write(self, path: Path) -> None:
        """Store as release-r.h5."""
        write_file(
            path, kind="release", plan_id=self.plan_id, header=self.header(), arrays=self.arrays(), private=False
        )

    @staticmethod
    def read(path: Path, plan: Plan) -> Release:
        """Read and check against the plan. Raises FileContentError."""
        stored = read_file(path, kind="release", plan_id=plan.plan_id)
        return restored(path, lambda: Release.restore(plan, stored.header, stored.arrays))


def charged_part(plan: Plan, release: Release) -> Part | None:
    """Whose units a release says it is charged to; None: everybody's."""
    return None if release.everybody else plan.part(release.round)


def diagnostics_of(plan: Plan, release: Release) -> Diagnostics | None:
    """What the released sums tell about the units, where the config asks for it. Public: paid for with the round."""
    if not plan.config.diagnostics.share:
        return None
    grid = Grid(**release.used["grid"])
    return estimates(release.noisy_sums[plan.k :], grid.counter, grid.sigma, plan.config.diagnostics.largest_loss)
