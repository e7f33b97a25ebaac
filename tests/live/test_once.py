"""Loaders that give a record twice: refused where each record is a unit, taken where ids say whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from live_records import BUDGET, PRIVATE, PUBLIC, linear
from torch.utils.data import (
    BatchSampler,
    ChainDataset,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

import distqexp
from distqexp.errors import UsageError
from distqexp.live.batches import Roles, batches_of
from distqexp.live.once import only_once

pytestmark = pytest.mark.process  # workers of loaders

COUNT = 40
RECORDS = TensorDataset(torch.arange(COUNT).float()[:, None], torch.arange(COUNT) % 2)
OTHERS = TensorDataset(torch.arange(COUNT).float()[:, None] + COUNT, torch.arange(COUNT) % 2)
WITH_IDS = TensorDataset(*RECORDS.tensors, torch.arange(COUNT) // 4)


class Stream(IterableDataset[Any]):
    """All records, in every worker that asks."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(*RECORDS.tensors, strict=True)


STREAM = Stream()
REPEATING: dict[str, Callable[[], Any]] = {
    "weighted": lambda: DataLoader(RECORDS, sampler=WeightedRandomSampler(torch.ones(COUNT), COUNT)),
    "replacement": lambda: DataLoader(RECORDS, sampler=RandomSampler(RECORDS, replacement=True, num_samples=1)),
    "in batches": lambda: DataLoader(RECORDS, batch_sampler=BatchSampler(RandomSampler(RECORDS, replacement=True), 8, False)),
    "several times round": lambda: DataLoader(RECORDS, sampler=RandomSampler(RECORDS, num_samples=COUNT + 1)),
    "padding": lambda: DataLoader(RECORDS, sampler=DistributedSampler(RECORDS, num_replicas=3, rank=0)),
    "own sampler": lambda: DataLoader(RECORDS, sampler=[3, 5, 3]),
    "one by one": lambda: DataLoader(RECORDS, batch_size=None, sampler=[3, 5, 3]),
    "own batches": lambda: DataLoader(RECORDS, batch_sampler=[[3, 4], [5, 3]]),
    "from the end": lambda: DataLoader(RECORDS, sampler=[3, 3 - COUNT]),
    "concatenated": lambda: ConcatDataset([RECORDS, OTHERS, RECORDS]),
    "a subset of itself": lambda: Subset(RECORDS, [1, 2, 1]),
    "overlapping subsets": lambda: ConcatDataset([Subset(RECORDS, range(9)), Subset(RECORDS, range(8, 12))]),
    "nested": lambda: DataLoader(ConcatDataset([Subset(ConcatDataset([OTHERS, RECORDS]), [COUNT]), RECORDS]), batch_size=8),
    "workers": lambda: DataLoader(STREAM, num_workers=2),
    "chained": lambda: DataLoader(ChainDataset([STREAM, STREAM])),
    "a chain": lambda: ChainDataset([STREAM, STREAM]),
}  # fmt: skip
ONCE: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(RECORDS, batch_size=7),
    "shuffled": lambda: DataLoader(RECORDS, batch_size=7, shuffle=True),
    "a part": lambda: DataLoader(RECORDS, sampler=RandomSampler(RECORDS, num_samples=9)),
    "one worker": lambda: DataLoader(STREAM, num_workers=1),
    "a stream": lambda: STREAM,
    "two of them": lambda: ConcatDataset([RECORDS, OTHERS]),
    "parts": lambda: ConcatDataset(random_split(RECORDS, [0.5, 0.5])),
    "own batches": lambda: DataLoader(RECORDS, batch_sampler=[[3, 4], [5, 6]]),
    "one by one": lambda: DataLoader([(torch.ones(1, 1), torch.ones(1))] * 3, batch_size=None),
    "padding": lambda: DataLoader(RECORDS, sampler=DistributedSampler(RECORDS, num_replicas=3, rank=0, drop_last=True)),
    "persistent workers": lambda: DataLoader(RECORDS, batch_size=8, num_workers=2, persistent_workers=True),
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATING)
def test_a_loader_that_repeats_records_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^private: .*unit='patient'"):
        list(batches_of(REPEATING[name](), Roles("private")))


@pytest.mark.parametrize("name", ONCE)
def test_a_loader_that_gives_each_record_once_is_as_it_was(name: str) -> None:
    """The order of a shuffling loader is that which it had by itself."""
    data = ONCE[name]()
    torch.manual_seed(1)
    given = [batch.features for batch in batches_of(data, Roles("private"))]
    torch.manual_seed(1)
    expected = [np.asarray(item[0]) for item in (data if isinstance(data, DataLoader) else DataLoader(data))]
    np.testing.assert_array_equal(np.concatenate(given), np.concatenate(expected))


def test_where_ids_are_or_records_are_public_they_may_come_again() -> None:
    again = DataLoader(WITH_IDS, batch_size=8, sampler=WeightedRandomSampler(torch.ones(COUNT), COUNT))
    assert sum(len(batch.features) for batch in batches_of(again, Roles("private", unit="patient"))) == COUNT
    public = DataLoader(RECORDS, batch_size=8, sampler=[3, 3])
    assert sum(len(batch.features) for batch in batches_of(public, Roles("public", private=False))) == 2


def test_a_sampler_is_asked_once_and_the_loader_stays_as_it_was() -> None:
    rounds = list[int]()

    class Counting(RandomSampler):
        def __iter__(self) -> Iterator[int]:
            rounds.append(1)
            yield from super().__iter__()

    loader = DataLoader(RECORDS, batch_size=8, sampler=Counting(RECORDS))
    before = dict(loader.__dict__)
    assert len(list(only_once(loader, "private"))) == 5
    assert rounds == [1]
    assert loader.__dict__ == before


def test_a_fit_refuses_them_before_any_charge() -> None:
    records = TensorDataset(torch.from_numpy(PRIVATE[0]), torch.from_numpy(PRIVATE[1]))
    with pytest.raises(UsageError, match=r"^private: its sampler .*WeightedRandomSampler"):
        distqexp.fit(
            linear(), DataLoader(records, sampler=WeightedRandomSampler(torch.ones(400), 400)), public=PUBLIC,
            callback=lambda _: None, **BUDGET,
        )  # fmt: skip
