"""Factories, the allow-list, and the flat view of a network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distqexp.errors import FileContentError, UsageError
from distqexp.problem.models import build_model, cnn, logistic, mlp, require_allowed_factory
from distqexp.problem.network import Network
from distqexp.problem.weights import load_weights, write_weights


def tied() -> nn.Module:
    """Two linear layers that share one weight."""
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def test_sizes_and_shapes_of_the_built_in_models() -> None:
    assert Network(cnn()).d == 26_010
    assert cnn(4)(torch.zeros(2, 1, 28, 28)).shape == (2, 4)
    assert Network(logistic(186)).d == 187
    assert Network(logistic(186, bias=False)).d == 186
    assert logistic(64, 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert Network(mlp(64, 10, [32, 16])).d == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10


def test_build_model_takes_keyword_arguments() -> None:
    module = build_model("distqexp.problem.models:mlp", {"inputs": 4, "outputs": 2, "hidden": [3]})
    assert module(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("factory", "args"),
    [
        ("distqexp.problem.models", {}),
        ("distqexp.problem.models:nothing", {}),
        ("no_such_package_here:model", {}),
        ("distqexp.problem.models:nn.Linear", {}),
        ("distqexp.problem.models:logistic", {"input": 3}),
        ("distqexp.problem.models:logistic", {"inputs": -3}),
        ("builtins:dict", {}),
    ],
)
def test_factories_that_cannot_build_are_refused_in_one_line(factory: str, args: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"model\.(factory|args)") as caught:
        build_model(factory, args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("factory", "said"), [("beside_the_config:net", True), ("elsewhere_altogether:net", False)])
def test_a_file_of_this_folder_that_python_does_not_look_at_is_pointed_out(
    factory: str, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_the_config.py").write_text("net = None\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", ".", str(tmp_path))])
    with pytest.raises(UsageError, match="install the package or correct the name") as caught:
        build_model(factory, {})
    assert ("set PYTHONPATH=. for beside_the_config.py" in str(caught.value)) is said


@pytest.mark.parametrize("factory", ["os:system", "subprocess:run", "importlib.util:find_spec"])
def test_a_factory_of_pythons_own_library_is_not_run(factory: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Python's own library"):
        build_model(factory, {"command": f"touch {tmp_path / 'made'}"})
    assert not (tmp_path / "made").exists()


def test_a_received_factory_runs_only_when_built_in_or_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTQEXP_ALLOW_FACTORIES", raising=False)
    require_allowed_factory("distqexp.problem.models:cnn")
    for factory in ("ourmodels.vision:net", "os:system", "distqexp.problem.models:importlib", "distqexp_evil:run"):
        with pytest.raises(FileContentError, match="DISTQEXP_ALLOW_FACTORIES"):
            require_allowed_factory(factory)
    monkeypatch.setenv("DISTQEXP_ALLOW_FACTORIES", "other.*:*, ourmodels.*:net")
    require_allowed_factory("ourmodels.vision:net")
    with pytest.raises(FileContentError):
        require_allowed_factory("ourmodels.vision:other")


def test_theta_round_trips_and_split_follows_names_and_shapes() -> None:
    network = Network(mlp(4, 2, [3]), ("3.*",))
    assert network.names_shapes == (("3.weight", (2, 3)), ("3.bias", (2,)))
    theta = network.theta() + 1
    assert theta.dtype == np.float64
    frozen = network.state()["1.weight"]
    network.load(theta)
    np.testing.assert_array_equal(network.theta(), theta.astype(np.float32))
    np.testing.assert_array_equal(network.state()["3.bias"], theta[6:].astype(np.float32))
    np.testing.assert_array_equal(network.state()["1.weight"], frozen)
    assert network.split(torch.arange(8.0))["3.bias"].tolist() == [6.0, 7.0]
    assert not network.module.get_parameter("1.weight").requires_grad
    with pytest.raises(UsageError, match="theta"):
        network.load(np.zeros(9))


def test_state_round_trips_buffers_and_refuses_other_models() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network = Network(module)
    state = network.state()
    assert {"1.running_mean", "1.num_batches_tracked"} <= set(state)
    state["1.running_mean"] = state["1.running_mean"] + 2
    other = Network(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    other.load_state(state)
    assert all(np.array_equal(other.state()[name], state[name]) for name in state)
    with pytest.raises(FileContentError, match="missing"):
        other.load_state({name: state[name] for name in list(state)[1:]})
    with pytest.raises(FileContentError, match="shape"):
        other.load_state({**state, "0.bias": np.zeros(5, dtype=np.float32)})


def test_state_is_a_copy() -> None:
    network = Network(logistic(3))
    state = network.state()
    state["1.weight"][:] = 7
    assert not np.any(network.state()["1.weight"] == 7)


def test_shared_parameters_count_once() -> None:
    network = Network(tied())
    assert network.d == 9
    state = network.state()
    assert set(state) == {"0.weight", "2.weight"}
    network.load_state(state)


def test_outputs_do_not_depend_on_the_evaluation_batch() -> None:
    network = Network(mlp(4, 2, [3]).double())
    inputs = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    parts = [network.outputs(part) for part in torch.split(inputs, 3)]
    torch.testing.assert_close(torch.cat(parts), network.outputs(inputs), rtol=1e-14, atol=1e-15)
    assert network.outputs(inputs).requires_grad is False
    assert network.outputs(inputs).dtype == torch.float64


def test_dropout_is_off_and_batch_coupling_is_refused() -> None:
    network = Network(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)))
    inputs = torch.ones(2, 3)
    assert torch.equal(network.outputs(inputs), network.outputs(inputs))
    with pytest.raises(UsageError, match="couples"):
        Network(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)))
    Network(nn.Sequential(nn.Conv1d(1, 2, 1), nn.InstanceNorm1d(2, affine=True)))


def test_patterns_without_a_parameter_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.trainable.*1\.weight"):
        Network(logistic(3), ("head.*",))


def test_a_single_number_among_the_buffers_is_written_and_read_back(tmp_path: Path) -> None:
    network = Network(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
    network.module[0].num_batches_tracked.fill_(7)  # type: ignore[index,union-attr]
    write_weights(tmp_path / "model.safetensors", network.state())
    other = Network(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
    load_weights(other, tmp_path / "model.safetensors")
    for name, array in network.state().items():
        assert other.state()[name].shape == array.shape
        assert np.array_equal(other.state()[name], array)
    assert other.state()["0.num_batches_tracked"] == 7
