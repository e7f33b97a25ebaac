"""The engine over MPI ranks, with buffers, non-blocking calls, and waits that sleep.

Every wait for other ranks polls its requests with short, growing sleeps, so that waiting ranks leave the cores to
working ones even when many share a core, and so that signals are served while waiting. Bulk data moves only once
all ranks concerned have met in such a wait, and then without sleeps: with a sleep for every fragment, megabytes would take
seconds.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray, NewArrays, blocks_of
from distqexp.engines.base import (
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
    stop_error,
)
from distqexp.engines.watchdog import die_with_launcher
from distqexp.errors import DistqexpError, StoppedError
from distqexp.stopping import StopRequest

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

TAG_STOP, TAG_PROGRESS, TAG_ASK, TAG_HEADER, TAG_DATA = 11, 12, 13, 14, 15
SHORTEST_SLEEP, LONGEST_SLEEP = 1e-4, 0.015
PROGRESS_INTERVAL = 0.2
MAX_DIMENSIONS = 8
NO_VECTOR = -(2**62)


class MpiEngine(Engine):
    """Runs the work on the ranks of an MPI communicator, of which this process is one.

    Args:
        comm: The communicator, of which a duplicate is used; None for the world.
        limit: The largest number of entries of 8 bytes in a message. What MPI sets aside to add messages grows with it.
        grace: The seconds that a rank with a finished checkpoint waits for the others after a requested stop, before it leaves
            alone with exit code 75.
        watch_launcher: Whether to end with the launcher, see die_with_launcher.
    """

    kind = "mpi"

    def __init__(
        self, comm: MPI.Intracomm | None = None, limit: int = 2**20, grace: float = 15.0, watch_launcher: bool = False
    ) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._limit = limit
        self._grace = grace
        self._signal = StopRequest()
        self._stop_arrived = False
        self._announced = False
        self._notices: list[tuple[MPI.Request, FloatArray]] = []
        self._shares = np.zeros(1)
        self._sums = 0
        self._last_tick = 0.0
        if watch_launcher:
            die_with_launcher()
        self._comm, request = (comm or MPI.COMM_WORLD).Idup()
        self._wait_at_most(request, math.inf)  # the duplicate exists only after this
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
        # When many ranks fail alike the lowest one prints. The others hold back for a moment, in which its abort reaches
        # them as a signal.
        patience = 0.0 if self.is_root else min(1.5 + 0.1 * self.rank, 4.0)
        signals, until = self._signal.count, time.monotonic() + patience
        while time.monotonic() < until:
            if self._signal.count > signals:
                os._exit(exit_code(error))
            time.sleep(0.005)
        self._print(f"distqexp: rank {self.rank} on {socket.gethostname()}: {reason(error)}", error)
        time.sleep(0.2)  # so that the launcher prints the line before its own account of the abort
        self._comm.Abort(exit_code(error))

    def _print(self, line: str, error: BaseException | None = None) -> None:
        sys.stdout.flush()
        sys.stderr.write((places(error) if self.debug and error is not None else "") + line + "\n")
        sys.stderr.flush()

    # --- stopping --------------------------------------------------------------------------------------------

    def stop_requested(self) -> bool:
        self._serve()
        return self._stop_arrived or self._signal.requested

    def raise_if_stopped(self) -> None:
        if self._largest([int(self.stop_requested())])[0]:
            raise stop_error()

    def _serve(self) -> None:
        """Pass on a request to stop (ranks tell the first one, which tells all) and take in messages about progress."""
        while self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG_STOP):
            self._comm.Recv(np.empty(1), source=self._mpi.ANY_SOURCE, tag=TAG_STOP)
            self._stop_arrived = True
        if (self._stop_arrived or self._signal.requested) and not self._announced:
            self._announced = True
            others = range(1, self.size) if self.is_root else ([] if self._stop_arrived else [0])
            for other in others:
                self._notify([1.0], other, TAG_STOP)
        if self.is_root and self._take_progress():
            self._report(float(self._shares.sum()))

    def _notify(self, values: list[float], rank: int, tag: int) -> None:
        """Send a short message without waiting; its buffer stays alive until it has left."""
        self._notices = [(request, buffer) for request, buffer in self._notices if not request.Test()]
        buffer = np.array(values)
        self._notices.append((self._comm.Isend(buffer, dest=rank, tag=tag), buffer))

    # --- waiting ---------------------------------------------------------------------------------------------

    def _wait(self, request: MPI.Request, stopping: bool = False) -> None:
        """Wait for other ranks. With ``stopping``, leave alone when a stop was requested and ``grace`` seconds are over."""
        pause, since = SHORTEST_SLEEP, None
        while not request.Test():
            self._serve()
            if stopping and self.stop_requested():
                since = since or time.monotonic()
                if time.monotonic() - since > self._grace:
                    self._leave_alone()
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_SLEEP)

    def _transfer(self, request: MPI.Request) -> None:
        """Move bulk data between ranks that are all here: no sleeps, but the core is offered to others."""
        while not request.Test():
            os.sched_yield()

    def _wait_at_most(self, request: MPI.Request, seconds: float) -> None:
        until, pause = time.monotonic() + seconds, SHORTEST_SLEEP
        while not request.Test() and time.monotonic() < until:
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_SLEEP)

    def _leave_alone(self) -> None:
        """End this process with the exit code of a requested stop."""
        if self.is_root:
            self._print(f"distqexp: {reason(stop_error())}")
        os._exit(StoppedError.exit_code)

    def _largest(self, values: list[int], stopping: bool = False) -> IntegerArray:
        """Return the element-wise maximum over the ranks."""
        own, largest = np.array(values, np.int64), np.empty(len(values), np.int64)
        self._wait(self._comm.Iallreduce(own, largest, op=self._mpi.MAX), stopping=stopping)
        return largest

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
        self._wait(self._comm.Ibcast(length, root=0))
        buffer = np.frombuffer(bytearray(payload or int(length[0])), np.uint8)
        self._broadcast(buffer)
        if not self.is_root:
            message = pickle.loads(buffer.tobytes())
        if message[0] == "result":
            result: T = message[1]
            return result
        raise collective(rebuild(message[1], message[2]))

    def broadcast_arrays(self, arrays: Mapping[str, NDArray[Any]] | None) -> NewArrays:
        copies: NewArrays = {}

        def describe() -> list[tuple[str, str, tuple[int, ...]]]:
            copies.update({name: np.asarray(array, order="C") for name, array in checked_arrays(arrays).items()})
            return [(name, array.dtype.str, array.shape) for name, array in copies.items()]

        for name, dtype, shape in self.on_root(describe):
            if not self.is_root:
                copies[name] = np.empty(shape, dtype)
            self._broadcast(copies[name].reshape(-1).view(np.uint8))
        return copies

    def _broadcast(self, buffer: NDArray[np.uint8]) -> None:
        size = 8 * self._limit
        for first in range(0, buffer.size, size):
            self._transfer(self._comm.Ibcast(buffer[first : first + size], root=0))

    # --- sums ------------------------------------------------------------------------------------------------

    def sum(self, work: SumWork, context: Any, items: Sequence[int]) -> IntegerArray | None:
        part = self._part(work, context, items)
        total = self._reduce(part, [slice(0, part.size)])
        return total if self.is_root else None

    def scattered_sum(
        self, work: SumWork, context: Any, items: Sequence[int], start: IntegerArray | None = None
    ) -> IntegerArray:
        part = self._part(work, context, items)
        return self._reduce(part if start is None else part + start, blocks_of(part.size))

    def _part(self, work: SumWork, context: Any, items: Sequence[int]) -> IntegerArray:
        """Return this rank's part of a sum, once all ranks have theirs."""
        chunk = split(items, self.size, self.rank)
        self._sums += 1
        self._shares = np.zeros(self.size)
        part: IntegerArray | None = None
        early = False
        if len(chunk) or self.is_root:
            control = Control(f"r{self.rank:04d}", self.stop_requested, self._ticker(len(chunk) / max(len(items), 1)))
            try:
                part = checked_sum(work(context, chunk, control))
            except StoppedError:
                early = True
        length = NO_VECTOR if part is None else part.size
        any_early, longest, shortest = self._largest(
            [int(early), length, NO_VECTOR if part is None else -length], stopping=True
        )
        if any_early:
            raise stop_error()
        self._report(1.0)
        if longest != -shortest:
            raise collective(different_lengths(-shortest, longest))
        return np.zeros(longest, np.int64) if part is None else part

    def _reduce(self, part: IntegerArray, places: Sequence[slice]) -> IntegerArray:
        """Return the sum of the ranks' parts at every ``size``-th place, from that of this rank on, one place after the other."""
        own = np.ascontiguousarray(part).view(np.uint64)  # unsigned: wraps modulo 2^64 by definition
        total = np.empty(sum(place.stop - place.start for place in places[self.rank :: self.size]), np.uint64)
        filled = 0
        for number, place in enumerate(places):
            for first in range(place.start, place.stop, self._limit):
                window, owner, target = own[first : min(first + self._limit, place.stop)], number % self.size, None
                if owner == self.rank:
                    target = total[filled : filled + window.size]
                    filled += window.size
                self._transfer(self._comm.Ireduce(window, target, op=self._mpi.SUM, root=owner))
        return total.view(np.int64)

    def _ticker(self, weight: float) -> Callable[[int, int], None]:
        """Return a function that takes this rank's finished and total steps, and tells the root now and then."""

        def tick(steps: int, total: int) -> None:
            now = time.monotonic()
            if steps < total and now - self._last_tick < PROGRESS_INTERVAL:
                return
            self._last_tick = now
            share = weight * steps / max(total, 1)
            if self.is_root:
                self._shares[0] = share
                self._take_progress()
                self._report(float(self._shares.sum()))
            else:
                self._notify([self._sums, share], 0, TAG_PROGRESS)

        return tick

    def _take_progress(self) -> bool:
        """Take in messages about progress, and return whether there was one about the sum that runs now."""
        status, message, news = self._mpi.Status(), np.empty(2), False
        while self._comm.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG_PROGRESS, status=status):
            self._comm.Recv(message, source=status.Get_source(), tag=TAG_PROGRESS)
            if message[0] == self._sums:
                self._shares[status.Get_source()] = message[1]
                news = True
        return news

    # --- collections -----------------------------------------------------------------------------------------

    def collect(self, work: CollectWork, context: Any, items: Sequence[int]) -> Iterator[FloatArray]:
        early = False
        if self.is_root:
            for index, item in enumerate(items):
                rank, result = index % self.size, None
                if rank and not self.stop_requested():
                    self._notify([1.0], rank, TAG_ASK)
                    result = self._receive(rank)
                elif not self.stop_requested():
                    result = checked_item(work(context, item))
                if result is None:
                    early = True
                    self._dismiss({later % self.size for later in range(index, len(items))} - {0})
                    break
                yield result
        else:
            early = not self._send_all(work, context, items[self.rank :: self.size])
        if self._largest([int(early)], stopping=True)[0]:
            raise stop_error()

    def _send_all(self, work: CollectWork, context: Any, items: Sequence[int]) -> bool:
        """Compute one item after the other, and send each when the root asks. Return False when stopped before the end."""
        for item in items:
            result = None if self.stop_requested() else np.asarray(checked_item(work(context, item)), order="C")
            question, header = np.empty(1), np.full(MAX_DIMENSIONS + 1, -1, np.int64)
            self._wait(self._comm.Irecv(question, source=0, tag=TAG_ASK))
            if not question[0]:
                return False
            if result is not None:
                header[0], header[1 : 1 + result.ndim] = result.ndim, result.shape
            self._wait(self._comm.Isend(header, dest=0, tag=TAG_HEADER))
            if result is None:
                return False
            flat = result.reshape(-1)
            for first in range(0, flat.size, self._limit):
                self._transfer(self._comm.Isend(flat[first : first + self._limit], dest=0, tag=TAG_DATA))
        return True

    def _receive(self, rank: int) -> FloatArray | None:
        """Return the result that a rank was asked for, or None when it has stopped."""
        header = np.empty(MAX_DIMENSIONS + 1, np.int64)
        self._wait(self._comm.Irecv(header, source=rank, tag=TAG_HEADER))
        if header[0] < 0:
            return None
        result = np.empty(tuple(int(n) for n in header[1 : 1 + header[0]]))
        flat = result.reshape(-1)
        for first in range(0, flat.size, self._limit):
            self._transfer(self._comm.Irecv(flat[first : first + self._limit], source=rank, tag=TAG_DATA))
        return result

    def _dismiss(self, ranks: Iterable[int]) -> None:
        """Tell ranks with results to send that nobody will ask for them."""
        for rank in ranks:
            self._notify([0.0], rank, TAG_ASK)
