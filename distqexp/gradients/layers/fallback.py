"""Gradients of parameters without a rule, by torch.func on the layer that uses them. Private."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vjp
from torch.utils import _pytree as pytree

from distqexp.gradients.layers.forms import Tensor
from distqexp.problem.mapping import vmap

Dims = Sequence[int | None]
"""Which dimension of each tensor is the batch; None where a tensor is shared by the batch."""


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of a tree of arguments or outputs."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def floating_tensors(tree: Any) -> list[Tensor]:
    """Return the floating-point tensors of a tree: those that gradients pass through."""
    return [leaf for leaf in tensors(tree) if leaf.is_floating_point()]


@dataclass(frozen=True)
class Example:
    """A call of a layer, from which the calls for each example are made.

    Attributes:
        module: The layer.
        arguments: The positional and keyword arguments of the call.
        dims: Where the batch is in every tensor of the arguments, and of the floating-point tensors of the outputs.
        anew: Gives the model, inside, the state from before the pass: what the batch has left in it is other examples'.
        autocast: Gives the operations inside the types of the model's forward pass.
    """

    module: nn.Module
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    dims: tuple[Dims, Dims]
    anew: Callable[[], AbstractContextManager[None]]
    autocast: Callable[[], AbstractContextManager[Any]]


def per_example(example: Example, names: Sequence[str], gradients: Sequence[Tensor], looped: bool) -> dict[str, Tensor]:
    """Return the gradients of each named parameter, (B, *shape): example j's from example j's inputs alone.

    Args:
        example: The call.
        names: The parameters, by their names in the layer.
        gradients: The gradients of the floating-point tensors of the layer's outputs.
        looped: Take one example at a time by plain automatic differentiation, for modules that torch.func can't vectorise.
    """
    leaves, tree = pytree.tree_flatten(example.arguments)
    slots = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    values = [leaves[number].detach() for number in slots]
    parameters = {name: example.module.get_parameter(name).detach() for name in names}
    dims = example.dims

    def outputs(weights: dict[str, Tensor], examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
        new_leaves = list(leaves)
        for number, value, dim in zip(slots, examples, dims[0], strict=True):
            new_leaves[number] = value if dim is None else value.unsqueeze(dim)
        args, kwargs = pytree.tree_unflatten(new_leaves, tree)
        with example.autocast():
            return tuple(floating_tensors(functional_call(example.module, weights, args, kwargs)))

    def gradient(
        weights: dict[str, Tensor], examples: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        _, pull = vjp(lambda current: outputs(current, examples), weights)[:2]
        return pull(tuple(_unsqueeze(cotangents, dims[1])))[0]

    if looped:
        return _one_by_one(example, outputs, parameters, values, gradients)
    with example.anew():
        return vmap(gradient, in_dims=(None, list(dims[0]), list(dims[1])))(parameters, values, list(gradients))


def _one_by_one(
    example: Example,
    outputs: Callable[[dict[str, Tensor], Sequence[Tensor]], tuple[Tensor, ...]],
    parameters: dict[str, Tensor],
    values: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> dict[str, Tensor]:
    dims = example.dims
    first = next(dim for dim in dims[1] if dim is not None)
    count = gradients[0].shape[first]
    rows: list[list[Tensor]] = []
    leaves = {name: value.clone().requires_grad_(True) for name, value in parameters.items()}
    for j in range(count):
        examples = [value if dim is None else value.select(dim, j) for value, dim in zip(values, dims[0], strict=True)]
        cotangents = [value.select(dim or 0, j) for value, dim in zip(gradients, dims[1], strict=True)]
        with example.anew(), torch.enable_grad():
            rows.append(_gradients(outputs(leaves, examples), _unsqueeze(cotangents, dims[1]), list(leaves.values())))
    return {name: torch.stack([row[at] for row in rows]) for at, name in enumerate(leaves)}


def _gradients(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    ends, starts = [output for output, _ in pairs], [gradient for _, gradient in pairs]
    return list(torch.autograd.grad(ends, leaves, starts, allow_unused=True, materialize_grads=True))


def _unsqueeze(gradients: Sequence[Tensor], dims: Dims) -> list[Tensor]:
    return [gradient.unsqueeze(dim or 0) for gradient, dim in zip(gradients, dims, strict=True)]
