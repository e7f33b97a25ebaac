"""A release: the noisy sums of a round, the new parameters, and what the next round needs. All of it is public."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import Arrays, FloatArray, IntegerArray
from distqexp.artefacts.moves import WHOLE
from distqexp.artefacts.named import NOT_HERE
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import check_release
from distqexp.artefacts.restoring import everybody_flag, with_file_errors
from distqexp.artefacts.state import RoundState, under
from distqexp.errors import FileContentError
from distqexp.mechanism.diagnostics import Diagnostics, estimates
from distqexp.mechanism.grid import Grid
from distqexp.privacy.expenses import Part
from distqexp.storage.hdf5 import read_file, write_file

LIGHT = 1 << 19
"""The bytes that the next round's state may take in memory to stay in a release. A heavier one is in the latest release of a run alone."""


@dataclass(frozen=True)
class Release:
    """A released round: the noisy sums, the new parameters, and what the next round needs. All of it is public.

    Attributes:
        plan_id: The identity of the plan.
        round: The number of the round, from 0.
        noisy_sums: int64 (plan.coordinates,), in grid units; with a trust region minus the point itself, rounded to the grid.
        theta: float64 (d,), the parameters after the round, theta_{r+1}.
        state_header: The header of the state that the round was sketched at; ``used`` in a file.
        next_state: The state of the next round; None after the last one, and where a run left it out because its next release stands.
        next_rules: The header of the state that was left out; None in any other release.
        same: The arrays of the next state that are those of the state before, where a plan names its weights: no file has them.
        noise_seed: The seed of the noise, or None for real noise. With a seed nothing about the release is private.
        everybody: Whether it is charged to everybody although its round uses one part: units may have changed their parts.
        halvings: How often the guard halved the move, 0 to HALVINGS.
        kept: How many eighths of the way from the plan's parameters were kept, 0 to WHOLE; WHOLE before the last round.
    """

    plan_id: str
    round: int
    noisy_sums: IntegerArray
    theta: FloatArray
    state_header: Mapping[str, Any]
    next_state: RoundState | None
    noise_seed: int | None
    everybody: bool = False
    halvings: int = 0
    kept: int = WHOLE
    next_rules: Mapping[str, Any] | None = None
    same: tuple[str, ...] = ()

    @property
    def next_header(self) -> Mapping[str, Any] | None:
        """The header of the next round's state, whether or not the state is here; None after the last round."""
        return self.next_rules if self.next_state is None else self.next_state.header()

    def without_state(self) -> Release:
        """Return the release without the next round's state where that is heavier than LIGHT; public records give it again."""
        state = self.next_state
        if state is None or sum(array.nbytes for array in self._next_arrays(state).values()) <= LIGHT:
            return self
        return replace(self, next_state=None, next_rules=state.header(), same=())

    @property
    def named(self) -> bool:
        """Whether its plan names weights by digest: files then have the noisy sums and no parameters, which follow from them."""
        return "lineage" in self.state_header

    @property
    def lacking(self) -> bool:
        """Whether the parameters, and whatever else follows from the state before, are not here (``completed``)."""
        return self.named and self.theta.size == 0

    def without_parameters(self) -> Release:
        """Return the release of a plan with named weights as a lacking one without the next state, so that memory holds one round."""
        if not self.named:
            return self
        return replace(self, theta=NOT_HERE, next_state=None, next_rules=self.next_header, same=())

    def completed(self, before: RoundState, theta: FloatArray, *, moving: bool) -> Release:
        """Return a lacking release with its parameters ``theta`` (d,), and with what its next state has from ``before``.

        ``moving`` says whether the plan has momentum. Raises FileContentError where ``before`` lacks an array that it needs.
        """
        state = self.next_state
        if state is None:
            return replace(self, theta=theta)
        arrays = before.arrays()
        missing = [name for name in self.same if name not in arrays]
        if missing:
            raise FileContentError(f"release: no array {missing[0]} in the state before it: damaged, copy it again")
        kept = {name: arrays[name] for name in self.same}
        return replace(
            self, theta=theta, next_state=state.with_parameters(theta, theta - before.theta if moving else None, kept)
        )

    def header(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON types."""
        return {
            "round": self.round,
            "used": dict(self.state_header),
            "next": None if self.next_header is None else dict(self.next_header),
            "noise_seed": self.noise_seed,
            "everybody": self.everybody,
            "halvings": self.halvings,
            "kept": self.kept,
            "privacy": "NOT PRIVATE: noise from a seed" if self.noise_seed is not None else "as the plan says",
        } | ({"same": list(self.same)} if self.named else {})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays, under their names in a release file."""
        arrays: dict[str, npt.NDArray[Any]] = {"noisy_sums": self.noisy_sums}
        arrays |= {} if self.named else {"theta": self.theta}
        if self.next_state:
            arrays |= {f"next/{name}": array for name, array in self._next_arrays(self.next_state).items()}
        return arrays

    def _next_arrays(self, state: RoundState) -> dict[str, npt.NDArray[Any]]:
        return {name: array for name, array in state.arrays().items() if name not in ("theta", *self.same)}

    @staticmethod
    def restore(plan: Plan, header: Mapping[str, Any], arrays: Arrays) -> Release:
        """Rebuild a release from its header() and arrays().

        Raises FileContentError or UsageError when anything is not as the plan gives it.
        """
        theta = NOT_HERE if plan.named else np.asarray(arrays["theta"], dtype=np.float64)
        noisy_sums = np.asarray(arrays["noisy_sums"])
        if theta.shape != ((0,) if plan.named else (plan.d,)) or noisy_sums.shape != (plan.coordinates,):
            raise FileContentError(
                f"release: theta {theta.shape}, noisy sums {noisy_sums.shape}; the plan expects ({plan.d},) and ({plan.coordinates},)"
            )
        tree = header["next"]
        following = under(arrays, "next/")
        same = tuple(str(name) for name in header.get("same", ()))
        here = tree is not None and (following or same)
        state = RoundState.restore(tree, following | {"theta": theta}) if here else None
        release = Release(
            plan_id=plan.plan_id,
            round=int(header["round"]),
            noisy_sums=noisy_sums,
            theta=theta,
            state_header=header["used"],
            next_state=state,
            noise_seed=header["noise_seed"],
            everybody=everybody_flag(header, plan.config.mechanism.parts),
            halvings=int(header["halvings"]),
            kept=int(header["kept"]),
            next_rules=tree if state is None else None,
            same=same,
        )
        check_release(plan, release, header, arrays)
        return release

    def write(self, path: Path) -> None:
        """Write the release file."""
        write_file(
            path, kind="release", plan_id=self.plan_id, header=self.header(), arrays=self.arrays(), private=False
        )

    @staticmethod
    def read(path: Path, plan: Plan) -> Release:
        """Read a release file and check it against the plan. Raises FileContentError."""
        stored = read_file(path, kind="release", plan_id=plan.plan_id)
        return with_file_errors(path, lambda: Release.restore(plan, stored.header, stored.arrays))


def charged_part(plan: Plan, release: Release) -> Part | None:
    """Return the part whose units the release says it is charged to, or None for everybody's."""
    return None if release.everybody else plan.part(release.round)


def diagnostics_of(plan: Plan, release: Release) -> Diagnostics | None:
    """Return what the released sums tell about the units, or None where the config shares no diagnostics.

    The diagnostics are public: the round paid for them.
    """
    if not plan.config.diagnostics.share:
        return None
    grid = Grid(**release.state_header["grid"])
    config = plan.config
    return estimates(
        release.noisy_sums[plan.k :],
        grid.counter,
        grid.sigma * math.sqrt(config.noise_excess),
        config.diagnostics.largest_loss,
        config.mechanism.sampling,
    )
