"""The check of gradients on noise: it refuses before the first charge only, and not for rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distqexp.errors import UsageError
from distqexp.gradients.layers import block_layout
from distqexp.gradients.layers import check as check_module
from distqexp.gradients.layers.check import checked_taps
from distqexp.problem.network import Network


class Rounded(nn.Module):
    """One parameter's gradient is rounding alone: two large terms that cancel, up to noise of float32."""

    def __init__(self, rest: float) -> None:
        super().__init__()
        self.layer, self.idle, self.rest = nn.Linear(4, 3), nn.Linear(4, 3), rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.rest * self.idle(x)


def wrong(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Make the taps' gradients of the last parameters wrong by ``error`` times the network's."""
    true = check_module._vectors

    def off(*arguments: Any, start: torch.Tensor) -> torch.Tensor:
        size = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        gradients = true(*arguments, start=start)
        gradients[:, -3:] += error * size
        return gradients

    monkeypatch.setattr(check_module, "_vectors", off)


def test_rounding_of_the_networks_size_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    network, record = Network(Rounded(1e-7)), torch.zeros(1, 4)
    wrong(monkeypatch, 1e-5)  # a hundred times the idle layer's own gradient
    assert checked_taps(network, block_layout(network), record, may_refuse=True).routing.fallbacks == {}


def test_a_difference_is_refused_before_the_first_charge_and_never_after(monkeypatch: pytest.MonkeyPatch) -> None:
    network, record = Network(Rounded(1.0)), torch.zeros(1, 4)
    blocks = block_layout(network)
    wrong(monkeypatch, 0.1)
    with pytest.raises(UsageError, match="differs between a batch and its records alone"):
        checked_taps(network, blocks, record, may_refuse=True)
    taps = checked_taps(network, blocks, record, may_refuse=False)
    assert taps.routing.fallbacks  # every record by itself, by torch.func
