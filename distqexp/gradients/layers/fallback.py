"""Gradients of parameters without a rule, by torch.func on the layer that uses them. Private."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from distqexp.gradients.layers.forms import Tensor

Dims = Sequence[int | None]
"""Which dimension of each tensor is the batch; None where a tensor is shared by the batch."""


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of a tree of arguments or outputs."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def floating_tensors(tree: Any) -> list[Tensor]:
    """Return the floating-point tensors of a tree: those that gradients pass through."""
    return [leaf for leaf in tensors(tree) if leaf.is_floating_point()]


def per_example(
    module: nn.Module,
    names: Sequence[str],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    gradients: Sequence[Tensor],
    dims: tuple[Dims, Dims],
    looped: bool,
) -> dict[str, Tensor]:
    """Return the gradients of each named parameter, (B, *shape): example j's from example j's inputs alone.

    Args:
        module: The layer.
        names: The parameters, by their names in ``module``.
        arguments: The positional and keyword arguments of the layer's call.
        gradients: The gradients of the floating-point tensors of its outputs.
        dims: Where the batch is in every tensor of the arguments, and of ``gradients``.
        looped: Take one example at a time by plain automatic differentiation, for modules that torch.func can't vectorise.
    """
    leaves, tree = pytree.tree_flatten(arguments)
    slots = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    values = [leaves[number].detach() for number in slots]
    parameters = {name: module.get_parameter(name).detach() for name in names}

    def outputs(weights: dict[str, Tensor], examples: Sequence[Tensor]) -> tuple[Tensor, ...]:
        new_leaves = list(leaves)
        for number, value, dim in zip(slots, examples, dims[0], strict=True):
            new_leaves[number] = value if dim is None else value.unsqueeze(dim)
        args, kwargs = pytree.tree_unflatten(new_leaves, tree)
        return tuple(floating_tensors(functional_call(module, weights, args, kwargs)))

    def gradient(
        weights: dict[str, Tensor], examples: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        _, pull = vjp(lambda current: outputs(current, examples), weights)[:2]
        return pull(tuple(_unsqueeze(cotangents, dims[1])))[0]

    if not looped:
        return vmap(gradient, in_dims=(None, list(dims[0]), list(dims[1])))(parameters, values, list(gradients))
    return _one_by_one(outputs, parameters, values, gradients, dims)


def _one_by_one(
    outputs: Callable[[dict[str, Tensor], Sequence[Tensor]], tuple[Tensor, ...]],
    parameters: dict[str, Tensor],
    values: Sequence[Tensor],
    gradients: Sequence[Tensor],
    dims: tuple[Dims, Dims],
) -> dict[str, Tensor]:
    first = next(dim for dim in dims[1] if dim is not None)
    count = gradients[0].shape[first]
    rows: list[list[Tensor]] = []
    leaves = {name: value.clone().requires_grad_(True) for name, value in parameters.items()}
    for j in range(count):
        examples = [value if dim is None else value.select(dim, j) for value, dim in zip(values, dims[0], strict=True)]
        cotangents = [value.select(dim or 0, j) for value, dim in zip(gradients, dims[1], strict=True)]
        with torch.enable_grad():
            results = outputs(leaves, examples)
        pairs = [
            (output, gradient)
            for output, gradient in zip(results, _unsqueeze(cotangents, dims[1]), strict=True)
            if output.requires_grad
        ]
        if not pairs:
            rows.append([torch.zeros_like(leaf) for leaf in leaves.values()])
            continue
        rows.append(
            list(
                torch.autograd.grad(
                    [output for output, _ in pairs],
                    list(leaves.values()),
                    [gradient for _, gradient in pairs],
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
        )
    return {name: torch.stack([row[at] for row in rows]) for at, name in enumerate(leaves)}


def _unsqueeze(gradients: Sequence[Tensor], dims: Dims) -> list[Tensor]:
    return [gradient.unsqueeze(dim or 0) for gradient, dim in zip(gradients, dims, strict=True)]
