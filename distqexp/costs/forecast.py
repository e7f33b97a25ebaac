"""The cost model: time, memory, bytes and operations of a run on so many ranks, from a calibration. No measurement is made here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distqexp.costs.calibration import Calibration, Network
from distqexp.costs.workload import Workload
from distqexp.errors import UsageError
from distqexp.stages.reporting import MOST_ROUNDS

LEAST_EFFICIENCY = 0.5
"""Ranks pay while each does at least this share of what one rank alone does in the same time."""

MOST_RANKS = 4096


@dataclass(frozen=True)
class Forecast:
    """What a run costs on so many ranks.

    Attributes:
        ranks: The number of ranks.
        stages: Seconds of each part of the run, on the rank that takes longest.
        memory: Peak resident bytes of the rank that needs most.
        device: Peak bytes on its GPU.
        moved: Bytes that each rank sends and receives.
        written: Bytes that all ranks write into the run's folder, private files that are removed again included.
        operations: Floating-point operations of the rank that has most.
        passes: How often the run goes over the records.
        efficiency: The time of one rank, over ranks times this time.
    """

    ranks: int
    stages: dict[str, float]
    memory: float
    device: float
    moved: float
    written: float
    operations: float
    passes: float
    efficiency: float = 1.0

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return sum(self.stages.values())


def forecast(calibration: Calibration, work: Workload, ranks: int, network: Network) -> Forecast:
    """Return what a run costs on ``ranks`` ranks. Raises UsageError for fewer than one."""
    if ranks < 1:
        raise UsageError(f"--ranks: found {ranks}; expected 1 or more")
    alone = sum(_stages(calibration, work, 1, network).values())
    stages = _stages(calibration, work, ranks, network)
    batches = work.share_of_pieces(ranks)
    several = ranks > 1
    state = 8.0 * calibration.d * 2 + calibration.plan_bytes / max(1, work.rounds)
    moved = several * (calibration.plan_bytes + work.rounds * (8.0 * calibration.width + state))
    features = 4.0 * calibration.feature_numbers * work.units
    return Forecast(
        ranks=ranks,
        stages=stages,
        memory=_memory(calibration, work) + several * network.memory,
        device=float(calibration.bytes_device),
        moved=moved,
        written=2 * calibration.plan_bytes
        + features
        + work.rounds * 8.0 * (calibration.width * (ranks + 2) + 2 * calibration.d),
        operations=work.rounds * batches * work.micro_batch * calibration.operations_record,
        passes=work.passes,
        efficiency=alone / (ranks * sum(stages.values())),
    )


def table(
    calibration: Calibration, work: Workload, network: Network, ranks: Sequence[int] | None = None
) -> list[Forecast]:
    """Return the forecasts for these numbers of ranks, in ascending order; powers of two to MOST_RANKS when None."""
    counts = [2**power for power in range(MOST_RANKS.bit_length())] if ranks is None else sorted(set(ranks))
    return [forecast(calibration, work, count, network) for count in counts]


def fastest(forecasts: Sequence[Forecast]) -> Forecast:
    """Return the fastest; of equally fast ones, within a thousandth, that with the fewest ranks."""
    best = min(row.seconds for row in forecasts)
    return next(row for row in forecasts if row.seconds <= 1.001 * best)


def worthwhile(forecasts: Sequence[Forecast]) -> Forecast:
    """Return the one with most ranks whose efficiency is at least LEAST_EFFICIENCY, or the first where none has it."""
    return [forecasts[0], *(row for row in forecasts if row.efficiency >= LEAST_EFFICIENCY)][-1]


def _stages(calibration: Calibration, work: Workload, ranks: int, network: Network) -> dict[str, float]:
    several, batches = ranks > 1, work.share_of_pieces(ranks)
    curvature = calibration.curvature_record * work.share_of_samples(ranks)
    measured = calibration.curvature_record * calibration.samples
    batch = calibration.batch_fixed + work.micro_batch * (calibration.batch_record + calibration.read_record)
    share = math.ceil(math.ceil(work.units / work.micro_batch) / ranks) * work.micro_batch
    features = bool(calibration.feature_numbers) * share * (calibration.feature_record + calibration.read_record)
    renewals = work.renewals * (calibration.curvature_fixed + curvature)
    return {
        "start": calibration.imports + several * network.start,
        "plan": calibration.plan
        + curvature
        - measured
        + (work.epochs - calibration.epochs) * calibration.pretrain_epoch
        + several * _all_reduce(calibration.plan_bytes, ranks, network),
        "evaluate": calibration.evaluate_first + 2 * work.evaluations * calibration.evaluate_record,
        "open": calibration.open + features,
        "sketch": calibration.sketch_first
        + work.rounds * (calibration.round_fixed + batches * batch + 2 * calibration.check),
        "sum": work.rounds * several * _all_reduce(8 * calibration.width, ranks, network),
        "files": work.rounds * calibration.files,
        "draw": calibration.draw_first + work.rounds * calibration.k * calibration.draw,
        "release": calibration.release_first + work.rounds * calibration.release + renewals,
        "export": calibration.export + (min(work.rounds, MOST_ROUNDS) - 1) * calibration.export_round,
    }


def _all_reduce(size: float, ranks: int, network: Network) -> float:
    """Seconds until ``size`` bytes of every rank are summed and what follows has gone to all: latency by doubling, bytes both ways."""
    return 2 * math.log2(ranks) * network.latency + 2 * size * (ranks - 1) / ranks / network.bandwidth


def _memory(calibration: Calibration, work: Workload) -> float:
    """The peak over the parts of a run, of the first rank, which plans, draws and exports besides its share."""
    sketch = calibration.bytes_fixed + work.micro_batch * calibration.bytes_record
    return max(calibration.bytes_imports, calibration.bytes_plan, sketch, calibration.bytes_release)
