"""Losses of one's own: a function or module, declared convex in the outputs, and checked on made-up outputs before any charge. Public."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import grad

from distqexp.errors import UsageError
from distqexp.problem import lent
from distqexp.problem.losses import Loss
from distqexp.problem.mapping import vmap
from distqexp.problem.own_identity import identity_of
from distqexp.problem.sealing import Seal
from distqexp.problem.user_code import described, imported

LENT = "lent:"
"""What the name of a loss begins with that a script lent to the run, as it did a live module."""

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
"""torch's losses whose targets are numbers of classes."""

_RECORDS, _PAIRS = 7, 96
_EXTREME_TARGETS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e30, -1e30)
_TOLERANCE = 1e-6


class OwnLoss(Loss):
    """A loss l(outputs, target) of somebody's own, of outputs (B, C) and targets (B,) or (B, o), real numbers.

    The function gives (B,), or (B, ...) whose mean over a record counts. One of torch's that takes classes gets whole numbers; a record
    with a target that is none of the classes then has no loss, and no gradient. What the method needs beside values, a Hessian and
    targets to sample, is that of the squared distance: it shapes the public precision alone, so that the guarantee doesn't rest on it.
    """

    def __init__(self, name: str, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.name = name
        self.function = function
        self._seal = Seal(function)
        self._copies: dict[torch.dtype, Any] = {}

    def kept(self) -> AbstractContextManager[None]:
        return self._seal.kept()

    def value(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if targets.ndim == 3:  # sampled, see below: no record has such targets
            return torch.square(outputs.reshape(targets.shape[:2]) - targets[..., 0]).sum(dim=-1) / 2
        if outputs.ndim == 2 and outputs.shape[1] == 1 and targets.ndim == 1:
            outputs = outputs[:, 0]
        function = self._of_type(outputs.dtype)
        if not isinstance(function, _OF_CLASSES):
            return _by_record(function(outputs, targets.to(outputs.dtype)))
        valid = (targets >= 0) & (targets < outputs.shape[1]) & (targets == targets.round())
        values = _by_record(function(outputs, torch.where(valid, targets, 0).long()))
        return torch.where(valid, values, torch.nan)

    def _of_type(self, dtype: torch.dtype) -> Any:
        """Return the function, of torch's own losses one whose weights have the type of the outputs."""
        function = self.function
        if not (_is_of_torch(function) and isinstance(function, nn.Module) and any(True for _ in function.buffers())):
            return function
        if dtype not in self._copies:
            self._copies[dtype] = copy.deepcopy(function).to(dtype)
        return self._copies[dtype]

    def hessian_factor(self, outputs: torch.Tensor) -> torch.Tensor:
        matrix = outputs.reshape(len(outputs), -1)
        eye = torch.eye(matrix.shape[1], dtype=outputs.dtype, device=outputs.device)
        return eye.expand(len(matrix), *eye.shape)

    def noise_width(self, outputs: torch.Tensor) -> int:
        return outputs.reshape(len(outputs), -1).shape[1]

    def sample(self, outputs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw (B, C, 1): the outputs plus standard normal noise, to which ``value`` takes half the squared distance."""
        matrix = outputs.reshape(len(outputs), -1)
        return (matrix + torch.special.ndtri(noise).to(matrix.dtype)).unsqueeze(-1)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> dict[str, float]:
        keep = present.detach().cpu().bool()
        if not bool(keep.any()):
            return {}
        values = self.value(outputs.detach().cpu().double()[keep], targets.detach().cpu()[keep])
        return {"loss": float(values.mean())}


def own_loss(name: str) -> OwnLoss:
    """Return the loss that a config calls "package.module:name", or one that was lent. Raises UsageError for none, or one not declared."""
    if name.startswith(LENT):
        found: Any = lent.lent_object(name)
        if found is None:
            raise UsageError(
                f"model.loss: {name!r} was an object of the script that made the run, and isn't here; run that script"
            )
    else:
        found = imported(name, "model.loss")
    function = found() if isinstance(found, type) else found
    if not callable(function):
        raise UsageError(
            f"model.loss: {name!r} is a {type(function).__name__}; expected a function or a torch.nn.Module"
        )
    if not _is_of_torch(function) and getattr(function, "convex", None) is not True:
        raise UsageError(
            f"model.loss: {name!r} isn't declared; expected an attribute convex = True, if it is convex in the outputs"
        )
    return OwnLoss(name, function)


def _is_of_torch(function: object) -> bool:
    return type(function).__module__ == nn.modules.loss.__name__


def _by_record(values: torch.Tensor) -> torch.Tensor:
    return values if values.ndim == 1 else values.reshape(len(values), -1).mean(dim=-1)


def lent_name(loss: Any) -> str:
    """Return the name under which a script's own loss is lent: what it is called, and a digest of its code and its state."""
    kind = loss if isinstance(loss, type) or hasattr(loss, "__qualname__") else type(loss)
    return f"{LENT}{kind.__module__}.{kind.__qualname__}/{identity_of(loss, values=True)}"


def check_own_loss(loss: OwnLoss, width: int) -> None:
    """Try a loss on made-up outputs, (n, width), and targets, before anything is charged.

    Targets are any real numbers, (n,) or (n, width), or where the loss takes none of these, classes 0 to width - 1, (n,).

    Raises UsageError where it isn't convex on them, mixes records, can't be differentiated, gives other shapes, or fails; what it raises
    itself is shown as it is.
    """
    random = np.random.default_rng(5_641)
    forms = _forms(loss, width)
    for shape, classes in forms:
        for scale in (0.1, 1.0, 10.0):
            for _ in range(_PAIRS // 3):
                one, other = (torch.from_numpy(scale * random.normal(size=(_RECORDS, width))) for _ in range(2))
                numbers = random.integers(0, width if classes else 2, shape).astype(np.float64)
                if not classes:
                    numbers = np.where(random.random(shape) < 0.5, numbers, random.normal(size=shape))
                _require_convex(loss, one, other, torch.from_numpy(numbers), float(random.uniform(0.1, 0.9)))
        _require_apart(
            loss, torch.from_numpy(random.normal(size=(_RECORDS, width))), torch.ones(shape, dtype=torch.float64)
        )


def _forms(loss: OwnLoss, width: int) -> list[tuple[tuple[int, ...], bool]]:
    """Return the shapes of targets that give a loss of one value a record, and whether the targets are classes."""
    one, many = (_RECORDS,), (_RECORDS, width)
    failures = [_failure(loss, width, shape, _EXTREME_TARGETS) for shape in (one, many)]
    forms = [(shape, False) for shape, failure in zip((one, many), failures, strict=True) if failure is None]
    if width > 1 and (isinstance(loss.function, _OF_CLASSES) or not forms):
        failures.append(_failure(loss, width, one, tuple(map(float, range(width)))))
        forms = [(one, True)] if failures[-1] is None else []
    if forms:
        return forms
    raised = next((failure for failure in reversed(failures) if failure), "")
    raise UsageError(
        f"model.loss: {loss.name!r} gives no (n,) for outputs of (n, {width}) with targets of (n,) or (n, {width}); expected a value a "
        f"record, such as with reduction='none'{raised}"
    )


def _failure(loss: OwnLoss, width: int, shape: tuple[int, ...], numbers: Sequence[float]) -> str | None:
    """Return None where targets of this shape, all one of these numbers, give one value a record; else what the loss raised, or ""."""
    outputs = torch.ones((_RECORDS, width), dtype=torch.float64)
    try:
        fits = all(loss.value(outputs, torch.full(shape, number)).shape == (_RECORDS,) for number in numbers)
    except Exception as error:  # noqa: BLE001 - somebody's own function, on made-up numbers
        return f"; it raised {described(error)}"
    return None if fits else ""


def _require_convex(loss: OwnLoss, one: torch.Tensor, other: torch.Tensor, targets: torch.Tensor, share: float) -> None:
    ends = share * loss.value(one, targets) + (1 - share) * loss.value(other, targets)
    between = loss.value(share * one + (1 - share) * other, targets)
    known = torch.isfinite(ends) & torch.isfinite(between)
    if bool((between[known] > ends[known] + _TOLERANCE * (1 + ends[known].abs())).any()):
        raise UsageError(
            f"model.loss: {loss.name!r} is declared convex in the outputs, but isn't on made-up outputs; expected a convex loss: the "
            "method minimises its quadratic"
        )


def _require_apart(loss: OwnLoss, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Refuse a loss whose value for a record depends on others, or that torch.func can't differentiate record by record."""
    whole = loss.value(outputs, targets)
    alone = torch.cat([loss.value(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])
    if not torch.allclose(whole, alone, rtol=1e-9, atol=1e-12):
        raise UsageError(f"model.loss: {loss.name!r} mixes the records of a batch; expected each record's own value")

    def value(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return loss.value(output.unsqueeze(0), target.unsqueeze(0)).squeeze(0)

    try:
        vmap(grad(value))(outputs, targets)
    except Exception as error:  # noqa: BLE001 - somebody's own function, on made-up numbers
        raise UsageError(
            f"model.loss: {loss.name!r} can't be differentiated for each record by torch.func ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); expected torch functions without branches on values"
        ) from None
