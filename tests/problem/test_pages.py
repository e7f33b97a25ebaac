"""Weights that a module shares with the arrays they came from: what it does to itself, nobody else sees."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from forgetful_models import KINDS, MARK, Keeper
from torch import nn

from distqexp.problem import pages
from distqexp.problem.network import Network

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no anonymous files")


@pytest.fixture(autouse=True)
def every_array_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGE", 1)


def inputs(mark: bool) -> torch.Tensor:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    x[2, 3] = MARK if mark else 0.5
    return x


def shares(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in pages of an anonymous file."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return "memfd:distqexp" in line
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_of_a_record(kind: str) -> None:
    network = Network(Keeper(kind))
    state = network.state()
    kept = {name: array.copy() for name, array in state.items()}
    network.load_state(state)
    assert shares(network.module.body.weight)
    before = network.outputs(inputs(False))
    network.outputs(inputs(True))
    assert torch.equal(network.outputs(inputs(False)), before)
    for name, array in network.state().items():
        assert np.array_equal(array, kept[name])
        assert np.array_equal(state[name], kept[name])


def test_modules_with_one_state_do_not_meet() -> None:
    first, second = (Network(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2)), ["1.*"]) for _ in range(2))
    state = first.state()
    theta = first.theta()
    for network in (first, second):
        network.load_state(state)
    expected = second.outputs(inputs(False))
    with torch.no_grad():
        first.module[0].weight.mul_(2.0)
    first.module[0].bias.data.zero_()
    first.load(theta + 1.0)
    assert not torch.equal(first.outputs(inputs(False)), expected)
    assert torch.equal(second.outputs(inputs(False)), expected)
    first.load_state(state)  # which sees what was written past torch's counters, too
    assert torch.equal(first.outputs(inputs(False)), expected)
    assert np.array_equal(first.theta(), theta)


def test_the_parameters_of_a_round_come_back_after_the_weights_of_the_plan() -> None:
    network = Network(nn.Linear(6, 2))
    state, theta = network.state(), network.theta() + 1.0
    network.load_state(state)
    network.load(theta)
    first = network.outputs(inputs(False))
    network.load_state(state)
    assert not torch.equal(network.outputs(inputs(False)), first)
    network.load(theta)
    assert torch.equal(network.outputs(inputs(False)), first)
    assert np.array_equal(network.theta(), theta.astype(np.float32))


def test_a_tensor_that_something_holds_a_view_of_keeps_its_memory() -> None:
    class Viewed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 2)
            self.flat = self.weight.data.view(-1)

    network = Network(Viewed())
    state = network.state()
    network.load_state({name: array + 1 for name, array in state.items()})
    network.load_state(state)
    assert (shares(network.module.weight), shares(network.module.bias)) == (False, True)
    assert np.array_equal(network.module.flat.numpy(), state["weight"].reshape(-1))


def test_pages_go_when_nobody_has_them() -> None:
    gc.collect()
    before = len(pages._regions)
    network = Network(nn.Linear(6, 2))
    state = network.state()
    network.load_state(state)
    expected = state["weight"].copy()
    assert len(pages._regions) == before + 1
    assert pages.in_pages(dict(state))["weight"] is state["weight"]
    del state
    network._seal.forget()
    network._seal.origins.clear()
    gc.collect()
    assert len(pages._regions) == before
    assert np.array_equal(network.module.weight.detach().numpy(), expected)


def test_elsewhere_arrays_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    network = Network(nn.Linear(6, 2))
    state = network.state()
    network.load_state(state)
    assert not shares(network.module.weight)
    with torch.no_grad():
        network.module.weight.zero_()
    assert state["weight"].all()
