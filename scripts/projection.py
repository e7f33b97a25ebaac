"""Measure how fast every subspace projects gradients, beside a plain dense matrix product of the same size.

    python scripts/projection.py --out runs/projection           # a JSON file and a plot
    python scripts/projection.py --out runs/projection --rows 4 --repeats 3 --models cnn

Rows of noise (rows, d), in float32 as gradients are, are projected to (rows, k) float64 on one thread. The plain product
is torch's, in float64, with a matrix (d, k) in memory. Its k is that of the kind (for identity, whose k is d, it is that of
the flat kinds). Kind and product take turns, and ratios are medians over rounds. The time to make P is measured separately.
For sjlt and srht the figures also hold the bytes that have to be moved at least, each once: gradients in, what P stores,
sums out. The bytes that a copy of a large array moves in a second stand beside them, for comparison. srht's passes through
the transform are counted separately.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqexp.engines.threads import pin_threads
from distqexp.geometry.blocks import Block
from distqexp.geometry.subspaces import (
    HadamardSubspace,
    IdentitySubspace,
    KroneckerSubspace,
    PublicPcaSubspace,
    SparseSubspace,
    Subspace,
    make_subspace,
)
from distqexp.geometry.subspaces.base import BlockFactors
from distqexp.geometry.subspaces.kronecker import kronecker_sides, random_kronecker
from distqexp.gradients.layers import block_layout
from distqexp.problem.models import cnn, mlp
from distqexp.problem.network import Network

COPY_BYTES = 2**28
KINDS = ("identity", "gaussian", "rademacher", "sjlt", "srht", "kronecker", "kronecker-pca", "public-pca")
ANEW = ("gaussian", "rademacher")
"""Kinds that keep P where it fits in memory, and are also timed without."""


@dataclass(frozen=True)
class Size:
    """A model's layers, and the dimension of flat subspaces and of a layer's sides."""

    model: Callable[[], torch.nn.Module]
    k: int
    side: int


SIZES = {
    "cnn": Size(cnn, 1000, 16),
    "mlp": Size(partial(mlp, 784, 10, (512, 512)), 128, 8),
}


def orthonormal_kronecker(blocks: Sequence[Block], side: int) -> KroneckerSubspace:
    """Factors of orthonormal rows, a pair for each copy of a block: what kronecker-pca has, without its public data."""
    generator = np.random.default_rng(0)

    def factor(copies: int, k: int, n: int) -> np.ndarray | None:
        if k == n:
            return None
        return np.stack([np.linalg.qr(generator.standard_normal((n, k)))[0].T.copy() for _ in range(copies)])

    factors = []
    for block in blocks:
        k_row, k_column = kronecker_sides(block, side, side)
        factors.append(
            BlockFactors(factor(block.copies, k_row, block.rows), factor(block.copies, k_column, block.columns))
        )
    return KroneckerSubspace(blocks, factors)


def unit_columns(d: int, k: int) -> PublicPcaSubspace:
    """Random columns of length one: as fast as the basis of public-pca, without its public data."""
    columns = np.random.default_rng(0).standard_normal((d, k))
    columns /= np.linalg.norm(columns, axis=0)
    return PublicPcaSubspace(columns)


def makers(size: Size, kinds: Sequence[str]) -> dict[str, Callable[[], Subspace]]:
    """How to make each kind's P for a model's parameters."""
    blocks = block_layout(Network(size.model()))
    d = sum(block.size for block in blocks)
    special: dict[str, Callable[[], Subspace]] = {
        "kronecker": lambda: random_kronecker(blocks, size.side, size.side, 0, 0),
        "kronecker-pca": lambda: orthonormal_kronecker(blocks, size.side),
        "public-pca": lambda: unit_columns(d, min(size.k, d)),
    }
    found: dict[str, Callable[[], Subspace]] = {}
    for kind in kinds:
        k = None if kind == "identity" else min(size.k, d)
        found[kind] = special.get(kind, partial(make_subspace, kind, d, k, 0, 0))
        if kind in ANEW:
            found[f"{kind}, made anew"] = partial(make_subspace, kind, d, k, 0, 0, cache_bytes=0)
    return found


def bytes_to_move(subspace: Subspace, rows: int, itemsize: int) -> dict[str, int] | None:
    """Bytes of gradients in, of P's storage, of sums out, each once; None for kinds that compute more than they move."""
    found = {"gradients": rows * subspace.d * itemsize, "sums": rows * subspace.k * 8}
    if isinstance(subspace, SparseSubspace):
        index = 4 if subspace.d * subspace.nonzeros < 2**31 else 8
        found["subspace"] = subspace.d * subspace.nonzeros * (8 + index) + (subspace.d + 1) * index
    elif isinstance(subspace, HadamardSubspace):
        found["subspace"] = subspace.d + 8 * subspace.k
        found["transform"] = rows * subspace.d_padded * 8 * 2 * (int(math.log2(subspace.d_padded)) + 2)
    else:
        return None
    return found


