"""How much faster two ranks are than one, and MPI than Dask, on a convolutional network and on a transformer."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

ENCODER = """
[model]
factory = "benchmarks.models:encoder"
args = { width = 128, layers = 4, heads = 4, outputs = 10 }
loss = "cross-entropy"

[data]
population = "encoder"
record_shape = [64, 128]

[data.private]
format = "hdf5"
path = "encoder.h5"
columns = { features = ["inputs"], target = "target", standardise = false }

[privacy]
epsilon = 1.0
delta = 1e-5
units = 1000

[subspace]
kind = "kronecker-pca"
k_in = 32
k_out = 32

[precision]
kind = "kronecker"
source = "probes"
samples = 32

[mechanism]
clip = 1.0

[engine]
micro_batch = 16
"""
"""A transformer encoder of 4 layers and 0.8 million parameters, on 64 positions."""

RECORDS = 768

Fit = Callable[[int, Path, Sequence[str]], dict[str, Any]]
"""Runs a config on so many ranks with overrides, and returns the sketch stage's seconds."""


def write_encoder(folder: Path) -> Path:
    """Records of noise and the transformer's config."""
    generator = np.random.default_rng(0)
    with h5py.File(folder / "encoder.h5", "w") as file:
        file["inputs"] = generator.standard_normal((RECORDS, 64, 128)).astype(np.float32)
        file["target"] = generator.integers(0, 10, RECORDS)
    path = folder / "encoder.toml"
    path.write_text(ENCODER, "utf-8")
    return path


def interval(values: Sequence[float]) -> dict[str, float]:
    """Median, mean, and the half-width of the mean's 95 % t-interval (0 for a single value)."""
    from scipy.stats import t

    count = len(values)
    half = 0.0
    if count > 1:
        half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return {"median": statistics.median(values), "mean": statistics.fmean(values), "half_width": half, "repeats": count}


def speed_up(name: str, run: Fit, config: Path, overrides: Sequence[str], repeats: int) -> dict[str, Any]:
    """Two ranks against one, one thread each, alternating: ratios by the clock and by the busiest rank's processor seconds."""
    pairs = [[run(ranks, config, overrides) for ranks in (1, 2)] for _ in range(repeats)]
    found = {"task": name, "pairs": pairs}
    for what in ("clock", "processor"):
        found[what] = interval([one[what] / two[what] for one, two in pairs])
    print(
        f"{name}, 2 ranks against 1: {json.dumps({what: found[what] for what in ('clock', 'processor')})}", flush=True
    )
    return found


def dask_and_mpi(run: Fit, config: Path, repeats: int) -> dict[str, Any]:
    """Two worker processes of a local Dask cluster against two ranks, alternating."""
    dask = ["engine.kind=dask", "engine.workers=2"]
    pairs = [[run(2, config, []), run(0, config, dask)] for _ in range(repeats)]
    found: dict[str, Any] = {"pairs": pairs}
    for what in ("clock", "processor"):
        found[what] = interval([dask[what] / mpi[what] for mpi, dask in pairs])
    print(
        f"Dask's two workers by MPI's two ranks: {json.dumps({w: found[w] for w in ('clock', 'processor')})}",
        flush=True,
    )
    return found
