"""The modules that the tasks of the bank begin with: what somebody would write for such records."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Maker = Callable[[], nn.Module]


class Words(nn.Module):
    """A tiny transformer over the tokens and the mask of a text, int64 (n, 2, L); without ``attention`` the mean of embeddings."""

    def __init__(self, vocabulary: int, width: int = 16, attention: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True) if attention else None
        self.head = nn.Linear(width, 2)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 2)."""
        tokens, mask = records[:, 0], records[:, 1] > 0
        hidden = self.embedding(tokens)
        if self.attention is not None:
            hidden = hidden + self.attention(hidden, hidden, hidden, key_padding_mask=~mask, need_weights=False)[0]
        weights = mask.to(hidden.dtype)[..., None]
        return self.head((hidden * weights).sum(dim=1) / weights.sum(dim=1))


class OnFrozenBody(nn.Module):
    """A body that stays as it is below a new head."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        for parameter in self.body.parameters():
            parameter.requires_grad_(False)
        self.head = nn.Linear(width, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (n, outputs)."""
        return self.head(self.body(features))


def linear(inputs: int, outputs: int) -> Maker:
    """One linear layer."""
    return lambda: nn.Linear(inputs, outputs)


def layers(inputs: int, *sizes: int) -> Maker:
    """Fully connected layers of these sizes."""

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        before = inputs
        for size in sizes:
            parts += [nn.Linear(before, size), nn.ReLU()]
            before = size
        return nn.Sequential(*parts[:-1])

    return make


def flattened(inputs: int, *sizes: int) -> Maker:
    """The same for images."""
    return lambda: nn.Sequential(nn.Flatten(), *layers(inputs, *sizes)())


def frozen_body(inputs: int, width: int, outputs: int) -> Maker:
    """A random layer that stays as it is, below a new head."""
    return lambda: OnFrozenBody(nn.Sequential(nn.Linear(inputs, width), nn.ReLU()), width, outputs)


def convolutions(side: int, outputs: int, width: int = 8) -> Maker:
    """A small network of one's own for images (1, side, side), of ``width`` and twice as many channels."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, outputs),
    )  # fmt: skip
