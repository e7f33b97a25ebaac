"""Blocks of every kind, subspaces and precisions on them, and the explicit matrices that they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import (
    BlockMoments,
    explicit_moments,
)
from distqexp.geometry.precisions import Damping, Precision, make_kronecker_precision
from distqexp.geometry.subspaces.kronecker import (
    KroneckerSubspace,
    leading_factors,
    random_kronecker,
    whole_space,
)

UNITS, N_BAR, STEP = 40, 3000.0, 1.5


def mean_damping(share: float) -> Damping:
    """Damping relative to mean eigenvalues, without a floor across blocks."""
    return Damping(share, "mean", 0.0)


BLOCKS = [
    Block("dense", 1, 5, 4, weight=0, bias=15),  # (5, 3) and its bias
    Block("bias of a frozen weight", 1, 3, 1, weight=None, bias=20),
    Block("grouped convolution", 2, 3, 5, weight=23, bias=47),
    Block("transposed", 1, 4, 3, weight=53, bias=61, transposed=True),
    Block("embedding", 1, 9, 3, weight=65, bias=None, sparse_rows=True),
    Block("norm", 1, 6, 2, weight=92, bias=98),
]
D = 104


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(count: int, seed: int = 1) -> torch.Tensor:
    """(count, D) with an uneven spectrum, so that curvature differs from block to block."""
    return random(seed, count, 7) @ (random(seed + 1, 7, D) * torch.linspace(0.1, 3.0, D))


def moments_of(subspace: KroneckerSubspace, g: torch.Tensor) -> list[BlockMoments]:
    return [
        explicit_moments(block, m).arrays()
        for block, m in zip(subspace.coordinates, subspace.project_blocks(g), strict=True)
    ]


def subspaces() -> dict[str, KroneckerSubspace]:
    whole = whole_space(BLOCKS)
    leading = leading_factors(BLOCKS, moments_of(whole, gradients(UNITS)), 3, 2)
    return {
        "identity": whole,
        "random": random_kronecker(BLOCKS, 3, 2, seed=3, round=1),
        "one side": random_kronecker(BLOCKS, 2, None, seed=3, round=1),
        "pca": KroneckerSubspace(BLOCKS, leading),
    }


KINDS = ("identity", "random", "one side", "pca")


def place(block: Block) -> NDArray[np.int64]:
    """(copies, rows, columns): where each entry of the block's matrices sits in theta."""
    index = torch.arange(D, dtype=torch.float64)[None]
    return block.gather(index)[0].numpy().astype(np.int64)


def dense_rows(factor: NDArray[np.float64] | NDArray[np.int64] | None, copy: int, n: int) -> NDArray[np.float64]:
    """R of one copy as a (k, n) matrix."""
    if factor is None:
        return np.eye(n)
    if factor.ndim == 2:
        return np.eye(n)[factor[copy]]
    return np.asarray(factor[copy if len(factor) > 1 else 0], dtype=np.float64)


def dense_p(subspace: KroneckerSubspace) -> NDArray[np.float64]:
    """P (d, k) from Kronecker products: row-major M gives vec(R_row^T M R_col) = kron(R_row, R_col)^T vec(M)."""
    p, at = np.zeros((D, subspace.k)), 0
    for block, factor in zip(subspace.blocks, subspace.factors, strict=True):
        for copy in range(block.copies):
            r, c = dense_rows(factor.row, copy, block.rows), dense_rows(factor.column, copy, block.columns)
            product = np.kron(r, c)
            p[place(block)[copy].reshape(-1), at : at + len(product)] = product.T
            at += len(product)
    assert at == subspace.k
    return p


def dense_h(moments: Sequence[BlockMoments], damping: float) -> list[NDArray[np.float64]]:
    """h (S + sqrt(damping) I) kron (A + sqrt(damping) I) of every copy of every block."""
    found = []
    for part in moments:
        for copy in range(len(part.energy)):
            s = np.diag(part.row[copy]) if part.row.ndim == 2 else part.row[copy]
            a = part.column[copy]
            s, a = s / np.mean(np.diag(s)), a / np.mean(np.diag(a))
            h = part.energy[copy] / UNITS / (len(s) * len(a))
            ridge = math.sqrt(damping)
            found.append(h * np.kron(s + ridge * np.eye(len(s)), a + ridge * np.eye(len(a))))
    return found


def block_diagonal(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    size, at = sum(len(part) for part in parts), 0
    whole = np.zeros((size, size))
    for part in parts:
        whole[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    return whole


def precision_of(subspace: KroneckerSubspace, damping: float = 0.3) -> tuple[Precision, NDArray[np.float64]]:
    """The precision of the gradients' moments in the subspace, and A as an explicit matrix."""
    moments = moments_of(subspace, gradients(UNITS))
    made = make_kronecker_precision(moments, UNITS, N_BAR, STEP, mean_damping(damping))
    return made, N_BAR / STEP * block_diagonal(dense_h(moments, damping))


# --- subspaces ---------------------------------------------------------------------------------------------------
