"""Kronecker subspaces and second moments against explicit matrices: kron, loops over blocks and records."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from kronecker_cases import (
    BLOCKS,
    KINDS,
    UNITS,
    D,
    dense_p,
    gradients,
    moments_of,
    place,
    precision_of,
    random,
    subspaces,
)

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments, position_moments
from distqexp.geometry.packing import add_packed, moments_size, pack, unpack
from distqexp.geometry.subspaces.kronecker import (
    MANY,
    BlockFactors,
    KroneckerSubspace,
    factors_to_arrays,
    kronecker_dimension,
    leading_factors,
    random_kronecker,
    stored_kronecker,
    whole_space,
)


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
    subspace, g = whole_space(BLOCKS), gradients(3)
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
    moments = moments_of(whole_space(BLOCKS), gradients(UNITS))
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


def test_factors_of_large_blocks_are_numbers_of_half_precision() -> None:
    """They stay near the eigenvectors, and those of small blocks stay what they are."""
    rng = np.random.default_rng(0)
    for rows, k in ((600, 64), (300, 64)):
        basis = np.linalg.qr(rng.normal(size=(rows, rows)))[0]
        moment = (basis * np.geomspace(1.0, 1e-3, rows)) @ basis.T
        block = Block("layer", 1, rows, 1, weight=0, bias=None)
        row = leading_factors([block], [BlockMoments(moment[None], np.ones((1, 1, 1)), np.ones(1))], None, k)[0].row
        assert row is not None
        halves = np.array_equal(row, row.astype(np.float16))
        assert halves == (row.size >= MANY)
        exact = basis[:, :k] * np.sign(
            np.take_along_axis(basis[:, :k], np.abs(basis[:, :k]).argmax(axis=0)[None], axis=0)
        )
        np.testing.assert_allclose(row[0], exact.T, atol=1e-4 if halves else 1e-9)


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
    for block, moment in zip(BLOCKS, moments_of(whole_space(BLOCKS), g), strict=True):
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
    found = position_moments(block, e, a).arrays()
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
    found = position_moments(block, numbers, columns).arrays()
    written_out = position_moments(block, torch.nn.functional.one_hot(numbers, 7).double(), columns).arrays()
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
    whole, g = whole_space(BLOCKS), gradients(UNITS)
    flat = pack(BLOCKS, moments_of(whole, g))
    assert flat.shape == (moments_size(BLOCKS),)
    parts = pack(BLOCKS, moments_of(whole, g[:13]))
    add_packed(BLOCKS, parts, pack(BLOCKS, moments_of(whole, torch.cat([g[13:], torch.zeros(5, D)]))))
    np.testing.assert_allclose(parts, flat, rtol=1e-9, atol=1e-9)
    assert np.array_equal(pack(BLOCKS, unpack(BLOCKS, flat)), flat)
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
