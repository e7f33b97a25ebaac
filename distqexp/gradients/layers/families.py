"""Rules of the layer families that torch and Hugging Face models are made of, convolutions and attention apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from distqexp.gradients.layers.forms import Positions, Raw, Tensor, Tokens


def linear(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> Mapping[str, Raw]:
    """nn.Linear, and Hugging Face's Conv1D: a position for every entry of the dimensions between batch and features."""
    row = gradient.reshape(len(gradient), 1, -1, gradient.shape[-1])
    column = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
    return {"weight": Positions(row, column), "bias": Positions(row, None, constant=True)}


def embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> Mapping[str, Raw]:
    """nn.Embedding: rows are one-hot. ``padding_idx`` gets no gradient, as in torch."""
    assert isinstance(module, nn.Embedding)
    token = inputs.reshape(len(inputs), -1)
    column = gradient.reshape(*token.shape, -1)
    if module.padding_idx is not None:
        column = torch.where((token == module.padding_idx).unsqueeze(2), 0.0, column)
    return {"weight": Tokens(token, column)}


def scale(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> Mapping[str, Tensor]:
    """Normalisations: output = weight x normalised + bias, entry by entry. (B, *parameter shape) each."""
    channels_second = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    shape = module._parameters["weight"].shape  # type: ignore[union-attr]  # a scale has a weight
    found = {}
    axis = 2 if channels_second else 1
    flat = gradient.reshape((*gradient.shape[:2], -1) if channels_second else (len(gradient), -1, shape.numel()))
    if "weight" in wanted:
        found["weight"] = (flat * normalised(module, inputs).reshape(flat.shape)).sum(dim=axis).reshape(-1, *shape)
    if "bias" in wanted:
        found["bias"] = flat.sum(dim=axis).reshape(-1, *shape)
    return found


def normalised(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the weight multiplies."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(inputs, module.num_groups, eps=module.eps)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return functional.batch_norm(inputs, module.running_mean, module.running_var, training=False, eps=module.eps)
    # Affine in its weight, whatever its arithmetic: the difference of two weights gives the slope, exactly at 0 and 1.
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    zeros = {name: torch.zeros_like(parameter) for name, parameter in own.items()}
    ones = {**zeros, "weight": torch.ones_like(zeros["weight"])}
    one, zero = (functional_call(module, chosen, (inputs,)) for chosen in (ones, zeros))
    return one - zero


def vit_embeddings(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> Mapping[str, Tensor]:
    """A class token in front of the patches, positions added to all. A mask token is not used."""
    found = {"position_embeddings": gradient.unsqueeze(1), "cls_token": gradient[:, :1].unsqueeze(1)}
    if "mask_token" in wanted:
        found["mask_token"] = torch.zeros_like(found["cls_token"])
    return found
