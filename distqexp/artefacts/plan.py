"""The plan: every rule of a run, fixed before any private record is read. The whole plan is public."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy.typing as npt

from distqexp.arrays import Arrays, FloatArray
from distqexp.artefacts.derived import coordinates_of, sample_failure
from distqexp.artefacts.named import Named
from distqexp.artefacts.recomputed import check_plan
from distqexp.artefacts.restoring import with_file_errors
from distqexp.artefacts.state import RoundState, under
from distqexp.config import Config, config_from_tree, config_to_tree, differences, without_paths
from distqexp.errors import FileContentError
from distqexp.kinds import Noise
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.rule import ReleaseRule
from distqexp.mechanism.shares import NoiseShare
from distqexp.privacy.calibration import Calibration
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease
from distqexp.privacy.expenses import Part
from distqexp.privacy.noise_shares import share_sigma
from distqexp.privacy.pure import pure_epsilon
from distqexp.privacy.sampled import joint_rate
from distqexp.problem.schema import Schema
from distqexp.storage.canonical import plan_identity
from distqexp.storage.hdf5 import read_file, write_file


@dataclass(frozen=True)
class Plan:
    """Every rule of a run, fixed before any private record is read. All of it is public.

    Attributes:
        config: The run's config, without the paths of files.
        d: The number of trainable parameters.
        k: The number of coordinates of the subspace.
        schema: What a record looks like.
        calibration: The noise that the config's epsilon and delta pay for.
        weights: Every parameter and buffer of the pretrained model; without the named ones as long as it is ``lacking``.
        state: The state of round 0.
        plan_id: The SHA-256 of the plan's canonical form; empty until ``with_identity`` sets it.
        forecast: How far above the minimum of its quadratic the release of round 0 is expected to be.
        notes: Lines on the model for whoever makes the plan. They are no part of the plan, and of no file.
        named: The weights that files name by digest instead of holding them; empty for a small model.
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
    notes: tuple[str, ...] = field(default=(), compare=False)
    named: Named = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON types."""
        return {
            "config": config_to_tree(self.config),
            "d": self.d,
            "k": self.k,
            "schema": self.schema.to_tree(),
            "calibration": asdict(self.calibration),
            "state": self.state.header(),
            "shards": list(self.config.shards),
            "forecast": dict(self.forecast),
        } | ({"named": {name: dict(one) for name, one in self.named.items()}} if self.named else {})

    @property
    def lacking(self) -> bool:
        """Whether the named weights are not here: what needs no model may be done all the same."""
        return bool(self.named) and self.state.theta.size == 0

    def with_weights(self, weights: Arrays, theta: FloatArray) -> Plan:
        """Return the plan with the named weights, which the caller has checked, and its trainable parameters ``theta`` (d,)."""
        own = {name: weights[name] for name in self.named}
        return replace(self, weights=own | dict(self.weights), state=replace(self.state, theta=theta))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays, under their names in a plan file; without named weights and what follows from them."""
        weights = {f"weights/{name}": array for name, array in self.weights.items() if name not in self.named}
        return weights | {f"state/{name}": array for name, array in self.state.arrays().items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all its arrays in memory, wherever they come from."""
        inside = self.arrays() | {f"weights/{name}": array for name, array in self.weights.items()}
        return sum(array.nbytes for array in (inside | {"state/theta": self.state.theta}).values())

    def with_identity(self) -> Plan:
        """Return the same plan with its identity, the SHA-256 of its canonical form."""
        return replace(self, plan_id=plan_identity(self.header(), self.arrays()))

    def event(self, grid: Grid) -> Event:
        """Return the privacy event of one round on ``grid``."""
        trust_radius, discrete = self.config.mechanism.trust_radius, self.config.mechanism.noise == Noise.DISCRETE
        if trust_radius is None:
            return GaussianRelease(
                mu=grid.mu,
                coordinates=self.coordinates,
                sigma=float(grid.sigma) if discrete else None,
                sampling=joint_rate(self.config.mechanism.sampling, self.config.privacy.presence),
                failure=sample_failure(self.config) * len(self.config.shards),
                shares=self.config.noise_shares,
            )
        step = Fraction(grid.step)
        epsilon = pure_epsilon(grid.sensitivity * step, trust_radius, (grid.sigma * step) ** 2)
        return BoundedRelease(mu=grid.mu, epsilon=epsilon, coordinates=self.k)

    @property
    def coordinates(self) -> int:
        """How many numbers a round releases: the k of the gradient, and three more where the config shares diagnostics."""
        return coordinates_of(self.config, self.k)

    @property
    def width(self) -> int:
        """How many integers a sketch has: those that are released and, with private curvature, the packed Gram matrix."""
        return self.rule(self.state).width

    def rule(self, state: RoundState) -> ReleaseRule:
        """Return the rule by which the round of ``state`` is released."""
        mechanism = self.config.mechanism
        return ReleaseRule(self.coordinates, state.grid, mechanism.noise, mechanism.trust_radius, state.factors)

    def share(self, state: RoundState) -> NoiseShare:
        """Return the rule by which a site draws its share of the round's noise, where the plan has noise in shares."""
        return NoiseShare(self.coordinates, share_sigma(state.grid.sigma, self.config.noise_shares))

    def part(self, round: int) -> Part | None:
        """Return the part whose units the round uses, or None where it uses everybody's."""
        mechanism = self.config.mechanism
        return Part(mechanism.part_of(round), mechanism.parts) if mechanism.parts > 1 else None

    def write(self, path: Path) -> None:
        """Write the plan file."""
        write_file(path, kind="plan", plan_id=self.plan_id, header=self.header(), arrays=self.arrays(), private=False)

    @staticmethod
    def restore(header: Mapping[str, Any], arrays: Arrays) -> Plan:
        """Rebuild a plan from its header() and arrays(), and compute anew its identity and every figure that the config gives.

        Raises FileContentError or UsageError where a figure differs.
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
            named=header.get("named", {}),
        ).with_identity()
        check_plan(plan, header, arrays)
        return plan

    @staticmethod
    def read(path: Path) -> Plan:
        """Read a plan file.

        Raises FileContentError when the content does not match the identity on the label, or is not what the config gives.
        """
        stored = read_file(path, kind="plan")
        identity = plan_identity(stored.header, stored.arrays)
        if identity != stored.plan_id:
            raise FileContentError(
                f"{path}: its content has plan_id {identity[:16]}, its label says {stored.plan_id[:16]}; copy the plan again"
            )
        return with_file_errors(path, lambda: Plan.restore(stored.header, stored.arrays))


def same_rules(plan: Plan, config: Config) -> bool:
    """Return whether ``config``, its paths aside, is the one that the plan was made from."""
    return not differences(without_paths(config), plan.config)


def other_rules(plan: Plan, config: Config) -> str:
    """Return the first keys in which ``config`` differs from the one that the plan was made from, for an error's text."""
    found = differences(without_paths(config), plan.config)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
