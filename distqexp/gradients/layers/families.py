"""The rules of the layer families that torch and Hugging Face models are made of, except convolutions and attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from distqexp.gradients.layers.forms import Positions, Raw, Tensor, Tokens


def linear(module: nn.Module, inputs: Tensor, gradient: Tensor, names: frozenset[str]) -> Mapping[str, Raw]:
    """Apply the rule of nn.Linear and Hugging Face's Conv1D.

    There is a position for every entry of the dimensions between batch and features.
    """
    row = gradient.reshape(len(gradient), 1, -1, gradient.shape[-1])
    column = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
    return {"weight": Positions(row, column), "bias": Positions(row, None, constant=True)}


def embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, names: frozenset[str]) -> Mapping[str, Raw]:
    """Apply the rule of nn.Embedding, whose rows are one-hot. As in torch, ``padding_idx`` gets no gradient."""
    assert isinstance(module, nn.Embedding)
    token = inputs.reshape(len(inputs), -1)
    column = gradient.reshape(*token.shape, -1)
    if module.padding_idx is not None:
        column = torch.where((token == module.padding_idx).unsqueeze(2), 0.0, column)
    return {"weight": Tokens(token, column)}


def scale(module: nn.Module, inputs: Tensor, gradient: Tensor, names: frozenset[str]) -> Mapping[str, Tensor]:
    """Apply the rule of normalisations: output = weight * (normalised input) + bias, entry by entry.

    Each gradient is (B, *the parameter's shape).
    """
    channels_second = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    shape = module._parameters["weight"].shape  # type: ignore[union-attr]  # a scale has a weight
    gradients = {}
    axis = 2 if channels_second else 1
    flat = gradient.reshape((*gradient.shape[:2], -1) if channels_second else (len(gradient), -1, shape.numel()))
    if "weight" in names:
        gradients["weight"] = (
            (flat * _normalised_inputs(module, inputs).reshape(flat.shape)).sum(dim=axis).reshape(-1, *shape)
        )
    if "bias" in names:
        gradients["bias"] = flat.sum(dim=axis).reshape(-1, *shape)
    return gradients


def _normalised_inputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the normalised input, which is what the weight multiplies."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(inputs, module.num_groups, eps=module.eps)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return functional.batch_norm(inputs, module.running_mean, module.running_var, training=False, eps=module.eps)
    # The output is affine in the weight, whatever the arithmetic: its difference between weights 1 and 0 is the slope.
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    zeros = {name: torch.zeros_like(parameter) for name, parameter in own.items()}
    ones = {**zeros, "weight": torch.ones_like(zeros["weight"])}
    one, zero = (functional_call(module, parameters, (inputs,)) for parameters in (ones, zeros))
    return one - zero


def vit_embeddings(module: nn.Module, inputs: Tensor, gradient: Tensor, names: frozenset[str]) -> Mapping[str, Tensor]:
    """Apply the rule of ViT embeddings: a class token before the patches, and positions added to all. A mask token is unused."""
    gradients = {"position_embeddings": gradient.unsqueeze(1), "cls_token": gradient[:, :1].unsqueeze(1)}
    if "mask_token" in names:
        gradients["mask_token"] = torch.zeros_like(gradients["cls_token"])
    return gradients
