"""Models that torch.func can't take, on the default path: against autograd, one record at a time; or refused with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from small_runs import context_of, plan_of, unit_integers
from torch.nn import functional
from unusual_models import Vectors
from unusual_tasks import SERIES, TOKENS, VECTORS, config_of

from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.gradients.setup import build_network
from distqexp.gradients.vectorising import learn_way
from distqexp.gradients.worker import Worker
from distqexp.problem.derivatives import loss_curvature_factors
from distqexp.problem.losses import get_loss
from distqexp.problem.network import Network
from distqexp.stages.plan import describe_plan
from distqexp.stages.shards import open_shards

TAKEN: dict[str, tuple[str, dict[str, Any], tuple[int, ...], bool]] = {
    "gru": ("Last", {}, SERIES, True),
    "packed gru": ("Packed", {}, TOKENS, True),
    "padded encoder": ("Padded", {}, TOKENS, False),
    "around bert": ("Around", {}, TOKENS, False),
    "checkpoint": ("Vectors", {"kind": "checkpoint"}, VECTORS, True),
    "re-entrant checkpoint": ("Vectors", {"kind": "re-entrant"}, VECTORS, True),
    "function": ("Vectors", {"kind": "function"}, VECTORS, True),
    "branch": ("Vectors", {"kind": "branch"}, VECTORS, True),
    "numpy": ("Vectors", {"kind": "numpy"}, VECTORS, True),
    "autocast": ("Vectors", {"kind": "autocast"}, VECTORS, True),
    "one candidate": ("Vectors", {"kind": "one candidate"}, VECTORS, False),
    "named output": ("Vectors", {"kind": "named"}, VECTORS, False),
    "sparse": ("Means", {"sparse": True}, TOKENS, False),
    "sparse bag": ("Means", {"bag": True, "sparse": True}, TOKENS, False),
    "scripted": ("scripted", {}, VECTORS, True),
    "scripted inside": ("scripted", {"whole": False}, VECTORS, True),
    "DataParallel": ("wrapped", {"kind": "parallel"}, VECTORS, False),
    "torch.compile": ("wrapped", {"kind": "compile"}, VECTORS, False),
}
"""By name: the factory, its arguments, the shape of a record, and whether its records are taken one at a time."""

REFUSED: dict[str, tuple[str, dict[str, Any], tuple[int, ...], str]] = {
    "two candidates": ("Vectors", {"kind": "two candidates"}, VECTORS, r"tuple of 2: \[0\] of shape .*let forward return"),
    "no candidate": ("Vectors", {"kind": "no candidate"}, VECTORS, "can be logits"),
    "lazy": ("lazy", {}, VECTORS, r"0 \(LazyLinear\) is lazy.*call the module once"),
    "max_norm": ("Means", {"max_norm": 1.0}, TOKENS, "tokens: this Embedding has max_norm = 1.*remove max_norm"),
    "max_norm of a bag": ("Means", {"bag": True, "max_norm": 2.0}, TOKENS, "this EmbeddingBag has max_norm"),
    "changed weights": ("Vectors", {"kind": "decay"}, VECTORS, r"body \(Linear\) gives another output"),
    "exception": ("Vectors", {"kind": "missing"}, VECTORS, r"KeyError: 'scale', at unusual_models.py:\d+ in forward: return"),
    "factory": ("broken", {}, VECTORS, r"KeyError: 'weights', at unusual_models.py:\d+ in broken"),
    "all frozen": ("frozen_body", {"whole": True}, VECTORS, "that the factory left trainable"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TAKEN))
def test_gradients_are_those_of_autograd_for_each_record_alone(name: str, tmp_path: Path) -> None:
    factory, args, shape, alone = TAKEN[name]
    config = config_of(tmp_path, factory, args, shape, precision={"kind": "diagonal"})
    plan = plan_of(config)
    lines = [line for line in describe_plan(plan) if line.startswith("gradients: one record at a time")]
    assert len(lines) == alone
    assert all("ms a record here" in line for line in lines)
    context = context_of(config, plan)
    network, vectors = context.network, []
    for piece in range(len(context.pieces)):
        for records, _ in context.batches(piece):
            rows = context.whole_gradients._record_vectors(records)[0]
            for record, target, row in zip(records.inputs, records.targets, rows, strict=True):
                inputs = record[None].requires_grad_() if name == "re-entrant checkpoint" else record[None]
                functional.cross_entropy(network.module(inputs), target[None]).backward()
                gradients = [parameter.grad for parameter in network.trainable_parameters]
                network.module.zero_grad()
                expected = torch.cat([gradient.to_dense().reshape(-1) for gradient in gradients])
                expected = context.whitening.project(expected[None])[0]
                np.testing.assert_allclose(row, expected.numpy(), rtol=2e-5, atol=2e-6)
                vectors.append(row)
    assert len(vectors) == 12
    assert np.abs(vectors).sum() > 0


@pytest.mark.parametrize("name", list(REFUSED))
def test_the_plan_refuses_and_says_what_to_do(name: str, tmp_path: Path) -> None:
    factory, args, shape, message = REFUSED[name]
    with pytest.raises(UsageError, match=message) as caught:
        plan_of(config_of(tmp_path, factory, args, shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    [
        ("scripted", {"whole": False}, "0 is TorchScript, and nothing works layer by layer in it"),
        ("Vectors", {"kind": "re-entrant"}, "re-entrant checkpoint.*use_reentrant=False"),
    ],
)
def test_layers_that_can_not_be_looked_into_are_refused(
    factory: str, args: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sections = {"subspace": {"kind": "kronecker", "k_in": 2, "k_out": 2}, "precision": {"kind": "kronecker"}}
    with pytest.raises(UsageError, match=message):
        plan_of(config_of(tmp_path, factory, args, VECTORS, **sections))


def test_dense_curvature_and_private_curvature_take_any_model(tmp_path: Path) -> None:
    """The factors of a module that torch.func can't take are those of the same module without what is in the way."""
    found = []
    for kind in ("plain", "checkpoint"):
        folder = tmp_path / kind
        folder.mkdir()
        config = config_of(folder, "Vectors", {"kind": kind}, VECTORS, precision={"kind": "dense"})
        plan = plan_of(config)
        context = context_of(config, plan)
        records = next(iter(context.batches(0)))[0]
        found.append((context.whole_gradients.whitened_factors(records)[0], dict(plan.state.precision)))
    assert found[0][0].shape == (8, 3, 83)
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-3, atol=1e-5)
    for name, array in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], array, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("records", [2, 3, 5])
