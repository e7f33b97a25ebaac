"""Models that only the benchmarks use."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class EncoderBlock(nn.Module):
    """One layer of a transformer encoder, norms first, of nn.Linear and nn.LayerNorm alone.

    Opacus has rules for those as they are, so that every way to take a pass runs the very same module.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projection, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, length, width) -> the same shape."""
        n, length, width = x.shape
        parts = self.projection(self.first_norm(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.output(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(functional.gelu(self.up(self.second_norm(x))))


class Encoder(nn.Module):
    """Encoder blocks, a norm, the mean over positions, a linear head."""

    def __init__(self, width: int, layers: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, 4 * width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, length, width) -> (n, outputs)."""
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def encoder(width: int = 256, layers: int = 6, heads: int = 4, outputs: int = 10) -> nn.Module:
    """A transformer encoder on vectors (n, length, width), hidden layers four times as wide."""
    return Encoder(width, layers, heads, outputs)
