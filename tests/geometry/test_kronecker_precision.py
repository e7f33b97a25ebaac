"""The Kronecker precision and combined whitening against explicit matrices: kron, dense Cholesky."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from kronecker_cases import (
    BLOCKS,
    KINDS,
    N_BAR,
    STEP,
    UNITS,
    D,
    block_diagonal,
    dense_h,
    dense_rows,
    gradients,
    mean_damping,
    moments_of,
    precision_of,
    random,
    subspaces,
)

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import (
    BlockMoments,
    explicit_moments,
    position_moments,
)
from distqexp.geometry.precisions import (
    Precision,
    make_kronecker_precision,
    make_precision,
    precision_from_arrays,
    rescaled_arrays,
)
from distqexp.geometry.subspaces.kronecker import (
    KroneckerSubspace,
    whole_space,
)
from distqexp.geometry.whitening import BlockWhitening, Whitening


def test_projected_moments_are_those_of_the_projected_kronecker_product() -> None:
    g = gradients(UNITS)
    moments, subspace = moments_of(whole_space(BLOCKS), g), subspaces()["pca"]
    whole, at = block_diagonal(dense_h(moments, 0.0)), 0
    for part, factor, block in zip(moments, subspace.factors, BLOCKS, strict=True):
        small = part.project(factor.row, factor.column)
        for copy in range(block.copies):
            h = whole[at : at + block.rows * block.columns, at : at + block.rows * block.columns]
            at += len(h)
            r = np.kron(dense_rows(factor.row, copy, block.rows), dense_rows(factor.column, copy, block.columns))
            one = BlockMoments(small.row[[copy]], small.column[[copy]], small.energy[[copy]])
            np.testing.assert_allclose(dense_h([one], 0.0)[0], r @ h @ r.T, rtol=1e-9, atol=1e-9 * np.abs(h).max())


# --- precisions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.01, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_one_factor_makes_a_whitens_and_maps_back(kind: str, damping: float) -> None:
    subspace = subspaces()[kind]
    precision, a = precision_of(subspace, damping)
    k = subspace.k
    inverse = precision.whiten(torch.eye(k, dtype=torch.float64)).numpy().T  # L^{-1}
    np.testing.assert_allclose(inverse @ a @ inverse.T, np.eye(k), atol=1e-9)
    y = random(6, k).numpy()
    np.testing.assert_allclose(precision.unwhiten(y), inverse.T @ y, rtol=1e-9, atol=1e-15)
    g = random(7, 5, k)
    norms = np.einsum("bi,ij,bj->b", g.numpy(), np.linalg.inv(a), g.numpy())
    np.testing.assert_allclose(precision.whiten(g).square().sum(dim=1).numpy(), norms, rtol=1e-8)


def test_the_undamped_trace_is_that_of_the_mean_gradient_moment() -> None:
    g = gradients(UNITS)
    moments = moments_of(whole_space(BLOCKS), g)
    parts = dense_h(moments, 0.0)
    traces = [float(np.trace(part)) for part in parts]
    energies = [
        float(block.gather(g)[:, copy].square().sum() / UNITS) for block in BLOCKS for copy in range(block.copies)
    ]
    np.testing.assert_allclose(traces, energies, rtol=1e-12)
    assert sum(traces) == pytest.approx(float(g.square().sum() / UNITS), rel=1e-12)


def test_a_single_outer_product_a_record_has_its_exact_moment() -> None:
    """Independent rows and columns of length one: E vec G vec G^T = S kron A, not A kron S."""
    block = Block("layer", 1, 2, 3, weight=0, bias=None)
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    columns = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]], dtype=torch.float64)
    e = rows.repeat_interleave(2, dim=0)[:, None, None, :]
    a = columns.repeat(3, 1)[:, None, None, :]
    g = torch.matmul(e.transpose(2, 3), a).reshape(6, 6).numpy()
    exact = g.T @ g / 6
    for moments in (
        position_moments(block, e, a).arrays(),
        explicit_moments(block, torch.matmul(e.transpose(2, 3), a)).arrays(),
    ):
        precision = make_kronecker_precision([moments], 6, 1.0, 1.0, mean_damping(1e-12))
        inverse = precision.whiten(torch.eye(6, dtype=torch.float64)).numpy().T
        a_matrix = np.linalg.inv(inverse.T @ inverse)
        np.testing.assert_allclose(a_matrix, exact, atol=1e-5)
        assert not np.allclose(a_matrix, np.kron(moments.column[0], moments.row[0]), atol=1e-2)


def by_blocks(subspace: KroneckerSubspace, precision: Precision) -> list[BlockWhitening]:
    found = Whitening(subspace, precision).by_blocks()
    assert found is not None
    assert found[0] == subspace.blocks
    return found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_combined_whitening_is_project_then_whiten(kind: str) -> None:
    subspace = subspaces()[kind]
    g = gradients(5, seed=11)
    for precision in (
        precision_of(subspace)[0],
        make_precision("identity", subspace.k, None, 0, N_BAR, STEP, mean_damping(0.0)),
    ):
        expected = precision.whiten(subspace.project(g)).numpy()
        parts = []
        for block, whitening in zip(BLOCKS, by_blocks(subspace, precision), strict=True):
            u, v = (torch.diag_embed(m) if m.ndim == 2 else m for m in (whitening.row, whitening.column))
            assert u.dtype == v.dtype == torch.float64
            assert (len(u), len(v), u.shape[2], v.shape[2]) == (block.copies, block.copies, block.rows, block.columns)
            parts.append(torch.matmul(torch.matmul(u, block.gather(g)), v.transpose(1, 2)).reshape(5, -1))
        np.testing.assert_allclose(torch.cat(parts, dim=1).numpy(), expected, rtol=1e-10, atol=1e-14)


def test_combined_whitening_keeps_sparse_rows_diagonal_and_refuses_strangers() -> None:
    whole, small = subspaces()["identity"], subspaces()["random"]
    precision, _ = precision_of(whole)
    assert by_blocks(whole, precision)[4].row.shape == (1, 9)
    with pytest.raises(UsageError, match="other blocks"):
        Whitening(small, precision).by_blocks()
    diagonal = make_precision("diagonal", D, np.ones(D), 1, 1.0, 1.0, mean_damping(1.0))
    assert Whitening(whole, diagonal).by_blocks() is None


def test_arrays_rebuild_the_same_bits_and_scale_with_the_step() -> None:
    precision, _ = precision_of(subspaces()["pca"])
    arrays = precision.to_arrays()
    again = precision_from_arrays("kronecker", precision.k, arrays)
    g, y = random(3, 4, precision.k), random(4, precision.k).numpy()
    assert torch.equal(again.whiten(g), precision.whiten(g))
    assert np.array_equal(again.unwhiten(y), precision.unwhiten(y))
    same = rescaled_arrays("kronecker", arrays, 1.0)
    assert all(np.array_equal(same[name], arrays[name]) for name in arrays)
    moments = moments_of(subspaces()["pca"], gradients(UNITS))
    longer = make_kronecker_precision(moments, UNITS, N_BAR, 4 * STEP, mean_damping(0.3))
    scaled = precision_from_arrays("kronecker", precision.k, rescaled_arrays("kronecker", arrays, 4.0))
    np.testing.assert_allclose(scaled.whiten(g).numpy(), longer.whiten(g).numpy(), rtol=1e-12)
    flat = make_precision("diagonal", 3, np.ones(3), 1, 1.0, 1.0, mean_damping(1.0)).to_arrays()
    flat_longer = make_precision("diagonal", 3, np.ones(3), 1, 1.0, 4.0, mean_damping(1.0)).to_arrays()
    np.testing.assert_allclose(
        rescaled_arrays("diagonal", flat, 4.0)["inverse_factor"], flat_longer["inverse_factor"], rtol=1e-14
    )
    with pytest.raises(UsageError, match="above 0"):
        rescaled_arrays("diagonal", flat, 0.0)


def test_arrays_that_are_no_factors_are_refused() -> None:
    precision, _ = precision_of(subspaces()["pca"])
    good = precision.to_arrays()
    row = good["row/0000"]
    for bad in (
        {},
        {"inverse_factor": row},
        {name: array for name, array in good.items() if name != "row/0001"},
        good | {"row/0000": row.astype(np.float32)},
        good | {"row/0000": -row},
        good | {"row/0000": row + np.triu(np.ones_like(row), 1)},
        good | {"row/0000": np.full_like(row, np.nan)},
        good | {"row/0000": row[:, :, :1]},
        good | {"column/0000": good["column/0000"][:, 0]},
    ):
        with pytest.raises(FileContentError, match="precision kronecker") as caught:
            precision_from_arrays("kronecker", precision.k, bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileContentError, match=f"expected k = {precision.k + 1}"):
        precision_from_arrays("kronecker", precision.k + 1, good)


def test_all_dead_is_refused() -> None:
    with pytest.raises(UsageError, match="all zero or not finite"):
        make_kronecker_precision(
            moments_of(whole_space(BLOCKS), gradients(UNITS) * 0.0), UNITS, N_BAR, STEP, mean_damping(0.25)
        )


def test_factors_that_are_not_definite_and_wrong_scales_are_refused() -> None:
    whole = whole_space(BLOCKS)
    few = moments_of(whole, gradients(1))
    with pytest.raises(UsageError, match=r"raise precision\.damping"):
        make_kronecker_precision(few, 1, N_BAR, STEP, mean_damping(0.0))
    make_kronecker_precision(few, 1, N_BAR, STEP, mean_damping(1e-3))
    huge = [BlockMoments(m.row * 1e200, m.column * 1e200, m.energy * 1e300) for m in few]
    make_kronecker_precision(huge, 1, N_BAR, STEP, mean_damping(1e-3))
    with pytest.raises(UsageError, match="not finite"):
        make_kronecker_precision(
            [dataclasses.replace(m, energy=m.energy * np.inf) for m in few], 1, N_BAR, STEP, mean_damping(1.0)
        )
    for public_units, units, step, damping in (
        (0, 1.0, 1.0, 1.0),
        (1, 0.0, 1.0, 1.0),
        (1, 1.0, math.nan, 1.0),
        (1, 1.0, 1.0, -1.0),
    ):
        with pytest.raises(UsageError, match="expected a finite number"):
            make_precision("kronecker", D, few, public_units, units, step, mean_damping(damping))
