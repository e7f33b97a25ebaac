"""What a probe measured of a config on one machine: the numbers that a forecast is made from. Public; JSON goes both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from distqexp.errors import FileContentError


@dataclass(frozen=True)
class Calibration:
    """Seconds and bytes of one process, for one config.

    Times of a process on the CPU with one thread are seconds of processor time, since others may share the machine: they are what
    passes where each rank has a core. Otherwise they are seconds of a clock.

    Attributes:
        model: The model's factory.
        clock: "processor" or "wall".
        d: The number of parameters that move.
        k: The number of coordinates.
        width: The number of integers in a sketch.
        micro_batch: The size of the micro-batches that were measured.
        samples: The public records, or probes, that the measured plan made its curvature from.
        samples_whole: Those that the config's plan takes.
        evaluations: The evaluation records that were found; 0 where they were not opened.
        epochs: The epochs of pretraining in the measured plan.
        plan_bytes: The arrays of the plan.
        imports: From the start of Python to the first line of a run.
        plan: Making the plan.
        pretrain_epoch: Each further epoch of pretraining.
        curvature_record: Public curvature and clip, for each record or probe; ranks share them.
        curvature_fixed: The rest of it, on the first rank.
        batch_fixed: Each micro-batch, whatever its size.
        batch_record: Each record of a micro-batch.
        sketch_first: What the first sketch of a process takes besides.
        round_fixed: What each round's sketch takes on a rank besides.
        feature_record: The frozen part of the model, for each record; 0 without one.
        feature_numbers: The numbers of a record's features.
        read_record: Reading a record.
        open: Opening the private files.
        check: Checking, before and after each round, that they are still the same.
        files: Writing a rank's sketch, writing and reading the quadratic.
        evaluate_first: What the first evaluation takes besides.
        evaluate_record: Evaluating a record.
        draw_first: What the first draw takes besides.
        draw: Charging and drawing, for each coordinate.
        release_first: What the first release takes besides.
        release: Moving the parameters, the guard, and writing the release.
        export: Writing the model, its certificate and its report after one round.
        export_round: What each further round adds to the report.
        operations_record: Floating-point operations of a record's sketch.
        bytes_imports: Resident memory before the plan.
        bytes_plan: The peak while planning.
        bytes_fixed: The peak of a sketch, whatever the size of the micro-batch.
        bytes_record: What each record of a micro-batch adds to it.
        bytes_release: The peak of draw, release and export.
        bytes_device: The peak on the GPU; 0 on the CPU.
        notes: What was not measured, and what was measured on less.
    """

    model: str
    clock: str
    d: int
    k: int
    width: int
    micro_batch: int
    samples: int
    samples_whole: int
    evaluations: int
    epochs: int
    plan_bytes: int
    imports: float
    plan: float
    pretrain_epoch: float
    curvature_record: float
    curvature_fixed: float
    batch_fixed: float
    batch_record: float
    sketch_first: float
    round_fixed: float
    feature_record: float
    feature_numbers: int
    read_record: float
    open: float
    check: float
    files: float
    evaluate_first: float
    evaluate_record: float
    draw_first: float
    draw: float
    release_first: float
    release: float
    export: float
    export_round: float
    operations_record: float
    bytes_imports: int
    bytes_plan: int
    bytes_fixed: float
    bytes_record: float
    bytes_release: int
    bytes_device: int = 0
    notes: tuple[str, ...] = ()

    def tree(self) -> dict[str, Any]:
        """Return the calibration as JSON types."""
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Calibration:
        """Return the calibration of a tree. Raises FileContentError where fields are missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(tree) != names:
            wrong = ", ".join(sorted(set(tree) ^ names))
            raise FileContentError(
                f"calibration: missing or unknown {wrong}; expected that of this version: probe anew"
            )
        return cls(**{**tree, "notes": tuple(tree["notes"])})


@dataclass(frozen=True)
class Network:
    """What lies between ranks.

    Attributes:
        latency: Seconds until all ranks have met and a short message has gone one way.
        bandwidth: Bytes a second between two ranks.
        start: Seconds that MPI takes to start.
        memory: Bytes that MPI takes of each rank.
        measured: Whether latency and bandwidth were measured.
    """

    latency: float = 2e-3
    bandwidth: float = 1e9
    start: float = 0.15
    memory: float = 15 * 2**20
    measured: bool = False
