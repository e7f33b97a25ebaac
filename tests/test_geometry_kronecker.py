"""Kronecker subspaces and precisions against explicit matrices: kron, dense Cholesky, loops over blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry import Precision, combined_whitening, make_precision, precision_from_arrays
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import (
    BlockMoments,
    explicit_moments,
    moments_size,
    pack,
    position_moments,
    unpack,
)
from distqexp.geometry.precisions import make_kronecker_precision, rescaled_arrays
from distqexp.geometry.subspaces.kronecker import (
    BlockFactors,
    KroneckerSubspace,
    factors_to_arrays,
    kronecker_dimension,
    leading_factors,
    random_kronecker,
    stored_kronecker,
    unprojected,
)

UNITS, N_BAR, STEP = 40, 3000.0, 1.5

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
        explicit_moments(block, m) for block, m in zip(subspace.coordinates, subspace.project_blocks(g), strict=True)
    ]


def subspaces() -> dict[str, KroneckerSubspace]:
    whole = unprojected(BLOCKS)
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
    made = make_kronecker_precision(moments, UNITS, N_BAR, STEP, damping)
    return made, N_BAR / STEP * block_diagonal(dense_h(moments, damping))


# --- subspaces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_project_and_lift_are_the_explicit_matrix(kind: str) -> None:
    subspace = subspaces()[kind]
    p, g, w = dense_p(subspace), gradients(6, seed=9), random(4, subspace.k).numpy()
    np.testing.assert_allclose(subspace.project(g).numpy(), g.numpy() @ p, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(subspace.lift(w), p @ w, rtol=1e-12, atol=1e-12)
    single = subspace.project(g.float())
    assert single.dtype == torch.float64
    np.testing.assert_allclose(single.numpy(), g.float().double().numpy() @ p, rtol=1e-12, atol=1e-12)


def test_the_identity_reorders_and_changes_no_bit() -> None:
    subspace, g = unprojected(BLOCKS), gradients(3)
    assert subspace.k == subspace.d == D
    order = np.concatenate([place(block).reshape(-1) for block in BLOCKS])
    assert sorted(order.tolist()) == list(range(D))
    assert np.array_equal(subspace.project(g).numpy(), g.numpy()[:, order])
    assert np.array_equal(subspace.lift(subspace.project(g).numpy()[0]), g.numpy()[0])


def test_dimensions_are_capped_by_the_sides() -> None:
    assert kronecker_dimension(BLOCKS, 3, 2) == 2 * 3 + 2 * 1 + 2 * (2 * 3) + 2 * 3 + 2 * 3 + 2 * 2
    assert subspaces()["random"].k == subspaces()["pca"].k == kronecker_dimension(BLOCKS, 3, 2)
    assert kronecker_dimension(BLOCKS, 99, 99) == D
    assert all(factor == BlockFactors() for factor in random_kronecker(BLOCKS, 99, 99, 0, 0).factors)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_each_other_to_the_last_bit(kind: str) -> None:
    subspace = subspaces()[kind]
    precision, _ = precision_of(subspace)
    g, keep = gradients(64), torch.arange(64) % 3 != 0
    whole = subspace.project(g)
    for filler in (0.0, 1e200, math.nan):
        blanked = g.clone()
        blanked[~keep] = filler
        parts = subspace.project(blanked)
        assert torch.equal(parts[keep], whole[keep])
        assert torch.equal(precision.whiten(parts)[keep], precision.whiten(whole)[keep])
        if filler == 0.0:
            assert not precision.whiten(parts)[~keep].any()


def test_random_factors_keep_the_squared_norm_on_average() -> None:
    """E ||P^T v||^2 = ||v||^2. False alarm: a mean of 3000 draws is 6 standard errors off with probability 2e-9 if
    normal, and below 1e-6 with the skewness of these draws.
    """
    v = gradients(1, seed=5)
    found = [
        float(random_kronecker(BLOCKS, 3, 2, seed=8, round=r).project(v).square().sum() / v.square().sum())
        for r in range(3000)
    ]
    error = float(np.std(found) / math.sqrt(len(found)))
    assert error < 0.05
    assert abs(float(np.mean(found)) - 1.0) < 6 * error


def test_random_factors_are_a_function_of_seed_round_block_and_side_alone() -> None:
    first, again = (random_kronecker(BLOCKS, 3, 2, seed=3, round=1) for _ in range(2))
    for one, two in zip(first.factors, again.factors, strict=True):
        assert np.array_equal(np.asarray(one.row), np.asarray(two.row))
    others = [random_kronecker(BLOCKS, 3, 2, seed=3, round=2), random_kronecker(BLOCKS, 3, 2, seed=4, round=1)]
    seen = {np.asarray(s.factors[0].row).tobytes() for s in [first, *others]}
    assert len(seen) == 3
    twins = [BLOCKS[0], dataclasses.replace(BLOCKS[0], name="twin", weight=20, bias=35)]
    factors = random_kronecker(twins, 3, 3, 0, 0).factors
    assert not np.array_equal(np.asarray(factors[0].row), np.asarray(factors[1].row))
    square = Block("square", 1, 4, 4, weight=0, bias=None)
    (factor,) = random_kronecker([square], 3, 3, 0, 0).factors
    assert not np.array_equal(np.asarray(factor.row), np.asarray(factor.column))


def test_leading_factors_are_eigenvectors_of_the_largest_eigenvalues() -> None:
    moments = moments_of(unprojected(BLOCKS), gradients(UNITS))
    for block, moment, factor in zip(BLOCKS, moments, leading_factors(BLOCKS, moments, 3, 2), strict=True):
        pairs = [(moment.column, factor.column)]
        if not block.sparse_rows:
            pairs.append((moment.row, factor.row))
        for matrices, vectors in pairs:
            if vectors is None:
                continue
            for matrix, r in zip(matrices, vectors, strict=True):
                values = np.linalg.eigvalsh(matrix)[::-1][: len(r)]
                np.testing.assert_allclose(r @ r.T, np.eye(len(r)), atol=1e-12)
                np.testing.assert_allclose(r @ matrix @ r.T, np.diag(values), atol=1e-9 * values[0])
                assert all(row[np.abs(row).argmax()] > 0 for row in r)
    chosen = leading_factors(BLOCKS, moments, 3, 2)[4].row
    assert chosen is not None
    assert sorted(np.argsort(moments[4].row[0])[-2:].tolist()) == chosen[0].tolist()


def test_stored_factors_come_back_and_others_are_refused() -> None:
    subspace = subspaces()["pca"]
    arrays = factors_to_arrays(subspace.factors)
    again = stored_kronecker(BLOCKS, arrays, 3, 2)
    g = gradients(4)
    assert torch.equal(again.project(g), subspace.project(g))
    row, chosen = arrays["row/0000"], arrays["row/0004"]
    for words, found, k_in, k_out in (
        ("expected nothing", arrays, 99, 99),
        ("nothing; expected", {}, 3, 2),
        ("unexpected array row/0099", arrays | {"row/0099": row}, 3, 2),
        (r"expected \(1, 3, 5\)", arrays, 3, 3),
        ("of float32", arrays | {"row/0000": row.astype(np.float32)}, 3, 2),
        ("not of finite", arrays | {"row/0000": row * np.nan}, 3, 2),
        ("rising row", arrays | {"row/0004": chosen[:, ::-1].copy()}, 3, 2),
        ("rising row", arrays | {"row/0004": np.array([[3, 9]])}, 3, 2),
    ):
        with pytest.raises(FileContentError, match=words) as caught:
            stored_kronecker(BLOCKS, found, k_in, k_out)
        assert "\n" not in str(caught.value)


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="one a block"):
        KroneckerSubspace(BLOCKS, [])
    with pytest.raises(UsageError, match="factors of shapes"):
        KroneckerSubspace(BLOCKS[:1], [BlockFactors(np.ones((1, 2, 4)))])
    with pytest.raises(UsageError, match="factors of shapes"):
        KroneckerSubspace(BLOCKS[:1], [BlockFactors(None, np.ones((2, 2, 4)))])


# --- moments -----------------------------------------------------------------------------------------------------


def test_explicit_moments_are_loops() -> None:
    g = gradients(UNITS)
    for block, moment in zip(BLOCKS, moments_of(unprojected(BLOCKS), g), strict=True):
        matrices = block.gather(g).numpy()
        for copy in range(block.copies):
            s = sum(m[copy] @ m[copy].T for m in matrices)
            np.testing.assert_allclose(moment.row[copy], np.diag(s) if block.sparse_rows else s, rtol=1e-12)
            np.testing.assert_allclose(moment.column[copy], sum(m[copy].T @ m[copy] for m in matrices), rtol=1e-12)
            np.testing.assert_allclose(moment.energy[copy], np.square(matrices[:, copy]).sum(), rtol=1e-12)


@pytest.mark.parametrize("positions", [1, 2, 12])
@pytest.mark.parametrize("sparse", [False, True])
def test_position_moments_are_loops_and_skip_positions_without_a_gradient(positions: int, sparse: bool) -> None:
    block = Block("layer", 2, 3, 4, weight=0, bias=None, sparse_rows=sparse)
    e, a = random(1, 5, 2, positions, 3), random(2, 5, 2, positions, 4)
    e[3, 1, 0] = 0.0
    a[3, 1, 0] = math.nan  # padding may hold anything
    a[2, 0, -1] = 0.0  # that of an embedding is in the columns
    found = position_moments(block, e, a)
    for copy in range(2):
        s, c, energy = np.zeros((3, 3)), np.zeros((4, 4)), 0.0
        for i in range(5):
            total = np.zeros((3, 4))
            for t in range(positions):
                row, column = e[i, copy, t].numpy(), a[i, copy, t].numpy()
                if row.any() and column.any():
                    s, c = s + np.outer(row, row), c + np.outer(column, column)
                    total += np.outer(row, column)
            energy += np.square(total).sum()
        np.testing.assert_allclose(found.row[copy], np.diag(s) if sparse else s, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.column[copy], c, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.energy[copy], energy, rtol=1e-9)


def test_numbers_of_rows_stand_for_unit_vectors() -> None:
    block = Block("vocabulary", 1, 7, 4, weight=0, bias=None, sparse_rows=True)
    numbers = torch.randint(0, 5, (6, 1, 9), generator=torch.Generator().manual_seed(2))
    columns = random(3, 6, 1, 9, 4)
    columns[:, :, 6:] = 0.0
    columns[4] = 0.0
    found = position_moments(block, numbers, columns)
    written_out = position_moments(block, torch.nn.functional.one_hot(numbers, 7).double(), columns)
    assert np.array_equal(found.row, written_out.row)
    assert found.row.sum() == 5 * 6
    for side in ("column", "energy"):
        np.testing.assert_allclose(getattr(found, side), getattr(written_out, side), rtol=1e-12)


def test_factors_of_other_shapes_are_refused() -> None:
    block = Block("layer", 2, 3, 4, weight=0, bias=None)
    e, a = random(1, 5, 2, 6, 3), random(2, 5, 2, 6, 4)
    wrong = [(e[:, :1], a[:, :1]), (e[:, :, :5], a), (e, a[:4]), (a, e), (e[..., 0].long(), a), (e[..., 0], a[..., 0])]
    for row, column in wrong:
        with pytest.raises(UsageError, match="block layer: factors of shapes"):
            position_moments(block, row, column)


def test_packed_moments_add_up_and_come_back() -> None:
    whole, g = unprojected(BLOCKS), gradients(UNITS)
    flat = pack(moments_of(whole, g))
    assert flat.shape == (moments_size(BLOCKS),)
    parts = pack(moments_of(whole, g[:13])) + pack(moments_of(whole, torch.cat([g[13:], torch.zeros(5, D)])))
    np.testing.assert_allclose(parts, flat, rtol=1e-9, atol=1e-9)
    assert np.array_equal(pack(unpack(BLOCKS, flat)), flat)
    for bad, words in ((flat[1:], "shape"), (flat * np.nan, "not finite; check data.public")):
        with pytest.raises(UsageError, match=words):
            unpack(BLOCKS, bad)


def test_a_side_too_large_for_a_dense_moment_is_refused_with_the_remedy() -> None:
    huge = Block("huge", 1, 3, 8193, weight=0, bias=None)
    with pytest.raises(UsageError, match=r"side 8193; expected at most 8192: set subspace.kind = kronecker"):
        moments_size([huge])
    rows = Block("vocabulary", 1, 8193, 3, weight=0, bias=None)
    with pytest.raises(UsageError, match="8193"):
        moments_size([rows])
    assert moments_size([dataclasses.replace(rows, sparse_rows=True)]) == 8193 + 9 + 1
    assert moments_size(random_kronecker([huge], 16, 16, 0, 0).coordinates) == 9 + 256 + 1


def test_projected_moments_are_those_of_the_projected_kronecker_product() -> None:
    g = gradients(UNITS)
    moments, subspace = moments_of(unprojected(BLOCKS), g), subspaces()["pca"]
    whole, at = block_diagonal(dense_h(moments, 0.0)), 0
    for part, factor, block in zip(moments, subspace.factors, BLOCKS, strict=True):
        small = part.projected(factor.row, factor.column)
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
    moments = moments_of(unprojected(BLOCKS), g)
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
    for moments in (position_moments(block, e, a), explicit_moments(block, torch.matmul(e.transpose(2, 3), a))):
        precision = make_kronecker_precision([moments], 6, 1.0, 1.0, 1e-12)
        inverse = precision.whiten(torch.eye(6, dtype=torch.float64)).numpy().T
        a_matrix = np.linalg.inv(inverse.T @ inverse)
        np.testing.assert_allclose(a_matrix, exact, atol=1e-5)
        assert not np.allclose(a_matrix, np.kron(moments.column[0], moments.row[0]), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_combined_whitening_is_project_then_whiten(kind: str) -> None:
    subspace = subspaces()[kind]
    g = gradients(5, seed=11)
    for precision in (precision_of(subspace)[0], make_precision("identity", subspace.k, None, 0, N_BAR, STEP, 0.0)):
        expected = precision.whiten(subspace.project(g)).numpy()
        parts = []
        for block, whitening in zip(BLOCKS, combined_whitening(subspace, precision), strict=True):
            u, v = (torch.diag_embed(m) if m.ndim == 2 else m for m in (whitening.row, whitening.column))
            assert u.dtype == v.dtype == torch.float64
            assert (len(u), len(v), u.shape[2], v.shape[2]) == (block.copies, block.copies, block.rows, block.columns)
            parts.append(torch.matmul(torch.matmul(u, block.gather(g)), v.transpose(1, 2)).reshape(5, -1))
        np.testing.assert_allclose(torch.cat(parts, dim=1).numpy(), expected, rtol=1e-10, atol=1e-14)


def test_combined_whitening_keeps_sparse_rows_diagonal_and_refuses_strangers() -> None:
    whole, small = subspaces()["identity"], subspaces()["random"]
    precision, _ = precision_of(whole)
    assert combined_whitening(whole, precision)[4].row.shape == (1, 9)
    with pytest.raises(UsageError, match="other blocks"):
        combined_whitening(small, precision)
    with pytest.raises(UsageError, match="expected kronecker or identity"):
        combined_whitening(whole, make_precision("diagonal", D, np.ones(D), 1, 1.0, 1.0, 1.0))


def test_arrays_rebuild_the_same_bits_and_scale_with_the_step() -> None:
    precision, _ = precision_of(subspaces()["pca"])
    arrays = precision.to_arrays()
    again = precision_from_arrays("kronecker", precision.k, arrays)
    g, y = random(3, 4, precision.k), random(4, precision.k).numpy()
    assert torch.equal(again.whiten(g), precision.whiten(g))
    assert np.array_equal(again.unwhiten(y), precision.unwhiten(y))
    same = rescaled_arrays(arrays, 1.0)
    assert all(np.array_equal(same[name], arrays[name]) for name in arrays)
    moments = moments_of(subspaces()["pca"], gradients(UNITS))
    longer = make_kronecker_precision(moments, UNITS, N_BAR, 4 * STEP, 0.3)
    scaled = precision_from_arrays("kronecker", precision.k, rescaled_arrays(arrays, 4.0))
    np.testing.assert_allclose(scaled.whiten(g).numpy(), longer.whiten(g).numpy(), rtol=1e-12)
    flat = make_precision("diagonal", 3, np.ones(3), 1, 1.0, 1.0, 1.0).to_arrays()
    flat_longer = make_precision("diagonal", 3, np.ones(3), 1, 1.0, 4.0, 1.0).to_arrays()
    np.testing.assert_allclose(rescaled_arrays(flat, 4.0)["inverse_factor"], flat_longer["inverse_factor"], rtol=1e-14)
    with pytest.raises(UsageError, match="above 0"):
        rescaled_arrays(flat, 0.0)


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


def test_a_dead_block_gets_the_mean_curvature_and_all_dead_is_refused() -> None:
    whole, g = unprojected(BLOCKS), gradients(UNITS)
    g[:, place(BLOCKS[2])[1].reshape(-1)] = 0.0  # one copy of the grouped convolution
    moments = moments_of(whole, g)
    precision = make_kronecker_precision(moments, UNITS, N_BAR, STEP, 0.25)
    whitened = precision.whiten(torch.eye(D, dtype=torch.float64)).numpy()
    start = 20 + 3 + 15
    mean = float(g.square().sum()) / UNITS / D
    expected = np.eye(15) / (1.5 * math.sqrt(N_BAR / STEP * mean))  # (1 + sqrt(0.25)) on each side
    np.testing.assert_allclose(whitened[start : start + 15, start : start + 15], expected, rtol=1e-12, atol=1e-15)
    with pytest.raises(UsageError, match="all zero or not finite"):
        make_kronecker_precision(moments_of(whole, g * 0.0), UNITS, N_BAR, STEP, 0.25)


def test_factors_that_are_not_definite_and_wrong_scales_are_refused() -> None:
    whole = unprojected(BLOCKS)
    few = moments_of(whole, gradients(1))
    with pytest.raises(UsageError, match=r"raise precision\.damping"):
        make_kronecker_precision(few, 1, N_BAR, STEP, 0.0)
    make_kronecker_precision(few, 1, N_BAR, STEP, 1e-3)
    huge = [BlockMoments(m.row * 1e200, m.column * 1e200, m.energy * 1e300) for m in few]
    make_kronecker_precision(huge, 1, N_BAR, STEP, 1e-3)
    with pytest.raises(UsageError, match="not finite"):
        make_kronecker_precision([dataclasses.replace(m, energy=m.energy * np.inf) for m in few], 1, N_BAR, STEP, 1.0)
    for units, n_bar, step, damping in (
        (0, 1.0, 1.0, 1.0),
        (1, 0.0, 1.0, 1.0),
        (1, 1.0, math.nan, 1.0),
        (1, 1.0, 1.0, -1.0),
    ):
        with pytest.raises(UsageError, match="expected a finite number"):
            make_kronecker_precision(few, units, n_bar, step, damping)
