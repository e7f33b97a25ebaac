"""Models in which the records of a batch meet, or chance plays a part, are found out and named."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from coupling_models import (
    Centred,
    Counter,
    Crowded,
    Experts,
    Largest,
    Mixed,
    Outer,
    Short,
    Steep,
    StubbornDropout,
    stubborn,
)
from small_runs import make_config, plan_of, random_table
from torch import nn

from distqexp.config import config_from_tree, config_to_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.gradients.layers import block_layout
from distqexp.gradients.layers.check import checked_taps
from distqexp.problem.independence import refuse_coupling
from distqexp.problem.models import cnn, logistic, mlp
from distqexp.problem.network import Network
from distqexp.stages import shards as shards_stage
from distqexp.stages.shards import open_shards


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (stubborn(), (6,), r"1 \(StubbornNorm\) couples the records .*group or layer normalisation"),
        (
            nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), Centred()), nn.Linear(4, 3)),
            (6,),
            r"1\.1 \(Centred\) couples",
        ),
        (Outer(), (6,), r"the model itself \(Outer\) couples"),
        (Mixed(False), (3, 4), r"attention \(MultiheadAttention\) couples .*batch_first"),
        (
            nn.Sequential(nn.Linear(6, 4), StubbornDropout(), nn.Linear(4, 3)),
            (6,),
            r"1 \(StubbornDropout\) gives another",
        ),
        (nn.Sequential(nn.RReLU(), nn.Linear(6, 3)).train(), (6,), None),
        (Counter(True), (6,), r"\(Counter\) gives another output"),
        (Counter(False), (6,), r"its buffer calls changes"),
        (nn.Linear(5, 3), (6,), r"refuses a batch of 5 records"),
        (nn.Flatten(0), (6,), r"a row a record"),
    ],
)
def test_what_is_refused_and_what_it_is_called(module: nn.Module, shape: tuple[int, ...], words: str | None) -> None:
    if words is None:  # evaluation mode is set by the network: fine after all
        refuse_coupling(Network(module), shape, False, None)
        return
    if not list(module.parameters()):
        module = nn.Sequential(nn.Linear(6, 6), module)
    network = Network(module)
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    state = torch.random.get_rng_state()
    with pytest.raises(UsageError, match=words) as caught:
        refuse_coupling(network, shape, False, None)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.module.named_buffers())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (logistic(6), (6,)),
        (mlp(64, 10), (1, 8, 8)),
        (cnn(), (1, 28, 28)),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)), (6,)),
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), (6,)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Flatten()), (2, 5, 5)),
        (Mixed(True), (3, 4)),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten()), (5, 4)),
    ],
)
def test_models_that_keep_records_apart_pass(module: nn.Module, shape: tuple[int, ...]) -> None:
    refuse_coupling(Network(module), shape, False, None)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Experts(), r"\(Experts\) couples"),
        (Experts(30), r"\(Experts\) couples"),  # whatever the others are, they crowd the record out of its expert
        (Experts(99), r"\(Experts\) couples"),
        (Crowded(), r"\(Crowded\) couples"),
        (Largest("number"), r"\(Largest\) couples"),
        (Largest("buffer"), "its buffer bound changes"),
        (Largest("switch"), "couples|keeps a state"),
    ],
)
def test_what_only_whole_micro_batches_and_extreme_records_show(module: nn.Module, words: str) -> None:
    network = Network(module)
    state = network.state()
    with pytest.raises(UsageError, match=words) as caught:
        refuse_coupling(network, (6,), False, None, micro_batch=64)
    assert "\n" not in str(caught.value)
    assert all(np.array_equal(array, state[name]) for name, array in network.state().items())


def test_models_that_are_steep_or_raise_pass_and_are_left_as_they_were() -> None:
    network = Network(Steep())
    refuse_coupling(network, (6,), False, None, micro_batch=64)
    assert network.module.shown is None


def test_gradients_that_only_whole_micro_batches_couple_are_found() -> None:
    network = Network(Crowded(backwards=True))
    refuse_coupling(network, (6,), False, None, micro_batch=64)
    record = torch.zeros(1, 6)
    checked_taps(network, block_layout(network), record, may_refuse=True, together=8)
    with pytest.raises(UsageError, match=r"the gradient of body\.\w+ differs between a batch and its records alone"):
        checked_taps(network, block_layout(network), record, may_refuse=True, together=64)


def test_observers_are_refused_while_they_are_on() -> None:
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, disable_observer

    for observer in (MinMaxObserver(), FakeQuantize(observer=MinMaxObserver, quant_min=0, quant_max=255)):
        with pytest.raises(UsageError, match=r"1 \(\w+\) observes its inputs"):
            Network(nn.Sequential(nn.Linear(6, 3), observer))
    module = nn.Sequential(nn.Linear(6, 3), observer)
    module(torch.randn(4, 6))
    module.apply(disable_observer)
    refuse_coupling(Network(module), (6,), False, None, micro_batch=64)


def test_a_short_cut_that_looks_at_all_records_is_found() -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match=r"the model itself \(Short\) couples"):
        refuse_coupling(Network(Short()), (2, 6), True, 9)


def test_the_plan_refuses(tmp_path: Path) -> None:
    random_table("mlp", [1] * 12, 1).write(tmp_path / "public.h5")
    random_table("mlp", [1] * 12, 2).write(tmp_path / "private.h5")
    tree = config_to_tree(make_config(tmp_path, "mlp"))
    tree["model"] |= {"factory": "coupling_models:stubborn", "args": {}}
    with pytest.raises(UsageError, match="StubbornNorm"):
        plan_of(config_from_tree(tree))


def test_a_site_refuses_before_it_reads_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_table("mlp", [1] * 12, 2).write(tmp_path / "private.h5")
    tree = config_to_tree(make_config(tmp_path, "mlp", public=False))
    tree["model"] |= {"factory": "coupling_models:stubborn", "args": {}}
    config = config_from_tree(tree)
    plan = plan_of(config)  # without public data it doesn't know the shape of a record
    assert plan.schema.input_shape is None
    read: list[object] = []
    plain = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: read.append(key) or plain(self, key))
    with pytest.raises(UsageError, match="StubbornNorm"):
        open_shards(plan, config.data.private, SerialEngine())
    assert not read
    monkeypatch.setattr(shards_stage, "refuse_coupling", lambda *arguments: None)
    sources, _ = open_shards(plan, config.data.private, SerialEngine())
    assert np.array_equal(sources[0].slots.rows, np.arange(12))
