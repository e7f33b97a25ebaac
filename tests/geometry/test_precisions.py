"""Precisions against plain numpy: A = L L^T, whitening as a triangular solve, and the trip through a file's arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_triangular

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.precisions import Damping, Precision, curvature_sum, make_precision, precision_from_arrays

KINDS = ("identity", "diagonal", "dense")
K, UNITS, N_BAR, STEP = 17, 40, 3000, 1.5


def factors(k: int = K, batch: int = UNITS) -> torch.Tensor:
    return torch.randn(batch, 3, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def expected(kind: str, damping: float, k: int = K) -> np.ndarray:
    """A as a full matrix, from loops over the examples."""
    scale = N_BAR / STEP
    if kind == "identity":
        return scale * np.eye(k)
    h = np.zeros((k, k))
    for example in factors(k).numpy():
        for row in example:
            h += np.outer(row, row)
    h /= UNITS
    if kind == "diagonal":
        h = np.diag(np.diag(h))
    return scale * (h + damping * np.mean(np.linalg.eigvalsh(h)) * np.eye(k))


def make(kind: str, damping: float = 0.3, k: int = K) -> Precision:
    return make_precision(kind, k, curvature_sum(kind, factors(k)), UNITS, N_BAR, STEP, Damping(damping, "mean"))


@pytest.fixture(params=[(kind, damping, k) for kind in KINDS for damping in (0.0, 0.3, 10.0) for k in (1, K)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Precision, np.ndarray]:
    kind, damping, k = request.param
    return make(kind, damping, k), expected(kind, damping, k)


def test_whitening_is_the_triangular_solve(case: tuple[Precision, np.ndarray]) -> None:
    precision, a = case
    g = np.random.Generator(np.random.PCG64(1)).normal(size=(5, precision.k))
    factor = np.linalg.cholesky(a)
    solved = solve_triangular(factor, g.T, lower=True).T
    np.testing.assert_allclose(precision.whiten(torch.from_numpy(g)).numpy(), solved, rtol=1e-9, atol=1e-12)


def test_unwhitening_is_the_transposed_solve(case: tuple[Precision, np.ndarray]) -> None:
    precision, a = case
    y = np.random.Generator(np.random.PCG64(2)).normal(size=precision.k)
    solved = solve_triangular(np.linalg.cholesky(a), y, lower=True, trans="T")
    np.testing.assert_allclose(precision.unwhiten(y), solved, rtol=1e-9, atol=1e-12)


def test_the_factor_makes_a(case: tuple[Precision, np.ndarray]) -> None:
    """L^{-1} A L^{-T} = I, and L^{-T} L^{-1} g = A^{-1} g: the two maps belong to one L."""
    precision, a = case
    inverse = precision.whiten(torch.eye(precision.k, dtype=torch.float64)).numpy().T
    np.testing.assert_allclose(inverse @ a @ inverse.T, np.eye(precision.k), atol=1e-9)
    step = precision.unwhiten(inverse @ np.ones(precision.k))
    np.testing.assert_allclose(step, np.linalg.solve(a, np.ones(precision.k)), rtol=1e-9, atol=1e-12)


def test_whitened_norms_are_those_of_the_inverse_precision(case: tuple[Precision, np.ndarray]) -> None:
    precision, a = case
    g = torch.randn(4, precision.k, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    norms = np.einsum("bi,ij,bj->b", g.numpy(), np.linalg.inv(a), g.numpy())
    np.testing.assert_allclose(precision.whiten(g).square().sum(dim=1).numpy(), norms, rtol=1e-9)


def test_rows_do_not_see_each_other_to_the_last_bit(case: tuple[Precision, np.ndarray]) -> None:
    precision, _ = case
    g = torch.randn(64, precision.k, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    whole, keep = precision.whiten(g), torch.arange(64) % 3 != 0
    for filler in (0.0, 1e200, math.nan):
        blanked = g.clone()
        blanked[~keep] = filler
        parts = precision.whiten(blanked)
        assert torch.equal(parts[keep], whole[keep])
        if filler == 0.0:
            assert not parts[~keep].any()


def test_arrays_rebuild_the_same_bits(case: tuple[Precision, np.ndarray]) -> None:
    precision, _ = case
    arrays = precision.to_arrays()
    again = precision_from_arrays(precision.kind, precision.k, arrays)
    assert type(again) is type(precision)
    g, y = torch.ones(3, precision.k, dtype=torch.float64), np.arange(precision.k, dtype=np.float64)
    assert torch.equal(again.whiten(g), precision.whiten(g))
    assert np.array_equal(again.unwhiten(y), precision.unwhiten(y))
    arrays["inverse_factor"][...] = 0  # a copy: the precisions keep their own
    assert torch.equal(again.whiten(g), precision.whiten(g))
    assert precision.whiten(g).any()


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_sums_add_up_over_batches_and_masked_examples_count_nothing(kind: str) -> None:
    v = factors()
    whole = curvature_sum(kind, v)
    assert whole.shape == {"identity": (0,), "diagonal": (K,), "dense": (K, K)}[kind]
    parts = curvature_sum(kind, v[:13]) + curvature_sum(
        kind, torch.cat([v[13:], torch.zeros(5, 3, K, dtype=torch.float64)])
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_curvature_may_come_flat() -> None:
    total = curvature_sum("dense", factors())
    flat = make_precision("dense", K, total.ravel(), UNITS, N_BAR, STEP, Damping(0.1)).to_arrays()
    square = make_precision("dense", K, total, UNITS, N_BAR, STEP, Damping(0.1)).to_arrays()
    assert np.array_equal(flat["inverse_factor"], square["inverse_factor"])


def test_identity_needs_no_curvature() -> None:
    precision = make_precision("identity", 3, None, 0, 100, 4.0, Damping(0.0))
    np.testing.assert_allclose(precision.unwhiten(np.ones(3)), 0.2)


def refused(error: type[Exception], words: str, kind: str, k: int, *arguments: object) -> None:
    *others, share = arguments
    with pytest.raises(error, match=words) as caught:
        make_precision(kind, k, *others, Damping(share))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_unusable_curvature_is_refused(kind: str) -> None:
    total = curvature_sum(kind, factors())
    refused(UsageError, "raise precision.damping", kind, K, np.zeros_like(total), UNITS, N_BAR, STEP, 0.0)
    refused(UsageError, "raise precision.damping", kind, K, np.zeros_like(total), UNITS, N_BAR, STEP, 1.0)
    refused(UsageError, "raise precision.damping", kind, K, -total, UNITS, N_BAR, STEP, 0.1)
    low_rank = curvature_sum(kind, factors() * (torch.arange(K) < 4))
    refused(UsageError, "raise precision.damping", kind, K, low_rank, UNITS, N_BAR, STEP, 0.0)
    make_precision(kind, K, low_rank, UNITS, N_BAR, STEP, Damping(1e-3))
    refused(UsageError, "not finite", kind, K, total * np.nan, UNITS, N_BAR, STEP, 0.1)
    refused(UsageError, "shape", kind, K + 1, total, UNITS, N_BAR, STEP, 0.1)
    refused(UsageError, "no curvature", kind, K, None, UNITS, N_BAR, STEP, 0.1)
    refused(UsageError, "0 public units", kind, K, total, 0, N_BAR, STEP, 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("units", "step", "damping"), [(0, 1.0, 0.1), (10, 0.0, 0.1), (10, math.nan, 0.1), (10, 1.0, -0.1)]
)
def test_scales_that_are_not_positive_are_refused(kind: str, units: float, step: float, damping: float) -> None:
    refused(
        UsageError, "expected a finite number", kind, K, curvature_sum(kind, factors()), UNITS, units, step, damping
    )


def test_kinds_and_sizes_are_checked() -> None:
    refused(UsageError, "choose diagonal", "dense", 8193, None, 1, 1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match="choose diagonal"):
        curvature_sum("dense", torch.zeros(1, 1, 8193, dtype=torch.float64))
    with pytest.raises(UsageError, match="unknown kind"):
        curvature_sum("low-rank", torch.zeros(1, 1, 3, dtype=torch.float64))
    with pytest.raises(UsageError, match="float64"):
        curvature_sum("dense", torch.zeros(1, 1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_are_no_inverse_factor_are_refused(kind: str) -> None:
    good = make(kind).to_arrays()["inverse_factor"]
    upper = good.copy()
    upper.flat[1 if kind == "dense" else 0] = 1e-3 if kind == "dense" else -1.0
    for bad in (good[:-1], good.astype(np.float32), good * np.nan, -good, upper):
        with pytest.raises(FileContentError, match="inverse_factor") as caught:
            precision_from_arrays(kind, K, {"inverse_factor": bad})
        assert caught.value.exit_code == 3
    for arrays in ({}, {"inverse_factor": good, "more": good}):
        with pytest.raises(FileContentError, match="arrays"):
            precision_from_arrays(kind, K, arrays)


def test_arguments_of_another_shape_are_refused(case: tuple[Precision, np.ndarray]) -> None:
    precision, _ = case
    for wrong in (torch.zeros(precision.k), torch.zeros(2, precision.k + 1), torch.zeros(2, precision.k)):
        with pytest.raises(UsageError, match="whiten got shape"):
            precision.whiten(wrong)
    with pytest.raises(UsageError, match="unwhiten got shape"):
        precision.unwhiten(np.zeros(precision.k + 1))
