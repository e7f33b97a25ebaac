"""Whether a model keeps the records of a batch apart: tried on public synthetic records before a private one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from distqexp.errors import UsageError
from distqexp.problem.hiding import unless_raised
from distqexp.problem.network import Network
from distqexp.problem.synthetic_batches import (
    FIXED,
    RECORDS,
    Batches,
    few_records,
    few_tokens,
    many_records,
    many_tokens,
)
from distqexp.problem.tensor_states import fingerprint
from distqexp.problem.user_code import own_code

_ROUNDING = 1e-5
"""The largest difference, relative to the largest output, that counts as rounding."""

_ALONE = 1e-3
"""The same for a batch of one record, which kernels of its own work on."""

_ALONE_MIXED = 32.0
"""The same in mixed precision, in units in the last place of its type."""

_REMEDIES: tuple[tuple[type[nn.Module], str], ...] = (
    (
        nn.modules.batchnorm._NormBase,
        "use its running statistics (keep it in evaluation mode), or a group or layer normalisation",
    ),
    (nn.MultiheadAttention, "set batch_first to the order of its inputs"),
)


@dataclass(frozen=True)
class _Call:
    """One call of a submodule: its tensors, or the fixed record's share of them."""

    name: str
    module: nn.Module
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


def refuse_coupling(
    network: Network,
    input_shape: tuple[int, ...],
    tokens: bool,
    vocabulary: int | None,
    rounding: bool = False,
    micro_batch: int = 0,
) -> None:
    """Refuse a model whose outputs for a record depend on the other records of the batch, or on chance.

    Synthetic records (fixed seed, public) are run as the model is used: twice as they are, then with others in the place of all but one
    of them, ordinary ones, extreme ones and ones that are all alike, and then once more as they were. The outputs of that one must stay
    the same to the last bit, and be about those of a batch of that one alone, where no other crowds it out. A whole micro-batch is tried
    too, in about seven passes. The model is left as it was.

    Args:
        network: the model.
        input_shape: the shape of one record's inputs.
        tokens: whether inputs are tokens with their mask.
        vocabulary: the number of tokens, where it is known.
        rounding: whether outputs may differ by rounding, as records then go through the model one at a time.
        micro_batch: how many records go through the model together in a round; a few are tried in any case.

    Raises:
        UsageError: the model does so, changes its buffers or parameters, or raises an exception, which is shown. The message names the
            remedy and, where one shows, the innermost module at fault.
    """
    tensors = dict(network.module.named_buffers()) | dict(network.module.named_parameters())
    stored = {name: fingerprint(tensor) for name, tensor in tensors.items()}
    with network.sealed(), _own_chance(network):
        for batches in _all_batches(input_shape, tokens, vocabulary, micro_batch):
            _compare(network, batches, rounding)
        for name, tensor in tensors.items():
            if fingerprint(tensor) != stored[name]:
                kind, remedy = ("parameter", "change no parameter in forward")
                if not isinstance(tensor, nn.Parameter):
                    kind, remedy = "buffer", "use the layer with its statistics fixed"
                raise UsageError(
                    f"model: its {kind} {name} changes with what it is given, which would carry records over to others; "
                    f"expected {kind}s fixed in evaluation mode; {remedy}"
                )


