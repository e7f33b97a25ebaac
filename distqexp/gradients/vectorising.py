"""Whether torch.func can differentiate a model, found on noise before it is trusted, against one record at a time. Public."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from distqexp.errors import UsageError
from distqexp.gradients.layers.check import RECORDS, disagreeing, noise_records
from distqexp.problem.admission import scripted
from distqexp.problem.derivatives import loss_curvature_factors, per_example_gradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.one_by_one import factor_rows
from distqexp.problem.user_code import own_code

_REENTRANT = "None of the inputs have requires_grad"
"""What torch warns of where a re-entrant checkpoint stands before any parameter that is differentiated."""

_REMEDY = "correct the model or model.args"


def learn_way(network: Network, loss: Loss, record: torch.Tensor, factors: bool) -> None:
    """Set ``network.one_by_one``, and ``inputs_need_gradients``, for records like this one (1, ...).

    On two records of noise torch.func must give the gradients that plain automatic differentiation gives each record alone. Where
    it can't differentiate the model, or gives others, records are taken one at a time, which serves any module. What is found
    depends on the model, its parameters and the record's shape alone, so that every rank finds the same.

    Args:
        network: The model.
        loss: The loss.
        record: A record (1, ...) of the shape and type of those to come; its values don't matter.
        factors: Whether the factors of the curvature are needed too.

    Raises:
        UsageError: The model raises an exception for the noise, which is shown as it is, or a re-entrant checkpoint hides
            parameters from the gradient.
    """
    inputs = noise_records(record).to(network.device)
    where = f"model: for {RECORDS} synthetic records of shape {tuple(record.shape[1:])}"
    with own_code(where, _REMEDY):
        targets = _targets(network, loss, inputs)
    network.one_by_one, network.inputs_need_gradients = "", False
    with own_code(where, _REMEDY):
        expected = _alone(network, lambda: per_example_gradients(network, loss, inputs, targets, private=False))
    network.one_by_one = None
    network.one_by_one = _reason(network, loss, inputs, targets, expected, factors)
    if network.one_by_one is not None and factors:
        with own_code(where, _REMEDY):
            loss_curvature_factors(network, loss, inputs[:1], private=False)


def describe_way(network: Network, loss: Loss, record: torch.Tensor, micro_batch: int) -> list[str]:
    """Return the line that says why records are taken one at a time, and what that costs on this machine; none where they aren't."""
    if network.one_by_one is None:
        return []
    inputs = noise_records(record).to(network.device)
    targets = _targets(network, loss, inputs)
    alone = _seconds(lambda: per_example_gradients(network, loss, inputs, targets, private=False)) / RECORDS
    batch = inputs[torch.arange(micro_batch) % RECORDS]

    def together() -> None:
        network.forward(network.prepare(batch)).sum().backward()
        for parameter in network.module.parameters():
            parameter.grad = None

    seconds = _seconds(together)
    return [
        f"gradients: one record at a time, as torch.func can't take this model ({network.one_by_one}); "
        f"about {1000 * alone:.2g} ms a record here, {micro_batch * alone / max(seconds, 1e-9):,.0f} times a plain pass over "
        f"micro-batches of {micro_batch}"
    ]


@contextmanager
def hidden_by_checkpoints() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells afterwards whether torch warned of a re-entrant checkpoint that hides parameters inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: any(_REENTRANT in str(warning.message) for warning in caught)


def _targets(network: Network, loss: Loss, inputs: torch.Tensor) -> torch.Tensor:
    """Return targets that the loss allows for these inputs."""
    with torch.no_grad():
        outputs = network.forward(network.prepare(inputs))
    noise = torch.full((len(outputs), loss.noise_width(outputs)), 0.3, dtype=torch.float64)
    return loss.sample(outputs, noise.to(outputs.device))


def _alone(network: Network, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the gradients of each record alone, with gradients of inputs where a re-entrant checkpoint needs them."""
    for _ in range(2):
        with hidden_by_checkpoints() as hidden:
            rows = compute()
        if not hidden():
            return rows
        network.inputs_need_gradients = True
    raise UsageError(
        "model: a re-entrant checkpoint (torch.utils.checkpoint) hides the parameters inside from the gradient, as nothing that "
        "goes in has one; expected use_reentrant=False; set it where the model calls checkpoint"
    )


def _reason(
    network: Network, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor, expected: torch.Tensor, factors: bool
) -> str | None:
    """Return why torch.func can't take the model; None where it can."""
    jit = scripted(network.module)
    if jit:
        return f"{jit[0]} is TorchScript"
    try:
        found = per_example_gradients(network, loss, inputs, targets, private=False)
        if factors:
            # Of all records at once, as torch.func may fail, or mix records up, where a batch is larger than one.
            rows = loss_curvature_factors(network, loss, inputs, private=False)[0]
            rows_alone = factor_rows(network, loss, inputs[:1], 1, False)[0]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: the model itself has worked on these records
        return _layer_and_error(network, loss, inputs[:1], targets[:1], error)
    if not bool(torch.isfinite(expected).all()):
        return None  # a model that overflows can't be compared
    wrong = disagreeing(network, found, expected)
    wrong |= disagreeing(network, rows, rows_alone) if factors else frozenset()
    return f"it gives other gradients of {min(wrong)} than plain automatic differentiation" if wrong else None


def _layer_and_error(network: Network, loss: Loss, record: torch.Tensor, target: torch.Tensor, error: Exception) -> str:
    """Return the innermost module that the exception came from, and the beginning of what it says."""
    entered: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: entered.append(
            f"{name} ({type(module).__name__})" if name else type(module).__name__
        )

    def leave(module: object, args: object, output: object) -> None:
        entered.pop()

    handles = []
    for name, module in network.module.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        with suppress(Exception):  # it is raised again to see where
            per_example_gradients(network, loss, record, target, private=False)
    finally:
        for handle in handles:
            handle.remove()
    message = " ".join(str(error).split())
    short = message if len(message) <= 120 else f"{message[:120]} ..."
    return f"{entered[-1] if entered else 'its backward pass'}: {type(error).__name__}: {short}"


def _seconds(compute: Callable[[], object]) -> float:
    """Return the seconds that a second call takes."""
    compute()
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start
