"""Measuring what lies between the ranks that are at hand, by the engine's own sums."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time

import numpy as np

from distqexp.costs.calibration import Network
from distqexp.engines.base import Engine

_NUMBERS = 1 << 20


def measured_network(engine: Engine, stated: Network, repeats: int = 5) -> Network:
    """Return ``stated`` with latency and bandwidth as sums over the engine's ranks show them. Collective; with one rank, as stated."""
    if engine.size < 2:
        return stated
    short, long = (_sum_seconds(engine, numbers, repeats) for numbers in (1, _NUMBERS))
    ways = 2 * (engine.size - 1) / engine.size
    bandwidth = ways * 8 * _NUMBERS / max(long - short, 1e-6)
    return dataclasses.replace(stated, latency=short / (2 * math.log2(engine.size)), bandwidth=bandwidth, measured=True)


def _sum_seconds(engine: Engine, numbers: int, repeats: int) -> float:
    vector, found = np.ones(numbers, dtype=np.int64), []
    for _ in range(repeats):
        engine.raise_if_stopped()  # collective: all ranks start together
        started = time.perf_counter()
        engine.sum(lambda *_: vector, None, range(engine.size))
        found.append(time.perf_counter() - started)
    return statistics.median(found)
