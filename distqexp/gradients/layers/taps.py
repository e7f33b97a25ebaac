"""One forward and one backward pass that hand over the gradient of each layer as soon as it is known. Private."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.gradients.layers import attention
from distqexp.gradients.layers.convolution import Patches
from distqexp.gradients.layers.fallback import Example, floating_tensors, per_example, tensors
from distqexp.gradients.layers.forms import Matrices, Positions, Raw, Tensor
from distqexp.gradients.layers.routing import Fallback, Place, Routing, RuleUse, opened_attention
from distqexp.problem.network import Network

Receive = Callable[[int, Raw], None]
"""Takes the number of a block and the gradients of one use of it."""

Finish = Callable[[int], None]
"""Takes the number of a block whose gradients are complete."""


class _Pass(NamedTuple):
    """One batch on its way through the network.

    Attributes:
        anchor: The scalar with respect to which the backward pass differentiates, so that it runs through every tap.
        records: The number of records.
        receive: Takes the gradients.
        still: The numbers of blocks whose gradients nobody asks for.
        finish: Takes the number of a block whose uses have all been received.
        waiting: How many uses of each block the forward pass has seen and the backward pass not yet.
    """

    anchor: Tensor
    records: int
    receive: Receive
    still: frozenset[int]
    finish: Finish | None
    waiting: Counter[int]

    def asks_for(self, places: Mapping[str, Place]) -> bool:
        """Return whether the gradient of any of these parameters is asked for."""
        return any(number not in self.still for number, _ in places.values())

    def expect(self, places: Mapping[str, Place]) -> None:
        """Note a use of these parameters."""
        self.waiting.update({number for number, _ in places.values()})

    def received(self, number: int) -> None:
        """Note that a use of a block was handed over."""
        self.waiting[number] -= 1
        if self.finish is not None and self.waiting[number] == 0:
            self.finish(number)


class Taps:
    """Runs batches through the network and hands over the gradients of each block, use by use.

    The backward pass forms no gradient of a parameter, only those of the layers' outputs. Each is dropped as soon as its layer's
    gradients are handed over, so that the pass takes no more memory than a plain one.
    """

    def __init__(self, network: Network, blocks: Sequence[Block], routing: Routing) -> None:
        self.network = network
        self.blocks = blocks
        self.routing = routing
        self._resting = False
        self._backward = False

    def run(
        self,
        inputs: Tensor,
        value: Callable[[Tensor], Tensor],
        receive: Receive,
        still: frozenset[int] = frozenset(),
        finish: Finish | None = None,
    ) -> None:
        """Run one batch. Where all blocks of the first layers are ``still``, the backward pass ends before these layers.

        Args:
            inputs: (B, ...).
            value: Maps the outputs to (B,), the number to differentiate for each record.
            receive: Takes the gradients.
            still: The numbers of blocks whose gradients are not asked for; a layer that has others too may give them all the same.
            finish: Takes the number of a block as soon as every use that the forward pass made of it was received. A block with a use
                that the outputs don't depend on is never finished.
        """
        anchor = torch.zeros((), dtype=self.network.dtype, device=self.network.device, requires_grad=True)
        batch = _Pass(anchor, len(inputs), receive, still, finish, Counter())
        handles = []
        try:
            for module, use in self.routing.rules.items():
                if not batch.asks_for(use.places):
                    continue
                hook = partial(self._rule_hook, use, batch)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            for module, fallback in self.routing.fallbacks.items():
                if not batch.asks_for(fallback.places):
                    continue
                fallback_hook = partial(self._fallback_hook, fallback, batch)
                handles.append(module.register_forward_hook(fallback_hook, with_kwargs=True))
            tap = partial(self._attention_tap, batch)
            with torch.enable_grad(), opened_attention(self.routing.attention_modules, tap):
                values = value(self.network.forward(self.network.prepare(inputs)))
                self._backward = True
                if values.requires_grad:
                    # Of the sum, as torch imports a symbolic algebra of 35 MiB for output gradients that it is given.
                    torch.autograd.grad(values.sum(), anchor, allow_unused=True)
        finally:
            self._backward = False
            for handle in handles:
                handle.remove()

    def _rule_hook(
        self,
        use: RuleUse,
        batch: _Pass,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        if self._resting:
            return None
        inputs = tensors((args, kwargs))[0].detach()
        if use.dim is None:
            # All records share the output. Expanded to one for each of them, its gradients are each record's own.
            inputs = inputs.expand(batch.records, *inputs.shape[1:])
            output = output.expand(batch.records, *output.shape[1:]).contiguous()
        answer = self._answer(
            module,
            inputs,
            use.dim or 0,
            use.places,
            lambda x, g: use.rule(module, x, g, frozenset(use.places)),
            batch,
        )
        built_in = type(module).__module__.startswith("torch.nn.")
        return _Tap.apply(batch.anchor, answer, built_in, output)[0]  # type: ignore[no-untyped-call]

    def _attention_tap(
        self,
        batch: _Pass,
        module: nn.MultiheadAttention,
        output: Tensor,
        inputs: Tensor,
        part: slice,
    ) -> Tensor:
        places = self.routing.attentions.get(module)
        if self._resting or places is None or not batch.asks_for(places):
            return output
        dim = 0 if module.batch_first else 1
        answer = self._answer(
            module, inputs.detach(), dim, places, lambda x, g: attention.projection(module, x, g, part), batch
        )
        return _Tap.apply(batch.anchor, answer, True, output)[0]  # type: ignore[no-untyped-call]

    def _fallback_hook(
        self,
        fallback: Fallback,
        batch: _Pass,
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
                _require_unchanged(module, leaf, version)
            names = list(fallback.places)
            dims = (fallback.call.inputs, fallback.call.outputs)
            example = Example(module, (args, kwargs), dims, self.network.anew, self.network.autocast)
            compute = partial(per_example, example, names, gradients, fallback.looped)
            self._hand_over(fallback.places, compute, batch)

        self._expect(fallback.places, batch)
        outputs = _Tap.apply(batch.anchor, answer, False, *floating_tensors(output))  # type: ignore[no-untyped-call]
        for slot, tensor in zip(slots, outputs, strict=True):
            leaves[slot] = tensor
        return pytree.tree_unflatten(leaves, tree)

    def _answer(
        self,
        module: nn.Module,
        inputs: Tensor,
        dim: int,
        places: Mapping[str, Place],
        rule: Callable[[Tensor, Tensor], Mapping[str, Raw | Tensor]],
        batch: _Pass,
    ) -> Callable[[tuple[Tensor, ...]], None]:
        """Return a callback that takes the gradients of a use's output, applies ``rule``, and hands the result over.

        The rule gets inputs and gradients with the records as the first dimension, moved there from ``dim``.
        """
        version = inputs._version

        def answer(gradients: tuple[Tensor, ...]) -> None:
            _require_unchanged(module, inputs, version)
            x, g = (self._plain(tensor.movedim(dim, 0)) for tensor in (inputs, gradients[0]))
            self._hand_over(places, partial(rule, x, g), batch)

        self._expect(places, batch)
        return answer

    def _expect(self, places: Mapping[str, Place], batch: _Pass) -> None:
        """Note a use of these parameters, once: a checkpoint calls its layers again in the backward pass."""
        if not self._backward:
            batch.expect(places)

    def _plain(self, tensor: Tensor) -> Tensor:
        """Return numbers in the type of the parameters, which autocast may have made shorter; others as they are."""
        return tensor.to(self.network.dtype) if tensor.is_floating_point() else tensor

    def _hand_over(
        self, places: Mapping[str, Place], compute: Callable[[], Mapping[str, Raw | Tensor]], batch: _Pass
    ) -> None:
        """Compute the gradients of a use's parameters and hand them over, block by block."""
        self._resting = True  # a rule may call the module again, and such a call is no use of it
        try:
            gradients = compute()
        finally:
            self._resting = False
        by_block: dict[int, dict[str, Raw | Tensor]] = {}
        for name, (number, part) in places.items():
            by_block.setdefault(number, {})[part] = gradients[name]
        for number, parts in by_block.items():
            for raw in _as_raw(self.blocks[number], parts):
                batch.receive(number, raw)
            batch.received(number)


