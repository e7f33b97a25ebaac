"""A text model whose upper layers train alone: the same outputs as the whole, the lower part run once, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kills import ran
from token_files import LENGTH, MODELS, VOCABULARY, factory, random_tokens, token_config, write_tokens
from torch import nn

from distqexp.config import config_from_tree
from distqexp.errors import UsageError
from distqexp.gradients.setup import build_network
from distqexp.gradients.worker import Worker
from distqexp.problem.huggingface import from_config
from distqexp.problem.independence import refuse_coupling
from distqexp.problem.network import Network
from distqexp.problem.weights import load_weights

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

BERT = "BertForSequenceClassification"
SMALL = {"vocab_size": VOCABULARY, "num_labels": 3, "max_position_embeddings": 8, "pad_token_id": 0}
DISTIL = {**SMALL, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}
KINDS = {
    BERT: MODELS[BERT],
    "RobertaForSequenceClassification": {**MODELS[BERT], "max_position_embeddings": 16, "pad_token_id": 1},
    "DistilBertForSequenceClassification": DISTIL,
}
LORA = {"r": 2, "target_modules": r"top\..*\.(query|value)"}


def _inputs() -> torch.Tensor:
    ids, mask, _ = random_tokens(5, 1)
    ids[4], mask[4] = 0, 0  # a record without tokens, as blank ones are
    return torch.from_numpy(np.stack([ids, mask], axis=1))


def _of(kind: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return from_config(kind, KINDS[kind], pooling="mean", **more)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_body_give_the_same_outputs_whole_and_split(
    kind: str, lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    if lora is not None and "Distil" in kind:
        lora = {**lora, "target_modules": r"top\..*\.(q_lin|v_lin)"}
    whole, split = _of(kind), _of(kind, frozen_layers=1, lora=lora)
    body: Any = whole.body
    safetensors_torch.save_file(
        {name: tensor + 0.1 for name, tensor in body.state_dict().items()}, tmp_path / "body.safetensors"
    )
    networks = Network(whole), Network(split, ["*top.*"])
    for network in networks:
        load_weights(network, tmp_path / "body.safetensors")
    names = dict(split.named_parameters())
    for name in ("weight", "bias"):
        [head] = [names[found] for found in names if found.endswith(f"top.classifier.{name}")]
        head.data.copy_(dict(whole.named_parameters())[f"classifier.{name}"])
    torch.testing.assert_close(networks[1].outputs(_inputs()), networks[0].outputs(_inputs()), rtol=1e-5, atol=1e-6)
    refuse_coupling(networks[1], (2, LENGTH), True, VOCABULARY)
    assert all("top." in name for name, _ in networks[1].names_shapes)


def test_all_that_trains_by_itself_is_the_top() -> None:
    names = [name for name, _ in Network(_of(BERT, frozen_layers=1)).names_shapes]
    assert names
    assert all(name.startswith("top.") for name in names)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_lower_layers_run_once_for_all_rounds(
    lora: dict[str, Any] | None, tmp_path: Path, own_ledger: Path
) -> None:
    """A private tokens file is opened for the features; later rounds give what rounds of the whole model give."""
    write_tokens(tmp_path / "private.h5", 20, 1)
    more = {} if lora is None else {"lora": lora}
    trainable = ["*lora_*", "*classifier*"] if lora else ["top.*"]
    tree = token_config(
        tmp_path,
        {**factory(BERT, pooling="mean", frozen_layers=1, **more), "trainable": trainable},
        subspace={"kind": "identity", "k": None},
        precision={"kind": "kronecker", "source": "probes", "samples": 30},
        mechanism={"rounds": 2, "clip": 0.3},
    )
    del tree["data"]["public"], tree["subspace"]["k"]
    tree["data"]["record_shape"] = [LENGTH]
    config = config_from_tree(tree)
    result = ran(config, tmp_path / "out", insecure_noise_seed=3)
    worker = Worker.of_plan(result.plan)
    assert worker.frozen is not None
    assert worker.frozen.shape == (LENGTH, MODELS[BERT]["hidden_size"] + 1)
    moved = result.releases[-1].theta - result.plan.state.theta
    at = 0
    for name, shape in build_network(config).names_shapes:
        size = int(np.prod(shape))
        assert moved[at : at + size].any(), name
        at += size


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        (BERT, {"frozen_layers": 2}, r"frozen_layers: found 2; expected 1 to 1"),
        (BERT, {"frozen_layers": 0}, r"frozen_layers: found 0"),
        (BERT, {"frozen_layers": 1, "pooling": None}, r"frozen_layers: found without pooling"),
        ("GPT2ForSequenceClassification", {"frozen_layers": 1}, r"frozen_layers: found with GPT2.*Roberta"),
    ],
)
def test_what_is_refused(kind: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        from_config(kind, MODELS[kind], **{"pooling": "mean", **arguments})
