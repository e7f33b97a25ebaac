"""Records in memory and modules of a script's own, for fits without a config file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

WEIGHTS = np.array([1.5, -2.0, 1.0, 0.5])
SETTINGS: dict[str, Any] = {"mechanism.clip_natural": 1.0, "mechanism.rounds": 2, "engine.micro_batch": 32}
BUDGET: dict[str, Any] = {"epsilon": 4.0, "delta": 1e-5, "settings": SETTINGS}


def records(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features (n, 4) and labels 0 or 1, (n,)."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, len(WEIGHTS)))
    return features, (features @ WEIGHTS + random.normal(size=count) > 0).astype(np.int64)


PRIVATE, PUBLIC, EVALUATION = records(1, 400), records(2, 120), records(3, 300)


class OwnNet(nn.Module):
    """A module that is not made of torch's own layers alone."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 4) to (n, outputs)."""
        return self.head(torch.tanh(self.body(inputs)))


def linear(outputs: int = 2) -> nn.Sequential:
    """A linear model that starts at zero."""
    module = nn.Sequential(nn.Linear(4, outputs))
    nn.init.zeros_(module[0].weight)
    nn.init.zeros_(module[0].bias)
    return module


def unequal(one: nn.Module, other: nn.Module) -> list[str]:
    """The parameters in which two modules of one kind differ."""
    second = dict(other.named_parameters())
    return [name for name, value in one.named_parameters() if not torch.equal(value, second[name])]
