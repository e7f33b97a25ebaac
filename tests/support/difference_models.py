"""Tiny models for the audit by difference: of numbers, of images, of tokens, in float32 or float64."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


def tabular(inputs: int, outputs: int, hidden: int = 0, bias: bool = True, double: bool = False) -> nn.Module:
    """A linear model, or a perceptron of one hidden layer with a smooth activation."""
    layers: list[nn.Module] = [nn.Flatten()]
    if hidden:
        layers += [nn.Linear(inputs, hidden, bias=bias), nn.Tanh()]
    module = nn.Sequential(*layers, nn.Linear(hidden or inputs, outputs, bias=bias))
    return module.double() if double else module


def images(side: int, outputs: int, convolution: bool = False, double: bool = False) -> nn.Module:
    """Of images (1, side, side): linear, or one convolution, which every record passes at many positions."""
    if not convolution:
        return tabular(side * side, outputs, double=double)
    inner = side - 2
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * inner * inner, outputs))
    return module.double() if double else module


class Tokens(nn.Module):
    """The mean of the embedded tokens that the mask leaves, then a linear layer; records (n, 2, L) of tokens and mask."""

    def __init__(self, vocabulary: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """(n, 2, L) to (n, outputs)."""
        embedded = self.embedding(records[:, 0])
        mask = records[:, 1].to(embedded.dtype).unsqueeze(2)
        mean = (embedded * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return cast(torch.Tensor, self.head(mean))


def tokens(vocabulary: int, width: int, outputs: int, double: bool = False) -> nn.Module:
    """See Tokens."""
    module = Tokens(vocabulary, width, outputs)
    return module.double() if double else module
