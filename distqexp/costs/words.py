"""A forecast in words, for people, and as JSON types, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from distqexp.costs.calibration import Calibration, Network
from distqexp.costs.forecast import LEAST_EFFICIENCY, Forecast, fastest, worthwhile
from distqexp.costs.workload import Workload


def lines_of(calibration: Calibration, work: Workload, network: Network, forecasts: Sequence[Forecast]) -> list[str]:
    """Return the lines that ``distqexp cost`` prints."""
    clock = "seconds of processor time" if calibration.clock == "processor" else "seconds by the clock"
    gpu = f", {calibration.bytes_device / 2**20:,.0f} MiB on the GPU" if calibration.bytes_device else ""
    between = "measured between these ranks" if network.measured else "stated: --latency, --bandwidth"
    return [
        f"{calibration.model}: d = {calibration.d:,}, k = {calibration.k:,}; {work.units:,} records in micro-batches of "
        f"{work.micro_batch}, {work.rounds} round(s), {work.passes:g} passes",
        f"measured here, on public and synthetic records, in {clock}: {_seconds(calibration.batch_fixed)} a micro-batch and "
        f"{_seconds(calibration.batch_record)} a record{gpu}; {_seconds(calibration.draw)} a coordinate's noise",
        f"the network: {_seconds(network.latency)} latency, {network.bandwidth / 1e9:.3g} GB/s ({between})",
        *(f"not in it: {note}" for note in calibration.notes),
        "",
        f"{'ranks':>6} {'seconds':>10} {'efficiency':>10} {'MiB a rank':>11} {'MiB moved':>10} {'MiB written':>11} {'GFLOP':>12}",
        *(_row(row) for row in forecasts),
        "",
        f"where the time goes on {forecasts[0].ranks} rank(s): {_parts(forecasts[0])}",
        *_advice(forecasts),
    ]


def tree_of(
    calibration: Calibration, work: Workload, network: Network, forecasts: Sequence[Forecast]
) -> dict[str, Any]:
    """Return the JSON object that ``--json`` prints; its ``calibration`` can be given back by ``--calibration``."""
    return {
        "calibration": calibration.tree(),
        "workload": asdict(work),
        "network": asdict(network),
        "forecasts": [asdict(row) | {"seconds": row.seconds} for row in forecasts],
        "fastest": fastest(forecasts).ranks,
        "worthwhile": worthwhile(forecasts).ranks,
    }


def _advice(forecasts: Sequence[Forecast]) -> list[str]:
    if len(forecasts) < 2:
        return []
    best, pays = fastest(forecasts), worthwhile(forecasts)
    return [
        f"{pays.ranks} rank(s) pay: the most of these with an efficiency of {LEAST_EFFICIENCY:g} or more",
        f"{best.ranks} rank(s) are fastest: {best.seconds:,.3g} s; there {_parts(best)}",
    ]


def _row(row: Forecast) -> str:
    moved, written, memory = (size / 2**20 for size in (row.moved, row.written, row.memory))
    return (
        f"{row.ranks:>6} {row.seconds:>10,.1f} {row.efficiency:>10.2f} {memory:>11,.0f} {moved:>10,.1f} {written:>11,.1f} "
        f"{row.operations / 1e9:>12,.1f}"
    )


def _parts(row: Forecast) -> str:
    parts = sorted(row.stages.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in parts if seconds >= 0.005 * row.seconds)


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
