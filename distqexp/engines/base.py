"""The few verbs of every engine, and the control through which a piece of work talks to the engine that runs it."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray, NewArrays, blocks_of
from distqexp.errors import DistqexpError, EngineError, StoppedError
from distqexp.stopping import STOPPED

T = TypeVar("T")
E = TypeVar("E", bound=DistqexpError)


class Control:
    """Lets a running piece of work ask for a stop and tell its progress.

    Args:
        label: The name of the worker, unique within the run: ``r0003`` for rank 3, ``c0007`` for a Dask chunk.
        stop: Tells whether a stop was requested.
        tick: Takes the number of finished steps and of all steps.
    """

    def __init__(
        self,
        label: str = "r0000",
        stop: Callable[[], bool] | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> None:
        self.label = label
        self._stop = stop
        self._tick = tick

    def stop(self) -> bool:
        """Return whether the work should write its checkpoint and raise StoppedError. Ask once for each micro-batch."""
        return self._stop() if self._stop is not None else False

    def tick(self, steps: int, total: int) -> None:
        """Tell that ``steps`` of ``total`` steps of this chunk are finished. Only their ratio is ever shown."""
        if self._tick is not None:
            self._tick(steps, total)


SumWork = Callable[[Any, Sequence[int], Control], IntegerArray]
"""Maps a context, a chunk of items and a control to an int64 vector (k,)."""

CollectWork = Callable[[Any, int], FloatArray]
"""Maps a context and an item to a float64 array."""


class Engine(ABC):
    """Runs the work. Use it as a context manager: ``with make_engine(...) as engine``.

    Inside the block SIGTERM and SIGUSR1 ask for a stop, and an exception that only one process raised ends
    all of them. Verbs are collective unless they say otherwise: all processes call them, in the same order. A DistqexpError
    that every process raised together has ``collective = True``; ``reported = True`` says that the first process has printed
    its line, so that nobody prints it again.
    """

    kind: str
    rank: int = 0
    size: int = 1
    debug: bool = False
    """Whether to print the frames of a traceback (never a message of foreign code) when aborting."""
    warning: str | None = None
    """A remark about the launcher, for the first process to print."""
    on_progress: Callable[[float], None] | None = None
    """Called on the first process during ``sum`` with the share of the work done, 0 to 1."""

    @property
    def is_root(self) -> bool:
        """Whether this is the first process, which prints, writes shared files and gets the sums."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def on_root(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process only.

        Every process returns its result, which must be small and picklable, or raises the same DistqexpError with the same message.
        """

    @abstractmethod
    def broadcast_arrays(self, arrays: Mapping[str, NDArray[Any]] | None) -> NewArrays:
        """Return the arrays of the first process on every process, bit for bit. The others pass None."""

    @abstractmethod
    def sum(self, work: SumWork, context: Any, items: Sequence[int]) -> IntegerArray | None:
        """Return the exact int64 sum of ``work`` over all items, modulo 2^64, on the first process; None on the others.

        Args:
            work: Called as ``work(context, chunk, control)``, with one contiguous chunk of the items. Chunks differ in length by one
                item at most. Returns an int64 vector (k,). It isn't called for an empty chunk, except on the first process.
            context: What the work needs in call after call. It may stay where the work runs, as long as it is the same object; what
                belongs to one call alone should be bound to the work (functools.partial).
            items: The items.

        Raises:
            StoppedError: A stop was requested. Work that sees ``control.stop()`` writes a checkpoint and raises StoppedError; every
                process raises it once all of them have written theirs.
            EngineError: The vectors differ in length or type.
        """

    @abstractmethod
    def scattered_sum(
        self, work: SumWork, context: Any, items: Sequence[int], start: IntegerArray | None = None
    ) -> IntegerArray:
        """Return the sum of ``sum`` at the blocks of coordinates that belong to this process, see ``own_blocks``, one after the other.

        No process has the whole, but for a single one. Arguments and errors are those of ``sum``; on the first process ``start``, an
        int64 vector (k,), is added.
        """

    @abstractmethod
    def collect(self, work: CollectWork, context: Any, items: Sequence[int]) -> Iterator[FloatArray]:
        """Yield ``work(context, item)``, a float64 array, for each item in order, on the first process.

        The other processes take part and yield nothing; iterate to the end everywhere. The order does not
        depend on the number of processes, so a fold over it gives the same floating-point result. Each process has only a
        few results in memory at a time.
        """

    @abstractmethod
    def stop_requested(self) -> bool:
        """Return whether this process knows of a request to stop. Not collective."""

    @abstractmethod
    def raise_if_stopped(self) -> None:
        """Raise StoppedError on every process when any of them was asked to stop. Collective."""

    @abstractmethod
    def abort(self, error: BaseException) -> None:
        """Print one line with rank, host and reason, and end every process with the error's exit code. Not collective."""

    def own_blocks(self, length: int) -> list[tuple[int, slice]]:
        """Return the numbers and places of the blocks of a vector that belong to this process: they are dealt out in turn."""
        return [*enumerate(blocks_of(length))][self.rank :: self.size]

    def _report(self, share: float) -> None:
        if self.on_progress is not None and self.is_root:
            self.on_progress(min(max(share, 0.0), 1.0))


