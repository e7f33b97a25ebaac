"""One forward and one backward pass in which every layer's gradient is handed over the moment it is known. Private."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.gradients.layers import attention
from distqexp.gradients.layers.convolution import Patches
from distqexp.gradients.layers.fallback import floating, per_example, tensors
from distqexp.gradients.layers.forms import Matrices, Positions, Raw, Tensor
from distqexp.gradients.layers.routing import Fallback, Place, Plan, RuleUse, opened_attention
from distqexp.problem.network import Network

Receive = Callable[[int, Raw], None]


class Taps:
    """Runs batches of one size through the network and gives ``receive`` each block's gradient, use by use.

    No gradient of a parameter is formed by the backward pass: only those of the layers' outputs, each dropped as soon
    as its layer has answered, so that memory is that of a plain pass.
    """

    def __init__(self, network: Network, blocks: Sequence[Block], plan: Plan) -> None:
        self.network = network
        self.blocks = blocks
        self.plan = plan
        self._resting = False

    def run(self, inputs: Tensor, value: Callable[[Tensor], Tensor], receive: Receive) -> None:
        """``inputs`` (B, ...); ``value`` maps the outputs to (B,), the number to differentiate for each record."""
        anchor = torch.zeros((), dtype=self.network.dtype, device=self.network.device, requires_grad=True)
        count = len(inputs)
        handles = []
        try:
            for module, use in self.plan.rules.items():
                hook = partial(self._rule_hook, use, anchor, count, receive)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            for module, fallback in self.plan.fallbacks.items():
                fallback_hook = partial(self._fallback_hook, fallback, anchor, receive)
                handles.append(module.register_forward_hook(fallback_hook, with_kwargs=True))
            tap = partial(self._attention_tap, anchor, receive)
            with torch.enable_grad(), opened_attention(self.plan.opened, tap):
                values = value(self.network.module(self.network.prepare(inputs)))
                if values.requires_grad:
                    torch.autograd.grad(values, anchor, torch.ones_like(values), allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()

    def _rule_hook(
        self,
        use: RuleUse,
        anchor: Tensor,
        count: int,
        receive: Receive,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        if self._resting:
            return None
        inputs = tensors((args, kwargs))[0].detach()
        if use.dim is None:
            # Shared by all records: with a part for each of them, gradients are each record's own.
            inputs = inputs.expand(count, *inputs.shape[1:])
            output = output.expand(count, *output.shape[1:]).contiguous()
        answer = self._answer(
            module,
            inputs,
            use.dim or 0,
            use.places,
            lambda x, g: use.rule(module, x, g, frozenset(use.places)),
            receive,
        )
        built_in = type(module).__module__.startswith("torch.nn.")
        return _Tap.apply(anchor, answer, built_in, output)[0]  # type: ignore[no-untyped-call]

    def _attention_tap(
        self,
        anchor: Tensor,
        receive: Receive,
        module: nn.MultiheadAttention,
        output: Tensor,
        inputs: Tensor,
        part: slice,
    ) -> Tensor:
        places = self.plan.attentions.get(module)
        if self._resting or places is None:
            return output
        dim = 0 if module.batch_first else 1
        answer = self._answer(
            module, inputs.detach(), dim, places, lambda x, g: attention.projection(module, x, g, part), receive
        )
        return _Tap.apply(anchor, answer, True, output)[0]  # type: ignore[no-untyped-call]

    def _fallback_hook(
        self,
        fallback: Fallback,
        anchor: Tensor,
        receive: Receive,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        if self._resting:
            return None
        versions = [(leaf, leaf._version) for leaf in tensors((args, kwargs))]
        leaves, tree = pytree.tree_flatten(output)
        slots = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

        def answer(gradients: tuple[Tensor, ...]) -> None:
            for leaf, version in versions:
                _unchanged(module, leaf, version)
            names = list(fallback.places)
            dims = (fallback.call.inputs, fallback.call.outputs)
            compute = partial(per_example, module, names, (args, kwargs), gradients, dims, fallback.looped)
            self._hand_over(fallback.places, compute, receive)

        tapped = _Tap.apply(anchor, answer, False, *floating(output))  # type: ignore[no-untyped-call]
        for slot, tensor in zip(slots, tapped, strict=True):
            leaves[slot] = tensor
        return pytree.tree_unflatten(leaves, tree)

    def _answer(
        self,
        module: nn.Module,
        inputs: Tensor,
        dim: int,
        places: Mapping[str, Place],
        rule: Callable[[Tensor, Tensor], Mapping[str, Raw | Tensor]],
        receive: Receive,
    ) -> Callable[[tuple[Tensor, ...]], None]:
        """What hands over ``rule`` of a use's inputs and output gradients, records first, once the latter are known."""
        version = inputs._version

        def answer(gradients: tuple[Tensor, ...]) -> None:
            _unchanged(module, inputs, version)
            x, g = (tensor.movedim(dim, 0) for tensor in (inputs, gradients[0]))
            self._hand_over(places, partial(rule, x, g), receive)

        return answer

    def _hand_over(
        self, places: Mapping[str, Place], compute: Callable[[], Mapping[str, Raw | Tensor]], receive: Receive
    ) -> None:
        self._resting = True  # a rule may call the module again: those calls are no uses
        try:
            found = compute()
        finally:
            self._resting = False
        by_block: dict[int, dict[str, Raw | Tensor]] = {}
        for name, (number, part) in places.items():
            by_block.setdefault(number, {})[part] = found[name]
        for number, parts in by_block.items():
            for raw in as_raw(self.blocks[number], parts):
                receive(number, raw)


