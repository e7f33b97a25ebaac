"""Models that couple the records of a batch, or seem to."""

from __future__ import annotations

import torch
from torch import nn


class StubbornNorm(nn.BatchNorm1d):
    """Batch normalisation that stays in training mode."""

    def train(self, mode: bool = True) -> StubbornNorm:
        super().train(True)
        return self


class StubbornDropout(nn.Dropout):
    """Dropout that stays active."""

    def train(self, mode: bool = True) -> StubbornDropout:
        super().train(True)
        return self


class Centred(nn.Module):
    """Subtracts the mean over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0, keepdim=True)


class Outer(nn.Module):
    """Couples the records in its own forward, not in a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x) / (1 + x.abs().max())
        return found


class Counter(nn.Module):
    """Counts its calls in a buffer; ``shown``: and lets it be seen."""

    def __init__(self, shown: bool) -> None:
        super().__init__()
        self.shown = shown
        self.layer = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        found: torch.Tensor = self.layer(x)
        return found + self.calls if self.shown else found


class Mixed(nn.Module):
    """Attention over the batch: the order of the dimensions mistaken."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(x, x, x)
        found: torch.Tensor = self.head(mixed.mean(dim=1))
        return found


class Short(nn.Module):
    """Takes a short cut where no record of the batch has padding; the results differ in their last bits alone."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 64)  # so many that some last bit differs

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        ids, mask = records.unbind(dim=1)
        words = self.words(ids)
        if bool(mask.all()):
            return words.mean(dim=1)
        return (words * (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(2)).sum(dim=1)


def stubborn() -> nn.Module:
    """The factory of a config here."""
    return nn.Sequential(nn.Linear(6, 4), StubbornNorm(4), nn.Linear(4, 3))
