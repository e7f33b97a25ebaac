"""Leading eigenvectors of large moments against a full decomposition in float64, for spectra of every kind."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import eigh, qr

from distqexp.geometry import leading
from distqexp.geometry.leading import LARGE_SIDE, krylov_eigenvectors, leading_eigenvectors

N, K = 400, 20


def spectrum(kind: str, n: int = N) -> NDArray[np.float64]:
    place = np.arange(n)
    return {
        "power": 1.0 / (1 + place),
        "exponential": np.exp(-place / 10),
        "one huge": np.where(place == 0, 1e4, np.exp(-place / 10)),
        "clusters of 5": 2.0 ** -(place // 5),
        "rank 7": np.where(place < 7, 1.0 + place, 0.0),
        "rank 20": np.where(place < K, 1.0 + place, 0.0),
        "zero": np.zeros(n),
        "small": 1e-30 / (1 + place),
    }[kind]


def matrix(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    basis = qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    product: NDArray[np.float64] = (basis * values) @ basis.T
    return (product + product.T) / 2


@pytest.mark.parametrize(
    "kind", ["power", "exponential", "one huge", "clusters of 5", "rank 7", "rank 20", "zero", "small"]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_krylov_eigenvectors_are_those_of_a_full_decomposition(kind: str, dtype: type) -> None:
    """Eigenvalues, and the subspace where a gap behind it tells it apart: K is at a border of the clusters."""
    exact = matrix(spectrum(kind))
    found = krylov_eigenvectors(exact.astype(dtype), K)
    values, vectors = eigh(exact)
    values, vectors = values[::-1], vectors[:, ::-1]
    assert found.shape == (K, N)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found @ found.T, np.eye(K), atol=1e-12)
    size = max(values[0], 1e-300)
    np.testing.assert_allclose(np.diag(found @ exact @ found.T), values[:K].clip(0), atol=3e-6 * size)
    rank = int((values[:K] > 1e-9 * size).sum())
    gap = values[rank - 1] - (values[rank] if rank < N else 0.0)
    outside = vectors[:, :rank] - found.T @ (found @ vectors[:, :rank])
    assert np.linalg.norm(outside, 2) <= 1e-4 * size / max(gap, 1e-6 * size)


def test_without_gaps_nearly_all_of_the_energy_is_found() -> None:
    """Eigenvalues that fall by a hundredth of a per cent from one to the next: no steps tell their eigenvectors apart."""
    values = 1.0 + 0.5 * np.cos(np.pi * np.arange(N) / N)
    exact = matrix(values)
    found = krylov_eigenvectors(exact, K)
    np.testing.assert_allclose(found @ found.T, np.eye(K), atol=1e-12)
    assert np.trace(found @ exact @ found.T) >= 0.999 * values[:K].sum()


def test_large_matrices_take_the_krylov_way_and_small_ones_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGE_SIDE == 1536  # a lower one would change the bits of earlier plans
    calls: list[int] = []

    def krylov(symmetric: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        calls.append(len(symmetric))
        return krylov_eigenvectors(symmetric, k)

    monkeypatch.setattr(leading, "krylov_eigenvectors", krylov)
    exact = matrix(spectrum("power"))
    small = leading_eigenvectors(exact, K)
    vectors = eigh(exact, subset_by_index=[N - K, N - 1])[1].T[::-1]
    assert np.array_equal(np.abs(small), np.abs(vectors))
    assert not calls
    monkeypatch.setattr(leading, "LARGE_SIDE", N)
    large = leading_eigenvectors(exact, K)
    assert np.array_equal(large, leading_eigenvectors(exact, K))
    assert calls == [N, N]
    np.testing.assert_allclose(large, small, atol=1e-4)  # of one sign
    assert all(row[np.abs(row).argmax()] > 0 for row in large)
    leading_eigenvectors(exact, N // 2)  # not few
    assert calls == [N, N]


def test_what_is_not_finite_is_refused() -> None:
    exact = matrix(spectrum("power"))
    exact[3, 4] = np.nan
    with pytest.raises(ValueError, match="infs or NaNs"):
        krylov_eigenvectors(exact, K)
