"""Nothing that a private record makes a model do shows: exceptions become rows of NaN, warnings and logs are not written."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from distqexp.errors import EngineError

T = TypeVar("T")

_DEVICE_FAILED = ("CUDA error", "cuDNN error", "device-side assert", "NCCL error")
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")


class _Quiet:
    """Switches warnings and logging off for the process while any thread is inside: both are global in Python."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings: Any = None
        self._level = logging.NOTSET

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._level = logging.root.manager.disable
                logging.disable(logging.CRITICAL)
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(None, None, None)
                logging.disable(self._level)


_QUIET = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no warning of Python, torch or NumPy is shown and nothing is logged: they would tell of a private record."""
    _QUIET.enter()
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _QUIET.leave()


def unless_raised(compute: Callable[[], T]) -> T | None:
    """Return what ``compute`` gives for private records, None where it raises: whoever saw the exception would learn of a record.

    Nothing is written meanwhile. Raises EngineError where memory ran out, which is no record's doing, and where a GPU failed: every later
    call would raise, for all records, so that one record would take the others' share away.
    """
    try:
        with quiet():
            return compute()
    except Exception as error:  # noqa: BLE001 - somebody's own model or loss may raise anything
        if out_of_memory(error):
            raise EngineError(
                "model: out of memory in a micro-batch; expected room for its activations: lower engine.micro_batch, or run fewer ranks "
                "on a host"
            ) from None
        if device_failed(error):
            raise EngineError(
                "engine.device: the GPU failed in a micro-batch, and is of no use to this process any more; expected kernels without "
                "assertions on values: run the model on the CPU (engine.device = cpu), or correct it"
            ) from None
        return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, in the words of Python or of torch's allocators."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def device_failed(error: BaseException) -> bool:
    """Return whether an exception says that a GPU failed, which the process can't mend, in the words of torch."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_FAILED)
    )


def private_rows(
    compute: Callable[..., torch.Tensor], sides: Sequence[torch.Tensor], count: int, blank: torch.Tensor
) -> torch.Tensor:
    """Return the rows (B, ...) that ``compute`` gives for the records of a micro-batch, with NaN for those that it raises for.

    If it raises for the batch, each record goes through it alone, in the same place of a batch of the same size whose other records
    are zeros. So a row is the same to the last bit whoever else is there.

    Args:
        compute: Takes the sides and gives a row for each record.
        sides: Inputs and whatever belongs to them, (B, ...) each. Private.
        count: How many of the records are more than padding.
        blank: A row of zeros, for where no record tells of its shape and type.

    Raises:
        EngineError: Memory ran out.
    """
    found = unless_raised(lambda: compute(*sides))
    if found is not None:
        return found
    rows: list[torch.Tensor | None] = []
    for number in range(count):
        alone = [only(side, number) for side in sides]
        batch = unless_raised(lambda alone=alone: compute(*alone))  # type: ignore[misc]
        rows.append(None if batch is None else batch[number].clone())
    known = next((row for row in rows if row is not None), None)
    blank = blank if known is None else torch.zeros_like(known)
    filled = [torch.full_like(blank, torch.nan) if row is None else row for row in rows]
    return torch.stack([*filled, *(blank for _ in range(len(sides[0]) - count))])


def only(side: torch.Tensor, number: int) -> torch.Tensor:
    """Return a copy of a side of a batch with zeros for every record but one."""
    alone = torch.zeros_like(side)
    alone[number] = side[number]
    return alone
