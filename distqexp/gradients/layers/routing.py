"""The routing of parameters to layers, which follows from running zeros through the network in two batch sizes. Public."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from distqexp.geometry.blocks import Block
from distqexp.gradients.layers import attention
from distqexp.gradients.layers.fallback import floating_tensors, tensors
from distqexp.gradients.layers.forms import Tensor
from distqexp.gradients.layers.rules import BATCH_FIRST, Rule, find_rule
from distqexp.problem.network import Network

SIZES = (2, 3)
"""The two batch sizes: a dimension that takes these sizes is the batch, one that stays the same is not."""

Place = tuple[int, Literal["weight", "bias"]]
"""The number of a parameter's block, and whether the parameter is the block's weight or its bias."""

Shapes = tuple[list[torch.Size], list[torch.Size]]
"""The shapes of the inputs and of the floating-point outputs of one call."""


@dataclass(frozen=True)
class Call:
    """Where the batch is in the tensors of one call of a module.

    Attributes:
        inputs: The dimension that is the batch in each input; None where there is none, -1 where it is mixed with others.
        outputs: The same of each floating-point output.
        single: Whether the first input and the only output have a first dimension of size one.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    single: bool


@dataclass
class Fallback:
    """Parameters of a module that torch.func differentiates.

    Attributes:
        places: Where each parameter is, by its name in the module.
        call: Where the batch is in the module's tensors.
        looped: Whether to take one example at a time.
    """

    places: dict[str, Place]
    call: Call
    looped: bool = False


@dataclass
class RuleUse:
    """How a layer's rule is used.

    Attributes:
        rule: The rule.
        places: Where each parameter is, by its name in the layer.
        dim: The dimension that is the batch; None for a first dimension of size one, which is then expanded.
    """

    rule: Rule
    places: dict[str, Place]
    dim: int | None


@dataclass
class Routing:
    """What gives the gradient of each parameter. Together they cover each use of every trainable parameter once.

    Attributes:
        rules: Layers with a rule.
        attentions: Attention modules whose input projection is tapped, with the places of its parameters.
        attention_modules: All attention modules that run with their projections written out.
        fallbacks: Modules that torch.func differentiates.
    """

    rules: dict[nn.Module, RuleUse] = field(default_factory=dict)
    attentions: dict[nn.MultiheadAttention, dict[str, Place]] = field(default_factory=dict)
    attention_modules: list[nn.MultiheadAttention] = field(default_factory=list)
    fallbacks: dict[nn.Module, Fallback] = field(default_factory=dict)


def make_routing(
    network: Network, blocks: Sequence[Block], record: Tensor, root_names: frozenset[str] = frozenset()
) -> Routing:
    """Make the routing for records of one shape and type.

    Args:
        network: The model.
        blocks: Its parameters as matrices.
        record: A record (1, ...) of that shape and type.
        root_names: The names of the trainable parameters to differentiate through the whole network.
    """
    root = network.module
    owners = _owners(network)
    attention_modules = [
        module
        for module in root.modules()
        if isinstance(module, nn.MultiheadAttention) and attention.is_supported(module) and _trains(module)
    ]
    calls = _trace(network, record, owners, attention_modules)
    places = _places(network, blocks)
    routing = Routing(attention_modules=attention_modules)
    for name, holders in owners.items():
        modules = [module for module, _ in holders]
        if name not in root_names and all(_has_rule(module, calls) for module in modules):
            for module, own in holders:
                _add_rule(routing, module, own, places[name], calls)
            continue
        module = root if name in root_names else _nearest(root, modules, calls)
        parameter = root.get_parameter(name)
        own = next(path for path, candidate in module.named_parameters() if candidate is parameter)
        routing.fallbacks.setdefault(module, Fallback({}, calls[module][0])).places[own] = places[name]
    return routing


