"""Weights of the kinds that people have: wrapped, nested, with another head, in half precision, and folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from unusual_models import BERT, Wrapped

from distqexp.config import config_from_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.huggingface import from_config
from distqexp.problem.network import Network
from distqexp.problem.weights import load_weights


def module(seed: int) -> Wrapped:
    torch.manual_seed(seed)
    return Wrapped()


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


NESTED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "plain": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "module._orig_mod."),
    "trainer": lambda state: {"epoch": 3, "state_dict": prefixed(state, "module."), "optimizer": {"state": {}}},
    "Lightning": lambda state: {
        "state_dict": {**prefixed(state, "model."), "loss.weight": torch.ones(3)},
        "callbacks": {},
    },
    "model_state_dict": lambda state: {"model_state_dict": state, "args": {"lr": 0.1}},
}


@pytest.mark.parametrize("kind", list(NESTED))
def test_what_programs_put_around_weights_is_taken_off(kind: str, tmp_path: Path) -> None:
    original, network = module(1), Network(module(2))
    torch.save(NESTED[kind](dict(original.state_dict())), tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", ["loss.*"] if kind == "Lightning" else [])
    for name, tensor in original.state_dict().items():
        assert torch.equal(network.module.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_other_precisions_are_taken(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {name: tensor.to(dtype) for name, tensor in module(1).state_dict().items()}
    path = tmp_path / f"weights.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    network = Network(module(2))
    load_weights(network, path)
    assert network.dtype == torch.float32
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, state[name].float())


def test_a_head_of_another_size_begins_anew(tmp_path: Path) -> None:
    original, fresh = module(1), module(2)
    original.head = nn.Linear(8, 10)
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    begun, network = fresh.head.weight.detach().clone(), Network(fresh)
    with pytest.raises(FileContentError, match=r'head.weight has shape \(10, 8\).*model.new_head = \["head.\*"\]'):
        load_weights(network, tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", ["head.*"])
    assert torch.equal(network.module.body.weight, original.body.weight)
    assert torch.equal(network.module.head.weight, begun)
    with pytest.raises(UsageError, match=r"'fc.\*' matches no name"):
        load_weights(network, tmp_path / "weights.pt", ["fc.*"])


def test_a_head_of_another_name_begins_anew(tmp_path: Path) -> None:
    original, network = module(1), Network(module(2))
    state = {name.replace("head", "fc"): tensor for name, tensor in original.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(FileContentError, match=r'new_head = \["fc.\*", "head.\*"\]'):
        load_weights(network, tmp_path / "weights.pt")
    load_weights(network, tmp_path / "weights.pt", ["head.*", "fc.*"])
    assert torch.equal(network.module.body.weight, original.body.weight)


def test_a_new_head_needs_weights() -> None:
    source = {"format": "digits"}
    tree = {
        "model": {"factory": "distqexp.problem.models:cnn", "loss": "cross-entropy", "new_head": ["9.*"]},
        "data": {"population": "p", "private": source},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 10},
    }
    with pytest.raises(UsageError, match=r"model.new_head: .*expected model.weights"):
        config_from_tree(tree)


def test_counts_of_batches_may_be_missing(tmp_path: Path) -> None:
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    state = {name: tensor for name, tensor in norm.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pt")
    network = Network(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    load_weights(network, tmp_path / "old.pt")
    assert torch.equal(network.module[0].weight, norm[0].weight)


@pytest.mark.parametrize("size", ["1KB", "5GB"])
def test_a_folder_of_save_pretrained_is_read_whole_or_in_shards(size: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    original = from_config("BertForSequenceClassification", BERT)
    original.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "1KB")
    torch.manual_seed(2)
    network = Network(from_config("BertForSequenceClassification", BERT))
    load_weights(network, tmp_path)
    assert all(torch.equal(network.module.state_dict()[name], each) for name, each in original.state_dict().items())
    wider = Network(from_config("BertForSequenceClassification", {**BERT, "num_labels": 5}))
    load_weights(wider, tmp_path, ["classifier.*"])
    assert torch.equal(wider.module.bert.pooler.dense.weight, original.bert.pooler.dense.weight)


def test_a_body_gets_a_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    original = from_config("BertForSequenceClassification", BERT)
    original.bert.save_pretrained(tmp_path)
    network = Network(from_config("BertForSequenceClassification", BERT))
    with pytest.raises(FileContentError, match=r'new_head = \["classifier.\*"\]'):
        load_weights(network, tmp_path)
    load_weights(network, tmp_path, ["classifier.*"])
    assert torch.equal(network.module.bert.pooler.dense.weight, original.bert.pooler.dense.weight)


def test_an_adapter_is_read_on_its_base(tmp_path: Path) -> None:
    lora = {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"], "init_lora_weights": False}
    torch.manual_seed(1)
    base = from_config("BertForSequenceClassification", BERT)
    base.save_pretrained(tmp_path / "base")
    original = from_config("BertForSequenceClassification", BERT, lora=lora)
    original.load_state_dict(base_state(original, base))
    original.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    original.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    network = Network(from_config("BertForSequenceClassification", BERT, lora=lora))
    load_weights(network, tmp_path / "adapter")
    for name, tensor in original.state_dict().items():
        if "original_module" not in name:
            assert torch.equal(network.module.state_dict()[name], tensor), name


def base_state(original: nn.Module, base: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model with factors whose other weights are those of ``base``."""
    from distqexp.problem.huggingface import base_weights

    return dict(base_weights(original.state_dict(), base.state_dict()))


def test_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    network = Network(module(1))
    with pytest.raises(UsageError, match="a folder without weights"):
        load_weights(network, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(FileContentError, match="no weight_map"):
        load_weights(network, tmp_path)
    index.write_text(json.dumps({"weight_map": {"body.weight": "../other.safetensors"}}))
    with pytest.raises(FileContentError, match="expected one in the same folder"):
        load_weights(network, tmp_path)
    index.write_text(json.dumps({"weight_map": {"body.weight": "one.safetensors", "nothing": "one.safetensors"}}))
    save_file({"body.weight": torch.ones(8, 6)}, tmp_path / "one.safetensors")
    with pytest.raises(FileContentError, match="its shards lack nothing"):
        load_weights(network, tmp_path)
