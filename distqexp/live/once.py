"""Loaders that give a record twice: without unit ids each time would count as a unit of its own, with a guarantee of its own.

What torch's own classes do is looked through here. A dataset that repeats itself, or a generator, can't be: docs/python.md says so.
"""

from __future__ import annotations

import bisect
import copy
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, DistributedSampler, IterableDataset, Subset

from distqexp.errors import UsageError

_WAY_OUT = "or batches (features, targets, ids) and the ids' name, such as unit='patient'"


def only_once(loader: DataLoader[Any], where: str) -> Iterable[Any]:
    """Return the batches of a loader, none of which holds a record that was there before.

    Args:
        loader: the loader. Its sampler is asked for indices once, by whoever walks through the result.
        where: the argument that it came in.

    Raises:
        UsageError: the loader's kind repeats records: a sampler with replacement or with padding, several workers on an IterableDataset,
            which all go through all of it, or one dataset chained to itself. Later: an index was drawn twice. No record is named.
    """
    if isinstance(loader.dataset, IterableDataset):
        _refuse_repeated_streams(loader, where)
        return loader
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        _refuse_repeating_sampler(sampler, where)
    watched: DataLoader[Any] = copy.copy(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    # A loader refuses to have its sampler set, and workers that persist hold the iterator of the old one.
    watched.__dict__.update({name: _Once(watched.__dict__[name], loader.dataset, where), "_iterator": None})
    return watched


class _Once:
    """A sampler that raises UsageError where a record of the dataset is drawn again."""

    def __init__(self, sampler: Any, dataset: Any, where: str) -> None:
        self.sampler, self.dataset, self.where = sampler, dataset, where

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        seen = _Seen()
        for drawn in self.sampler:
            several = isinstance(drawn, list | tuple | np.ndarray) or (isinstance(drawn, torch.Tensor) and drawn.ndim)
            for key in drawn if several else [drawn]:
                if seen.before(*_origin(self.dataset, key)):
                    raise UsageError(
                        f"{self.where}: its sampler, or a dataset that stands in it twice, gives a record a second time; expected each "
                        f"record once, {_WAY_OUT}"
                    )
            yield drawn


class _Seen:
    """Which records of which datasets were there: a byte for each, as there may be millions."""

    def __init__(self) -> None:
        self._flags: dict[int, bytearray] = {}
        self._others: set[Any] = set()

    def before(self, dataset: Any, key: Any) -> bool:
        """Return whether this record was there before, and note it."""
        if not isinstance(key, int) or key < 0:
            found = (id(dataset), key) in self._others
            self._others.add((id(dataset), key))
            return found
        flags = self._flags.setdefault(id(dataset), bytearray())
        if key >= len(flags):
            flags.extend(bytes(max(key + 1 - len(flags), len(flags))))
        found, flags[key] = bool(flags[key]), 1
        return found


def _origin(dataset: Any, key: Any) -> tuple[Any, Any]:
    """Return the innermost dataset that a record comes from, and its place there."""
    try:
        key = operator.index(key)
    except TypeError:
        return dataset, key
    while isinstance(dataset, ConcatDataset | Subset):
        key += len(dataset) if key < 0 else 0
        if isinstance(dataset, Subset):
            dataset, key = dataset.dataset, operator.index(dataset.indices[key])
        else:
            place = bisect.bisect_right(dataset.cumulative_sizes, key)
            before = dataset.cumulative_sizes[place - 1] if place else 0
            dataset, key = dataset.datasets[place], key - before
    if key < 0 and hasattr(dataset, "__len__"):
        key += len(dataset)
    return dataset, key


def _refuse_repeating_sampler(sampler: Any, where: str) -> None:
    if getattr(sampler, "replacement", False):
        raise UsageError(
            f"{where}: its sampler ({type(sampler).__name__}) draws with replacement, so that a record counts several times; expected each "
            f"record once: leave the sampler out, {_WAY_OUT}"
        )
    if isinstance(sampler, DistributedSampler) and sampler.total_size > len(sampler.dataset):  # type: ignore[arg-type]
        raise UsageError(
            f"{where}: its DistributedSampler gives some records to two ranks, so that all have equally many; expected each record "
            f"once: drop_last=True, or a Subset for each rank, {_WAY_OUT}"
        )


def _refuse_repeated_streams(loader: DataLoader[Any], where: str) -> None:
    if loader.num_workers > 1:
        raise UsageError(
            f"{where}: an IterableDataset with {loader.num_workers} workers, each of which goes through all records unless the dataset "
            f"shares them out, which can't be seen; expected one: num_workers=0, or a Dataset with __getitem__, {_WAY_OUT}"
        )
    chained = loader.dataset.datasets if isinstance(loader.dataset, ChainDataset) else ()
    if isinstance(chained, list | tuple) and len({id(dataset) for dataset in chained}) < len(chained):
        raise UsageError(f"{where}: a ChainDataset with one dataset in it twice; expected each record once, {_WAY_OUT}")
