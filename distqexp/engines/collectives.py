"""Helpers made of every engine's verbs: work of the root alone, arrays from the root. All are collective but ``require``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy.typing as npt

from distqexp.arrays import Arrays
from distqexp.engines.base import Engine
from distqexp.errors import EngineError

T = TypeVar("T")


def on_root_only(engine: Engine, work: Callable[[], T]) -> T | None:
    """Run ``work`` on the root and return its result there, None elsewhere; an error of ``work`` is raised on every rank."""
    results: list[T] = []
    engine.on_root(lambda: results.append(work()))  # the result itself doesn't travel
    return results[0] if results else None


def require(value: T | None) -> T:
    """Return a value that only the root has. Raises EngineError elsewhere, where it is None."""
    if value is None:
        raise EngineError("this value is with the first process; expected to be it: report this as a defect")
    return value


def arrays_from_root(engine: Engine, work: Callable[[], Arrays]) -> dict[str, npt.NDArray[Any]]:
    """Run ``work`` on the root and return its arrays on every rank; an error of ``work`` is raised on every rank."""
    return engine.broadcast_arrays(on_root_only(engine, work))
