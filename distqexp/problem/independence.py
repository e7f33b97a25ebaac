"""Whether a model keeps the records of a batch apart: tried out on public synthetic records before a private one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from distqexp.errors import UsageError
from distqexp.problem.network import Network

RECORDS = 5
KEPT = 1
"""The record that stays as it is while the others change: neither the first nor the last of the batch."""

_SEED = 5_641
_REMEDIES: tuple[tuple[type[nn.Module], str], ...] = (
    (
        nn.modules.batchnorm._NormBase,
        "use its running statistics (keep it in evaluation mode), or a group or layer normalisation",
    ),
    (nn.MultiheadAttention, "set batch_first to the order of its inputs"),
)


@dataclass(frozen=True)
class _Call:
    """One call of a submodule: its tensors, or the kept record's share of them."""

    name: str
    module: nn.Module
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


def refuse_coupling(network: Network, input_shape: tuple[int, ...], tokens: bool, vocabulary: int | None) -> None:
    """Refuse a model whose outputs for a record depend on the other records of the batch, or on chance.

    A few synthetic records (fixed seed, public) of ``input_shape`` are run as the model is used: the same twice, then with
    all but one replaced. That one's outputs must stay the same to the last bit. Raises UsageError, which names
    the innermost module at fault, where one shows, and the remedy. Buffers are left as they were.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in network.module.named_buffers()}
    devices = [network.device] if network.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):  # a random layer draws from the global generator
            for kept, *changed in _batches(network, input_shape, tokens, vocabulary):
                _compare(network, kept, changed)
        for name, buffer in network.module.named_buffers():
            if name in buffers and not torch.equal(buffer, buffers[name]):
                raise UsageError(
                    f"model: its buffer {name} changes with every batch, which would carry records over to others; "
                    "expected buffers fixed in evaluation mode; use the layer with its statistics fixed"
                )
    finally:
        for name, buffer in network.module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def vocabulary_of(network: Network, length: int) -> int:
    """The number of tokens that the model knows: rows of the smallest nn.Embedding that is given the tokens themselves.

    ``length``: tokens of a record. Raises UsageError when there is none.
    """
    layers = [module for module in network.module.modules() if isinstance(module, nn.Embedding)]
    readers = set(layers)
    for token in (0, 1):
        records = torch.stack([torch.full((1, length), token), torch.ones(1, length, dtype=torch.int64)], dim=1)
        given: set[nn.Module] = set()

        def note(module: nn.Module, args: Any, output: Any, token: int = token, given: set[nn.Module] = given) -> None:
            if args and args[0].numel() == length and bool((args[0] == token).all()):
                given.add(module)

        with _hooks(layers, note):
            _outputs(network, records)
        readers &= given
    if not readers:
        raise UsageError(
            "model: no nn.Embedding reads the tokens as they are; expected one, whose rows are the vocabulary; "
            "use one, or leave data.*.columns.tokens out"
        )
    return min(layer.num_embeddings for layer in readers)


def _compare(network: Network, kept: torch.Tensor, changed: list[torch.Tensor]) -> None:
    first = _outputs(network, kept)
    if not _same([first], [_outputs(network, kept)]):
        raise UsageError(_random(_calls(network, kept, whole=True), _calls(network, kept, whole=True)))
    for batch in changed:
        if not _same([first[KEPT]], [_outputs(network, batch)[KEPT]]):
            raise UsageError(_coupled(_calls(network, kept), _calls(network, batch)))


def _batches(
    network: Network, input_shape: tuple[int, ...], tokens: bool, vocabulary: int | None
) -> Iterator[list[torch.Tensor]]:
    """Lists of batches that agree in the kept record."""
    generator = torch.Generator().manual_seed(_SEED)

    def with_kept(batch: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        found = others.clone()
        found[KEPT] = batch[KEPT]
        return found

    if not tokens:
        batch = torch.randn(RECORDS, *input_shape, generator=generator)
        others = 4 * torch.randn(RECORDS, *input_shape, generator=generator) + 1
        yield [batch, with_kept(batch, others), with_kept(batch, torch.zeros_like(batch))]
        return
    length = input_shape[-1]
    numbers = [torch.randint(0, vocabulary or 2, (RECORDS, length), generator=generator) for _ in range(2)]
    full = torch.ones(RECORDS, length, dtype=torch.int64)
    cuts = torch.randint(1, length + 1, (RECORDS, 1), generator=generator)
    padded = (torch.arange(length) < cuts).to(torch.int64)
    blank = torch.stack([torch.zeros_like(full), (torch.arange(length) < 1).expand_as(full).to(torch.int64)], dim=1)
    for mask in (full, padded):
        batch = torch.stack([numbers[0], mask], dim=1)
        changed = [torch.stack([numbers[1], other], dim=1) for other in (full, padded)]
        yield [batch, *(with_kept(batch, others) for others in (*changed, blank))]


def _outputs(network: Network, inputs: torch.Tensor) -> torch.Tensor:
    try:
        with torch.no_grad():
            found: Any = network.module(network.prepare(inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"model: it refuses a batch of {len(inputs)} records ({' '.join(str(error).split())}); expected any number of "
            "records of one shape; correct the model or model.args"
        ) from None
    if not isinstance(found, torch.Tensor) or len(found) != len(inputs):
        raise UsageError(
            f"model: it returned {type(found).__name__} for a batch of {len(inputs)} records; expected a tensor (n, ...) or an "
            "object with logits, a row a record"
        )
    return found


def _calls(network: Network, inputs: torch.Tensor, whole: bool = False) -> list[_Call]:
    """Every call of a submodule, in the order in which they end."""
    calls: list[_Call] = []
    names = {module: name for name, module in network.module.named_modules() if name}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(_Call(names[module], module, *(_share(tree, whole) for tree in ((args, kwargs), output))))

    with _hooks(list(names), note, with_kwargs=True):
        _outputs(network, inputs)
    return [*calls, _Call("", network.module, [], [])]


@contextmanager
def _hooks(modules: list[Any], note: Callable[..., None], with_kwargs: bool = False) -> Iterator[None]:
    handles = [module.register_forward_hook(note, with_kwargs=with_kwargs) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _share(tree: Any, whole: bool) -> list[torch.Tensor]:
    """Copies of the tensors in a tree, or the kept record's part: where a dimension, the first or second, is the batch."""
    found = []
    for leaf in pytree.tree_leaves(tree):
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            continue
        dim = next((dim for dim in range(min(leaf.ndim, 2)) if leaf.shape[dim] == RECORDS), None)
        if whole:
            found.append(leaf.clone())
        elif dim is not None:
            found.append(leaf.select(dim, KEPT).clone())
        elif leaf.shape[0] % RECORDS == 0:
            found.append(leaf.reshape(RECORDS, -1)[KEPT].clone())
        else:
            found.append(leaf.clone())
    return found


def _same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Equal to the last bit; a NaN equals a NaN."""
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(first, second, strict=True)
    )


def _culprit(first: list[_Call], second: list[_Call]) -> tuple[str, nn.Module]:
    """The first call to end whose outputs differ though its inputs don't; the model itself at last."""
    for one, two in zip(first, second, strict=False):
        if one.module is not two.module:
            break
        if _same(one.inputs, two.inputs) and not _same(one.outputs, two.outputs):
            return one.name, one.module
    return "", first[-1].module


def _named(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"


def _coupled(first: list[_Call], second: list[_Call]) -> str:
    name, module = _culprit(first, second)
    remedy = next(
        (text for kind, text in _REMEDIES if isinstance(module, kind)),
        "make it work record by record in evaluation mode, or replace it",
    )
    return (
        f"model: {_named(name, module)} couples the records of a batch: its output for one record changes with the others; "
        f"expected each record's to be its own, to the last bit; {remedy}"
    )


def _random(first: list[_Call], second: list[_Call]) -> str:
    name, module = _culprit(first, second)
    return (
        f"model: {_named(name, module)} gives another output for the same records: it is random or keeps a state in evaluation "
        "mode, such as dropout that stays active; expected the same output every time; switch it off in eval(), or remove it"
    )
