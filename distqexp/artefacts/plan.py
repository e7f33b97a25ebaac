"""The plan: every rule of a run, fixed before a private record is read. Public."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.arrays import Arrays
from distqexp.artefacts.derived import coordinates_of
from distqexp.artefacts.recomputed import check_plan
from distqexp.artefacts.restoring import restored
from distqexp.artefacts.state import RoundState, under
from distqexp.config import Config, config_from_tree, config_to_tree, without_paths
from distqexp.errors import FileContentError
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.calibration import Calibration
from distqexp.privacy.events import BoundedRelease, GaussianRelease
from distqexp.privacy.events import Release as Event
from distqexp.privacy.expenses import Part
from distqexp.privacy.pure import pure_epsilon
from distqexp.problem.schema import Schema
from distqexp.storage.canonical import plan_identity
from distqexp.storage.hdf5 import read_file, write_file


@dataclass(frozen=True)
class Plan:
    """Every rule, fixed before a private record is read. All of it is public.

    config: without paths. weights: every parameter and buffer of the pretrained model. state: round 0.
    """

    config: Config
    d: int
    k: int
    schema: Schema
    calibration: Calibration
    weights: Arrays
    state: RoundState
    plan_id: str = ""
    forecast: Mapping[str, float] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The scalars, as JSON types."""
        return {
            "config": config_to_tree(self.config),
            "d": self.d,
            "k": self.k,
            "schema": self.schema.to_tree(),
            "calibration": asdict(self.calibration),
            "state": self.state.header(),
            "shards": list(self.config.shards),
            "forecast": dict(self.forecast),
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, under names that a file can carry."""
        weights = {f"weights/{name}": array for name, array in self.weights.items()}
        return weights | {f"state/{name}": array for name, array in self.state.arrays().items()}

    def identified(self) -> Plan:
        """The same plan with its identity, the SHA-256 of its canonical form."""
        return replace(self, plan_id=plan_identity(self.header(), self.arrays()))

    def event(self, grid: Grid) -> Event:
        """The privacy event of one round on ``grid``."""
        radius, discrete = self.config.mechanism.trust_radius, self.config.mechanism.noise == "discrete"
        if radius is None:
            return GaussianRelease(
                mu=grid.mu, coordinates=self.coordinates, sigma=float(grid.sigma) if discrete else None
            )
        step = Fraction(grid.step)
        epsilon = pure_epsilon(grid.sensitivity * step, radius, (grid.sigma * step) ** 2)
        return BoundedRelease(mu=grid.mu, epsilon=epsilon, coordinates=self.k)

    @property
    def coordinates(self) -> int:
        """How many numbers a round releases: the gradient's k, and three diagnostics where the config has them."""
        return coordinates_of(self.config, self.k)

    @property
    def width(self) -> int:
        """How many integers a sketch is: those released, and with private curvature the packed Gram matrix."""
        return self.rule(self.state).width

    def rule(self, state: RoundState) -> ReleaseRule:
        """The law of the release of ``state``."""
        mechanism = self.config.mechanism
        return ReleaseRule(self.coordinates, state.grid, mechanism.noise, mechanism.trust_radius, state.factors)

    def part(self, round: int) -> Part | None:
        """Whose units a round is about; None: everybody's."""
        mechanism = self.config.mechanism
        return Part(mechanism.part_of(round), mechanism.parts) if mechanism.parts > 1 else None

    def write(self, path: Path) -> None:
        """Store as plan.h5."""
        write_file(path, kind="plan", plan_id=self.plan_id, header=self.header(), arrays=self.arrays(), private=False)

    @staticmethod
    def restore(header: Mapping[str, Any], arrays: Arrays) -> Plan:
        """Inverse of header() and arrays(); the identity is computed afresh, and so is every figure that the config gives.

        Raises FileContentError or UsageError where one differs.
        """
        plan = Plan(
            config=config_from_tree(header["config"]),
            d=int(header["d"]),
            k=int(header["k"]),
            schema=Schema.from_tree(header["schema"]),
            calibration=Calibration(**header["calibration"]),
            weights=under(arrays, "weights/"),
            state=RoundState.restore(header["state"], under(arrays, "state/")),
            forecast={name: float(value) for name, value in header["forecast"].items()},
        ).identified()
        check_plan(plan, header, arrays)
        return plan

    @staticmethod
    def read(path: Path) -> Plan:
        """Read plan.h5. Raises FileContentError when its content is not what its identity says, or not what its config gives."""
        stored = read_file(path, kind="plan")
        found = plan_identity(stored.header, stored.arrays)
        if found != stored.plan_id:
            raise FileContentError(
                f"{path}: its content has plan_id {found[:16]}, its label says {stored.plan_id[:16]}; copy the plan again"
            )
        return restored(path, lambda: Plan.restore(stored.header, stored.arrays))


def same_rules(plan: Plan, config: Config) -> bool:
    """Whether a config, without its paths, is the one that the plan was made from."""
    return json.dumps(config_to_tree(without_paths(config)), sort_keys=True) == json.dumps(
        config_to_tree(plan.config), sort_keys=True
    )
