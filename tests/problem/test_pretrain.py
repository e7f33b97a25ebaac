"""Pretraining and weights from files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

from distqexp.config import DataConfig, PretrainConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import open_dataset
from distqexp.problem.losses import get_loss
from distqexp.problem.models import logistic, mlp
from distqexp.problem.network import Network
from distqexp.problem.pretrain import pretrain
from distqexp.problem.records import Records
from distqexp.problem.schema import fit_schema
from distqexp.problem.weights import load_weights

ENTROPY = get_loss("cross-entropy")


def _records(count: int = 60) -> Records:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 3, generator=generator)
    noise = torch.randn(count, generator=generator)
    return Records(inputs, (inputs[:, 0] + noise > 0).long(), torch.ones(count, dtype=torch.bool))


def _network(**more: object) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Network(mlp(3, 2, [4]), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimiser", ["adam", "sgd", "lbfgs"])
def test_the_same_seed_gives_the_same_weights_and_lowers_the_loss(optimiser: str) -> None:
    config = PretrainConfig(epochs=5, optimiser=optimiser, learning_rate=0.1, batch=16, weight_decay=0.01)
    records = _records()
    first, second, other = _network(), _network(), _network()
    before = float(ENTROPY.value(first.outputs(records.inputs), records.targets).mean())
    state = torch.random.get_rng_state()
    pretrain(first, ENTROPY, records, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    pretrain(second, ENTROPY, records, config)
    assert np.array_equal(first.theta(), second.theta())
    assert float(ENTROPY.value(first.outputs(records.inputs), records.targets).mean()) < before
    if optimiser != "lbfgs":  # full batches have no order
        pretrain(other, ENTROPY, records, dataclasses.replace(config, seed=1))
        assert not np.array_equal(first.theta(), other.theta())


def test_lbfgs_finds_the_ridge_optimum_of_scikit_learn() -> None:
    records = _records(200)
    network = Network(logistic(3, bias=False).double())
    pretrain(
        network,
        get_loss("binary-cross-entropy"),
        records,
        PretrainConfig(epochs=200, optimiser="lbfgs", learning_rate=1.0, weight_decay=0.05),
    )
    reference = LogisticRegression(C=1 / (0.05 * 200), fit_intercept=False, tol=1e-12, max_iter=10_000)
    reference.fit(records.inputs.numpy().astype(np.float64), records.targets.numpy())
    np.testing.assert_allclose(network.theta(), reference.coef_[0], rtol=1e-5, atol=1e-5)
    inputs = records.inputs.numpy().astype(np.float64)
    surprise = 1 / (1 + np.exp(-inputs @ network.theta())) - records.targets.numpy()
    gradient = inputs.T @ surprise / len(inputs) + 0.05 * network.theta()
    assert np.abs(gradient).max() < 1e-6


def test_absent_records_do_not_count() -> None:
    records, config = _records(), PretrainConfig(epochs=3, optimiser="lbfgs", learning_rate=1.0)
    spoiled = Records(records.inputs.clone(), records.targets.clone(), records.present.clone())
    spoiled.inputs[::7], spoiled.targets[::7], spoiled.present[::7] = float("nan"), 0, False
    kept = Records(records.inputs[spoiled.present], records.targets[spoiled.present], records.present[spoiled.present])
    first, second = _network(), _network()
    pretrain(first, ENTROPY, spoiled, config)
    pretrain(second, ENTROPY, kept, config)
    assert np.array_equal(first.theta(), second.theta())
    with pytest.raises(UsageError, match="no complete public record"):
        pretrain(first, ENTROPY, dataclasses.replace(records, present=torch.zeros(60, dtype=torch.bool)), config)


def test_frozen_parameters_are_pretrained_and_frozen_again() -> None:
    network = _network(trainable=("3.*",))
    before = network.state()
    pretrain(network, ENTROPY, _records(), PretrainConfig(epochs=1, learning_rate=0.1))
    assert not np.array_equal(network.state()["1.weight"], before["1.weight"])
    assert not network.module.get_parameter("1.weight").requires_grad
    assert network.module.get_parameter("3.weight").requires_grad
    assert all(parameter.grad is None for parameter in network.module.parameters())
    assert not network.module.training


def test_dropout_and_batch_statistics_train_reproducibly() -> None:
    def build() -> Network:
        torch.manual_seed(1)
        return Network(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)))

    first, second = build(), build()
    for network in (first, second):
        pretrain(network, ENTROPY, _records(), PretrainConfig(epochs=2, learning_rate=0.01))
    assert np.any(first.state()["1.running_mean"] != 0)
    assert all(np.array_equal(value, second.state()[name]) for name, value in first.state().items())


def test_a_diverging_run_and_no_epochs() -> None:
    network = _network()
    before = network.theta()
    pretrain(network, ENTROPY, _records(), PretrainConfig(epochs=0))
    assert np.array_equal(network.theta(), before)
    with pytest.raises(UsageError, match="learning_rate"):
        pretrain(network, ENTROPY, _records(), PretrainConfig(epochs=9, optimiser="sgd", learning_rate=1e30))


def test_digits_pretrain_to_a_useful_model() -> None:
    data = DataConfig(format="digits", rows=((0, 597),))
    dataset = open_dataset(data, fit_schema(data, loss="cross-entropy", classes=10))
    torch.manual_seed(0)
    network = Network(logistic(64, 10))
    pretrain(network, ENTROPY, dataset.read(dataset.slot_map().rows), PretrainConfig(epochs=20, learning_rate=0.01))
    rest = open_dataset(dataclasses.replace(data, rows=((597, 1797),)), dataset.schema)
    records = rest.read(rest.slot_map().rows)
    assert ENTROPY.metrics(network.outputs(records.inputs), records.targets, records.present)["accuracy"] > 0.85


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_come_back_from_a_file(tmp_path: Path, name: str) -> None:
    source, target = _network(), Network(mlp(3, 2, [4]))
    tensors = {key: value.contiguous() for key, value in source.module.state_dict().items()}
    if name.endswith(".pt"):
        torch.save(tensors, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    load_weights(target, tmp_path / name)
    assert np.array_equal(target.theta(), source.theta())
    with pytest.raises(FileContentError, match="shape"):
        load_weights(Network(mlp(3, 2, [5])), tmp_path / name)
    with pytest.raises(FileContentError, match="missing"):
        load_weights(Network(mlp(3, 2, [4, 4])), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for kept in (0, 5, len(content) // 2):
        (tmp_path / name).write_bytes(content[:kept])
        with pytest.raises(FileContentError):
            load_weights(target, tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="no such file"):
        load_weights(target, tmp_path / name)


def test_weight_files_with_code_or_infinities_are_refused(tmp_path: Path) -> None:
    network = _network()
    torch.save(network.module, tmp_path / "module.pt")
    with pytest.raises(FileContentError, match="tensors"):
        load_weights(network, tmp_path / "module.pt")
    torch.save({"weights": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(FileContentError, match="named tensors"):
        load_weights(network, tmp_path / "list.pt")
    spoiled = {name: value * float("nan") for name, value in network.module.state_dict().items()}
    torch.save(spoiled, tmp_path / "nan.pt")
    with pytest.raises(FileContentError, match="finite"):
        load_weights(network, tmp_path / "nan.pt")
