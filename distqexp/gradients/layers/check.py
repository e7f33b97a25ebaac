"""The check of a routing on noise, against plain automatic differentiation, before it is trusted. Public."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import torch

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.gradients.layers.forms import Indexed, Raw, Tensor, Whole
from distqexp.gradients.layers.routing import make_routing
from distqexp.gradients.layers.taps import Taps
from distqexp.problem.network import Network

RECORDS = 2
"""How many records of noise the check takes."""

ROUNDING = 1000.0
"""How many units in the last place of the largest gradient of the network two ways to the same gradient may differ by."""

MIXED, MIXED_ROUNDING = 32.0, 8.0
"""In mixed precision, where a batch of another shape rounds each product anew: how many units in the last place of a parameter's
gradient, and of the largest of the network, two ways may differ by."""


def checked_taps(
    network: Network, blocks: Sequence[Block], record: Tensor, *, may_refuse: bool, together: int = 0
) -> Taps:
    """Return taps whose gradients agree with plain automatic differentiation.

    On two records of noise, every parameter's gradient must be the one that each record alone gives. A parameter that is used
    in a way that no layer shows (a weight read by another module) is differentiated through the whole network instead.

    A model that overflows on the noise, in a run that diverged, can't be compared. All of it is then left to torch.func, which
    takes each record alone by construction, so that the run can be finished. So is one that disagrees when nothing may be
    refused any more: it has passed the check before, and what is new is the rounding at the parameters of a later round.

    Args:
        network: The model.
        blocks: Its parameters as matrices.
        record: A record (1, ...) of the shape and type of those to come; its values don't matter.
        may_refuse: Whether nothing has been charged for yet.
        together: How many records go through the model together in a round. Where it may be refused, so many are tried too, in two
            passes forward and backward.

    Raises:
        UsageError: The model couples the records of a batch, and may be refused. The message names a parameter that shows it.
    """
    if not _overflow_free(network, record):
        return _torch_taps(network, blocks, record)
    try:
        taps = _agreeing_taps(network, blocks, record)
        if may_refuse and together > RECORDS:
            _refuse_crowds(taps, record, together)
        return taps
    except UsageError:
        if may_refuse:
            raise
        return _torch_taps(network, blocks, record)


def _agreeing_taps(network: Network, blocks: Sequence[Block], record: Tensor) -> Taps:
    wrong: frozenset[str] = frozenset()
    for _ in range(2):
        routing = make_routing(network, blocks, record, wrong)
        taps = Taps(network, blocks, routing)
        names = _wrong_parameters(taps, record)
        if names is None:
            return _torch_taps(network, blocks, record)
        if not names:
            return taps
        wrong = wrong | names
    raise _coupled(wrong)


def _refuse_crowds(taps: Taps, record: Tensor, count: int) -> None:
    """Refuse a model that gives the last of ``count`` records other gradients than alone: beside its like, and beside others."""
    network, noise = taps.network, noise_records(record)
    with torch.no_grad():
        weights = _output_weights(network.forward(network.prepare(noise)))[:1]
    expected = _single_gradients(network, noise[:1], weights)
    for other in noise:
        inputs = torch.stack([other] * (count - 1) + [noise[0]])
        actual = _vectors(
            taps,
            inputs,
            lambda outputs: (outputs * weights).reshape(len(outputs), -1).sum(dim=1),
            slice(count - 1, count),
        )
        wrong = disagreeing(network, actual, expected)
        if wrong and bool(torch.isfinite(expected).all()):
            raise _coupled(wrong)


def _coupled(names: frozenset[str]) -> UsageError:
    return UsageError(
        f"model: the gradient of {min(names)} differs between a batch and its records alone; expected a model whose records "
        "don't affect one another, the same at every call; remove what couples them, or freeze this parameter"
    )


def _output_weights(outputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)


def _torch_taps(network: Network, blocks: Sequence[Block], record: Tensor) -> Taps:
    """Return taps that leave every parameter to torch.func."""
    taps = Taps(network, blocks, make_routing(network, blocks, record, frozenset(dict(network.names_shapes))))
    _learn_fallbacks(taps, noise_records(record), lambda outputs: outputs.reshape(len(outputs), -1).sum(dim=1))
    return taps


def _wrong_parameters(taps: Taps, record: Tensor) -> frozenset[str] | None:
    """Return the names of the parameters whose gradients differ, or None where the gradients overflow."""
    network = taps.network
    inputs = noise_records(record)
    outputs = _outputs(network, inputs, _bounds(network)[1 if network.mixed else 0])
    weights = _output_weights(outputs)

    def value(batch: Tensor) -> Tensor:
        return (batch * weights[: len(batch)]).reshape(len(batch), -1).sum(dim=1)

    _learn_fallbacks(taps, inputs, value)
    try:
        expected = _single_gradients(network, inputs, weights)
    except RuntimeError:
        _vectors(taps, inputs, value)  # says which layer's input was changed in place, if one was
        raise
    if not bool(torch.isfinite(expected).all()):
        return None
    tolerated = _tolerated(network, expected)
    # In one vector of the size of the gradients, as those of a large model take gigabytes.
    return _beyond(network, _vectors(taps, inputs, value, start=expected.neg_()), tolerated)


def disagreeing(network: Network, actual: Tensor, expected: Tensor) -> frozenset[str]:
    """Return the names of the parameters whose gradients, parts of (records, d), differ by more than rounding."""
    return _beyond(network, actual - expected, _tolerated(network, expected))


def _tolerated(network: Network, expected: Tensor) -> Tensor:
    """Return how much of each parameter's gradient, part of (records, d), may be rounding, (parameters, records)."""
    bound, rounding = _bounds(network)
    # A parameter without a gradient of its own has what is left of larger terms that cancel: rounding of the network's size.
    size = torch.linalg.vector_norm(expected, dim=1).max()
    return torch.maximum(bound * _norms(network, expected), rounding * size)