class _Tap(torch.autograd.Function):
    """The identity, which hands the gradient of its outputs to a callback. Anchored: it runs though no input has a gradient."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, answer: Callable[[tuple[Tensor, ...]], None], unread: bool, *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.answer = answer
        # A view would forbid activations in place. ``unread``: no backward formula of the layer reads its output, so
        # the same memory serves; else a copy does, which stays right when an activation overwrites it.
        if unread:
            return tuple(torch.ops.aten._unsafe_view(output, output.shape) for output in outputs)
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        answer, ctx.answer = ctx.answer, None
        answer(gradients)
        return (None, None, None, *gradients)


def as_raw(block: Block, parts: Mapping[str, Raw | Tensor]) -> list[Raw]:
    """One or two contributions to a block, from its parameters' gradients as a rule gives them."""
    weight, bias = parts.get("weight"), parts.get("bias")
    if isinstance(weight, Positions | Patches) and isinstance(bias, Positions) and bias.row is weight.row:
        return [replace(weight, constant=True)]
    found: list[Raw] = []
    matrices: dict[str, Tensor] = {}
    for part, value in parts.items():
        if isinstance(value, torch.Tensor):
            matrices[part] = value
        elif part == "weight" and isinstance(value, Positions) and value.column is None:
            row = value.row.sum(dim=2, keepdim=True)
            found.append(Positions(row, torch.ones_like(row[..., :1])))
        else:
            found.append(value)
    if matrices:
        some = next(iter(matrices.values()))
        columns = []
        if block.weight is not None:
            columns.append(_weight_matrix(block, matrices["weight"]) if "weight" in matrices else None)
        if block.bias is not None:
            columns.append(
                matrices["bias"].reshape(len(some), block.copies, block.rows, 1) if "bias" in matrices else None
            )
        shapes = [block.weight_columns] * (block.weight is not None) + [1] * (block.bias is not None)
        filled = [
            some.new_zeros((len(some), block.copies, block.rows, width)) if column is None else column
            for column, width in zip(columns, shapes, strict=True)
        ]
        found.append(Matrices(torch.cat(filled, dim=3) if len(filled) > 1 else filled[0]))
    return found


def _weight_matrix(block: Block, weight: Tensor) -> Tensor:
    if block.transposed:
        return weight.reshape(len(weight), block.copies, block.weight_columns, block.rows).transpose(2, 3)
    return weight.reshape(len(weight), block.copies, block.rows, block.weight_columns)


def _unchanged(module: nn.Module, tensor: Tensor, version: int) -> None:
    if tensor._version != version:
        raise UsageError(
            f"model: an input of {type(module).__name__} was changed in place after the layer had read it; expected it unchanged "
            "until the backward pass; set inplace=False on the operation that changes it"
        )