@contextmanager
def opened_attention(modules: Sequence[nn.MultiheadAttention], tap: Any) -> Iterator[None]:
    """Run these modules with their projections written out while the context lasts.

    Args:
        modules: Attention modules, as ``attention.is_supported`` allows.
        tap: Called with (module, output, inputs, part) for each part of a projection; returns the output, tapped.
    """
    for module in modules:
        module.forward = partial(attention.attend, module, partial(tap, module))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _owners(network: Network) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return the modules that have each trainable parameter, and its name there."""
    names = {id(network.module.get_parameter(name)): name for name, _ in network.names_shapes}
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for module in network.module.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in names:
                owners[names[id(parameter)]].append((module, own))
    return owners


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _places(network: Network, blocks: Sequence[Block]) -> dict[str, Place]:
    """Return the place of each trainable parameter."""
    starts: dict[int, Place] = {}
    for number, block in enumerate(blocks):
        if block.weight is not None:
            starts[block.weight] = (number, "weight")
        if block.bias is not None:
            starts[block.bias] = (number, "bias")
    places, at = {}, 0
    for name, _ in network.names_shapes:
        places[name] = starts[at]
        at += network.module.get_parameter(name).numel()
    return places


def _trace(
    network: Network,
    record: Tensor,
    owners: dict[str, list[tuple[nn.Module, str]]],
    attention_modules: Sequence[nn.MultiheadAttention],
) -> dict[nn.Module, list[Call]]:
    """Run zeros in both batch sizes, and return every call of the modules that have trainable parameters, own or inner."""
    holders = {id(module) for holders in owners.values() for module, _ in holders}
    modules = [module for module in network.module.modules() if any(id(part) in holders for part in module.modules())]
    runs: list[dict[nn.Module, list[Shapes]]] = []
    for size in SIZES:
        shapes: dict[nn.Module, list[Shapes]] = {}

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any, shapes: Any = shapes) -> None:
            inputs, outputs = tensors((args, kwargs)), floating_tensors(output)
            shapes.setdefault(module, []).append(([leaf.shape for leaf in inputs], [leaf.shape for leaf in outputs]))

        handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
        try:
            # With gradients, as in the pass itself: without, some modules compute in another way.
            with torch.enable_grad(), opened_attention(attention_modules, lambda module, output, inputs, part: output):
                network.forward(network.prepare(record.new_zeros((size, *record.shape[1:]))))
        finally:
            for handle in handles:
                handle.remove()
        runs.append(shapes)
    calls = {}
    for module, few in runs[0].items():
        many = runs[1].get(module, [])
        alike = len(few) == len(many) and all(
            len(a[0]) == len(b[0]) and len(a[1]) == len(b[1]) for a, b in zip(few, many, strict=True)
        )
        if alike:
            calls[module] = [_call(a, b) for a, b in zip(few, many, strict=True)]
    return calls


def _call(few: Shapes, many: Shapes) -> Call:
    """Return where the batch is, from the shapes of one call in both batch sizes."""
    single = all(bool(side) and side[0][:1] == (1,) for side in many) and len(many[1]) == 1
    inputs, outputs = (tuple(_batch_dim(a, b) for a, b in zip(few[i], many[i], strict=True)) for i in (0, 1))
    return Call(inputs, outputs, single)


def _batch_dim(few: torch.Size, many: torch.Size) -> int | None:
    """Return the dimension that is the batch; None where nothing changes with it, -1 where it is mixed with others."""
    if few == many:
        return None
    if len(few) != len(many):
        return -1
    dims = [dim for dim, sizes in enumerate(zip(few, many, strict=True)) if sizes[0] != sizes[1]]
    return dims[0] if len(dims) == 1 and (few[dims[0]], many[dims[0]]) == SIZES else -1


def _has_rule(module: nn.Module, calls: dict[nn.Module, list[Call]]) -> bool:
    """Return whether a module has a rule that can be used for every call of it."""
    own_calls = calls.get(module, [])
    if not own_calls:
        return False
    first = own_calls[0]
    if any((call.inputs[:1], call.outputs) != (first.inputs[:1], first.outputs) for call in own_calls):
        return False
    if isinstance(module, nn.MultiheadAttention):
        dims = {dim for call in own_calls for dim in call.inputs[:3]}
        return attention.is_supported(module) and dims == {0 if module.batch_first else 1}
    if len(first.outputs) != 1 or not first.inputs or find_rule(module) is None:
        return False
    if first.inputs[0] is None and first.outputs[0] is None:
        return all(call.single for call in own_calls) and not isinstance(module, BATCH_FIRST)
    return first.inputs[0] == first.outputs[0] and first.outputs[0] in (
        (0,) if isinstance(module, BATCH_FIRST) else (0, 1)
    )


def _differentiable(module: nn.Module, calls: dict[nn.Module, list[Call]]) -> bool:
    """Return whether torch.func can differentiate a module on its own: all its calls are alike, with the batch in one place."""
    own_calls = calls.get(module, [])
    return bool(own_calls) and all(
        call == own_calls[0]
        and all(dim in (None, 0, 1) for dim in call.inputs)
        and all(dim in (0, 1) for dim in call.outputs)
        for call in own_calls
    )


def _add_rule(routing: Routing, module: nn.Module, own: str, place: Place, calls: dict[nn.Module, list[Call]]) -> None:
    if isinstance(module, nn.MultiheadAttention):
        routing.attentions.setdefault(module, {})[own] = place
        return
    rule = find_rule(module)
    assert rule is not None
    routing.rules.setdefault(module, RuleUse(rule, {}, calls[module][0].outputs[0])).places[own] = place


def _nearest(root: nn.Module, modules: Sequence[nn.Module], calls: dict[nn.Module, list[Call]]) -> nn.Module:
    """Return the innermost module that has all of these inside and can be differentiated on its own, or else the root."""
    if len(modules) == 1 and _differentiable(modules[0], calls):
        return modules[0]
    paths = [
        path.split(".")
        for path, module in root.named_modules(remove_duplicate=False)
        if any(module is one for one in modules)
    ]
    depth = min(len(path) for path in paths)
    for length in range(depth, 0, -1):
        module = root.get_submodule(".".join(paths[0][:length]))
        if all(path[:length] == paths[0][:length] for path in paths) and _differentiable(module, calls):
            return module
    return root
