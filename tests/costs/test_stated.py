"""Memory stated from shapes alone, against tensors that are really made, and for a model that no test machine could hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_config, random_table
from token_files import token_config

from distqexp.config import Config, config_from_tree
from distqexp.costs.live_bytes import LiveBytes
from distqexp.costs.stated import stated
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.stages.plan import plan_and_worker
from distqexp.stages.synthetic import SyntheticRound

LLAMA_7B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
    "pad_token_id": 0, "num_labels": 2, "max_position_embeddings": 4096,
}  # fmt: skip


def llama(folder: Path, layers: int, width: int, **args: Any) -> Config:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    sizes = LLAMA_7B | {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 11 * width // 4}
    sizes |= {"num_attention_heads": width // 16 if width < 4096 else 32, "vocab_size": 100 if width < 4096 else 32000}
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    model = {
        "factory": "distqexp.problem.huggingface:from_config",
        "args": {"model": "LlamaForSequenceClassification", "config": sizes, "lora": lora, "dtype": "bfloat16", **args},
        "loss": "cross-entropy",
        "trainable": ["*lora_*", "*score*"],
    }
    tree = token_config(
        folder,
        model,
        privacy={"units": 1000, "epsilon": 8.0},
        subspace={"kind": "kronecker-pca", "k_in": 16, "k_out": 4, "k": None},
        precision={"kind": "kronecker", "source": "probes", "samples": 8},
        engine={"micro_batch": 4, "mixed_precision": "bfloat16"},
    )
    del tree["data"]["public"], tree["subspace"]["k"]
    tree["data"]["record_shape"] = [64]
    return config_from_tree(tree)


def really(config: Config) -> tuple[int, int]:
    """The bytes of the weights, and the most that a sketch of one micro-batch takes besides, of tensors that are made."""
    plan, worker = plan_and_worker(config, SerialEngine())
    round = SyntheticRound(plan, worker, 1)
    round.sketch(1)
    with LiveBytes() as live:
        round.sketch(1)
    module = worker.network.module
    own = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in own), live.peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_shapes_say_what_a_sketch_takes(checkpointing: bool, tmp_path: Path) -> None:
    config = llama(tmp_path, 2, 64, checkpointing=checkpointing)
    said, (weights, peak) = stated(config), really(config)
    assert said.weights == weights
    assert 0.8 * peak <= said.batch <= 1.25 * peak


def test_seven_billion_parameters_fit_one_card_of_80_gb(tmp_path: Path) -> None:
    """Two of the layers are made; the others are as they are, so that 32 of them follow by arithmetic."""
    few, more = (stated(llama(tmp_path, layers, 4096, checkpointing=True)) for layers in (1, 2))
    weights, batch = (
        getattr(more, name) + 30 * (getattr(more, name) - getattr(few, name)) for name in ("weights", "batch")
    )
    assert few.parameters + 31 * (more.parameters - few.parameters) > 6.5e9
    assert 12 * 2**30 < weights < 14 * 2**30
    assert weights + batch < 40e9


def test_flat_subspaces_have_a_row_for_each_record(tmp_path: Path) -> None:
    random_table("mlp", [1] * 12, seed=3).write(tmp_path / "public.h5")
    config = make_config(tmp_path, "mlp", precision={"kind": "diagonal"})
    said = stated(config)
    assert (said.d, said.k, said.micro_batch, said.whitening, said.moments) == (83, 83, 8, 0, 0)
    assert said.weights == 4 * said.parameters == 4 * 83
    assert said.batch > 8 * (12 + 16) * 83


def test_what_can_not_be_stated_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, "mlp", public=False, subspace={"kind": "identity"})
    with pytest.raises(UsageError, match=r"data\.record_shape: absent"):
        stated(config)
    branching = dataclasses.replace(config.model, factory="unusual_models:Vectors", args={"kind": "branch"})
    shaped = dataclasses.replace(config.data, record_shape=(6,))
    with pytest.raises(UsageError, match=r"from shapes alone: .*without memory; measure"):
        stated(dataclasses.replace(config, model=branching, data=shaped))
