"""What each file between stages holds: the plan, a sketch, the pooled quadratic, a release."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from distqexp.config import Config, config_from_tree, config_to_tree, without_paths
from distqexp.errors import FileContentError, UsageError
from distqexp.mechanism.diagnostics import Diagnostics, estimates
from distqexp.mechanism.factor_grid import FactorGrid
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.release import ReleaseRule
from distqexp.privacy.calibration import Calibration
from distqexp.privacy.events import BoundedRelease, GaussianRelease
from distqexp.privacy.events import Release as Event
from distqexp.privacy.ledger_expenses import Part
from distqexp.privacy.pure import pure_epsilon
from distqexp.problem.schema import Schema
from distqexp.problem.slots import BASIS_BYTES
from distqexp.stages.derived import coordinates_of
from distqexp.stages.recomputed import check_plan, check_release
from distqexp.storage.canonical import plan_identity, state_identity
from distqexp.storage.hdf5 import StoredFile, read_file, write_file

FloatArray = npt.NDArray[np.float64]
IntegerArray = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class RoundState:
    """Everything public that a shard needs to sketch one round.

    theta: (d,) float64, the parameters that the quadratic is expanded at. precision: the arrays of the
    public precision. clip: C, whitened units. grid: step, integer clip, noise scale and mu of the round.
    subspace: the arrays of a subspace made from public data; none of one that a seed gives. velocity: (d,) the last
    move of the released parameters, where the config has momentum and the round isn't the first. factors: the grid of
    private curvature's factors, None where the curvature is public.
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
        """The scalars, as JSON types."""
        header = {"round": self.round, "clip": self.clip, "grid": asdict(self.grid)}
        return header | ({"factors": asdict(self.factors)} if self.factors else {})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, under names that a file can carry."""
        arrays = {f"precision/{name}": array for name, array in self.precision.items()}
        if self.velocity is not None:
            arrays["velocity"] = self.velocity
        return {"theta": self.theta} | arrays | {f"subspace/{name}": array for name, array in self.subspace.items()}

    def identity(self) -> str:
        """SHA-256 of the whole state. A site that worked from another release than the others shows by it."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return state_identity(self.header(), self.arrays())

    @staticmethod
    def restore(header: Mapping[str, Any], arrays: Arrays) -> RoundState:
        """Inverse of header() and arrays()."""
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


@dataclass(frozen=True)
class Sketch:
    """The integer sum of some pieces of one shard. Private: as sensitive as the records.

    sums: int64 (plan.width,). done: (pieces of the shard,) bool. fingerprint: of the data file it came from, in
    the files that a run keeps for itself; else empty.
    state: identity of the round's state that it was made at (public). basis: what the parts of its units rest on, see
    ``Partition``; private, empty without parts. everybody: whether the site's ledger charged it to everybody, whatever its part (public).
    """

    plan_id: str
    round: int
    state: str
    shard: str
    sums: IntegerArray
    done: npt.NDArray[np.bool_]
    fingerprint: str
    basis: bytes = b""
    everybody: bool = False

    def write(self, path: Path) -> None:
        """Store with mode 0600. Counts of pieces are arrays, not header: under add-remove they are private."""
        write_file(
            path,
            kind="sketch",
            plan_id=self.plan_id,
            header={"round": self.round, "state": self.state, "shard": self.shard, "everybody": self.everybody},
            arrays={
                "sums": self.sums,
                "done": self.done,
                "fingerprint": np.frombuffer(self.fingerprint.encode(), dtype=np.uint8),
                "basis": np.frombuffer(self.basis, dtype=np.uint8),
            },
            private=True,
        )

    @staticmethod
    def read(path: Path, plan: Plan, *, own: bool = False) -> Sketch:
        """Read and check against the plan. own: as read_file. Raises FileContentError."""
        stored = read_file(path, kind="sketch", plan_id=plan.plan_id, own=own)
        sketch = restored(
            path,
            lambda: Sketch(
                plan_id=stored.plan_id,
                round=int(stored.header["round"]),
                state=str(stored.header["state"]),
                shard=str(stored.header["shard"]),
                sums=_integers(path, stored, plan.width),
                done=np.asarray(stored.arrays["done"], dtype=np.bool_),
                fingerprint=bytes(stored.arrays["fingerprint"]).decode(),
                basis=_basis(stored, plan, shards=1),
                everybody=_everybody(stored.header, plan),
            ),
        )
        if sketch.shard not in plan.config.shards:
            raise FileContentError(
                f"{path}: shard {sketch.shard[:40]!r}; the plan expects {', '.join(plan.config.shards)}: pool the plan's shards only"
            )
        return sketch


