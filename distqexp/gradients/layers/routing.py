"""Which layer answers for which parameter: found by running zeros through the network in two batch sizes. Public."""

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
from distqexp.gradients.layers.fallback import floating, tensors
from distqexp.gradients.layers.forms import Tensor
from distqexp.gradients.layers.rules import BATCH_FIRST, Rule, find_rule
from distqexp.problem.network import Network

SIZES = (2, 3)
"""The two batch sizes: a dimension that is the batch is of these sizes; one that stays the same is none of it."""

Place = tuple[int, Literal["weight", "bias"]]
"""A block's number, and which of its columns a parameter is."""


@dataclass(frozen=True)
class Call:
    """Where the batch is in a module's tensors: inputs and floating-point outputs. None: nowhere; -1: mixed with more.

    ``single``: the first input and the only output have a first dimension of size one.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    single: bool


@dataclass
class Fallback:
    """Parameters, by their names in a module, that torch.func differentiates; ``looped``: one example at a time."""

    places: dict[str, Place]
    call: Call
    looped: bool = False


@dataclass
class RuleUse:
    """A layer with a rule. ``dim``: where the batch is; None: a first dimension of size one, to be expanded."""

    rule: Rule
    places: dict[str, Place]
    dim: int | None


@dataclass
class Plan:
    """Who answers for which parameter. Together: every trainable parameter, each use of it once."""

    rules: dict[nn.Module, RuleUse] = field(default_factory=dict)
    attentions: dict[nn.MultiheadAttention, dict[str, Place]] = field(default_factory=dict)
    opened: list[nn.MultiheadAttention] = field(default_factory=list)
    fallbacks: dict[nn.Module, Fallback] = field(default_factory=dict)


def make_plan(network: Network, blocks: Sequence[Block], record: Tensor, whole: frozenset[str] = frozenset()) -> Plan:
    """The plan for records of the shape and type of ``record`` (1, ...).

    ``whole``: trainable parameters, by name, to differentiate through the whole network.
    """
    root = network.module
    owners = _owners(network)
    opened = [
        module
        for module in root.modules()
        if isinstance(module, nn.MultiheadAttention) and attention.supported(module) and _trains(module)
    ]
    calls = _trace(network, record, owners, opened)
    places = _places(network, blocks)
    plan = Plan(opened=opened)
    for name, holders in owners.items():
        modules = [module for module, _ in holders]
        if name not in whole and all(_answers(module, calls) for module in modules):
            for module, own in holders:
                _add_rule(plan, module, own, places[name], calls)
            continue
        module = root if name in whole else _nearest(root, modules, calls)
        parameter = root.get_parameter(name)
        own = next(found for found, candidate in module.named_parameters() if candidate is parameter)
        plan.fallbacks.setdefault(module, Fallback({}, calls[module][0])).places[own] = places[name]
    return plan


@contextmanager
def opened_attention(modules: Sequence[nn.MultiheadAttention], tap: Any) -> Iterator[None]:
    """Within it, these modules run with their projections written out; ``tap(module, output, inputs, part)``."""
    for module in modules:
        module.forward = partial(attention.attend, module, partial(tap, module))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _owners(network: Network) -> dict[str, list[tuple[nn.Module, str]]]:
    """The modules that hold each trainable parameter, and its name there."""
    known = {id(network.module.get_parameter(name)): name for name, _ in network.names_shapes}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in known.values()}
    for module in network.module.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in known:
                found[known[id(parameter)]].append((module, own))
    return found


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _places(network: Network, blocks: Sequence[Block]) -> dict[str, Place]:
    starts: dict[int, Place] = {}
    for number, block in enumerate(blocks):
        if block.weight is not None:
            starts[block.weight] = (number, "weight")
        if block.bias is not None:
            starts[block.bias] = (number, "bias")
    found, at = {}, 0
    for name, _ in network.names_shapes:
        found[name] = starts[at]
        at += network.module.get_parameter(name).numel()
    return found


def _trace(
    network: Network,
    record: Tensor,
    owners: dict[str, list[tuple[nn.Module, str]]],
    opened: Sequence[nn.MultiheadAttention],
) -> dict[nn.Module, list[Call]]:
    holders = {id(module) for holders in owners.values() for module, _ in holders}
    watched = [module for module in network.module.modules() if any(id(part) in holders for part in module.modules())]
    runs: list[dict[nn.Module, list[tuple[list[torch.Size], list[torch.Size]]]]] = []
    for size in SIZES:
        seen: dict[nn.Module, list[tuple[list[torch.Size], list[torch.Size]]]] = {}

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any, seen: Any = seen) -> None:
            shapes = ([leaf.shape for leaf in tensors((args, kwargs))], [leaf.shape for leaf in floating(output)])
            seen.setdefault(module, []).append(shapes)

        handles = [module.register_forward_hook(note, with_kwargs=True) for module in watched]
        try:
            # With gradients, as in the pass itself: some modules take other ways without.
            with torch.enable_grad(), opened_attention(opened, lambda module, output, inputs, part: output):
                network.module(network.prepare(record.new_zeros((size, *record.shape[1:]))))
        finally:
            for handle in handles:
                handle.remove()
        runs.append(seen)
    calls = {}
    for module, few in runs[0].items():
        many = runs[1].get(module, [])
        alike = len(few) == len(many) and all(
            len(a[0]) == len(b[0]) and len(a[1]) == len(b[1]) for a, b in zip(few, many, strict=True)
        )
        if alike:
            calls[module] = [_call(a, b) for a, b in zip(few, many, strict=True)]
    return calls


def _call(few: tuple[list[torch.Size], list[torch.Size]], many: tuple[list[torch.Size], list[torch.Size]]) -> Call:
    single = all(bool(side) and side[0][:1] == (1,) for side in many) and len(many[1]) == 1
    inputs, outputs = (tuple(_batch_dim(a, b) for a, b in zip(few[i], many[i], strict=True)) for i in (0, 1))
    return Call(inputs, outputs, single)


def _batch_dim(few: torch.Size, many: torch.Size) -> int | None:
    if few == many:
        return None
    if len(few) != len(many):
        return -1
    changed = [dim for dim, sizes in enumerate(zip(few, many, strict=True)) if sizes[0] != sizes[1]]
    return changed[0] if len(changed) == 1 and (few[changed[0]], many[changed[0]]) == SIZES else -1


def _answers(module: nn.Module, calls: dict[nn.Module, list[Call]]) -> bool:
    """Whether a module has a rule that can be used for every call of it."""
    made = calls.get(module, [])
    if not made or any((call.inputs[:1], call.outputs) != (made[0].inputs[:1], made[0].outputs) for call in made):
        return False
    first = made[0]
    if isinstance(module, nn.MultiheadAttention):
        dims = {dim for call in made for dim in call.inputs[:3]}
        return attention.supported(module) and dims == {0 if module.batch_first else 1}
    if len(first.outputs) != 1 or not first.inputs or find_rule(module) is None:
        return False
    if first.inputs[0] is None and first.outputs[0] is None:
        return all(call.single for call in made) and not isinstance(module, BATCH_FIRST)
    return first.inputs[0] == first.outputs[0] and first.outputs[0] in (
        (0,) if isinstance(module, BATCH_FIRST) else (0, 1)
    )


def _differentiable(module: nn.Module, calls: dict[nn.Module, list[Call]]) -> bool:
    made = calls.get(module, [])
    return bool(made) and all(
        call == made[0]
        and all(dim in (None, 0, 1) for dim in call.inputs)
        and all(dim in (0, 1) for dim in call.outputs)
        for call in made
    )


def _add_rule(plan: Plan, module: nn.Module, own: str, place: Place, calls: dict[nn.Module, list[Call]]) -> None:
    if isinstance(module, nn.MultiheadAttention):
        plan.attentions.setdefault(module, {})[own] = place
        return
    rule = find_rule(module)
    assert rule is not None
    plan.rules.setdefault(module, RuleUse(rule, {}, calls[module][0].outputs[0])).places[own] = place


def _nearest(root: nn.Module, modules: Sequence[nn.Module], calls: dict[nn.Module, list[Call]]) -> nn.Module:
    """The innermost module that holds all of these and can be differentiated on its own; the root in the end."""
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
