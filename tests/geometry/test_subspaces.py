"""One bank of cases that every subspace runs through, against its matrix made entry by entry."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import hadamard

from distqexp.errors import UsageError
from distqexp.geometry.philox import raw_words, stream_key
from distqexp.geometry.subspaces import Subspace, dense, make_subspace, sjlt, srht

RANDOM_KINDS = ("gaussian", "rademacher", "sjlt", "srht")


@dataclass(frozen=True)
class Case:
    kind: str
    d: int
    k: int
    nonzeros: int = 4
    seed: int = 3
    round: int = 1

    def make(self, cache_bytes: int = dense.CACHE_BYTES) -> Subspace:
        return make_subspace(self.kind, self.d, self.k, self.seed, self.round, self.nonzeros, cache_bytes=cache_bytes)

    @property
    def key(self) -> bytes:
        return stream_key("subspace", self.kind, self.d, self.k, self.seed, self.round)


CASES = [
    Case("identity", 1, 1),
    Case("identity", 37, 37),
    *(
        Case(kind, d, k)
        for kind in ("gaussian", "rademacher")
        for d, k in [(1, 1), (9, 9), (37, 16), (301, 7), (130, 65)]
    ),
    *(Case("sjlt", d, k, s) for d, k, s in [(1, 1, 1), (9, 9, 9), (37, 16, 4), (301, 7, 3), (130, 65, 2)]),
    *(Case("srht", d, k) for d, k in [(1, 1), (2, 1), (8, 8), (37, 16), (37, 36), (301, 7), (130, 65), (256, 255)]),
]


def matrix(case: Case) -> np.ndarray:
    """P from its definition, one entry at a time or by the textbook formula."""
    d, k = case.d, case.k
    if case.kind == "identity":
        return np.eye(d)
    if case.kind == "gaussian":
        entries = stats.norm.ppf((raw_words(case.key, 0, d * k) + 0.5) / 2**32)
        return (np.rint(entries * 65536) / 65536).reshape(d, k) / math.sqrt(k)
    if case.kind == "rademacher":
        words = [int(word) for word in raw_words(case.key, 0, (d * k + 31) // 32)]
        bits = [words[i // 32] >> (i % 32) & 1 for i in range(d * k)]
        return (2.0 * np.array(bits) - 1).reshape(d, k) / math.sqrt(k)
    if case.kind == "sjlt":
        s, out = case.nonzeros, np.zeros((d, k))
        words = [int(word) for word in raw_words(case.key, 0, d * s)]
        for i in range(d):
            for block in range(s):
                first, last = block * k // s, (block + 1) * k // s
                word = words[i * s + block]
                out[i, first + (word // 2) * (last - first) // 2**31] = (1 if word % 2 else -1) / math.sqrt(s)
        return out
    n = 2 ** math.ceil(math.log2(d))
    signs_key, rows_key = (stream_key(part, case.key.hex()) for part in ("signs", "rows"))
    size = min(k, n - k)
    seen: list[int] = []
    for drawn in raw_words(rows_key, 0, 20 * n + 20):
        value = int(drawn) * n // 2**32
        if len(seen) < size and value not in seen:
            seen.append(value)
    rows = sorted(seen) if size == k else sorted(set(range(n)) - set(seen))
    words = [int(word) for word in raw_words(signs_key, 0, (d + 31) // 32)]
    signs = np.array([2.0 * (words[i // 32] >> (i % 32) & 1) - 1 for i in range(d)])
    orthonormal = hadamard(n).astype(float) / math.sqrt(n)
    return np.asarray(math.sqrt(n / k) * (orthonormal[rows][:, :d] * signs).T)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the small cases have several blocks, the last one short."""
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 1)


@pytest.fixture(params=CASES, ids=lambda case: f"{case.kind}-{case.d}-{case.k}")
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


def gradients(case: Case, rows: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, case.d, generator=torch.Generator().manual_seed(11), dtype=dtype)