def alternate(runs: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each, in turn, after one to warm up."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, found in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
    return seconds


def measure(name: str, kind: str, make: Callable[[], Subspace], rows: int, repeats: int, flat_k: int) -> dict[str, Any]:
    """One kind's figures on one model."""
    started = time.perf_counter()
    subspace = make()
    made = time.perf_counter() - started
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn((rows, subspace.d), generator=generator)
    dense_k = flat_k if isinstance(subspace, IdentitySubspace) else subspace.k
    dense = torch.randn((subspace.d, dense_k), generator=generator, dtype=torch.float64)
    wide = gradients.double()
    own, plain = alternate([lambda: subspace.project(gradients), lambda: wide @ dense], repeats)
    entries, seconds = rows * subspace.d, statistics.median(own)
    found: dict[str, Any] = {
        "model": name, "kind": kind, "d": subspace.d, "k": subspace.k, "rows": rows, "seconds": own,
        "make_seconds": made, "entries_per_second": entries / seconds,
        "dense": {"k": dense_k, "seconds": plain, "entries_per_second": entries / statistics.median(plain)},
        "times_as_fast_as_dense": statistics.median(b / a for a, b in zip(own, plain, strict=True)),
    }  # fmt: skip
    moved = bytes_to_move(subspace, rows, gradients.element_size())
    if moved is not None:
        least = moved["gradients"] + moved["subspace"] + moved["sums"]
        found["bytes"] = {**moved, "least": least, "least_per_second": least / seconds}
        if "transform" in moved:
            found["bytes"]["all_per_second"] = (least + moved["transform"]) / seconds
    return found


def copy_bytes_per_second(repeats: int) -> float:
    """Read and written bytes a second of a copy that no cache holds."""
    source = np.ones(COPY_BYTES // 8)
    target = np.empty_like(source)
    (seconds,) = alternate([lambda: np.copyto(target, source)], repeats)
    return 2 * COPY_BYTES / statistics.median(seconds)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Entries a second of every kind and of the plain product beside it, a panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(case["model"] for case in results["cases"]))
    figure, axes = pyplot.subplots(1, len(names), figsize=(7 * len(names), 4.5), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        cases = [case for case in results["cases"] if case["model"] == name]
        places = np.arange(len(cases))
        axis.barh(places + 0.2, [case["entries_per_second"] for case in cases], height=0.4, label="subspace")
        axis.barh(
            places - 0.2, [case["dense"]["entries_per_second"] for case in cases], height=0.4, label="plain product"
        )
        axis.set_yticks(places, [f"{case['kind']}, k = {case['k']:,}" for case in cases])
        axis.set(xscale="log", xlabel="entries of gradients a second", title=f"{name}, d = {cases[0]['d']:,}")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/projection"), help="folder of the JSON file and the plot"
    )
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rows", type=int, default=64, help="gradients a product")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    pin_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    cases = []
    for name in options.models:
        for kind, make in makers(SIZES[name], options.kinds).items():
            case = measure(name, kind, make, options.rows, options.repeats, SIZES[name].k)
            cases.append(case)
            least = f", {case['bytes']['least_per_second'] / 1e9:.2f} GB/s at least" if "bytes" in case else ""
            print(
                f"{name:4s} {kind:22s} k = {case['k']:7,}: {case['entries_per_second'] / 1e6:9.1f} million entries/s, "
                f"{case['times_as_fast_as_dense']:7.2f} times the plain product{least}",
                flush=True,
            )
    results = {
        "cores": len(os.sched_getaffinity(0)), "threads": options.threads,
        "copy_bytes_per_second": copy_bytes_per_second(options.repeats), "cases": cases,
    }  # fmt: skip
    (options.out / "projection.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    plot(results, options.out / "projection.png")


if __name__ == "__main__":
    main()
