"""The engine over a Dask cluster: chunks are tasks, which run again elsewhere when a worker dies."""

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

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import EngineConfig
from distqexp.config.rules import field_needs, require
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
    stop_error,
)
from distqexp.engines.main_guard import refuse_unguarded_main
from distqexp.engines.serial import SerialEngine
from distqexp.engines.threads import pin_threads
from distqexp.errors import DistqexpError, EngineError, StoppedError

T = TypeVar("T")

FEWEST_CHUNKS = 32
"""How many chunks a sum has at least, if there are as many items."""

FAN_IN = 8
"""How many parts of a sum one task adds."""

_stops: set[str] = set()
"""The sums that were asked to stop, by their run's name, in the process of a worker."""


class _Parcel:
    """A context or a piece of work that Dask passes on without looking inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


class DaskEngine(SerialEngine):
    """Runs chunks of items as tasks on a cluster.

    The context stays on the workers as long as it is the same object from call to call. It and the work are the arguments
    of one task each, so that the scheduler can make them again when the worker that has them dies: they must be picklable,
    and files that they name must be readable by every worker. A chunk whose worker dies runs again elsewhere. The sums
    of the chunks are added in a tree on the workers. The number of chunks depends on the items and, above 16 workers, on
    the number of workers, so that a restart finds its checkpoints.

    Args:
        scheduler: The address of the cluster's scheduler; None for a local cluster.
        workers: The number of processes of a local cluster; None for one on each core.
        threads: The number of threads that a task computes with.
        grace: The seconds that other chunks have for their checkpoints once one has stopped.
        patience: The seconds without a scheduler or a single worker before the run is given up.

    Raises:
        EngineError: Dask can't be loaded.
        UsageError: The address has no port, or the local cluster would run an unguarded script again.
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
        require(field_needs("engine", EngineConfig(scheduler=scheduler)))
        if scheduler is None and _starts_afresh():
            refuse_unguarded_main()
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
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
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

    def sum(self, work: SumWork, context: Any, items: Sequence[int]) -> IntegerArray:
        run = uuid.uuid4().hex
        parts = max(1, min(len(items), max(FEWEST_CHUNKS, 2 * self._count())))
        remote_context, remote_work = self._remote(context), self._submit(_pass_on, _Parcel(work), key=f"work-{run}")
        chunks = [
            self._submit(
                _sum_chunk, remote_work, remote_context, _pack(split(items, parts, index)), f"c{index:04d}", run, self._threads,
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
        self._wait_for(total, run, lambda: self._report(sum(chunk.done() for chunk in chunks) / parts))
        if total.status != "finished" and isinstance(total.exception(), StoppedError):
            # One chunk has stopped: the others get time to write their checkpoints too.
            until = time.monotonic() + self._grace
            while not all(chunk.done() for chunk in chunks) and time.monotonic() < until:
                self._tell(run)
                time.sleep(0.2)
        result: IntegerArray = self._result(total, chunks)
        return result

    def collect(self, work: CollectWork, context: Any, items: Sequence[int]) -> Iterator[FloatArray]:
        run = uuid.uuid4().hex
        remote_context, remote_work = self._remote(context), self._submit(_pass_on, _Parcel(work), key=f"work-{run}")
        ahead, waiting = 2 * self._count() + 2, deque[Any]()
        for index, item in enumerate(items):
            key = f"item-{run}-{index}"
            waiting.append(self._submit(_collect_item, remote_work, remote_context, int(item), self._threads, key=key))
            if len(waiting) >= ahead:
                yield self._next(waiting, run)
        while waiting:
            yield self._next(waiting, run)

    def _next(self, waiting: deque[Any], run: str) -> FloatArray:
        """Return the first result of those that are waited for. Raises StoppedError on a request to stop."""
        if not self._wait_for(waiting[0], run, lambda: None, leave=True):
            _release(waiting)
            raise stop_error()
        result: FloatArray = self._result(waiting[0], list(waiting))
        waiting.popleft()
        return result

    def _remote(self, context: Any) -> Any:
        """Return the future of the context, which is sent once as long as it is the same object from call to call."""
        if self._context is None or self._context[0] is not context:
            self._context = (context, self._submit(_pass_on, _Parcel(context), key=f"context-{uuid.uuid4().hex}"))
        return self._context[1]

    # --- the cluster -----------------------------------------------------------------------------------------

    def _count(self) -> int:
        return max(1, len(self._client.nthreads()))

    def _submit(self, function: Callable[..., Any], *arguments: Any, key: str) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            return self._client.submit(function, *arguments, key=key, pure=False)

    def _wait_for(self, future: Any, run: str, progress: Callable[[], None], leave: bool = False) -> bool:
        """Wait for a future, and pass a request to stop on to the workers, or with ``leave`` return False at once."""
        pause, last_alive, last_check = 0.005, time.monotonic(), time.monotonic()
        while not future.done():
            if self.stop_requested() and leave:
                return False
            now = time.monotonic()
            if now - last_check > 1.0:
                last_check = now
                if self._client.nthreads():
                    last_alive = now
                elif now - last_alive > self._patience:
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
        """Return the result of a finished future. On an error release its group and raise what every engine would raise."""
        if future.status == "finished":
            return future.result()
        error = None if future.status in ("cancelled", "lost") else future.exception()
        _release(group)
        if isinstance(error, StoppedError):
            raise stop_error() from None
        if isinstance(error, DistqexpError):
            raise rebuild(type(error), str(error))
        if error is None:
            raise EngineError("Dask: the scheduler is gone or dropped the work; start it, run again with --resume")
        raise EngineError(f"Dask: {type(error).__name__}: workers died again and again on one task; is memory short?")


def _starts_afresh() -> bool:
    """Whether processes of a local cluster import the main script again: unless they are forks of this one."""
    import dask

    return str(dask.config.get("distributed.worker.multiprocessing-method", "spawn")) != "fork"


def _release(futures: Iterable[Any]) -> None:
    for future in futures:  # the scheduler forgets results that nobody wants
        future.release()


# --- in the workers ------------------------------------------------------------------------------------------


def _pass_on(parcel: _Parcel) -> _Parcel:
    return parcel


def _add(*parts: IntegerArray) -> IntegerArray:
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
    work: _Parcel, context: _Parcel, chunk: range | IntegerArray, label: str, run: str, threads: int
) -> IntegerArray:
    pin_threads(threads)
    control = Control(label, lambda: run in _stops)
    items: Sequence[int] = chunk if isinstance(chunk, range) else chunk.tolist()
    return _run_guarded(
        lambda: np.ascontiguousarray(checked_sum(work.value(context.value, items, control))), f"chunk {label}"
    )


def _collect_item(work: _Parcel, context: _Parcel, item: int, threads: int) -> FloatArray:
    pin_threads(threads)
    return _run_guarded(lambda: checked_item(work.value(context.value, item)), "a worker")


def _run_guarded(work: Callable[[], T], who: str) -> T:
    """Run work, so that its errors leave the worker as one line that names the host and has nothing private in it."""
    try:
        return work()
    except StoppedError:
        raise
    except DistqexpError as error:
        raise rebuild(type(error), f"{who} on {socket.gethostname()}: {reason(error)}") from None
    except Exception as error:  # noqa: BLE001 - its message may be private: only type and place leave the worker
        raise EngineError(f"{who} on {socket.gethostname()}: {reason(error)}") from None


def _pack(chunk: Sequence[int]) -> range | IntegerArray:
    return chunk if isinstance(chunk, range) else np.asarray(chunk, np.int64)
