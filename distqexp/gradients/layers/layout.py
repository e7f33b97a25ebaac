"""The layout of a network's trainable parameters as matrices, by module types and parameter shapes alone. Public."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block, check_cover
from distqexp.geometry.packing import LARGEST_SIDE
from distqexp.problem.admission import scripted
from distqexp.problem.network import Network

SPARSE_ROWS = 1024
"""A vocabulary above this size has a diagonal second moment of its rows."""


@dataclass(frozen=True)
class Pair:
    """A weight and the bias that goes with it, and the matrices that they are.

    Attributes:
        weight: The weight's name in its module, if there is one.
        bias: The bias's name in its module, if there is one.
        shape: (copies, rows, columns) of the weight's matrices; a bias is one more column.
        transposed: Whether the weight is stored (columns, rows).
        vocabulary: Whether the rows are those of a vocabulary, as in an embedding, or in a head over one.
    """

    weight: str | None
    bias: str | None
    shape: tuple[int, int, int]
    transposed: bool = False
    vocabulary: bool = False


def _pairs(module: nn.Module) -> list[Pair]:
    """Return the module's own parameters, each in one pair, trainable or not."""
    pair = _known_pair(module)
    names = [] if pair is None else [name for name in (pair.weight, pair.bias) if name is not None]
    others = [name for name, parameter in module._parameters.items() if parameter is not None and name not in names]
    return ([] if pair is None else [pair]) + [_single(module, name) for name in others]


def block_layout(network: Network) -> list[Block]:
    """Return the blocks of the trainable parameters, in the order of ``named_modules``; together they cover theta.

    A tied parameter belongs to the first module that holds it. Raises UsageError for TorchScript, whose layers can't be looked into.
    """
    opaque = scripted(network.module)
    if opaque:
        raise UsageError(
            f"model: {opaque[0]} is TorchScript, and nothing works layer by layer in it; expected a plain module; return it "
            "before torch.jit.script, or take another subspace and precision.kind than kronecker's"
        )
    at: dict[int, int] = {}
    start = 0
    for name, shape in network.names_shapes:
        at[id(network.module.get_parameter(name))] = start
        start += math.prod(shape)
    blocks = []
    for path, module in network.module.named_modules():
        for pair in _pairs(module):
            weight, bias = (
                None if name is None else at.pop(id(module._parameters[name]), None)
                for name in (pair.weight, pair.bias)
            )
            if weight is None and bias is None:
                continue
            copies, rows, columns = pair.shape
            own = pair.weight if weight is not None else pair.bias
            blocks.append(
                Block(
                    name=f"{path}.{own}" if path else str(own),
                    copies=copies,
                    rows=rows,
                    columns=(columns if weight is not None else 0) + (bias is not None),
                    weight=weight,
                    bias=bias,
                    transposed=pair.transposed and weight is not None,
                    sparse_rows=pair.vocabulary and rows > SPARSE_ROWS,
                )
            )
    check_cover(blocks, network.d)
    return blocks


def is_scale(module: nn.Module) -> bool:
    """Return whether a module is a normalisation, torch's or alike, whose parameters scale and shift entry by entry."""
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if "weight" not in own or not set(own) <= {"weight", "bias"}:
        return False
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.modules.batchnorm._BatchNorm):
        return True
    alike = type(module).__name__.endswith(("RMSNorm", "LayerNorm")) and next(module.children(), None) is None
    return alike and all(parameter.ndim == 1 for parameter in own.values())


def is_transposed_linear(module: nn.Module) -> bool:
    """Return whether a module is Hugging Face's Conv1D: a linear layer whose weight is stored (in, out)."""
    return any(
        f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D" for kind in type(module).mro()
    )


def _known_pair(module: nn.Module) -> Pair | None:
    """Return the weight and bias of a module of a known type."""
    own = module._parameters
    weight_name, bias_name = ("weight", "bias")
    if isinstance(module, nn.MultiheadAttention):
        weight_name, bias_name = "in_proj_weight", "in_proj_bias"
    weight, bias = own.get(weight_name), own.get(bias_name)
    name = None if weight is None else weight_name
    second = None if bias is None else bias_name
    if name is None and second is None:
        return None
    if isinstance(module, nn.Linear):
        shape = (1, module.out_features, module.in_features)
        return Pair(name, second, shape, vocabulary=module.out_features > LARGEST_SIDE)
    if isinstance(module, nn.MultiheadAttention):
        return None if weight is None else Pair(name, second, (1, weight.shape[0], weight.shape[1]))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        groups = module.groups
        size = module.in_channels // groups * math.prod(module.kernel_size)
        return Pair(name, second, (groups, module.out_channels // groups, size))
    if isinstance(module, nn.Embedding) and weight is not None:
        return Pair(name, None, (1, weight.shape[0], weight.shape[1]), vocabulary=True)
    if weight is not None and is_transposed_linear(module):
        return Pair(name, second, (1, weight.shape[1], weight.shape[0]), transposed=True)
    if weight is not None and is_scale(module):
        return Pair(name, second, (1, weight.numel(), 1))
    return None


def _single(module: nn.Module, name: str) -> Pair:
    """Return the pair of a parameter of no known kind, which is one matrix by its shape."""
    shape = list(module._parameters[name].shape)  # type: ignore[union-attr]  # _pairs() skips absent ones
    while len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
    rows = shape[0] if shape else 1
    return Pair(name, None, (1, rows, math.prod(shape[1:])))
