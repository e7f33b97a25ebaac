"""Integer sums on their way to a release: a shard's sketch and a round's pooled quadratic. Private until noise is added."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.restoring import everybody_flag, with_file_errors
from distqexp.errors import FileContentError
from distqexp.problem.slots import BASIS_BYTES
from distqexp.storage.hdf5 import StoredFile, read_file, write_file


@dataclass(frozen=True)
class Sketch:
    """The integer sum of some pieces of one shard. Private: it is as sensitive as the records.

    Attributes:
        plan_id: The identity of the plan (public).
        round: The number of the round (public).
        state: The identity of the round's state that the sketch was made at (public).
        shard: The name of the shard (public).
        sums: int64 (plan.width,), the sums.
        done: bool (pieces of the shard,), which pieces are in the sums.
        fingerprint: The fingerprint of the data file, in the files that a run keeps for itself; otherwise empty.
        basis: A digest of what the units' parts depend on outside the plan, see ``Partition``; empty where there is nothing.
        everybody: Whether the site's ledger charged the sketch to everybody, although its round uses one part (public).
    """

    plan_id: str
    round: int
    state: str
    shard: str
    sums: IntegerArray
    done: BoolArray
    fingerprint: str
    basis: bytes = b""
    everybody: bool = False

    def write(self, path: Path) -> None:
        """Write the file with mode 0600. The counts of pieces stay out of the header: under add-remove they are private."""
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
        """Read a sketch file and check it against the plan; ``own`` is that of ``read_file``. Raises FileContentError."""
        stored = read_file(path, kind="sketch", plan_id=plan.plan_id, own=own)
        sketch = with_file_errors(
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
                everybody=everybody_flag(stored.header, plan.config.mechanism.parts),
            ),
        )
        if sketch.shard not in plan.config.shards:
            raise FileContentError(
                f"{path}: shard {sketch.shard[:40]!r}; the plan expects {', '.join(plan.config.shards)}: pool the plan's shards only"
            )
        return sketch


@dataclass(frozen=True)
class Quadratic:
    """The pooled integer sum of a round. Private until noise is added.

    Attributes:
        plan_id: The identity of the plan (public).
        round: The number of the round (public).
        state: The identity of the round's state that the sketches were made at (public).
        sums: int64 (plan.width,), the sums over all shards.
        basis: The bases of the shards, joined in the plan's order.
        everybody: Whether any shard was charged to everybody, in which case the release is too (public).
    """

    plan_id: str
    round: int
    state: str
    sums: IntegerArray
    basis: bytes = b""
    everybody: bool = False

    def write(self, path: Path) -> None:
        """Write the file with mode 0600."""
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
        """Read a quadratic file and check it against the plan; ``own`` is that of ``read_file``. Raises FileContentError."""
        stored = read_file(path, kind="quadratic", plan_id=plan.plan_id, own=own)
        return with_file_errors(
            path,
            lambda: Quadratic(
                plan_id=stored.plan_id,
                round=int(stored.header["round"]),
                state=str(stored.header["state"]),
                sums=_integers(path, stored, plan.width),
                basis=_basis(stored, plan, shards=len(plan.config.shards)),
                everybody=everybody_flag(stored.header, plan.config.mechanism.parts),
            ),
        )


def _integers(path: Path, stored: StoredFile, width: int) -> IntegerArray:
    sums = stored.arrays["sums"]
    if sums.dtype != np.int64 or sums.shape != (width,):
        raise FileContentError(f"{path}: sums are {sums.dtype} {sums.shape}; the plan expects int64 ({width},)")
    return sums


def _basis(stored: StoredFile, plan: Plan, *, shards: int) -> bytes:
    """Read the bases of ``shards`` shards: empty under add-remove, where a unit's part is a function of its id alone."""
    array = stored.arrays["basis"]
    present = plan.config.mechanism.parts > 1 and plan.config.privacy.adjacency.counts_public
    length = BASIS_BYTES * shards if present else 0
    if array.dtype != np.uint8 or array.shape != (length,):
        raise FileContentError(
            f"{stored.path}: what its parts rest on is {array.dtype} {array.shape}; the plan expects uint8 ({length},)"
        )
    return array.tobytes()