def split(items: Sequence[int], parts: int, index: int) -> Sequence[int]:
    """Return chunk ``index`` of ``parts`` contiguous chunks whose lengths differ by one at most, longer ones first."""
    each, longer = divmod(len(items), parts)
    first = index * each + min(index, longer)
    return items[first : first + each + (1 if index < longer else 0)]


def checked_sum(result: IntegerArray) -> IntegerArray:
    """Return the vector that a piece of work gave for ``sum``. Raises EngineError unless it is int64 (k,)."""
    if not isinstance(result, np.ndarray) or result.dtype != np.int64 or result.ndim != 1:
        raise EngineError(f"work for a sum returned {_describe_array(result)}; expected an int64 vector")
    return result


def different_lengths(shortest: int, longest: int) -> EngineError:
    """Return the error for the parts of a sum that differ in length."""
    return EngineError(f"work for a sum returned vectors of {shortest} and of {longest} entries; expected one length")


def checked_item(result: FloatArray) -> FloatArray:
    """Return the array that a piece of work gave for ``collect``. Raises EngineError unless it is float64."""
    if not isinstance(result, np.ndarray) or result.dtype != np.float64:
        raise EngineError(f"work for a collection returned {_describe_array(result)}; expected a float64 array")
    return result


def checked_arrays(arrays: Mapping[str, NDArray[Any]] | None) -> Mapping[str, NDArray[Any]]:
    """Return the arrays to broadcast. Raises EngineError when they are missing or have Python objects for entries."""
    if arrays is None:
        raise EngineError("broadcast on the first process: found no arrays; expected a mapping of arrays")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray | np.generic) or array.dtype.hasobject:
            raise EngineError(f"broadcast of {name}: found {_describe_array(array)}; expected an array of numbers")
    return arrays


def stop_error() -> StoppedError:
    """Return the error that every process raises after a requested stop."""
    return collective(StoppedError(STOPPED))


def collective(error: E) -> E:
    """Mark an error as one that every process raises together, and return it."""
    setattr(error, "collective", True)  # noqa: B010
    return error


def rebuild(kind: type[E], message: str) -> E:
    """Return an error of this class with exactly this message, whatever the class's constructor would add."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error


def is_collective(error: BaseException) -> bool:
    """Return whether every process raised this error together."""
    return getattr(error, "collective", False) is True


def reason(error: BaseException) -> str:
    """Return one line about an exception that is safe to print.

    Messages of distqexp's own errors never have a private value in them. Those of foreign code may ("could not
    convert string to float: ..."), so only the type and the place are told, except for errors whose
    messages are about modules or files.
    """
    if isinstance(error, DistqexpError):
        return " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, MemoryError):
        return "out of memory: lower engine.micro_batch, or run fewer ranks on a host"
    if isinstance(error, ImportError | OSError):
        return " ".join(f"{name}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"unexpected {name}"
    return f"unexpected {name} at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"


def exit_code(error: BaseException) -> int:
    """Return the exit code of an exception: its own for distqexp's errors, 5 for all others."""
    return error.exit_code if isinstance(error, DistqexpError) else EngineError.exit_code


def places(error: BaseException) -> str:
    """Return the frames of an exception's traceback, without its message."""
    return "".join(traceback.format_tb(error.__traceback__))


def _describe_array(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of {value.ndim} dimensions"
    return type(value).__name__
