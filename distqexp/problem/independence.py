"""Whether a model keeps the records of a batch apart: tried on public synthetic records before a private one is read."""

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
from distqexp.problem.user_code import own_code

_RECORDS = 5
_FIXED = 1
"""The record that stays as it is while the others change: neither the first nor the last of the batch."""

_ROUNDING = 1e-5
"""The largest difference, relative to the largest output, that counts as rounding."""

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
) -> None:
    """Refuse a model whose outputs for a record depend on the other records of the batch, or on chance.

    A few synthetic records (fixed seed, public) are run as the model is used: twice as they are, then with all but one replaced. The
    outputs of that one must stay the same to the last bit. Buffers and parameters are left as they were.

    Args:
        network: the model.
        input_shape: the shape of one record's inputs.
        tokens: whether inputs are tokens with their mask.
        vocabulary: the number of tokens, where it is known.
        rounding: whether outputs may differ by rounding, as records then go through the model one at a time.

    Raises:
        UsageError: the model does so, changes its buffers or parameters, or raises an exception, which is shown. The message names the
            remedy and, where one shows, the innermost module at fault.
    """
    tensors = dict(network.module.named_buffers()) | dict(network.module.named_parameters())
    stored = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    devices = [network.device] if network.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):  # a random layer draws from the global generator
            for batch, *variants in _batches(network, input_shape, tokens, vocabulary):
                _compare(network, batch, variants, rounding)
        for name, tensor in tensors.items():
            if not _same([tensor], [stored[name]]):
                kind, remedy = ("parameter", "change no parameter in forward")
                if not isinstance(tensor, nn.Parameter):
                    kind, remedy = "buffer", "use the layer with its statistics fixed"
                raise UsageError(
                    f"model: its {kind} {name} changes with every batch, which would carry records over to others; "
                    f"expected {kind}s fixed in evaluation mode; {remedy}"
                )
    finally:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(stored[name])


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


def coupled_by_rounding(network: Network, input_shape: tuple[int, ...], tokens: bool, vocabulary: int | None) -> bool:
    """Return whether a record's outputs depend on the other records of the batch, and by rounding alone.

    Packed sequences do, for one: the kernel takes as many rows at once as records are that long. The arguments are those of
    ``refuse_coupling``, which refuses whatever else couples records.
    """
    with torch.random.fork_rng(devices=[network.device] if network.device.type == "cuda" else []):
        for batch, *variants in _batches(network, input_shape, tokens, vocabulary):
            try:
                first = _outputs(network, batch)[_FIXED]
                others = [_outputs(network, variant)[_FIXED] for variant in variants]
            except UsageError:
                return False
            if any(not _same([first], [other]) and _close(first, other) for other in others):
                return True
    return False


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether outputs of one record are equal but for rounding."""
    bound = _ROUNDING * one.abs().max().clamp(min=1.0)
    return one.shape == other.shape and bool(((one - other).abs() <= bound).all())


def _compare(network: Network, batch: torch.Tensor, variants: list[torch.Tensor], rounding: bool) -> None:
    first = _outputs(network, batch)
    if not _same([first], [_outputs(network, batch)]):
        raise UsageError(_randomness(_calls(network, batch, whole=True), _calls(network, batch, whole=True)))
    for variant in variants:
        one, other = first[_FIXED], _outputs(network, variant)[_FIXED]
        if not _same([one], [other]) and not (rounding and _close(one, other)):
            raise UsageError(_coupling(_calls(network, batch), _calls(network, variant)))


def _batches(
    network: Network, input_shape: tuple[int, ...], tokens: bool, vocabulary: int | None
) -> Iterator[list[torch.Tensor]]:
    """Yield lists of batches that agree in the fixed record."""
    generator = torch.Generator().manual_seed(_SEED)

    def keep_fixed(batch: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        mixture = others.clone()
        mixture[_FIXED] = batch[_FIXED]
        return mixture

    if not tokens:
        batch = torch.randn(_RECORDS, *input_shape, generator=generator)
        others = 4 * torch.randn(_RECORDS, *input_shape, generator=generator) + 1
        yield [batch, keep_fixed(batch, others), keep_fixed(batch, torch.zeros_like(batch))]
        return
    length = input_shape[-1]
    numbers = [torch.randint(0, vocabulary or 2, (_RECORDS, length), generator=generator) for _ in range(2)]
    full = torch.ones(_RECORDS, length, dtype=torch.int64)
    cuts = torch.randint(1, length + 1, (_RECORDS, 1), generator=generator)
    partial = (torch.arange(length) < cuts).to(torch.int64)
    blank = torch.stack([torch.zeros_like(full), (torch.arange(length) < 1).expand_as(full).to(torch.int64)], dim=1)
    for mask in (full, partial):
        batch = torch.stack([numbers[0], mask], dim=1)
        variants = [torch.stack([numbers[1], other], dim=1) for other in (full, partial)]
        yield [batch, *(keep_fixed(batch, others) for others in (*variants, blank))]


def _outputs(network: Network, inputs: torch.Tensor) -> torch.Tensor:
    remedy = "expected any number of records of one shape; correct the model or model.args"
    with own_code(f"model: it refuses a batch of {len(inputs)} records", remedy), torch.no_grad():
        outputs: Any = network.module(network.prepare(inputs))
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
        calls.append(_Call(names[module], module, *(_share(tree, whole) for tree in ((args, kwargs), output))))

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


def _share(tree: Any, whole: bool) -> list[torch.Tensor]:
    """Copy the tensors of a tree, or the fixed record's part of each, where its first or second dimension is the batch."""
    tensors = []
    for leaf in pytree.tree_leaves(tree):
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            continue
        dim = next((dim for dim in range(min(leaf.ndim, 2)) if leaf.shape[dim] == _RECORDS), None)
        if whole:
            tensors.append(leaf.clone())
        elif dim is not None:
            tensors.append(leaf.select(dim, _FIXED).clone())
        elif leaf.shape[0] % _RECORDS == 0:
            tensors.append(leaf.reshape(_RECORDS, -1)[_FIXED].clone())
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
