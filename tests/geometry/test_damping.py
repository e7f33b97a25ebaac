"""Damping against dense matrices in float64: the bulk of a spectrum, the floor across blocks, and blocks that stand still."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments
from distqexp.geometry.precisions import (
    Damping,
    Precision,
    make_kronecker_precision,
    make_precision,
    precision_from_arrays,
    rescaled_arrays,
)
from distqexp.geometry.subspaces.kronecker import whole_space
from distqexp.geometry.whitening import Whitening

UNITS, N_BAR, STEP = 10, 200.0, 0.5


def moment(n: int, seed: int, eigenvalues: np.ndarray | None = None) -> np.ndarray:
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    values = np.linspace(1.0, 3.0, n) if eigenvalues is None else eigenvalues
    return np.asarray((basis * values) @ basis.T)


def block(energy: float, *, rows: int = 3, columns: int = 4, seed: int = 0) -> BlockMoments:
    return BlockMoments(moment(rows, seed)[None], moment(columns, seed + 1)[None], np.array([energy]))


def dense_a(precision: Precision, block: slice = slice(None)) -> np.ndarray:
    """A of a part of the coordinates, from whitening unit vectors."""
    inverse = precision.whiten(torch.eye(precision.k, dtype=torch.float64)).numpy().T[block, block]
    return np.linalg.inv(inverse.T @ inverse)


def bulk(matrix: np.ndarray) -> float:
    values = np.sort(np.linalg.eigvalsh(matrix))
    return float(values[:-1].mean())


@pytest.mark.parametrize("share", [0.1, 2.0])
def test_damping_is_relative_to_the_bulk(share: float) -> None:
    h = moment(6, 3, np.array([500.0, 3, 2, 1, 1, 0.5]))
    dense = make_precision("dense", 6, h * UNITS, UNITS, N_BAR, STEP, Damping(share, "bulk"))
    expected = N_BAR / STEP * (h + share * bulk(h) * np.eye(6))
    np.testing.assert_allclose(dense_a(dense), expected, rtol=1e-9, atol=1e-7)
    diagonal = make_precision("diagonal", 6, np.diag(h) * UNITS, UNITS, N_BAR, STEP, Damping(share, "bulk"))
    expected = N_BAR / STEP * np.diag(np.diag(h) + share * bulk(np.diag(np.diag(h))))
    np.testing.assert_allclose(dense_a(diagonal), expected, rtol=1e-9, atol=1e-7)
    part = block(30.0)
    s, a = (m[0] / np.trace(m[0]) * len(m[0]) for m in (part.row, part.column))
    root, mean = math.sqrt(share), 30.0 / (UNITS * 12)
    expected = N_BAR / STEP * mean * np.kron(s + root * bulk(s) * np.eye(3), a + root * bulk(a) * np.eye(4))
    made = make_kronecker_precision([part], UNITS, N_BAR, STEP, Damping(share, "bulk"))
    np.testing.assert_allclose(dense_a(made), expected, rtol=1e-9)


def test_one_huge_direction_does_not_drown_the_others() -> None:
    """Activations with a large mean, and a bias: what is left of the others' curvature does not depend on the mean's size."""
    spread = moment(5, 4) * 1e-3
    for size in (1.0, 1e3):
        mean = np.full(5, size)
        column = np.block([[spread + np.outer(mean, mean), mean[:, None]], [mean[None], np.ones((1, 1))]])
        share: dict[str, float] = {}
        for damping in (Damping(1.0, "bulk"), Damping(1.0, "mean")):
            added = damping.size(column)
            share[damping.reference] = float(np.trace(spread) / 5 / (np.trace(spread) / 5 + added))
        assert share["bulk"] > 0.3
        assert share["mean"] < 0.01


def test_a_bias_centres_the_activations() -> None:
    """The precision of a weight, once its bias is free, is that of centred activations (docs/whitening.md)."""
    spread, mean = moment(5, 5) * 0.01, np.arange(1.0, 6.0)
    column = np.block([[spread + np.outer(mean, mean), mean[:, None]], [mean[None], np.ones((1, 1))]])
    ridge = Damping(1.0, "bulk").size(column)
    damped = column + ridge * np.eye(6)
    left = damped[:5, :5] - np.outer(damped[:5, 5], damped[5, :5]) / damped[5, 5]
    expected = spread + ridge * np.eye(5) + ridge / (1 + ridge) * np.outer(mean, mean)
    np.testing.assert_allclose(left, expected, rtol=1e-9)


def test_a_spectrum_of_one_direction_has_a_size() -> None:
    one = np.ones((2, 2))  # the outputs' side of a model of two classes
    assert Damping(1.0, "bulk").size(one) == pytest.approx(0.5)
    assert Damping(1.0, "bulk").size(np.array([4.0, 0.0])) == pytest.approx(1.0)
    assert Damping(1.0, "bulk").size(np.array([[3.0]])) == 3.0
    assert math.isnan(Damping(1.0, "bulk").size(np.full((2, 2), np.nan)))


def spectrum(*parts: tuple[int, float]) -> np.ndarray:
    """So many eigenvalues each around a value, the largest first."""
    return np.concatenate([value * np.linspace(1.2, 0.8, count) for count, value in parts])


SPECTRA = {
    "nine huge ones, as a head of ten classes has": spectrum((9, 1e4), (400, 1.0), (100, 0.01)),
    "one huge one": spectrum((1, 900.0), (99, 1.0)),
    "no outlier": spectrum((20, 20.0), (380, 1.0)),
    "falling fast": np.geomspace(1.0, 1e-8, 300),
    "outliers of three sizes": spectrum((3, 1e8), (3, 1e5), (3, 1e2), (600, 1.0)),
    "20 records": np.append(np.geomspace(1.0, 1e-4, 20), np.zeros(500)),
    "half of it nothing": np.append(spectrum((5, 1e3), (245, 1.0)), np.zeros(250)),
}


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA.keys())
def test_the_winsorized_mean_is_the_largest_that_clips_itself(values: np.ndarray) -> None:
    """Found by going down step by step from the mean, which ends at the largest fixed point."""
    kept = values[values > 0]
    expected, last = kept.mean(), math.inf
    while expected < last * (1 - 1e-14):
        expected, last = np.minimum(kept, 30.0 * expected).mean(), expected
    expected *= len(kept) / len(values)
    shuffled = np.random.default_rng(3).permutation(values)
    assert Damping(1.0, "winsorized").size(shuffled) == pytest.approx(expected, rel=1e-9)
    assert Damping(1.0, "winsorized").size(moment(len(values), 7, values)) == pytest.approx(expected, rel=1e-6)


def test_outliers_do_not_count_in_the_winsorized_mean_and_nothing_else_is_left_out() -> None:
    size = Damping(1.0, "winsorized").size
    rest = spectrum((400, 1.0), (100, 0.01))
    for huge in (1e3, 1e6):  # they count as 30 times the size each, whatever theirs is
        assert size(np.append(np.full(9, huge), rest)) == pytest.approx(rest.sum() / (509 - 30 * 9))
    few = np.append(1e6, np.ones(28))
    assert size(few) == pytest.approx(few.mean()), "fewer than 30 have no outliers"
    assert size(np.zeros(5)) == size(np.zeros((5, 5))) == 0.0
    assert math.isnan(size(np.full(2, np.nan)))
    assert math.isnan(size(np.full((2, 2), np.nan)))
    assert size(np.array([[3.0]])) == 3.0


def test_a_small_block_is_damped_by_the_network() -> None:
    large, small, damping = block(120.0), block(1e-5, seed=5), Damping(0.5, "bulk", floor=0.2)
    precision = make_kronecker_precision([large, small], UNITS, N_BAR, STEP, damping)
    sizes = []
    for part in (large, small):
        s, a = (m[0] / np.trace(m[0]) * len(m[0]) for m in (part.row, part.column))
        sizes.append(float(part.energy[0]) / (UNITS * 12) * bulk(s) * bulk(a))
    least = 0.5 * 0.2 * (sizes[0] + sizes[1]) / 2
    smallest = np.linalg.eigvalsh(dense_a(precision, slice(12, 24))).min() * STEP / N_BAR
    assert least <= smallest <= 1.01 * least
    alone = make_kronecker_precision([large], UNITS, N_BAR, STEP, damping)
    np.testing.assert_allclose(dense_a(precision, slice(0, 12)), dense_a(alone), rtol=1e-12)


@pytest.mark.parametrize("rest", [0.0, 1e-12])
def test_a_block_without_public_gradient_stands_still(rest: float) -> None:
    live, dead = block(120.0), block(120.0 * rest, seed=5)
    if rest == 0:
        dead = BlockMoments(dead.row * 0, dead.column * 0, dead.energy)
    precision = make_kronecker_precision([live, dead], UNITS, N_BAR, STEP, Damping(0.5, "bulk"))
    rows = torch.randn(5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whitened = precision.whiten(rows)
    assert not whitened[:, 12:].any()  # so that it takes nothing of the clip
    noise = np.random.default_rng(2).normal(size=24)
    assert not precision.unwhiten(noise)[12:].any()  # and noise doesn't reach it
    alone = make_kronecker_precision([live], UNITS, N_BAR, STEP, Damping(0.5, "bulk", floor=0.0))
    np.testing.assert_allclose(whitened[:, :12].numpy(), alone.whiten(rows[:, :12]).numpy(), rtol=1e-12)
    np.testing.assert_allclose(precision.unwhiten(noise)[:12], alone.unwhiten(noise[:12]), rtol=1e-12)
    arrays = rescaled_arrays("kronecker", precision.to_arrays(), 2.0)
    again = precision_from_arrays("kronecker", 24, arrays)
    assert not again.whiten(rows)[:, 12:].any()
    blocks = [Block("live", 1, 3, 4, 0, None), Block("dead", 1, 3, 4, 12, None)]
    found = Whitening(whole_space(blocks), precision).by_blocks()
    assert found is not None
    assert not found[1][1].row.any()


@pytest.mark.parametrize("damping", [Damping(-1.0), Damping(math.nan), Damping(1.0, floor=-1.0)], ids=str)
def test_wrong_damping_is_refused(damping: Damping) -> None:
    with pytest.raises(UsageError, match="expected a finite number, 0 or more"):
        make_precision("identity", 3, None, 0, 1.0, 1.0, damping)