class _Tap(torch.autograd.Function):
    """The identity, whose backward pass gives the gradients of its outputs to a callback.

    The anchor is an input with a gradient, so that the backward pass runs even where no other input has one.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, answer: Callable[[tuple[Tensor, ...]], None], unread: bool, *outputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.answer = answer
        # A view would forbid activations in place. Where no backward formula of the layer reads its output (``unread``),
        # the same memory serves. Elsewhere a copy does, so that the layer's output stays right when an activation overwrites it.
        if unread:
            return tuple(torch.ops.aten._unsafe_view(output, output.shape) for output in outputs)
        return tuple(output.clone() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        answer, ctx.answer = ctx.answer, None
        answer(gradients)
        return (None, None, None, *gradients)


def _as_raw(block: Block, parts: Mapping[str, Raw | Tensor]) -> list[Raw]:
    """Return one or two contributions to a block, from the gradients of its weight and bias as a rule gives them."""
    weight, bias = parts.get("weight"), parts.get("bias")
    if isinstance(weight, Positions | Patches) and isinstance(bias, Positions) and bias.row is weight.row:
        return [replace(weight, constant=True)]
    contributions: list[Raw] = []
    matrices: dict[str, Tensor] = {}
    for part, value in parts.items():
        if isinstance(value, torch.Tensor):
            matrices[part] = value
        elif part == "weight" and isinstance(value, Positions) and value.column is None:
            row = value.row.sum(dim=2, keepdim=True)
            contributions.append(Positions(row, torch.ones_like(row[..., :1])))
        else:
            contributions.append(value)
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
        column_blocks = [
            some.new_zeros((len(some), block.copies, block.rows, width)) if column is None else column
            for column, width in zip(columns, shapes, strict=True)
        ]
        contributions.append(Matrices(torch.cat(column_blocks, dim=3) if len(column_blocks) > 1 else column_blocks[0]))
    return contributions


def _weight_matrix(block: Block, weight: Tensor) -> Tensor:
    """Return a weight's gradients (B, *shape) as the matrices of its block, (B, copies, rows, weight columns)."""
    if block.transposed:
        return weight.reshape(len(weight), block.copies, block.weight_columns, block.rows).transpose(2, 3)
    return weight.reshape(len(weight), block.copies, block.rows, block.weight_columns)


def _require_unchanged(module: nn.Module, tensor: Tensor, version: int) -> None:
    """Raise UsageError where a tensor was changed in place since it had this version."""
    if tensor._version != version:
        raise UsageError(
            f"model: an input of {type(module).__name__} was changed in place after the layer had read it; expected it unchanged "
            "until the backward pass; set inplace=False on the operation that changes it"
        )
