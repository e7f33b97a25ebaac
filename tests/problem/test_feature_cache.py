"""Features of public records in memory: found by what a batch holds, made once, and never more than there is room for."""

from __future__ import annotations

import pytest
import torch

from distqexp.problem.feature_cache import FeatureCache


class Doubling:
    """A frozen part that doubles its inputs, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return 2.0 * inputs


def test_a_batch_is_made_once() -> None:
    cache, made = FeatureCache(), Doubling()
    batch = torch.arange(12.0).reshape(4, 3)
    first, again = cache.of(batch, made), cache.of(batch.clone(), made)
    assert made.calls == 1
    torch.testing.assert_close(first, 2.0 * batch, rtol=0, atol=0)
    torch.testing.assert_close(again, 2.0 * batch, rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([[0.0, 1.0], [2.0, 3.0000002]]),
        torch.tensor([[2.0, 3.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 1.0, 2.0, 3.0]]),
        torch.tensor([[0, 1], [2, 3]]),
        torch.tensor([[-0.0, 1.0], [2.0, 3.0]]),
    ],
    ids=["last bit", "order", "shape", "type", "sign of zero"],
)
def test_any_other_batch_is_another(other: torch.Tensor) -> None:
    cache, made = FeatureCache(), Doubling()
    cache.of(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), made)
    torch.testing.assert_close(cache.of(other, made), 2.0 * other, rtol=0, atol=0)
    assert made.calls == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_batches_of_every_type_are_found(dtype: torch.dtype) -> None:
    cache, made = FeatureCache(), Doubling()
    batch = torch.ones(3, 5).to(dtype)
    cache.of(batch, made)
    cache.of(batch.t().contiguous().t(), made)  # the same numbers, laid out otherwise
    assert made.calls == 1


def test_the_oldest_goes_where_there_is_no_room() -> None:
    size = 4 * 3 * 4
    cache, made = FeatureCache(largest=2 * size), Doubling()
    one, two, three = (torch.full((4, 3), float(number)) for number in range(3))
    cache.of(one, made)
    cache.of(two, made)
    cache.of(one, made)  # asked for again: two is the oldest now
    cache.of(three, made)
    assert made.calls == 3
    cache.of(one, made)
    cache.of(three, made)
    assert made.calls == 3
    cache.of(two, made)
    assert made.calls == 4


def test_what_never_fits_is_not_kept_and_drives_nothing_out() -> None:
    cache, made = FeatureCache(largest=100), Doubling()
    small, large = torch.ones(4, 3), torch.ones(400, 3)
    cache.of(small, made)
    cache.of(large, made)
    cache.of(large, made)
    cache.of(small, made)
    assert made.calls == 3


def test_forgotten_features_are_made_again() -> None:
    cache, made = FeatureCache(), Doubling()
    cache.of(torch.ones(4, 3), made)
    cache.clear()
    cache.of(torch.ones(4, 3), made)
    assert made.calls == 2