def vocabulary_of(network: Network, length: int) -> int:
    """Return the number of tokens that the model knows.

    It is the number of rows of the smallest nn.Embedding or nn.EmbeddingBag that reads the tokens as they are. A record has ``length``
    tokens. Raises UsageError when there is no such layer.
    """
    layers = [module for module in network.module.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    readers = set(layers)
    for token in (0, 1):
        records = torch.stack([torch.full((1, length), token), torch.ones(1, length, dtype=torch.int64)], dim=1)
        layers_of_token: set[nn.Module] = set()

        def note(
            module: nn.Module,
            args: Any,
            output: Any,
            token: int = token,
            layers_of_token: set[nn.Module] = layers_of_token,
        ) -> None:
            if args and args[0].numel() == length and bool((args[0] == token).all()):
                layers_of_token.add(module)

        with _hooks(layers, note):
            _outputs(network, records)
        readers &= layers_of_token
    if not readers:
        raise UsageError(
            "model: no nn.Embedding reads the tokens as they are; expected one, whose rows are the vocabulary; "
            "use one, or leave data.*.columns.tokens out"
        )
    return min(layer.num_embeddings for layer in readers)


def coupled_by_rounding(
    network: Network, input_shape: tuple[int, ...], tokens: bool, vocabulary: int | None, micro_batch: int = 0
) -> bool:
    """Return whether a record's outputs depend on the other records of the batch, and by rounding alone.

    Packed sequences do, for one: the kernel takes as many rows at once as records are that long. The arguments are those of
    ``refuse_coupling``, which refuses whatever else couples records.
    """
    with network.sealed(), _own_chance(network):
        for batches in _all_batches(input_shape, tokens, vocabulary, micro_batch):
            try:
                first = _outputs(network, batches.first)[FIXED]
                others = [_outputs(network, other)[FIXED] for other in batches.others]
            except UsageError:
                return False
            if any(not _same([first], [other]) and _close(first, other) for other in others):
                return True
    return False


def _require_same(
    network: Network, batches: Batches, other: torch.Tensor, kept: torch.Tensor, found: torch.Tensor, rounding: bool
) -> None:
    if not _same([kept], [found[FIXED]]) and not (rounding and _close(kept, found[FIXED])):
        raise UsageError(_coupling(_calls(network, batches.first), _calls(network, other)))


@contextmanager
def _own_chance(network: Network) -> Iterator[None]:
    """A random layer draws from the global generator, which is afterwards as it was."""
    with torch.random.fork_rng(devices=[network.device] if network.device.type == "cuda" else []):
        yield


def _all_batches(
    input_shape: tuple[int, ...], tokens: bool, vocabulary: int | None, micro_batch: int
) -> Iterator[Batches]:
    yield from few_tokens(input_shape, vocabulary or 2) if tokens else few_records(input_shape)
    if micro_batch > RECORDS:
        yield (
            many_tokens(micro_batch, input_shape, vocabulary or 2) if tokens else many_records(micro_batch, input_shape)
        )


def _close(one: torch.Tensor, other: torch.Tensor, rounding: float = _ROUNDING) -> bool:
    """Return whether outputs of one record are equal but for rounding."""
    bound = rounding * one.abs().max().clamp(min=1.0)
    return one.shape == other.shape and bool(((one - other).abs() <= bound).all())


def _compare(network: Network, batches: Batches, rounding: bool) -> None:
    batch = batches.first
    first, few = _outputs(network, batch), len(batch) == RECORDS
    if few and not _same([first], [_outputs(network, batch)]):
        raise UsageError(_randomness(_calls(network, batch, whole=True), _calls(network, batch, whole=True)))
    kept = first[FIXED]
    for other in batches.others:
        _require_same(network, batches, other, kept, _outputs(network, other), rounding)
    for other in batches.extremes:
        found = unless_raised(partial(_outputs, network, other))
        if found is not None:  # a record that the model raises for contributes nothing in a run
            _require_same(network, batches, other, kept, found, rounding)
    tolerance = _ALONE if network.mixed is None else _ALONE_MIXED * network.mixed.eps
    alone = unless_raised(partial(_outputs, network, batch[FIXED:]))  # some take two records at least
    if alone is not None and not _same([kept], [alone[0]]) and not _close(kept, alone[0], tolerance):
        raise UsageError(_coupling([_Call("", network.module, [], [])], []))
    if few and not _same([first], [_outputs(network, batch)]):
        raise UsageError(
            f"model: {_title('', network.module)} gives another output for the same records after it has met others: it keeps a state in "
            "evaluation mode; expected the same output every time; keep nothing from one batch to the next"
        )


def _outputs(network: Network, inputs: torch.Tensor) -> torch.Tensor:
    remedy = "expected any number of records of one shape; correct the model or model.args"
    with own_code(f"model: it refuses a batch of {len(inputs)} records", remedy), torch.no_grad():
        outputs: Any = network.forward(network.prepare(inputs))
    if not isinstance(outputs, torch.Tensor) or len(outputs) != len(inputs):
        raise UsageError(
            f"model: it returned {type(outputs).__name__} for a batch of {len(inputs)} records; expected a tensor (n, ...) or an "
            "object with logits, a row a record"
        )
    return outputs


def _calls(network: Network, inputs: torch.Tensor, whole: bool = False) -> list[_Call]:
    """Return every call of a submodule, in the order in which the calls end."""
    calls: list[_Call] = []
    names = {module: name for name, module in network.module.named_modules() if name}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        trees = ((args, kwargs), output)
        calls.append(_Call(names[module], module, *(_share(tree, whole, len(inputs)) for tree in trees)))

    with _hooks(list(names), note, with_kwargs=True):
        _outputs(network, inputs)
    return [*calls, _Call("", network.module, [], [])]


@contextmanager
def _hooks(modules: list[Any], note: Callable[..., None], with_kwargs: bool = False) -> Iterator[None]:
    handles = [
        module.register_forward_hook(note, with_kwargs=with_kwargs)
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)  # TorchScript takes no hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _share(tree: Any, whole: bool, count: int) -> list[torch.Tensor]:
    """Copy the tensors of a tree, or the fixed record's part of each, where its first or second dimension is the batch."""
    tensors = []
    for leaf in pytree.tree_leaves(tree):
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            continue
        dim = next((dim for dim in range(min(leaf.ndim, 2)) if leaf.shape[dim] == count), None)
        if whole:
            tensors.append(leaf.clone())
        elif dim is not None:
            tensors.append(leaf.select(dim, FIXED).clone())
        elif leaf.shape[0] % count == 0:
            tensors.append(leaf.reshape(count, -1)[FIXED].clone())
        else:
            tensors.append(leaf.clone())
    return tensors


def _same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Whether the tensors are equal to the last bit; a NaN equals a NaN."""
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(first, second, strict=True)
    )


def _culprit(first: list[_Call], second: list[_Call]) -> tuple[str, nn.Module]:
    """Return the first call to end whose outputs differ though its inputs don't, or else the model itself."""
    for one, two in zip(first, second, strict=False):
        if one.module is not two.module:
            break
        if _same(one.inputs, two.inputs) and not _same(one.outputs, two.outputs):
            return one.name, one.module
    return "", first[-1].module


def _title(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"


def _coupling(first: list[_Call], second: list[_Call]) -> str:
    name, module = _culprit(first, second)
    remedy = next(
        (text for kind, text in _REMEDIES if isinstance(module, kind)),
        "make it work record by record in evaluation mode, or replace it",
    )
    return (
        f"model: {_title(name, module)} couples the records of a batch: its output for one record changes with the others; "
        f"expected each record's to be its own, to the last bit; {remedy}"
    )


def _randomness(first: list[_Call], second: list[_Call]) -> str:
    name, module = _culprit(first, second)
    return (
        f"model: {_title(name, module)} gives another output for the same records: it is random or keeps a state in evaluation "
        "mode, such as dropout that stays active; expected the same output every time; switch it off in eval(), or remove it"
    )