def test_project_is_the_product_with_the_matrix(case: Case) -> None:
    subspace, expected = case.make(), matrix(case)
    assert (subspace.d, subspace.k, expected.shape) == (case.d, case.k, (case.d, case.k))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        g = gradients(case, dtype=dtype)
        projected = subspace.project(g)
        assert projected.dtype == torch.float64
        np.testing.assert_allclose(projected.numpy(), g.double().numpy() @ expected, rtol=1e-12, atol=1e-12)


def test_lift_is_the_product_with_the_matrix(case: Case) -> None:
    w = np.random.Generator(np.random.PCG64(5)).normal(size=case.k)
    lifted = case.make().lift(w)
    assert lifted.dtype == np.float64
    np.testing.assert_allclose(lifted, matrix(case) @ w, rtol=1e-12, atol=1e-12)


def test_arguments_are_left_as_they_were(case: Case) -> None:
    subspace, g, w = case.make(), gradients(case, dtype=torch.float64), np.ones(case.k)
    kept = g.clone()
    subspace.project(g).mul_(0)
    subspace.lift(w)[:] = 7
    assert torch.equal(g, kept)
    assert (w == 1).all()


def test_rows_do_not_see_each_other_to_the_last_bit(case: Case) -> None:
    subspace, g = case.make(), gradients(case, rows=64)
    whole = subspace.project(g)
    for filler in (0.0, 1e30, math.nan):
        blanked = g.clone()
        blanked[::3] = filler
        parts = subspace.project(blanked)
        keep = torch.arange(64) % 3 != 0
        assert torch.equal(parts[keep], whole[keep])
        if filler == 0.0:
            assert not parts[~keep].any()


@pytest.mark.parametrize("case", [c for c in CASES if c.kind not in ("gaussian", "rademacher")], ids=str)
def test_sparse_and_hadamard_rows_do_not_see_the_batch_size(case: Case) -> None:
    """Dense products promise this among batches of one shape only."""
    subspace, g = case.make(), gradients(case, rows=9)
    alone = torch.cat([subspace.project(g[i : i + 1]) for i in range(9)])
    assert torch.equal(alone, subspace.project(g))


def test_the_memory_allowed_changes_no_bit(case: Case) -> None:
    g, w = gradients(case), np.ones(case.k)
    kept, made_anew = case.make(), case.make(cache_bytes=0)
    for _ in range(2):
        assert torch.equal(kept.project(g), made_anew.project(g))
        assert np.array_equal(kept.lift(w), made_anew.lift(w))


def test_the_same_name_gives_the_same_subspace_and_another_name_another(case: Case) -> None:
    def values(seed: int, round_: int) -> np.ndarray:
        subspace = make_subspace(case.kind, case.d, case.k, seed, round_, case.nonzeros)
        return subspace.lift(np.arange(1.0, case.k + 1))

    assert np.array_equal(values(0, 0), values(0, 0))
    if case.kind != "identity" and case.d > 8:
        draws = {values(seed, round_).tobytes() for seed in (0, 1, -1, 10) for round_ in (0, 1, 10)}
        assert len(draws) == 12


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_the_block_size_changes_no_entry(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for entries in (1, 500, 10**6):
        monkeypatch.setattr(dense, "BLOCK_ENTRIES", entries)
        subspace = make_subspace(kind, 130, 9, 0, 0)
        seen.append(np.stack([subspace.lift(unit) for unit in np.eye(9)]))  # one nonzero: entries as they are
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[0], seen[2])


