"""Weights of a pretrained body, as a package ships them, in a classifier with low-rank factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distqexp.errors import FileContentError
from distqexp.problem.huggingface import from_config
from distqexp.problem.network import Network
from distqexp.problem.weights import load_weights

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30,
    "max_position_embeddings": 16,
}  # fmt: skip


def test_weights_of_a_body_alone_load_into_a_classifier_with_low_rank_factors(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = from_config("BertForSequenceClassification", SIZES)
    body: Any = plain.bert
    body.save_pretrained(tmp_path)
    lora = {"r": 2, "target_modules": ["query", "value"]}
    adapted = from_config("BertForSequenceClassification", SIZES, lora=lora)
    network = Network(adapted, ["*lora_*", "*classifier*"])
    head = {name: array for name, array in network.state().items() if "classifier" in name}
    load_weights(network, tmp_path, ["classifier.*"])
    state = network.state()
    assert all(np.array_equal(state[name], array) for name, array in head.items())
    own = body.state_dict()
    loaded = [name for name in state if ".bert." in name and ".lora_" not in name]
    assert len(loaded) == len(own)
    for name in loaded:
        plain_name = name.replace(".base_layer.", ".").removeprefix("base_model.model.bert.")
        assert np.array_equal(state[name], own[plain_name].numpy()), name
    with pytest.raises(FileContentError, match="missing"):
        load_weights(network, tmp_path)
