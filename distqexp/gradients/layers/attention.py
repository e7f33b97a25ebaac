"""nn.MultiheadAttention with its input projection written out, so that the projection can be tapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from distqexp.gradients.layers.forms import Positions, Raw, Tensor

Tap = Callable[[Tensor, Tensor, slice], Tensor]
"""(projection's output, its input, the output features it is) -> the same output, tapped."""


def supported(module: nn.Module) -> bool:
    """One packed projection, and no learned or zero key added."""
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
    """``module.forward`` in evaluation mode, the input projection passed through ``tap``. Same arguments and results."""
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
        mixed = weights @ v
    else:
        weights = None
        mixed = functional.scaled_dot_product_attention(q, k, v, mask)
    mixed = mixed.transpose(1, 2).reshape(batch, targets, width)
    outputs = module.out_proj(mixed if module.batch_first else mixed.transpose(0, 1))
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    return outputs, weights


def projection(module: nn.Module, inputs: Tensor, gradient: Tensor, part: slice) -> Mapping[str, Raw]:
    """The input projection's gradients from one tapped part; both tensors with the batch first."""
    width = module._parameters["in_proj_weight"].shape[0]  # type: ignore[union-attr]  # supported() saw it
    row = functional.pad(gradient, (part.start, width - part.stop)).unsqueeze(1)
    return {"in_proj_weight": Positions(row, inputs.unsqueeze(1)), "in_proj_bias": Positions(row, None, constant=True)}


def _project(module: nn.MultiheadAttention, tap: Tap, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    width = module.embed_dim
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if query is key and key is value:
        packed = tap(functional.linear(query, weight, bias), query, slice(0, 3 * width))
        return list(packed.chunk(3, dim=-1))
    parts = []
    for number, inputs in enumerate((query, key, value)):
        part = slice(number * width, (number + 1) * width)
        parts.append(tap(functional.linear(inputs, weight[part], None if bias is None else bias[part]), inputs, part))
    return parts


def _mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, sources: int) -> Tensor | None:
    """Both masks as one additive mask that broadcasts to (batch, heads, targets, sources)."""
    found = None
    if attn_mask is not None:
        found = _additive(attn_mask, q)
        found = found.reshape(len(q), -1, *found.shape[1:]) if found.ndim == 3 else found
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q).reshape(len(q), 1, 1, sources)
        found = padding if found is None else found + padding
    return found


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, float("-inf"))
    return mask.to(q.dtype)