def test_the_rows_that_are_made_at_a_time_change_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Case("sjlt", 301, 7, 3).make().project(torch.eye(301))
    monkeypatch.setattr(sjlt, "ROWS_AT_ONCE", 13)
    assert torch.equal(Case("sjlt", 301, 7, 3).make().project(torch.eye(301)), whole)


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_entries_are_kept_within_the_memory_allowed_and_made_anew_beyond_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    for cls in (dense.GaussianSubspace, dense.RademacherSubspace):
        inner = cls._entries

        def counted(self: Subspace, first: int, count: int, inner: Any = inner) -> np.ndarray:
            made.append(count)
            return np.asarray(inner(self, first, count))

        monkeypatch.setattr(cls, "_entries", counted)
    room = 130 * 9 * (4 if kind == "gaussian" else 1)
    for cache_bytes, times in ((room, 1), (room - 1, 3)):
        made.clear()
        subspace = Case(kind, 130, 9).make(cache_bytes)
        subspace.project(torch.ones(2, 130))
        subspace.project(torch.ones(2, 130))
        subspace.lift(np.ones(9))
        assert sum(made) == times * 130 * 9


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_large_dense_products_keep_rows_apart_to_the_last_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the block size and shapes of real runs, where matrix products take their fast ways."""
    monkeypatch.setattr(dense, "BLOCK_ENTRIES", 2**18)
    subspace = make_subspace(kind, 5003, 301, 0, 0)
    g = torch.randn(64, 5003, generator=torch.Generator().manual_seed(1))
    whole, keep = subspace.project(g), torch.arange(64) % 3 != 0
    g[~keep] = 0
    assert torch.equal(subspace.project(g)[keep], whole[keep])


def test_entries_are_pinned() -> None:
    """Plans name subspaces by their seed: the entries must outlive versions of this package and of its libraries."""
    digests = {}
    for kind in RANDOM_KINDS:
        subspace = make_subspace(kind, 50, 12, 2026, 3)
        scale = 65536 * math.sqrt(4 if kind == "sjlt" else 12)
        entries = np.rint(np.stack([subspace.lift(unit) for unit in np.eye(12)]) * scale).astype("<i8")
        digests[kind] = hashlib.sha256(entries.tobytes()).hexdigest()[:16]
    assert digests == PINNED


PINNED = {
    "gaussian": "156546860e7bf923",
    "rademacher": "5186ed037c07ed1d",
    "sjlt": "24e9011b6f07d488",
    "srht": "f18fc49c46d0910f",
}

# --- E ||P^T v||^2 = ||v||^2 ------------------------------------------------------------------------------------

SEEDS = 4000
D, K = 20, 8
FALSE_ALARM = 5e-8  # of one kind and one vector


def energy_bounds(kind: str) -> tuple[float, float]:
    """Where the mean of ||P^T v||^2 / ||v||^2 over SEEDS draws lies, but for a probability of FALSE_ALARM.

    gaussian: the sum is chi-squared with SEEDS * K degrees of freedom. The others: Bernstein's inequality, with
    variance at most 2/K and values at most ||v||_1^2 / ||v||^2 <= D (signs), or variance and value at most
    d_padded / K (srht).
    """
    if kind == "gaussian":
        low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], SEEDS * K) / (SEEDS * K)
        return float(low), float(high)
    variance, largest = (32 / K, 32 / K) if kind == "srht" else (2 / K, float(D))
    weight = math.log(2 / FALSE_ALARM)
    linear = largest * weight / (3 * SEEDS)
    width = linear + math.sqrt(linear**2 + 2 * variance * weight / SEEDS)
    return 1 - width, 1 + width


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_projection_keeps_the_expected_energy(kind: str) -> None:
    """False alarm of the whole test, four kinds and three vectors: 12 * 5e-8 = 6e-7."""
    vectors = np.stack([np.ones(D), np.arange(1.0, D + 1), np.where(np.arange(D) < 2, [1, -1] * (D // 2), 0)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = torch.from_numpy(vectors)
    total = np.zeros(3)
    for seed in range(SEEDS):
        total += make_subspace(kind, D, K, seed, 0).project(rows).square().sum(dim=1).numpy()
    mean = total / SEEDS
    low, high = energy_bounds(kind)
    assert ((low < mean) & (mean < high)).all()
    for wrong in (0.8, 1.25, D / 32, D / K, K / D):  # scales that a slip would give; every one is seen
        assert not ((low < wrong * mean) & (wrong * mean < high)).any()


# --- what the kinds are made of ---------------------------------------------------------------------------------


def test_sjlt_rows_have_one_sign_in_each_block_and_use_columns_evenly() -> None:
    """Chi-squared over the columns of each block; false alarm <= 4e-7."""
    d, k, s = 20_000, 30, 4
    subspace = make_subspace("sjlt", d, k, 0, 0, s)
    entries = np.stack([subspace.lift(unit) for unit in np.eye(k)], axis=1)
    assert set(np.unique(entries).tolist()) == {-0.5, 0.0, 0.5}
    edges = [block * k // s for block in range(s + 1)]
    for first, last in itertools.pairwise(edges):
        counts = np.count_nonzero(entries[:, first:last], axis=0)
        assert (np.count_nonzero(entries[:, first:last], axis=1) == 1).all()
        assert stats.chisquare(counts).pvalue > 1e-7


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 3), (16, 8), (16, 13), (16, 16), (1024, 1000)])
def test_samples_are_sorted_and_without_repetition(n: int, k: int) -> None:
    for seed in range(20):
        rows = srht.sample_without_replacement(stream_key(seed), n, k)
        assert rows.shape == (k,)
        assert (np.diff(rows) > 0).all()
        assert rows[0] >= 0
        assert rows[-1] < n


@pytest.mark.parametrize("k", [3, 13])
def test_every_row_is_sampled_equally_often(k: int) -> None:
    """Binomial tests of the 16 rows and of one pair; false alarm 34 tails of 1e-6 / 68 for each k, 1e-6 in all."""
    draws = np.zeros((2000, 16), dtype=bool)
    for seed in range(2000):
        draws[seed, srht.sample_without_replacement(stream_key("even", seed), 16, k)] = True
    tail = 1e-6 / 68
    low, high = stats.binom.ppf([tail, 1 - tail], 2000, k / 16)
    assert ((low <= draws.sum(axis=0)) & (draws.sum(axis=0) <= high)).all()
    low, high = stats.binom.ppf([tail, 1 - tail], 2000, k * (k - 1) / (16 * 15))
    assert low <= np.count_nonzero(draws[:, 2] & draws[:, 9]) <= high


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 128])
def test_the_fast_transform_is_the_hadamard_matrix(n: int) -> None:
    transformed = np.stack([srht.hadamard_transform(unit) for unit in np.eye(n)])
    assert np.array_equal(transformed, hadamard(n))


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "d", "k", "nonzeros", "words"),
    [
        *((kind, 10, 11, 4, ("11", "10")) for kind in RANDOM_KINDS),
        *((kind, 10, 0, 4, ("0", "10")) for kind in RANDOM_KINDS),
        *((kind, 10, None, 4, ("None", "10")) for kind in RANDOM_KINDS),
        ("identity", 10, 5, 4, ("5", "10")),
        ("sjlt", 10, 5, 6, ("6", "5")),
        ("sjlt", 10, 5, 0, ("0", "5")),
        ("fourier", 10, 5, 4, ("fourier",)),
    ],
)
def test_impossible_subspaces_are_refused(
    kind: str, d: int, k: int | None, nonzeros: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        make_subspace(kind, d, k, 0, 0, nonzeros)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_identity_needs_no_k() -> None:
    assert make_subspace("identity", 10, None, 0, 0).k == 10


def test_arguments_of_another_shape_are_refused(case: Case) -> None:
    subspace = case.make()
    for wrong in (torch.zeros(case.d), torch.zeros(2, case.d + 1), torch.zeros(2, case.d, dtype=torch.int64)):
        with pytest.raises(UsageError, match="project got shape"):
            subspace.project(wrong)
    with pytest.raises(UsageError, match="lift got shape"):
        subspace.lift(np.zeros(case.k + 1))
