"""A run on a body in bfloat16 with low-rank factors in float32: from the plan to an adapter that another config reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kills import ran
from small_runs import make_config, plan_of, random_table
from token_files import LENGTH, factory, token_config, write_tokens

from distqexp import api
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.errors import UsageError
from distqexp.gradients.setup import build_network
from distqexp.live.loading import load_model
from distqexp.problem.pretrained import resolved
from distqexp.problem.weights import load_weights

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
TRAINABLE = ["*lora_*", "*score*"]


def llama_config(folder: Path, *, precision: str = "bfloat16", **args: Any) -> Config:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    model = factory("LlamaForSequenceClassification", lora=LORA, dtype="bfloat16", checkpointing=True, **args)
    tree = token_config(
        folder,
        {**model, "trainable": TRAINABLE},
        privacy={"units": 40, "epsilon": 8.0},
        subspace={"kind": "kronecker", "k_in": 4, "k_out": 2, "k": None},
        precision={"kind": "kronecker", "source": "probes", "samples": 30},
        mechanism={"rounds": 2, "clip": 0.3},
        engine={"mixed_precision": precision},
    )
    del tree["data"]["public"], tree["subspace"]["k"]
    tree["data"]["record_shape"] = [LENGTH]
    return config_from_tree(tree)


def test_a_body_in_bfloat16_goes_from_plan_to_export_and_back(tmp_path: Path, own_ledger: Path) -> None:
    write_tokens(tmp_path / "private.h5", 40, 1)
    config = llama_config(tmp_path)
    result = ran(config, tmp_path / "out", insecure_noise_seed=3)
    assert any("every figure of plan and releases" in line for line in api.verify(tmp_path / "out"))
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["gradients"]["mixed_precision"] == "bfloat16"
    network = build_network(config)
    named = dict(network.module.named_parameters())
    trained = {name for name, _ in network.names_shapes}
    assert {named[name].dtype for name in trained} == {torch.float32}
    assert {parameter.dtype for name, parameter in named.items() if name not in trained} == {torch.bfloat16}
    # The frozen weights of the export are the plan's, whose numbers all fit bfloat16; the trained ones are those of the last release.
    load_weights(network, tmp_path / "out")
    np.testing.assert_array_equal(network.theta().astype(np.float32), result.releases[-1].theta.astype(np.float32))
    assert np.abs(network.theta() - result.plan.state.theta).max() > 1e-4
    for name, array in network.state().items():
        if name not in trained:
            np.testing.assert_array_equal(array, result.plan.weights[name])
    # Predictions are those of the released numbers, none of them rounded to half precision.
    loaded = load_model(tmp_path / "out").network
    np.testing.assert_array_equal(loaded.theta(), network.theta())
    assert loaded.outputs(torch.ones((2, 2, LENGTH), dtype=torch.int64)).dtype == torch.float32
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_half_weights_need_passes_in_half_precision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.args\.dtype: found 'bfloat16' with engine\.mixed_precision = off"):
        build_network(llama_config(tmp_path, precision="off"))


def test_a_folder_gives_the_type_of_its_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "vocab_size": 20,
    }
    body = transformers.LlamaModel(transformers.LlamaConfig(**sizes)).bfloat16()
    body.save_pretrained(tmp_path / "body")
    config = llama_config(tmp_path)
    model = dataclasses.replace(
        config.model,
        factory="distqexp.problem.huggingface:from_folder",
        weights=str(tmp_path / "body"),
        args={"outputs": 3, "lora": LORA, "dtype": "auto"},
        new_head=("score.*",),
    )
    found = resolved(dataclasses.replace(config, model=model))
    assert found.model.args["dtype"] == "bfloat16"
    network = build_network(found)
    load_weights(network, tmp_path / "body", ("score.*",))
    loaded = network.module.state_dict()["base_model.model.model.layers.0.mlp.up_proj.weight"]
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded, body.layers[0].mlp.up_proj.weight)


def test_plans_of_before_keep_their_identity_and_another_precision_is_another_plan(tmp_path: Path) -> None:
    random_table("mlp", [1] * 12, seed=3).write(tmp_path / "public.h5")
    plans = [
        plan_of(make_config(tmp_path, "mlp", precision={"kind": "identity"}, engine=engine))
        for engine in ({}, {"mixed_precision": "off"}, {"mixed_precision": "bfloat16"})
    ]
    assert plans[0].plan_id == plans[1].plan_id != plans[2].plan_id
    engines = [plan.header()["config"]["engine"] for plan in plans]
    assert "mixed_precision" not in engines[0]
    assert engines[2]["mixed_precision"] == "bfloat16"
    assert all(config_from_tree(config_to_tree(plan.config)) == plan.config for plan in plans)
