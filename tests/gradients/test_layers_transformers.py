"""Hugging Face models as they come: every trainable parameter on a rule, equal to automatic differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers_harness import agree, random_records
from torch import nn

transformers = pytest.importorskip("transformers")


class Logits(nn.Module):
    """A model of Hugging Face as a module from one tensor to logits."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model = model
        self.argument = argument

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(**{self.argument: x}).logits


def text(name: str, **options: Any) -> Logits:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=20, num_labels=3, pad_token_id=0, attn_implementation="eager", **options
    )
    return Logits(getattr(transformers, f"{name}ForSequenceClassification")(config), "input_ids")


def bert() -> Logits:
    return text(
        "Bert",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=10,
    )


def gpt2() -> Logits:
    return text("GPT2", n_embd=8, n_layer=2, n_head=2, n_positions=10)


def llama() -> Logits:
    return text(
        "Llama",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12,
        max_position_embeddings=10,
    )


def vit() -> Logits:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
        attn_implementation="eager",
    )
    return Logits(transformers.ViTForImageClassification(config), "pixel_values")


def tokens() -> Any:
    records = random_records((6,), 3, 3, vocabulary=20)
    records.inputs.clamp_(min=1)
    return records


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_text_models_are_on_rules_and_agree(make: Any, k: int | None) -> None:
    agree(make(), tokens(), k=k)


@pytest.mark.parametrize("k", [None, 3])
def test_image_models_are_on_rules_and_agree(k: int | None) -> None:
    agree(vit(), random_records((1, 8, 8), 3, 3), k=k)


def test_a_trainable_part_by_pattern_agrees() -> None:
    agree(bert(), tokens(), trainable=("*encoder.layer.1.*", "*classifier*"))
    agree(gpt2(), tokens(), trainable=("*wte*", "*ln_*"))


def test_low_rank_adapters_are_on_rules_and_agree() -> None:
    peft = pytest.importorskip("peft")
    for make, targets in ((gpt2, ["c_attn"]), (bert, ["query", "value"])):
        model = make()
        config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        model.model = peft.get_peft_model(model.model, config)
        agree(model, tokens(), k=2, trainable=("*lora_*", "*score*", "*classifier*"))
