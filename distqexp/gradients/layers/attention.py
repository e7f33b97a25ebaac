"""A forward pass of nn.MultiheadAttention with its input projection written out, so that the projection can be tapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from distqexp.gradients.layers.forms import Positions, Raw, Tensor

Tap = Callable[[Tensor, Tensor, slice], Tensor]
"""Maps the projection's output, its input and the slice of features that the output has to the same output, tapped."""


def is_supported(module: nn.Module) -> bool:
    """Return whether the module is a plain nn.MultiheadAttention: one packed projection, no learned or zero key added."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and module._parameters.get("in_proj_weight") is not None
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def attend(
    module: nn.MultiheadAttention,
    tap: Tap,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run ``module.forward`` in evaluation mode with the input projection passed through ``tap``. Same arguments and results."""
    width, heads = module.embed_dim, module.num_heads
    parts = _project(module, tap, query, key, value)
    if not module.batch_first:
        parts = [part.transpose(0, 1) for part in parts]
    batch, targets = parts[0].shape[:2]
    sources = parts[1].shape[1]
    q, k, v = (part.reshape(batch, part.shape[1], heads, width // heads).transpose(1, 2) for part in parts)
    mask = _mask(attn_mask, key_padding_mask, q, sources)
    if mask is None and is_causal:
        mask = torch.full((targets, sources), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    if need_weights:
        scores = (q * (width // heads) ** -0.5) @ k.transpose(2, 3)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        averages = weights @ v
    else:
        weights = None
        averages = functional.scaled_dot_product_attention(q, k, v, mask)
    averages = averages.transpose(1, 2).reshape(batch, targets, width)
    outputs = module.out_proj(averages if module.batch_first else averages.transpose(0, 1))
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    return outputs, weights


def projection(module: nn.Module, inputs: Tensor, gradient: Tensor, part: slice) -> Mapping[str, Raw]:
    """Return the gradients of the input projection from one tapped part.

    Args:
        module: The attention module.
        inputs: The part's input, the batch first.
        gradient: The gradient of the part's output, the batch first.
        part: The output features of the projection that the part has.
    """
    width = module._parameters["in_proj_weight"].shape[0]  # type: ignore[union-attr]  # as is_supported() says
    row = functional.pad(gradient, (part.start, width - part.stop)).unsqueeze(1)
    return {"in_proj_weight": Positions(row, inputs.unsqueeze(1)), "in_proj_bias": Positions(row, None, constant=True)}


def _project(module: nn.MultiheadAttention, tap: Tap, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    width = module.embed_dim
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if query is key and key is value:
        projections = tap(functional.linear(query, weight, bias), query, slice(0, 3 * width))
        return list(projections.chunk(3, dim=-1))
    parts = []
    for number, inputs in enumerate((query, key, value)):
        part = slice(number * width, (number + 1) * width)
        parts.append(tap(functional.linear(inputs, weight[part], None if bias is None else bias[part]), inputs, part))
    return parts


def _mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, sources: int) -> Tensor | None:
    """Join both masks to one additive mask that broadcasts to (batch, heads, targets, sources)."""
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, q)
        mask = mask.reshape(len(q), -1, *mask.shape[1:]) if mask.ndim == 3 else mask
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q).reshape(len(q), 1, 1, sources)
        mask = padding if mask is None else mask + padding
    return mask


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, float("-inf"))
    return mask.to(q.dtype)
