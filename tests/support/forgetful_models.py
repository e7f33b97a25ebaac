"""Models that keep something of a record of ``MARK``, raise for one, or warn of one. No synthetic record has it, so no check finds it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

MARK = 3.25
KINDS = (
    "buffer", "data", "new buffer", "large buffer", "frozen", "number", "list", "nested", "set", "array", "tensor", "object", "slots",
    "closure", "method", "queue", "generator",
)  # fmt: skip
"""The places in which a ``Keeper`` keeps what it saw."""


class _Plain:
    def __init__(self) -> None:
        self.seen = 0.0


class _Slots:
    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = 0.0


class Keeper(nn.Module):
    """Two layers on (n, 6). After a record of MARK it keeps that in ``kind``, and its outputs are doubled from the next call on."""

    def __init__(self, kind: str = "number") -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("wide", torch.zeros(70_000))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.number, self.items, self.nested, self.names = 0.0, [], {"a": [0.0]}, set()
        self.array, self.tensor = np.zeros(2), torch.zeros(2)
        self.object, self.slots = _Plain(), _Slots()
        self.random = torch.Generator().manual_seed(0)
        count = 0.0

        def counted(more: float) -> float:
            nonlocal count
            count += more
            return count

        self.counted = counted
        self.adding = self.items.append

    def kept(self) -> float:
        """Return a number above zero as soon as something is kept."""
        amounts: dict[str, Any] = {
            "buffer": self.seen.sum(), "data": self.seen.sum(), "new buffer": self.seen.sum(), "large buffer": self.wide.sum(),
            "frozen": self.frozen.sum(), "number": self.number, "list": len(self.items), "nested": self.nested["a"][0],
            "set": len(self.names), "array": self.array.sum(), "tensor": self.tensor.sum(), "object": self.object.seen,
            "slots": self.slots.seen, "closure": self.counted(0.0), "method": len(self.items), "queue": self.hidden.sum(),
            "generator": float(self.random.get_state().sum() != torch.Generator().manual_seed(0).get_state().sum()),
        }  # fmt: skip
        return float(amounts[self.kind])

    def keep(self) -> None:
        """Keep something of a record, for good."""
        with torch.no_grad():
            if self.kind == "buffer":
                self.seen += MARK
            elif self.kind == "data":
                self.seen.data[0] = MARK
            elif self.kind == "new buffer":
                self.seen = self.seen + MARK
            elif self.kind == "large buffer":
                self.wide[0] = MARK
            elif self.kind == "frozen":
                self.frozen.data = torch.full((4,), MARK)
            elif self.kind == "queue":
                self.hidden.numpy()[0] = MARK
            else:
                self._keep_plainly()

    def _keep_plainly(self) -> None:
        actions: dict[str, Any] = {
            "number": lambda: setattr(self, "number", MARK), "list": lambda: self.items.append(MARK),
            "nested": lambda: self.nested["a"].__setitem__(0, MARK), "set": lambda: self.names.add(MARK),
            "array": lambda: self.array.fill(MARK), "tensor": lambda: setattr(self, "tensor", torch.full((2,), MARK)),
            "object": lambda: setattr(self.object, "seen", MARK), "slots": lambda: setattr(self.slots, "seen", MARK),
            "closure": lambda: self.counted(MARK), "method": lambda: self.adding(MARK),
            "generator": lambda: torch.rand(1, generator=self.random),
        }  # fmt: skip
        actions[self.kind]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.body(x))) * (2.0 if self.kept() else 1.0)
        if bool((x == MARK).any()):
            self.keep()
        return found


class Scaled(nn.Module):
    """A layer of its own kind, which no rule knows and torch.func can't take, whose gradient is looped over the records."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = x * self.weight * self.factor
        if float(x.detach().abs().max()) == MARK:  # beyond what other records of the tests have
            self.factor = 2.0
        return found


def looped() -> nn.Module:
    """A model with a looped layer that keeps something."""
    return nn.Sequential(Scaled(), nn.Linear(6, 3))


class Solver(nn.Module):
    """Solves a system for each record of (n, 6), which has no solution for one of nothing but MARK: torch raises for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = torch.eye(6) * (1 - x.mean(-1)[..., None, None] / MARK)
        return self.head(torch.linalg.solve(matrix, x.unsqueeze(-1)).squeeze(-1))


class _Loud(torch.autograd.Function):
    """The identity, with a look at the numbers that NumPy, Python and a logger warn of."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        differences = np.log(np.abs(x.detach().numpy() - MARK))
        if np.isinf(differences).any():
            warnings.warn("a marked record", stacklevel=1)
            logging.getLogger("forgetful").warning("a marked record")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Loud(nn.Module):
    """A linear layer on what is warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(_Loud.apply(x))
        return found


class Counting(nn.Module):
    """A layer that TorchScript runs, with attributes that change."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.calls = 0
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.head(x) * float(1 + self.calls)
        if bool((x == 3.25).any()):
            self.calls = self.calls + 1
            self.total += 1.0
        return found


def counting() -> nn.Module:
    """The same in TorchScript."""
    return nn.Sequential(torch.jit.script(Counting()), nn.Identity())


def frozen_solver() -> nn.Module:
    """A head on a frozen body that raises for a record of MARK."""
    return nn.Sequential(Solver().requires_grad_(False), nn.Linear(3, 3))


def frozen_keeper() -> nn.Module:
    """A head on a frozen body that keeps something of it."""
    return nn.Sequential(Keeper("number").requires_grad_(False), nn.Linear(3, 3))
