"""Layers that are computed again in the backward pass: the same bits, less memory, and blocks that are finished as they go."""

from __future__ import annotations

import pytest
import torch
from layers_harness import CrossEntropy, fast, whitening_for

from distqexp.costs.live_bytes import LiveBytes
from distqexp.errors import UsageError
from distqexp.gradients.by_layer import BlockGradients
from distqexp.gradients.layers import block_layout
from distqexp.problem.huggingface import from_config
from distqexp.problem.mixed import Mixed
from distqexp.problem.network import Network
from distqexp.problem.records import Records

pytest.importorskip("transformers")
pytest.importorskip("peft")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 20, "num_labels": 3,
    "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def llama(checkpointing: bool, mixed: Mixed | None) -> BlockGradients:
    torch.manual_seed(0)
    module = from_config("LlamaForSequenceClassification", SIZES, LORA, checkpointing=checkpointing)
    network = Network(module, ("*lora_*", "*score*"), mixed=mixed)
    return fast(network, CrossEntropy(), whitening_for(block_layout(network), 2), 4)


def texts() -> Records:
    tokens = torch.randint(1, 20, (4, 48), generator=torch.Generator().manual_seed(1))
    return Records(torch.stack([tokens, torch.ones_like(tokens)], dim=1), torch.arange(4) % 3, torch.ones(4).bool())


@pytest.mark.parametrize("mixed", [None, Mixed(torch.bfloat16)], ids=["float32", "bfloat16"])
def test_gradients_are_the_same_and_take_less_memory(mixed: Mixed | None) -> None:
    found, peaks = [], []
    for checkpointing in (False, True):
        gradients = llama(checkpointing, mixed)
        found.append(gradients._vectors(texts())[0])
        with LiveBytes() as live:
            gradients._stores(texts())
        peaks.append(live.peak)
        assert not gradients._taps_for(texts().inputs).routing.fallbacks
    assert torch.equal(*map(torch.from_numpy, found))
    assert abs(found[0]).max() > 0
    assert peaks[1] < 0.5 * peaks[0]


def test_a_block_is_finished_once_its_layers_were_differentiated() -> None:
    """A checkpoint's second forward pass is no second use: else the blocks would wait, in memory, until the pass ends."""
    gradients = llama(True, None)
    received: list[int] = []
    finished: list[int] = []
    taps = gradients._taps_for(texts().inputs)
    taps.run(
        texts().inputs, lambda outputs: outputs.sum(dim=1), lambda n, raw: received.append(n), finish=finished.append
    )
    assert finished == received
    assert sorted(finished) == list(range(len(gradients.blocks)))


def test_models_without_such_layers_are_refused() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match=r"model\.args\.checkpointing: ConvNextForImageClassification has no layers"):
        from_config(
            "ConvNextForImageClassification",
            {"depths": [1, 1], "hidden_sizes": [4, 8], "num_stages": 2},
            checkpointing=True,
        )
    with pytest.raises(UsageError, match=r"model\.args\.dtype: found 'int8'"):
        from_config("LlamaForSequenceClassification", SIZES, dtype="int8")