def test_a_layer_whose_factors_torch_func_mixes_up_goes_one_record_at_a_time(records: int) -> None:
    """A PReLU: torch.func has the right factors for a batch of one, and an exception, or other factors, for a larger one."""
    network, loss = Network(Vectors("prelu")), get_loss("cross-entropy")
    inputs = torch.randn(records, 6, generator=torch.Generator().manual_seed(1))
    learn_way(network, loss, inputs[:1], factors=True)
    assert network.one_by_one is not None
    factors = loss_curvature_factors(network, loss, inputs, private=False).double()
    for record, factor in zip(inputs, factors, strict=True):
        logits = network.module(record[None])[0]
        rows = [torch.autograd.grad(logit, network.trainable_parameters, retain_graph=True) for logit in logits]
        jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]).double()
        shares = torch.softmax(logits.detach().double(), 0)
        expected = jacobian.T @ (torch.diag(shares) - torch.outer(shares, shares)) @ jacobian
        torch.testing.assert_close(factor.T @ factor, expected, rtol=1e-4, atol=1e-6)


def test_a_private_record_that_a_model_raises_for_contributes_nothing_and_ends_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Vectors", {"kind": "shy"}, VECTORS, precision={"kind": "diagonal"})
    plan = plan_of(config)
    usual = unit_integers(config, plan)
    with h5py.File(tmp_path / "private.h5", "r+") as file:
        file["x"][5, 2] = 50.0
    found = unit_integers(config, plan)
    assert usual[5].any()
    assert not found[5].any()
    others = np.arange(12) != 5
    assert np.array_equal(found[others], usual[others])
    with h5py.File(tmp_path / "public.h5", "r+") as file:
        file["x"][5, 2] = 50.0
    with pytest.raises(
        UsageError, match=r"for a public record: ValueError: a large record: 50.0, at unusual_models.py"
    ):
        plan_of(config)