def _beyond(network: Network, difference: Tensor, tolerated: Tensor) -> frozenset[str]:
    """Return the names of the parameters of which a difference of gradients, (records, d), is larger than tolerated, or not finite."""
    good = (_norms(network, difference) <= tolerated).all(dim=1).tolist()
    return frozenset(name for (name, _), fine in zip(network.names_shapes, good, strict=True) if not fine)


def _norms(network: Network, rows: Tensor) -> Tensor:
    """Return the norm of each parameter's part of rows (records, d), (parameters, records)."""
    sizes = [torch.Size(shape).numel() for _, shape in network.names_shapes]
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in torch.split(rows, sizes, dim=1)])


def _bounds(network: Network) -> tuple[float, float]:
    """Return by how much two ways to the same gradient may differ, relative to that of a parameter and to that of the network."""
    if network.mixed is not None:
        return MIXED * network.mixed.eps, MIXED_ROUNDING * network.mixed.eps
    eps = torch.finfo(network.dtype).eps
    return 10 * eps**0.5, ROUNDING * eps


def noise_records(record: Tensor) -> Tensor:
    """Return records of noise of the shape and type of ``record``, the same at every call."""
    shape = (RECORDS, *record.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if record.is_floating_point():
        return torch.randn(shape, generator=generator).to(record.dtype)
    noise = torch.randint(2, shape, generator=generator).to(record.dtype)  # 0 and 1 are in every vocabulary
    if noise.ndim == 3:
        noise[:, -1, 0] = 1  # tokens and their mask: a mask that hides everything has no gradient to compare
    return noise


def _overflow_free(network: Network, record: Tensor) -> bool:
    """Return whether the outputs for each record of noise alone are finite, with room for their squares."""
    with torch.no_grad():
        outputs = torch.cat([network.forward(network.prepare(one)) for one in torch.split(noise_records(record), 1)])
    return bool((outputs.abs() < torch.finfo(network.dtype).max ** 0.25).all())


def _outputs(network: Network, inputs: Tensor, bound: float) -> Tensor:
    """Return the outputs for a batch. Raises UsageError where they differ from those for each record alone."""
    with torch.no_grad():
        together = network.forward(network.prepare(inputs))
        alone = torch.cat([network.forward(network.prepare(one)) for one in torch.split(inputs, 1)])
    if together.shape != alone.shape or not bool(
        ((together - alone).abs() <= bound * alone.abs().max().clamp(min=1.0)).all()
    ):
        raise UsageError(
            "model: its outputs for a batch differ from those for each record alone; expected records that don't affect one "
            "another, the same at every call; remove the layer that couples them (a normalisation over the batch, for one)"
        )
    return together


def _single_gradients(network: Network, inputs: Tensor, weights: Tensor) -> Tensor:
    """Return the gradients of each record alone by plain automatic differentiation, (2, d)."""
    parameters = [network.module.get_parameter(name) for name, _ in network.names_shapes]
    rows = torch.empty((len(inputs), network.d), dtype=network.dtype, device=network.device)
    for j, row in enumerate(rows):
        with torch.enable_grad():
            total = (network.forward(network.prepare(inputs[j : j + 1])) * weights[j : j + 1]).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=row)
    return rows


def _learn_fallbacks(taps: Taps, inputs: Tensor, value: Callable[[Tensor], Tensor]) -> None:
    """Let fallbacks learn whether torch.func can vectorise them; where it can't, they take records one at a time."""
    fallbacks = list(taps.routing.fallbacks.values())
    for looped in (False, True) if fallbacks else ():
        for fallback in fallbacks:
            fallback.looped = looped
        # torch.func can't vectorise everything, but one record at a time has to do.
        with nullcontext() if looped else suppress(RuntimeError, ValueError, NotImplementedError):
            taps.run(inputs, value, lambda number, raw: None)
            return


def _vectors(
    taps: Taps,
    inputs: Tensor,
    value: Callable[[Tensor], Tensor],
    some: slice = slice(0, RECORDS),
    start: Tensor | None = None,
) -> Tensor:
    """Return the gradients of some of the records, (some, d), added to ``start`` in place."""
    network, count = taps.network, some.stop - some.start
    gradients = start
    if gradients is None:
        gradients = torch.zeros((count, network.d), dtype=network.dtype, device=network.device)

    def receive(number: int, raw: Raw) -> None:
        block = taps.blocks[number]
        form = raw.plain(block)
        if isinstance(form, Indexed):
            form = Indexed(form.token[some], form.scale[some], form.column[some], form.rows).dense()
            matrix = form.row.transpose(2, 3) @ form.column
        else:
            matrix = (
                form.matrix[some] if isinstance(form, Whole) else form.row[some].transpose(2, 3) @ form.column[some]
            )
        if block.weight is not None:
            weight = matrix[..., : block.weight_columns]
            weight = (weight.transpose(2, 3) if block.transposed else weight).reshape(count, -1)
            gradients[:, block.weight : block.weight + weight.shape[1]] += weight
        if block.bias is not None:
            bias = matrix[..., -1].reshape(count, -1)
            gradients[:, block.bias : block.bias + bias.shape[1]] += bias

    taps.run(inputs, value, receive)
    return gradients
