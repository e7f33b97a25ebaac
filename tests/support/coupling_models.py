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


class Experts(nn.Module):
    """Sends each record to one of two experts, which takes 16 of a batch and leaves the others out."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.router = nn.Linear(6, 2)
            self.experts = nn.ModuleList([nn.Linear(6, 3) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.router(x), dim=-1)
        found = torch.zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            mine = weights.argmax(dim=-1) == number
            found = found + expert(x) * (weights[:, number] * (mine & (mine.cumsum(0) <= 16)))[:, None]
        return found


class Crowded(nn.Module):
    """Subtracts the mean over the batch where it has more than 8 records; ``backwards``: in the gradient alone."""

    def __init__(self, backwards: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.backwards = nn.Linear(6, 4), nn.Linear(4, 3), backwards

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x)
        if len(x) > 8 and self.backwards and hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient - gradient.mean(dim=0, keepdim=True))
        elif len(x) > 8 and not self.backwards:
            hidden = hidden - hidden.mean(dim=0, keepdim=True)
        found: torch.Tensor = self.head(torch.tanh(hidden))
        return found


class Largest(nn.Module):
    """Divides by the largest number that it has met, in an attribute or a buffer; or is silent for good after a large one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(6, 3)
        self.largest, self.good = 50.0, True
        self.register_buffer("bound", torch.full((), 50.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "number":
            self.largest = max(self.largest, float(x.abs().max()))
            x = x / self.largest
        found: torch.Tensor = self.layer(x)
        if self.kind == "buffer":
            self.bound.clamp_(min=float(x.abs().nan_to_num().max()))
        elif self.kind == "switch":
            found = found if self.good else 0 * found
            self.good = self.good and not bool((x.abs() > 1e4).any())
        return found


class Steep(nn.Module):
    """Gives what isn't finite for extreme records, raises for some, and keeps its last hidden values to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)
        self.shown: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x.abs() > 1e20).any()):
            raise ValueError("out of range")
        self.shown = torch.exp(self.body(x)) + torch.log1p(x.square()).sum(dim=1, keepdim=True)
        found: torch.Tensor = self.head(self.norm(self.shown))
        return found