@dataclass(frozen=True)
class Quadratic:
    """The pooled integer sum of a round. Private until noise is added. sums: int64 (plan.width,).

    state: identity of the round's state that the sketches were made at (public). basis: the shards' bases, in the plan's
    order; private. everybody: whether any shard was charged to everybody, so that the release is (public).
    """

    plan_id: str
    round: int
    state: str
    sums: IntegerArray
    basis: bytes = b""
    everybody: bool = False

    def write(self, path: Path) -> None:
        """Store with mode 0600."""
        write_file(
            path,
            kind="quadratic",
            plan_id=self.plan_id,
            header={"round": self.round, "state": self.state, "everybody": self.everybody},
            arrays={"sums": self.sums, "basis": np.frombuffer(self.basis, dtype=np.uint8)},
            private=True,
        )

    @staticmethod
    def read(path: Path, plan: Plan, *, own: bool = False) -> Quadratic:
        """Read and check against the plan. own: as read_file. Raises FileContentError."""
        stored = read_file(path, kind="quadratic", plan_id=plan.plan_id, own=own)
        return restored(
            path,
            lambda: Quadratic(
                plan_id=stored.plan_id,
                round=int(stored.header["round"]),
                state=str(stored.header["state"]),
                sums=_integers(path, stored, plan.width),
                basis=_basis(stored, plan, shards=len(plan.config.shards)),
                everybody=_everybody(stored.header, plan),
            ),
        )


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
            everybody=_everybody(header, plan),
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


def same_rules(plan: Plan, config: Config) -> bool:
    """Whether a config, without its paths, is the one that the plan was made from."""
    return json.dumps(config_to_tree(without_paths(config)), sort_keys=True) == json.dumps(
        config_to_tree(plan.config), sort_keys=True
    )


def under(arrays: Arrays, prefix: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _integers(path: Path, stored: StoredFile, width: int) -> IntegerArray:
    sums = stored.arrays["sums"]
    if sums.dtype != np.int64 or sums.shape != (width,):
        raise FileContentError(f"{path}: sums are {sums.dtype} {sums.shape}; the plan expects int64 ({width},)")
    return sums


def _basis(stored: StoredFile, plan: Plan, *, shards: int) -> bytes:
    """What the parts of so many shards rest on. Under add-remove a unit's part is a function of its id alone."""
    found = stored.arrays["basis"]
    rests = plan.config.mechanism.parts > 1 and plan.config.privacy.adjacency != "add-remove"
    length = BASIS_BYTES * shards if rests else 0
    if found.dtype != np.uint8 or found.shape != (length,):
        raise FileContentError(
            f"{stored.path}: what its parts rest on is {found.dtype} {found.shape}; the plan expects uint8 ({length},)"
        )
    return found.tobytes()


def _everybody(header: Mapping[str, Any], plan: Plan) -> bool:
    """The flag of a file. Without parts every charge is everybody's, and no file says so."""
    found = header["everybody"]
    if not isinstance(found, bool) or (found and plan.config.mechanism.parts == 1):
        expected = "true or false" if plan.config.mechanism.parts > 1 else "false, as the plan has no parts"
        raise FileContentError(f"everybody is {str(found)[:20]}; expected {expected}: get the file again")
    return found


def restored(path: Path, build: Callable[[], T]) -> T:
    """What ``build`` makes of the content of ``path``. Raises FileContentError, in one line, for whatever is wrong with it."""
    try:
        return build()
    except (UsageError, FileContentError) as error:  # of a config, a grid or a schema inside the file
        text = str(error).removeprefix(f"{path}: ")
        text = text if text.isprintable() else "unprintable text"
        raise FileContentError(f"{path}: {text if len(text) <= 600 else text[:600] + '...'}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else type(error).__name__
        raise FileContentError(
            f"{path}: {what[:100]}; expected the fields of this kind of file: copy it again"
        ) from None