def test_a_record_s_integers_are_its_own_and_the_same_in_any_batch(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Last", {}, SERIES, precision={"kind": "identity"}, mechanism={"clip": 1.0})
    plan = plan_of(config)
    usual = unit_integers(config, plan)
    with h5py.File(tmp_path / "private.h5", "r+") as file:
        file["x"][::2] = 3.0
    assert np.array_equal(unit_integers(config, plan)[1::2], usual[1::2])
    assert not np.array_equal(unit_integers(config, plan)[::2], usual[::2])


@pytest.mark.parametrize("frozen", [False, True])
def test_records_whose_last_bits_depend_on_the_batch_go_one_at_a_time(frozen: bool, tmp_path: Path) -> None:
    config = config_of(tmp_path, "Packed", {"frozen": frozen}, TOKENS, precision={"kind": "diagonal"})
    plan = plan_of(config)
    assert any(line.startswith("outputs: one record at a time") for line in describe_plan(plan))
    usual = unit_integers(config, plan)
    assert usual.any(axis=1).all()
    with h5py.File(tmp_path / "private.h5", "r+") as file:
        file["x"][::2] = 3
        file["m"][::2] = np.arange(5) < 1
    assert np.array_equal(unit_integers(config, plan)[1::2], usual[1::2])
    sections = {"subspace": {"kind": "kronecker", "k_in": 2, "k_out": 2}, "precision": {"kind": "kronecker"}}
    with pytest.raises(UsageError, match="couples the records of a batch"):
        plan_of(config_of(tmp_path, "Packed", {}, TOKENS, **sections))


def test_a_site_finds_the_way_anew(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Last", {}, SERIES, precision={"kind": "identity"}, mechanism={"clip": 1.0})
    plan, worker = plan_of(config), Worker.of_plan(plan_of(config))
    open_shards(plan, config.data.private, SerialEngine(), worker=worker)
    assert worker.network.one_by_one is None
    worker.learn(torch.zeros(1, *SERIES))
    assert "rnn (GRU)" in str(worker.network.one_by_one)
    worker.network.one_by_one = None
    worker.learn(torch.zeros(1, *SERIES))  # learnt once
    assert worker.network.one_by_one is None


@pytest.mark.parametrize("precision", ["diagonal", "kronecker"])
def test_what_the_factory_froze_stays_and_is_listed(precision: str, tmp_path: Path) -> None:
    subspace = {"kind": "kronecker", "k_in": 2, "k_out": 2} if precision == "kronecker" else {"kind": "identity"}
    sections = {"subspace": subspace, "precision": {"kind": precision}, "model": {"pretrain": {"epochs": 2}}}
    config = config_of(tmp_path, "frozen_body", {}, VECTORS, **sections)
    plan = plan_of(config)
    assert plan.d == 27
    start = build_network(config).state()
    assert np.array_equal(plan.weights["0.weight"], start["0.weight"])
    assert not np.array_equal(plan.weights["2.weight"], start["2.weight"])
    line = "trained: 27 of 83 parameters: 2.weight, 2.bias; frozen by the factory: 0.weight, 0.bias"
    assert line in describe_plan(plan)
    narrow = {**sections, "model": {"trainable": ["0.*"]}}
    folder = tmp_path / "narrow"
    folder.mkdir()
    assert plan_of(config_of(folder, "frozen_body", {}, VECTORS, **narrow)).d == 56
