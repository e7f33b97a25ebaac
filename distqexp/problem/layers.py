"""Modules made of torch's own layers, as a text and back: a model that consists of these alone needs no code of its author's."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from distqexp.errors import UsageError

FACTORY = "distqexp.problem.layers:build"
"""The factory that makes a module from its description, a config's ``args``."""

KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Conv1d,
        nn.Conv2d, nn.Conv3d, nn.Dropout, nn.Dropout2d, nn.ELU, nn.Flatten, nn.GELU, nn.GroupNorm, nn.InstanceNorm1d,
        nn.InstanceNorm2d, nn.LayerNorm, nn.LeakyReLU, nn.Linear, nn.MaxPool1d, nn.MaxPool2d, nn.ReLU, nn.ReLU6, nn.Sigmoid,
        nn.SiLU, nn.Softplus, nn.Tanh,
    )
}  # fmt: skip
"""The layers that can be described: they keep every argument of their constructor as an attribute."""

_SEQUENTIAL = "Sequential"
_TYPES = {"float32": torch.float32, "float64": torch.float64}


def describe(module: nn.Module) -> dict[str, Any] | None:
    """Return the description of a module for ``build``, or None where that wouldn't make the same module.

    There is one for nn.Sequential of the layers in KINDS, nested or not, and for one such layer. Weights are not part of it.
    """
    parts = list(module.named_modules(remove_duplicate=False))
    if len({id(part) for _, part in parts}) != len(parts):
        return None  # one layer in two places
    tree = _tree(module)
    if tree is None:
        return None
    try:
        again = build(**tree)
    except (UsageError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    return tree if repr(again) == repr(module) and _signature(again) == _signature(module) else None


def build(
    kind: str, args: Mapping[str, Any] | None = None, parts: Sequence[tuple[str, Mapping[str, Any]]] | None = None
) -> nn.Module:
    """Make the module of a description. Raises UsageError for a kind that is not among KINDS.

    Args:
        kind: The name of a layer, or "Sequential".
        args: The arguments of the layer.
        parts: Names and descriptions of the modules of a Sequential, in order (a mapping of a config keeps none).
    """
    if kind == _SEQUENTIAL:
        module = nn.Sequential()
        for name, tree in parts or ():
            module.add_module(name, build(**tree))
        return module
    if kind not in KINDS:
        raise UsageError(f"model.args.kind: found {kind!r}; expected {_SEQUENTIAL} or one of {', '.join(KINDS)}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in (args or {}).items()
    }
    if values.get("dtype") is not None:
        values["dtype"] = _TYPES[str(values["dtype"])]
    return KINDS[kind](**values)


def _tree(module: nn.Module) -> dict[str, Any] | None:
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) is nn.Sequential:
        parts = [[name, _tree(part)] for name, part in module.named_children()]
        return None if any(tree is None for _, tree in parts) else {"kind": _SEQUENTIAL, "parts": parts}
    if KINDS.get(type(module).__name__) is not type(module):
        return None
    args = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in ("device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, NotImplemented)
        if name == "bias":
            value = value is not None
        if isinstance(value, tuple):
            value = list(value)
        if not isinstance(value, bool | int | float | str | list | None):
            return None
        args[name] = value
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in module.parameters()}
    if types - {"float32"} and types <= set(_TYPES):
        args["dtype"] = types.pop()
    return {"kind": type(module).__name__, "args": args}


def _signature(module: nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in module.state_dict().items()]
