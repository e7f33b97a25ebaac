"""A small model of tokens."""

from __future__ import annotations

import torch
from token_files import LENGTH, VOCABULARY
from torch import nn


class Reader(nn.Module):
    """Mean of the embeddings of the tokens that are seen, times positions' own: (n, 2, L) -> (n, 3)."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.places = nn.Embedding(LENGTH, 4)
        self.words = nn.Embedding(vocabulary, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        seen = records[:, 1].unsqueeze(2)
        both = self.words(records[:, 0]) * self.places(torch.arange(records.shape[2])).unsqueeze(0)
        logits: torch.Tensor = self.head((both * seen).sum(dim=1) / seen.sum(dim=1))
        return logits


def reader(vocabulary: int = VOCABULARY) -> nn.Module:
    """The factory of the configs here."""
    return Reader(vocabulary)
