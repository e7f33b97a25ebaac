"""Integer sums on their way: the sketch of a shard, the pooled quadratic of a round. Private until noise is added."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.restoring import charged_to_everybody, restored
from distqexp.errors import FileContentError
from distqexp.problem.slots import BASIS_BYTES
from distqexp.storage.hdf5 import StoredFile, read_file, write_file


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
                everybody=charged_to_everybody(stored.header, plan.config.mechanism.parts),
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
                everybody=charged_to_everybody(stored.header, plan.config.mechanism.parts),
            ),
        )


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
