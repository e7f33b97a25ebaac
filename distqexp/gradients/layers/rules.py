"""Which rule a layer has: a table by class or by its full name, which users may add to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from distqexp.errors import UsageError
from distqexp.gradients.layers.convolution import convolution
from distqexp.gradients.layers.families import embedding, linear, scale, vit_embeddings
from distqexp.gradients.layers.forms import Raw, Tensor
from distqexp.gradients.layers.layout import is_scale, is_transposed_linear

# In these an example's part is the first dimension of inputs and outputs, and no other will do.
BATCH_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class Rule(Protocol):
    """Per-example gradients of one call of a layer whose output is linear in its own parameters.

    Called with the module, its first input and the gradient of its output, both with the batch B as dimension 0, and
    the names of the module's own parameters that are wanted. Returns, by name, a tensor (B, *parameter's shape), or
    ``Positions``: rows (B, 1, L, rows) and columns (B, 1, L, columns) whose outer products, summed over L, are the
    gradient of a parameter of shape (rows, columns). More names than wanted are no harm. Example j of the result must
    depend on example j alone. Nothing may need automatic differentiation.
    """

    def __call__(
        self, module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]
    ) -> Mapping[str, Raw | Tensor]: ...


_RULES: dict[type[nn.Module] | str, Rule] = {
    nn.Linear: linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.Embedding: embedding,
    nn.LayerNorm: scale,
    nn.GroupNorm: scale,
    nn.RMSNorm: scale,
    nn.BatchNorm1d: scale,
    nn.BatchNorm2d: scale,
    nn.BatchNorm3d: scale,
    "transformers.models.vit.modeling_vit.ViTEmbeddings": vit_embeddings,
}


def register_rule(target: type[nn.Module] | str, rule: Rule) -> None:
    """Use ``rule`` for a module class, given itself or as "package.module.Class", and subclasses with the same forward.

    For any layer whose output is linear in its own parameters (given its input). The rule is checked, on noise,
    against automatic differentiation when a network that uses it is first run.
    """
    if isinstance(target, str) and "." not in target:
        raise UsageError(f'register_rule: found {target!r}; expected a module class or "package.module.Class"')
    _RULES[target] = rule


def find_rule(module: nn.Module) -> Rule | None:
    """The rule of the module's class, or of an ancestor whose ``forward`` it shares; None without one."""
    kind = type(module)
    for ancestor in kind.mro():
        if not issubclass(ancestor, nn.Module) or ancestor.forward is not kind.forward:
            continue
        found = _RULES.get(ancestor) or _RULES.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if found is not None:
            return None if _unusual(module) else found
    if is_transposed_linear(module):
        return linear
    return scale if is_scale(module) and next(module.children(), None) is None else None


def _unusual(module: nn.Module) -> bool:
    # A weight computed from other parameters (weight normalisation) is no parameter; torch.func differentiates through.
    named = ("weight",) if isinstance(module, nn.Linear | nn.Embedding | nn.modules.conv._ConvNd) else ()
    if any(name not in module._parameters for name in named):
        return True
    if isinstance(module, nn.Embedding):
        if module.max_norm is not None:
            raise UsageError(
                "model: an Embedding has max_norm, which changes its weight at every call; expected None; remove max_norm"
            )
        # scale_grad_by_freq divides by counts over the whole batch, which would couple its records.
        if module.scale_grad_by_freq:
            raise UsageError(
                "model: an Embedding has scale_grad_by_freq, which couples the records of a batch; expected False"
            )
    return False
