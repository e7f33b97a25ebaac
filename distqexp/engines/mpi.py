"""The engine over MPI ranks: buffers, non-blocking calls, and waits that sleep.

Every wait polls its requests with short, growing sleeps, so that waiting ranks leave the cores to working
ones even when many share a core, and so that signals are served while waiting.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from distqexp.engines.base import (
    Arrays,
    CollectWork,
    Control,
    Engine,
    SumWork,
    checked_arrays,
    checked_item,
    checked_sum,
    collective,
    different_lengths,
    exit_code,
    is_collective,
    places,
    reason,
    rebuild,
    split,
    stopped,
)
from distqexp.engines.watchdog import StopRequest, die_with_launcher
from distqexp.errors import DistqexpError, StoppedError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

TAG_STOP, TAG_PROGRESS, TAG_HEADER, TAG_DATA = 11, 12, 13, 14
SHORTEST_SLEEP, LONGEST_SLEEP = 1e-4, 0.015
PROGRESS_INTERVAL = 0.2
MAX_DIMENSIONS = 8
NO_VECTOR = -(2**62)


class MpiEngine(Engine):
    """One process a rank of ``comm`` (the world when None; a duplicate is used).

    ``limit``: no message has more elements than this. ``grace``: seconds that a rank with a finished
    checkpoint waits for the others after a requested stop, before it leaves alone with exit code 75.
    ``watch_launcher``: end with the launcher, see die_with_launcher.
    """

    kind = "mpi"

    def __init__(
        self, comm: MPI.Intracomm | None = None, limit: int = 2**27, grace: float = 15.0, watch_launcher: bool = False
    ) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._limit = limit
        self._grace = grace
        self._signal = StopRequest()
        self._told = False
        self._announced = False
        self._notices: list[tuple[MPI.Request, NDArray[np.float64]]] = []
        self._shares = np.zeros(1)
        self._sums = 0
        self._last_tick = 0.0
        if watch_launcher:
            die_with_launcher()
        self._comm, request = (comm or MPI.COMM_WORLD).Idup()
        self._wait_at_most(request, math.inf)  # the duplicate exists, and can be asked, only after this
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()

    # --- life ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._signal.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        if error is None:
            self._wait(self._comm.Ibarrier())
        elif self.size > 1:
            if not is_collective(error):
                self.abort(error)
            if self.is_root and not getattr(error, "reported", False):
                self._print(f"distqexp: {reason(error)}", error)
            setattr(error, "reported", True)  # noqa: B010
            # The launcher ends all ranks at the first failure: nobody leaves before the line is printed.
            self._wait_at_most(self._comm.Ibarrier(), self._grace)
        self._signal.restore()

    def abort(self, error: BaseException) -> None:
        # When many ranks fail alike the lowest one speaks: the others hold back for a moment, and its abort
        # reaches them as a signal.
        patience = 0.0 if self.is_root else min(0.4 + 0.1 * self.rank, 3.0)
        signals, until = self._signal.count, time.monotonic() + patience
        while time.monotonic() < until:
            if self._signal.count > signals:
                os._exit(exit_code(error))
            time.sleep(0.005)
        self._print(f"distqexp: rank {self.rank} on {socket.gethostname()}: {reason(error)}", error)
        self._comm.Abort(exit_code(error))

    def _print(self, line: str, error: BaseException | None = None) -> None:
        sys.stdout.flush()
        sys.stderr.write((places(error) if self.debug and error is not None else "") + line + "\n")
        sys.stderr.flush()

    # --- stopping --------------------------------------------------------------------------------------------

    def stop_requested(self) -> bool:
        self._serve()
        return self._told or self._signal.requested

    def raise_if_stopped(self) -> None:
        if self._largest([int(self.stop_requested())])[0]:
            raise stopped()

    def _serve(self) -> None:
        """Pass on a request to stop (ranks tell the first one, it tells all) and take in progress."""
        while self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG_STOP):
            self._comm.Recv(np.empty(1), source=self._mpi.ANY_SOURCE, tag=TAG_STOP)
            self._told = True
        if (self._told or self._signal.requested) and not self._announced:
            self._announced = True
            others = range(1, self.size) if self.is_root else ([] if self._told else [0])
            for other in others:
                self._notify([1.0], other, TAG_STOP)
        if self.is_root and self._take_progress():
            self._report(float(self._shares.sum()))

    def _notify(self, values: list[float], rank: int, tag: int) -> None:
        self._notices = [(request, buffer) for request, buffer in self._notices if not request.Test()]
        buffer = np.array(values)
        self._notices.append((self._comm.Isend(buffer, dest=rank, tag=tag), buffer))

    # --- waiting ---------------------------------------------------------------------------------------------

    def _wait(self, *requests: MPI.Request, stopping: bool = False, or_stop: bool = False) -> bool:
        """Wait for all requests. ``stopping``: leave alone when a stop was requested and ``grace`` is over.
        ``or_stop``: return False at once when a stop is requested."""
        pending, pause, since = list(requests), SHORTEST_SLEEP, None
        while not self._mpi.Request.Testall(pending):
            if or_stop and self.stop_requested():
                return False
            self._serve()
            if stopping and self.stop_requested():
                since = since or time.monotonic()
                if time.monotonic() - since > self._grace:
                    self._leave_alone()
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_SLEEP)
        return True

    def _wait_at_most(self, request: MPI.Request, seconds: float) -> None:
        until, pause = time.monotonic() + seconds, SHORTEST_SLEEP
        while not request.Test() and time.monotonic() < until:
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_SLEEP)

    def _leave_alone(self) -> None:
        if self.is_root:
            self._print(f"distqexp: {reason(stopped())}")
        os._exit(StoppedError.exit_code)

    def _largest(self, values: list[int], stopping: bool = False) -> NDArray[np.int64]:
        """Element-wise maximum over the ranks."""
        mine, all_ = np.array(values, np.int64), np.empty(len(values), np.int64)
        self._wait(self._comm.Iallreduce(mine, all_, op=self._mpi.MAX), stopping=stopping)
        return all_

    # --- broadcasts ------------------------------------------------------------------------------------------

    def on_root(self, work: Callable[[], T]) -> T:
        payload = b""
        if self.is_root:
            try:
                message: tuple[Any, ...] = ("result", work())
            except DistqexpError as error:
                message = ("error", type(error), str(error))
            payload = pickle.dumps(message)
        length = np.array([len(payload)], np.int64)
        self._broadcast(length)
        buffer = np.frombuffer(bytearray(payload or int(length[0])), np.uint8)
        self._broadcast(buffer)
        if not self.is_root:
            message = pickle.loads(buffer.tobytes())
        if message[0] == "result":
            result: T = message[1]
            return result
        raise collective(rebuild(message[1], message[2]))

    def broadcast_arrays(self, arrays: Mapping[str, NDArray[Any]] | None) -> Arrays:
        sent: Arrays = {}

        def describe() -> list[tuple[str, str, tuple[int, ...]]]:
            sent.update({name: np.asarray(array, order="C") for name, array in checked_arrays(arrays).items()})
            return [(name, array.dtype.str, array.shape) for name, array in sent.items()]

        for name, dtype, shape in self.on_root(describe):
            if not self.is_root:
                sent[name] = np.empty(shape, dtype)
            self._broadcast(sent[name].reshape(-1).view(np.uint8))
        return sent

    def _broadcast(self, buffer: NDArray[Any]) -> None:
        for first in range(0, buffer.size, self._limit):
            self._wait(self._comm.Ibcast(buffer[first : first + self._limit], root=0))

    # --- sums ------------------------------------------------------------------------------------------------

    def sum(self, work: SumWork, context: Any, items: Sequence[int]) -> NDArray[np.int64] | None:
        mine = split(items, self.size, self.rank)
        self._sums += 1
        self._shares = np.zeros(self.size)
        part: NDArray[np.int64] | None = None
        early = False
        if len(mine) or self.is_root:
            control = Control(f"r{self.rank:04d}", self.stop_requested, self._ticker(len(mine) / max(len(items), 1)))
            try:
                part = checked_sum(work(context, mine, control))
            except StoppedError:
                early = True
        length = NO_VECTOR if part is None else part.size
        any_early, longest, shortest = self._largest(
            [int(early), length, NO_VECTOR if part is None else -length], stopping=True
        )
        if any_early:
            raise stopped()
        if longest != -shortest:
            raise collective(different_lengths(-shortest, longest))
        return self._reduce(np.zeros(longest, np.int64) if part is None else part)

    def _reduce(self, part: NDArray[np.int64]) -> NDArray[np.int64] | None:
        mine = np.ascontiguousarray(part).view(np.uint64)  # unsigned: wraps modulo 2^64 by definition
        total = np.empty_like(mine) if self.is_root else None
        for first in range(0, mine.size, self._limit):
            window = slice(first, first + self._limit)
            target = None if total is None else total[window]
            self._wait(self._comm.Ireduce(mine[window], target, op=self._mpi.SUM, root=0))
        return None if total is None else total.view(np.int64)

    def _ticker(self, weight: float) -> Callable[[int, int], None]:
        def tick(done: int, total: int) -> None:
            now = time.monotonic()
            if done < total and now - self._last_tick < PROGRESS_INTERVAL:
                return
            self._last_tick = now
            share = weight * done / max(total, 1)
            if self.is_root:
                self._shares[0] = share
                self._take_progress()
                self._report(float(self._shares.sum()))
            else:
                self._notify([self._sums, share], 0, TAG_PROGRESS)

        return tick

    def _take_progress(self) -> bool:
        status, message, news = self._mpi.Status(), np.empty(2), False
        while self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG_PROGRESS, status=status):
            self._comm.Recv(message, source=status.Get_source(), tag=TAG_PROGRESS)
            if message[0] == self._sums:
                self._shares[status.Get_source()] = message[1]
                news = True
        return news

    # --- collections -----------------------------------------------------------------------------------------

    def collect(self, work: CollectWork, context: Any, items: Sequence[int]) -> Iterator[NDArray[np.float64]]:
        early = False
        if self.is_root:
            for index, item in enumerate(items):
                rank = index % self.size
                early = self.stop_requested()
                result = None if early else checked_item(work(context, item)) if rank == 0 else self._receive(rank)
                if result is None:
                    early = True
                    break
                yield result
        else:
            early = not self._send_all(work, context, items[self.rank :: self.size])
        if self._largest([int(early)], stopping=True)[0]:
            raise stopped()

    def _send_all(self, work: CollectWork, context: Any, items: Sequence[int]) -> bool:
        """Compute one item ahead of the first rank; False when a stop was requested before the end."""
        sending: list[MPI.Request] = []
        for item in items:
            if self.stop_requested():
                return False
            result = np.asarray(checked_item(work(context, item)), order="C")
            if not self._wait(*sending, or_stop=True):
                return False
            # Synchronous sends end when they are received: no more than two results a rank are in memory.
            header, flat = np.full(MAX_DIMENSIONS + 1, -1, np.int64), result.reshape(-1)
            header[0], header[1 : 1 + result.ndim] = result.ndim, result.shape
            sending = [self._comm.Issend(header, dest=0, tag=TAG_HEADER)]
            for first in range(0, flat.size, self._limit):
                sending.append(self._comm.Issend(flat[first : first + self._limit], dest=0, tag=TAG_DATA))
        return self._wait(*sending, or_stop=True)

    def _receive(self, rank: int) -> NDArray[np.float64] | None:
        header = np.empty(MAX_DIMENSIONS + 1, np.int64)
        if not self._wait(self._comm.Irecv(header, source=rank, tag=TAG_HEADER), or_stop=True):
            return None
        result = np.empty(tuple(int(n) for n in header[1 : 1 + header[0]]))
        flat = result.reshape(-1)
        requests = [
            self._comm.Irecv(flat[first : first + self._limit], source=rank, tag=TAG_DATA)
            for first in range(0, flat.size, self._limit)
        ]
        return result if self._wait(*requests, or_stop=True) else None
