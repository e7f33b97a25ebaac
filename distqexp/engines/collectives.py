"""What the stages ask of every engine, made of its verbs: work of the root alone, arrays from the root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy.typing as npt

from distqexp.arrays import Arrays
from distqexp.engines.base import Engine
from distqexp.errors import EngineError

T = TypeVar("T")


def on_root_only(engine: Engine, work: Callable[[], T]) -> T | None:
    """What ``work`` returns on the root, None elsewhere (nothing travels); an error is raised on every rank."""
    held: list[T] = []
    engine.on_root(lambda: held.append(work()))
    return held[0] if held else None


def required(value: T | None) -> T:
    """A value that only the root holds. Raises EngineError elsewhere."""
    if value is None:
        raise EngineError("this value is with the first process; expected to be it: report this as a defect")
    return value


def arrays_from_root(engine: Engine, work: Callable[[], Arrays]) -> dict[str, npt.NDArray[Any]]:
    """The arrays that ``work`` returns on the root, on every rank; an error of ``work`` is raised on every rank."""
    return engine.broadcast_arrays(on_root_only(engine, work))
