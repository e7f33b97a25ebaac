"""Batches of synthetic records that agree in one record, to try whether a model keeps that one apart from the others. Public."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

RECORDS = 5
"""How many records are tried in any case."""

FIXED = -1
"""The record that stays as it is while the others change: the last, which whatever fills up first leaves out."""

_SEED = 5_641
_EXTREMES = (1e3, -1e3, 1e6, 1e30, float("nan"))


class Batches(NamedTuple):
    """Batches (n, ...) that agree in the fixed record.

    Attributes:
        first: A batch.
        others: The same with ordinary records in the place of all others.
        extremes: The same with an extreme record in the place of another.
    """

    first: torch.Tensor
    others: list[torch.Tensor]
    extremes: list[torch.Tensor]


def few_records(shape: tuple[int, ...]) -> Iterator[Batches]:
    """Yield a few records of about normal numbers, with each extreme on its own."""
    batch, others = _normal(RECORDS, shape)
    alike = [batch[FIXED], -batch[FIXED], others[0], torch.zeros(shape)]
    yield Batches(
        batch,
        [_with_fixed(batch, part) for part in [others, *alike]],
        [_with_first(batch, value) for value in _EXTREMES],
    )


def many_records(count: int, shape: tuple[int, ...]) -> Batches:
    """Return a micro-batch, and few others: passes of many records through a large model take seconds.

    Where all others are alike, a layer that sends records different ways sends them the same way: the fixed record's or another.
    """
    batch, others = _normal(count, shape)
    extreme = batch.clone()
    finite = [value for value in _EXTREMES if math.isfinite(value)]
    for number, value in enumerate(finite[: count - 1]):
        extreme[number] = value
    alike = [batch[FIXED], -batch[FIXED], others[0], torch.zeros(shape)]
    return Batches(batch, [_with_fixed(batch, part) for part in [others, *alike]], [extreme])


def few_tokens(shape: tuple[int, ...], vocabulary: int) -> Iterator[Batches]:
    """Yield a few records of tokens and masks, (n, 2, L): full ones, partly masked ones, all alike, and almost blank."""
    numbers, full, partly = _tokens(RECORDS, shape[-1], vocabulary)
    blank = torch.stack([torch.zeros_like(full), _until(shape[-1], torch.ones_like(full[:, :1]))], dim=1)
    for mask in (full, partly):
        batch = torch.stack([numbers[0], mask], dim=1)
        variants = [torch.stack([numbers[1], other], dim=1) for other in (full, partly)]
        alike = [batch[FIXED], variants[0][0]]
        yield Batches(batch, [_with_fixed(batch, part) for part in [*variants, blank, *alike]], [])


def many_tokens(count: int, shape: tuple[int, ...], vocabulary: int) -> Batches:
    """Return a micro-batch of tokens and masks, and few others; see ``many_records``."""
    numbers, full, partly = _tokens(count, shape[-1], vocabulary)
    batch, others = torch.stack([numbers[0], full], dim=1), torch.stack([numbers[1], partly], dim=1)
    alike = [batch[FIXED], batch[0], others[1]]
    return Batches(batch, [_with_fixed(batch, part) for part in [others, *alike]], [])


def _normal(count: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    batch = torch.randn(count, *shape, generator=generator)
    return batch, 4 * torch.randn(count, *shape, generator=generator) + 1


def _tokens(count: int, length: int, vocabulary: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return two sets of tokens, a mask of ones, and one that ends somewhere, (n, L) each."""
    generator = torch.Generator().manual_seed(_SEED)
    numbers = [torch.randint(0, vocabulary, (count, length), generator=generator) for _ in range(2)]
    cuts = torch.randint(1, length + 1, (count, 1), generator=generator)
    return numbers, torch.ones(count, length, dtype=torch.int64), _until(length, cuts)


def _until(length: int, cuts: torch.Tensor) -> torch.Tensor:
    return (torch.arange(length) < cuts).to(torch.int64)


def _with_fixed(batch: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    mixture = others.expand_as(batch).clone()
    mixture[FIXED] = batch[FIXED]
    return mixture


def _with_first(batch: torch.Tensor, value: float) -> torch.Tensor:
    mixture = batch.clone()
    mixture[0] = value
    return mixture


__all__ = ["FIXED", "RECORDS", "Batches", "few_records", "few_tokens", "many_records", "many_tokens"]
