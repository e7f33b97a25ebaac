"""The engine of one process, which needs no launcher and no other library."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray, NewArrays
from distqexp.engines.base import (
    CollectWork,
    Control,
    Engine,
    SumWork,
    checked_arrays,
    checked_item,
    checked_sum,
    exit_code,
    places,
    reason,
    stop_error,
)
from distqexp.errors import StoppedError
from distqexp.stopping import StopRequest

T = TypeVar("T")


class SerialEngine(Engine):
    """Runs every piece of work in this process."""

    kind = "serial"

    def __init__(self) -> None:
        self._signal = StopRequest()

    def __enter__(self) -> Self:
        self._signal.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self._signal.restore()

    def on_root(self, work: Callable[[], T]) -> T:
        return work()

    def broadcast_arrays(self, arrays: Mapping[str, NDArray[Any]] | None) -> NewArrays:
        return dict(checked_arrays(arrays))

    def sum(self, work: SumWork, context: Any, items: Sequence[int]) -> IntegerArray:
        control = Control("r0000", self.stop_requested, lambda steps, total: self._report(steps / max(total, 1)))
        try:
            return checked_sum(work(context, items, control))
        except StoppedError:
            raise stop_error() from None

    def scattered_sum(
        self, work: SumWork, context: Any, items: Sequence[int], start: IntegerArray | None = None
    ) -> IntegerArray:
        total = self.sum(work, context, items)
        return total if start is None else total + start

    def collect(self, work: CollectWork, context: Any, items: Sequence[int]) -> Iterator[FloatArray]:
        for item in items:
            self.raise_if_stopped()
            yield checked_item(work(context, item))

    def stop_requested(self) -> bool:
        return self._signal.requested

    def raise_if_stopped(self) -> None:
        if self.stop_requested():
            raise stop_error()

    def abort(self, error: BaseException) -> None:
        sys.stdout.flush()
        trace = places(error) if self.debug else ""
        sys.stderr.write(f"{trace}distqexp: rank 0 on {socket.gethostname()}: {reason(error)}\n")
        sys.stderr.flush()
        os._exit(exit_code(error))
