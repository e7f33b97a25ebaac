"""Measure what a draw from the truncated Gaussian costs, beside one symmetric eigendecomposition of the same size.

    python scripts/sampler.py --out runs/sampler                      # sampler.json
    python scripts/sampler.py --out runs/sampler --sizes 1000 --repeats 5

The matrix is B = I + V^T V with random factors V. The mean of the Gaussian is far inside the ball, at its boundary, and far
outside. Draw and decomposition (LAPACK's divide and conquer, eigenvectors included) take turns on one thread, and ratios are
medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

from distqexp.engines.threads import pin_threads
from distqexp.mechanism.randomness import SystemRandomness
from distqexp.mechanism.truncated import draw_truncated

WHERE = {"far inside": 0.01, "boundary": 1.0, "far outside": 1000.0}
"""The mean's distance from 0, in radii."""


def seconds(run: Callable[[], object]) -> float:
    """Of this process on a core, so that a busy machine does not count."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(k: int, radius: float, repeats: int) -> dict[str, Any]:
    """Seconds and ratios for one size. ``radius`` in units of sqrt(T k)."""
    generator = np.random.default_rng(k)
    factors = generator.standard_normal((2 * k, k)) / math.sqrt(k)
    curvature = np.eye(k) + factors.T @ factors
    mean = generator.standard_normal(k)
    pull = curvature @ mean / np.linalg.norm(mean)
    size = radius * math.sqrt(k)
    found: dict[str, Any] = {"k": k, "radius": size, "eigendecomposition_seconds": []}
    draws: dict[str, list[float]] = {name: [] for name in WHERE}
    for _ in range(repeats):
        own = seconds(lambda: scipy.linalg.eigh(curvature, driver="evd"))
        found["eigendecomposition_seconds"].append(own)
        for name, where in WHERE.items():
            linear = -where * size * pull
            draws[name].append(
                seconds(lambda linear=linear: draw_truncated(curvature, linear, 1.0, size, SystemRandomness()))  # type: ignore[misc]
            )
    found["draw_seconds"] = draws
    found["ratio"] = {
        name: statistics.median(a / b for a, b in zip(draws[name], found["eigendecomposition_seconds"], strict=True))
        for name in WHERE
    }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for sampler.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4096])
    parser.add_argument("--radius", type=float, default=0.5, help="R, in units of sqrt(T k)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    pin_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"radius": options.radius, "sizes": [measure(k, options.radius, options.repeats) for k in options.sizes]}
    text = json.dumps(result, indent=2)
    (options.out / "sampler.json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
