"""Eigenvectors of many blocks, shared out over ranks: every rank a fair share, and the same bits on any number of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kronecker_cases import BLOCKS, UNITS, gradients, moments_of

from distqexp.engines.assignment import assign
from distqexp.errors import UsageError
from distqexp.expansion.leading import shared_leading_arrays
from distqexp.geometry.moments import BlockMoments
from distqexp.geometry.subspaces.kronecker import factors_to_arrays, leading_factors, whole_space

K_IN, K_OUT = 3, 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_every_piece_is_done_once_and_no_rank_has_much_more_than_its_share(ranks: int) -> None:
    rng = np.random.default_rng(ranks)
    costs = rng.exponential(size=23).tolist()
    places = assign(costs, ranks)
    assert sorted(piece for own in places for piece in own) == list(range(23))
    assert all(own == sorted(own) for own in places)
    least = max(sum(costs) / ranks, max(costs))  # no assignment has a smaller largest load
    assert max(sum(costs[piece] for piece in own) for own in places) <= 4 / 3 * least + 1e-12
    assert assign(costs, ranks) == places


def test_equal_pieces_are_dealt_out_in_turn() -> None:
    assert assign([1.0] * 5, 2) == [[0, 2, 4], [1, 3]]
    assert assign([], 2) == [[], []]


class ThreadEngine:
    """One of some ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, shared: dict[Any, Any]) -> None:
        self.rank, self.size, self.is_root = rank, size, rank == 0
        self._barrier, self._shared = barrier, shared

    def _from_root(self, value: Any) -> Any:
        if self.is_root:
            self._shared["root"] = value
        self._barrier.wait(30)
        found = self._shared["root"]
        self._barrier.wait(30)
        return found

    def on_root(self, work: Callable[[], Any]) -> Any:
        value = None
        if self.is_root:
            try:
                value = work()
            except UsageError as error:
                value = error
        value = self._from_root(value)
        if isinstance(value, UsageError):
            raise value
        return value

    def broadcast_arrays(self, arrays: Mapping[str, Any] | None) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._from_root(arrays)
        return found

    def collect(self, work: Callable[..., Any], context: Any, items: Sequence[int]) -> Iterator[Any]:
        for item in items[self.rank :: self.size]:
            self._shared[item] = work(context, item)
        self._barrier.wait(30)
        if self.is_root:
            yield from (self._shared[item] for item in items)


def on_ranks(size: int, moments: Sequence[BlockMoments]) -> list[Mapping[str, Any]]:
    """Return the arrays that each rank gets."""
    subspace = SimpleNamespace(k_in=K_IN, k_out=K_OUT)
    context: Any = SimpleNamespace(config=SimpleNamespace(subspace=subspace), worker=SimpleNamespace(blocks=BLOCKS))
    barrier, shared = threading.Barrier(size), dict[Any, Any]()

    def run(rank: int) -> Mapping[str, Any]:
        engine: Any = ThreadEngine(rank, size, barrier, shared)
        return shared_leading_arrays(context, engine, lambda: moments)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_bits_are_those_of_one_process(size: int) -> None:
    moments = moments_of(whole_space(BLOCKS), gradients(UNITS))
    expected = factors_to_arrays(leading_factors(BLOCKS, moments, K_IN, K_OUT))
    for found in on_ranks(size, moments):
        assert set(found) == set(expected)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
        assert all(found[name].dtype == expected[name].dtype for name in expected)


def test_a_moment_without_eigenvectors_is_refused_on_every_rank() -> None:
    moments = moments_of(whole_space(BLOCKS), gradients(UNITS))
    broken = BlockMoments(moments[0].row * np.nan, moments[0].column * np.nan, moments[0].energy)
    with pytest.raises(UsageError, match="no eigenvectors"):
        on_ranks(2, [broken, *moments[1:]])
