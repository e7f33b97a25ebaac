"""The table of rules by a layer's class or its full name. Users may add to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from distqexp.errors import UsageError
from distqexp.gradients.layers.convolution import convolution
from distqexp.gradients.layers.families import embedding, linear, scale, vit_embeddings
from distqexp.gradients.layers.forms import Raw, Tensor
from distqexp.gradients.layers.layout import is_scale, is_transposed_linear

# These layers take the first dimension of inputs and outputs for the batch, and no other.
BATCH_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class Rule(Protocol):
    """A function that computes the per-example gradients of one call of a layer.

    The layer's output must be linear in its own parameters. Example j of the result must depend on example j alone, and
    nothing may need automatic differentiation.
    """

    def __call__(
        self, module: nn.Module, inputs: Tensor, gradient: Tensor, names: frozenset[str]
    ) -> Mapping[str, Raw | Tensor]:
        """Compute the gradients of the module's own parameters.

        Args:
            module: The layer.
            inputs: Its first input, with the batch B as dimension 0.
            gradient: The gradient of its output, with the batch as dimension 0.
            names: The names of the parameters whose gradients are needed.

        Returns:
            By name, a tensor (B, *parameter's shape), or ``Positions``: rows (B, 1, L, rows) and columns (B, 1, L, columns)
            whose outer products, summed over L, are the gradient of a parameter of shape (rows, columns). Names that are not
            needed do no harm.
        """
        ...


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
    """Use a rule for a class of modules and its subclasses with the same ``forward``.

    The layer's output must be linear in its own parameters, for a fixed input. When a network that uses the rule is first run,
    the rule is checked on noise against automatic differentiation.

    Args:
        target: The class, or its name as "package.module.Class".
        rule: The rule.

    Raises:
        UsageError: ``target`` is a string without a dot.
    """
    if isinstance(target, str) and "." not in target:
        raise UsageError(f'register_rule: found {target!r}; expected a module class or "package.module.Class"')
    _RULES[target] = rule


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule of the module's class, or of an ancestor whose ``forward`` it shares; None where there is none."""
    kind = type(module)
    for ancestor in kind.mro():
        if not issubclass(ancestor, nn.Module) or ancestor.forward is not kind.forward:
            continue
        rule = _RULES.get(ancestor) or _RULES.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if rule is not None:
            return None if _unusual(module) else rule
    if is_transposed_linear(module):
        return linear
    return scale if is_scale(module) and next(module.children(), None) is None else None


def _unusual(module: nn.Module) -> bool:
    """Return whether the rule of the module's class doesn't hold for it. Raises UsageError where no way would."""
    # A weight computed from other parameters (weight normalisation) is no parameter; torch.func differentiates through.
    weight_names = ("weight",) if isinstance(module, nn.Linear | nn.Embedding | nn.modules.conv._ConvNd) else ()
    if any(name not in module._parameters for name in weight_names):
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
