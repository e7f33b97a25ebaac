"""The frozen part of a model: found where rounds can do without the whole, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distqexp.problem import models
from distqexp.problem.frozen import frozen_part
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema


class Model(nn.Module):
    """A body, a head, and what ``kind`` says about how they go together."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.head = nn.Linear(4, 4)  # first, so that a tied weight bears its name
        self.body = nn.Linear(4, 4)
        self.head.requires_grad_(False)
        if kind == "tied":
            self.body.weight = self.head.weight
        with torch.no_grad():
            self.head.weight.mul_(kind == "tied")
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.body(x))
        if self.kind == "skip":
            return self.head(hidden) + hidden
        if self.kind == "scaled":
            return 2 * self.head(hidden)
        if self.kind == "twice":
            return self.head(self.head(hidden))
        if self.kind == "clamp":
            return self.head(hidden).clamp(-20, 20)
        if self.kind == "in place":
            return self.head(hidden).relu_()
        if self.kind == "refuses":
            torch.linalg.cholesky(self.head.weight + torch.eye(4))
        if self.kind == "keyword":
            return self.head(input=hidden)
        return self.head(hidden)


def schema_of(count: int) -> Schema:
    names = tuple(f"x{i}" for i in range(count))
    return Schema(loss="cross-entropy", image=False, names=names, shape=(count,), classes=4)


def test_the_head_on_the_features_is_the_model() -> None:
    torch.manual_seed(1)
    network = Network(Model("plain"), ["head.*"])
    part = frozen_part(network, schema_of(4))
    assert part is not None
    assert part.shape == (4,)
    network.load(torch.randn(network.d))
    inputs = torch.randn(7, 4)
    features = part.features(inputs)
    assert torch.equal(features, torch.tanh(network.module.body(inputs)).detach())
    assert torch.equal(part.head.outputs(features), network.outputs(inputs))
    assert [shape for _, shape in part.head.names_shapes] == [shape for _, shape in network.names_shapes]
    assert (part.head.theta() == network.theta()).all()


@pytest.mark.parametrize("kind", ["skip", "scaled", "twice", "keyword", "tied", "clamp", "in place", "refuses"])
def test_no_part_is_split_off_where_the_outputs_need_more_than_the_head(kind: str) -> None:
    """The head is zero, so that a model with it alone would look right at the start."""
    torch.manual_seed(2)
    assert frozen_part(Network(Model(kind), ["head.*"]), schema_of(4)) is None


def test_nothing_is_frozen_below_a_whole_model_or_a_model_of_one_layer() -> None:
    assert frozen_part(Network(models.mlp(4, 4, [3])), schema_of(4)) is None
    assert frozen_part(Network(Model("plain"), ["*.weight"]), schema_of(4)) is None
    assert frozen_part(Network(models.logistic(4, 4)), schema_of(4)) is None
