"""Text models whose head sits on the mean of the last hidden states, whole or with a part below that stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from distqexp.errors import UsageError


class MeanPooled(nn.Module):
    """A body, the mean of its last hidden states over a record's tokens, and a linear head: (n, 2, L) to (n, outputs)."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(width, outputs)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return the logits of int64 records, tokens and mask; a record without tokens has the head's bias alone."""
        tokens, mask = records[:, 0], records[:, 1]
        hidden = self.body(input_ids=tokens, attention_mask=mask).last_hidden_state
        return _head_on_mean(self.classifier, hidden, mask.to(hidden.dtype))


class UpperLayers(nn.Module):
    """The last layers of an encoder, and a linear head on the mean of what they give: (n, L, width + 1) to (n, outputs).

    The last column of a record is its mask, so that a single tensor says all there is to know of the part below.
    """

    def __init__(self, layers: Iterable[nn.Module], width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states with their mask."""
        hidden, mask = features[..., :-1], features[..., -1]
        hidden_from = torch.zeros_like(mask).masked_fill(mask == 0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, hidden_from)
        return _head_on_mean(self.classifier, hidden, mask)


class SplitBody(nn.Module):
    """A body without its last layers, frozen, and ``top``, which holds them and the head: all that can be trained.

    So the part below runs once over all records, see ``frozen_part``.
    """

    def __init__(self, body: nn.Module, top: UpperLayers) -> None:
        super().__init__()
        self.body = body.requires_grad_(False)
        self.top = top

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return the logits of int64 records, tokens and mask, (n, 2, L)."""
        tokens, mask = records[:, 0], records[:, 1]
        hidden = self.body(input_ids=tokens, attention_mask=mask).last_hidden_state
        logits: torch.Tensor = self.top(torch.cat([hidden, mask.to(hidden.dtype)[..., None]], dim=-1))
        return logits


def mean_pooled(
    module: nn.Module,
    pooling: str | None,
    frozen_layers: int | None,
    model: str,
    prepare: Callable[[nn.Module], None],
) -> nn.Module:
    """Return the body of a text classifier under a mean and a linear head, split above ``frozen_layers`` unless that is None.

    Args:
        module: The classifier.
        pooling: "mean".
        frozen_layers: How many of its layers stay as they are, at least one less than there are.
        model: The name of its class, for messages.
        prepare: Called with the body before it is split.

    Raises:
        UsageError: It is no text classifier, or has no such layers.
    """
    body = getattr(module, str(getattr(module, "base_model_prefix", "")), None)
    if pooling != "mean" or body is None or getattr(body, "main_input_name", None) != "input_ids":
        found = f"model.args.pooling: found {pooling!r} with {model}"
        if pooling is None and frozen_layers is not None:
            found = "model.args.frozen_layers: found without pooling"
        raise UsageError(f"{found}; expected mean, with a ForSequenceClassification class, or none")
    if isinstance(getattr(body, "pooler", None), nn.Module):
        body.pooler = None
    prepare(body)
    settings: Any = body.config
    if frozen_layers is None:
        return MeanPooled(body, settings.hidden_size, settings.num_labels)
    encoder = next(
        (part for part in (getattr(body, "encoder", None), getattr(body, "transformer", None)) if part), None
    )
    layers = getattr(encoder, "layer", None)
    if encoder is None or not isinstance(layers, nn.ModuleList):
        raise UsageError(
            f"model.args.frozen_layers: found with {model}; expected a class of Bert, DistilBert, Electra, Roberta or XLMRoberta"
        )
    if type(frozen_layers) is not int or not 1 <= frozen_layers < len(layers):
        raise UsageError(
            f"model.args.frozen_layers: found {frozen_layers!r}; expected 1 to {len(layers) - 1}, as the body has {len(layers)} layers"
        )
    encoder.layer = layers[:frozen_layers]
    return SplitBody(body, UpperLayers(layers[frozen_layers:], settings.hidden_size, settings.num_labels))


def body_weights(own: Mapping[str, torch.Tensor], state: Mapping[str, Any], outer: str) -> Mapping[str, Any]:
    """Return the state of a body alone as that of a model of this file, and any other as it is.

    A body's own pooling, and the positions that old files have, are left out.

    Args:
        own: The state of the module; its head keeps its values.
        state: The state from a file.
        outer: What stands before the names of the module, but not before those of the state.
    """
    if not any(name.startswith(f"{outer}body.") for name in own) or any(name.startswith("body.") for name in state):
        return state
    heads = {
        name: own[outer + name]
        for head in ("classifier", "top.classifier")
        for name in (f"{head}.weight", f"{head}.bias")
        if outer + name in own
    }
    unused = re.compile(r"pooler\..*|embeddings\.position_ids")
    place = _place_of_layers(own, outer)
    return {**heads, **{place(name): tensor for name, tensor in state.items() if not unused.fullmatch(name)}}


def _place_of_layers(own: Mapping[str, Any], outer: str) -> Callable[[str], str]:
    """Return the function from the name of a body's tensor to its name in the module: upper layers may be in ``top``."""
    below = re.compile(re.escape(f"{outer}body.") + r"(?:encoder|transformer)\.layer\.(\d+)\.")
    numbers = [int(match[1]) for match in map(below.match, own) if match]
    split = any(name.startswith(f"{outer}top.layers.") for name in own)
    frozen = max(numbers) + 1 if split and numbers else None
    layer = re.compile(r"(?:encoder|transformer)\.layer\.(\d+)\.(.*)")

    def place(name: str) -> str:
        match = layer.fullmatch(name)
        if match is None or frozen is None or int(match[1]) < frozen:
            return f"body.{name}"
        return f"top.layers.{int(match[1]) - frozen}.{match[2]}"

    return place


def _head_on_mean(head: nn.Module, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return a head's outputs for the mean of hidden states (n, L, width) over the tokens that ``mask`` (n, L) counts."""
    weights = mask[..., None]
    logits: torch.Tensor = head((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))
    return logits
