"""The engine over a Dask cluster: chunks as tasks, run again elsewhere when a worker dies."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from distqexp.engines.base import (
    CollectWork,
    Control,
    SumWork,
    checked_item,
    checked_sum,
    different_lengths,
    reason,
    rebuild,
    split,
    stopped,
)
from distqexp.engines.serial import SerialEngine
from distqexp.engines.threads import pin_threads
from distqexp.errors import DistqexpError, EngineError, StoppedError

T = TypeVar("T")

FEWEST_CHUNKS = 32
FAN_IN = 8

_stops: set[str] = set()
"""In a worker's process: the runs that were asked to stop."""


class _Held:
    """A context or a piece of work that Dask passes on without looking inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


class DaskEngine(SerialEngine):
    """Chunks of items as tasks on a cluster: at ``scheduler``, or a local one of ``workers`` processes.

    The context stays on the workers as long as it is the same object from call to call. It and the work are the arguments
    of one task each, so the scheduler can make them again when the worker that holds them dies: they must be picklable,
    and files that they name must be readable by every worker. A chunk whose worker dies runs again elsewhere. The sums
    of the chunks are added in a tree on the workers. The number of chunks depends on the items and on the number of
    workers above 16, so a restart finds its checkpoints.

    ``grace``: seconds that other chunks have for their checkpoints once one has stopped. ``patience``: seconds
    without a scheduler or a single worker before the run is given up.
    """

    kind = "dask"

    def __init__(
        self,
        scheduler: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        grace: float = 15.0,
        patience: float = 60.0,
    ) -> None:
        super().__init__()
        try:
            import distributed
        except ImportError as error:
            raise EngineError(f"engine.kind: dask can't be loaded ({error}); install distqexp[dask]") from None
        self._dask: Any = distributed
        self._scheduler, self._workers, self._threads = scheduler, workers, threads
        self._grace, self._patience = grace, patience
        self._cluster: Any = None
        self._client: Any = None
        self._context: tuple[Any, Any] | None = None

    # --- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            if self._scheduler is None:
                self._cluster = self._dask.LocalCluster(
                    n_workers=self._workers or len(os.sched_getaffinity(0)),
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
            self._client = self._dask.Client(
                self._cluster or self._scheduler, timeout=self._patience, set_as_default=False
            )
            self._client.wait_for_workers(1, timeout=self._patience)
        except (OSError, TimeoutError, ValueError) as error:
            self._close()
            where = self._scheduler or "local cluster"
            raise EngineError(
                f"Dask at {where}: no scheduler with a worker answers ({reason(error)}); start both first"
            ) from None
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, place)
        self._close()

    def _close(self) -> None:
        self._context = None
        for part in (self._client, self._cluster):
            if part is not None:
                part.close()
        self._client = self._cluster = None

    # --- verbs -----------------------------------------------------------------------------------------------

    def sum(self, work: SumWork, context: Any, items: Sequence[int]) -> NDArray[np.int64]:
        run = uuid.uuid4().hex
        parts = max(1, min(len(items), max(FEWEST_CHUNKS, 2 * self._count())))
        held, task = self._kept(context), self._submit(_hold, _Held(work), key=f"work-{run}")
        chunks = [
            self._submit(
                _sum_chunk, task, held, _pack(split(items, parts, index)), f"c{index:04d}", run, self._threads,
                key=f"chunk-{run}-{index}",
            )
            for index in range(parts)
        ]  # fmt: skip
        level, height = chunks, 0
        while len(level) > 1:
            height += 1
            level = [
                self._submit(_add, *level[first : first + FAN_IN], key=f"sum-{run}-{height}-{first}")
                for first in range(0, len(level), FAN_IN)
            ]
        total = level[0]
        self._watch(total, run, lambda: self._report(sum(chunk.done() for chunk in chunks) / parts))
        if total.status != "finished" and isinstance(total.exception(), StoppedError):
            # One chunk has stopped: give the others the time to write their checkpoints too.
            until = time.monotonic() + self._grace
            while not all(chunk.done() for chunk in chunks) and time.monotonic() < until:
                self._tell(run)
                time.sleep(0.2)
        result: NDArray[np.int64] = self._result(total, chunks)
        return result

    def collect(self, work: CollectWork, context: Any, items: Sequence[int]) -> Iterator[NDArray[np.float64]]:
        run = uuid.uuid4().hex
        held, task = self._kept(context), self._submit(_hold, _Held(work), key=f"work-{run}")
        ahead, waiting = 2 * self._count() + 2, deque[Any]()
        for index, item in enumerate(items):
            waiting.append(self._submit(_collect_item, task, held, int(item), self._threads, key=f"item-{run}-{index}"))
            if len(waiting) >= ahead:
                yield self._next(waiting, run)
        while waiting:
            yield self._next(waiting, run)

    def _next(self, waiting: deque[Any], run: str) -> NDArray[np.float64]:
        if not self._watch(waiting[0], run, lambda: None, leave=True):
            _release(waiting)
            raise stopped()
        result: NDArray[np.float64] = self._result(waiting[0], list(waiting))
        waiting.popleft()
        return result

    def _kept(self, context: Any) -> Any:
        """The context on the workers: sent once as long as it is the same object from call to call."""
        if self._context is None or self._context[0] is not context:
            self._context = (context, self._submit(_hold, _Held(context), key=f"context-{uuid.uuid4().hex}"))
        return self._context[1]

    # --- the cluster -----------------------------------------------------------------------------------------

    def _count(self) -> int:
        return max(1, len(self._client.nthreads()))

    def _submit(self, function: Callable[..., Any], *arguments: Any, key: str) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            return self._client.submit(function, *arguments, key=key, pure=False)

    def _watch(self, future: Any, run: str, progress: Callable[[], None], leave: bool = False) -> bool:
        """Wait for a future; pass on a request to stop (or ``leave`` at once: False)."""
        pause, seen, looked = 0.005, time.monotonic(), time.monotonic()
        while not future.done():
            if self.stop_requested() and leave:
                return False
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                if self._client.nthreads():
                    seen = now
                elif now - seen > self._patience:
                    raise EngineError(
                        f"Dask: no worker for {self._patience:.0f} s; start some and run again with --resume"
                    )
                if self.stop_requested():
                    self._tell(run)
            progress()
            time.sleep(pause)
            pause = min(1.5 * pause, 0.2)
        progress()
        return True

    def _tell(self, run: str) -> None:
        self._client.run(_stop_run, run, on_error="ignore")

    def _result(self, future: Any, group: list[Any]) -> Any:
        if future.status == "finished":
            return future.result()
        error = None if future.status in ("cancelled", "lost") else future.exception()
        _release(group)
        if isinstance(error, StoppedError):
            raise stopped() from None
        if isinstance(error, DistqexpError):
            raise rebuild(type(error), str(error))
        if error is None:
            raise EngineError("Dask: the scheduler is gone or dropped the work; start it, run again with --resume")
        raise EngineError(f"Dask: {type(error).__name__}: workers died again and again on one task; is memory short?")


def _release(futures: Iterable[Any]) -> None:
    for future in futures:  # what nobody wants is forgotten by the scheduler
        future.release()


# --- in the workers ------------------------------------------------------------------------------------------


def _hold(held: _Held) -> _Held:
    return held


def _add(*parts: NDArray[np.int64]) -> NDArray[np.int64]:
    if len({part.size for part in parts}) > 1:
        sizes = sorted({part.size for part in parts})
        raise different_lengths(sizes[0], sizes[-1])
    total = np.zeros(parts[0].size, np.uint64)  # unsigned: wraps modulo 2^64 by definition
    for part in parts:
        total += part.view(np.uint64)
    return total.view(np.int64)


def _stop_run(run: str) -> None:
    _stops.add(run)


def _sum_chunk(
    work: _Held, held: _Held, chunk: range | NDArray[np.int64], label: str, run: str, threads: int
) -> NDArray[np.int64]:
    pin_threads(threads)
    control = Control(label, lambda: run in _stops)
    items: Sequence[int] = chunk if isinstance(chunk, range) else chunk.tolist()
    return _guarded(lambda: np.ascontiguousarray(checked_sum(work.value(held.value, items, control))), f"chunk {label}")


def _collect_item(work: _Held, held: _Held, item: int, threads: int) -> NDArray[np.float64]:
    pin_threads(threads)
    return _guarded(lambda: checked_item(work.value(held.value, item)), "a worker")


def _guarded(work: Callable[[], T], who: str) -> T:
    """Run; errors leave the worker as one line that names the host and carries nothing private."""
    try:
        return work()
    except StoppedError:
        raise
    except DistqexpError as error:
        raise rebuild(type(error), f"{who} on {socket.gethostname()}: {reason(error)}") from None
    except Exception as error:  # noqa: BLE001 - its message may be private: only type and place leave the worker
        raise EngineError(f"{who} on {socket.gethostname()}: {reason(error)}") from None


def _pack(chunk: Sequence[int]) -> range | NDArray[np.int64]:
    return chunk if isinstance(chunk, range) else np.asarray(chunk, np.int64)
