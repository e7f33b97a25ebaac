"""From the root to every rank: plans and releases travel as buffers, their headers as small messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy.typing as npt

from distqexp.engines.base import Engine
from distqexp.errors import EngineError
from distqexp.stages.artefacts import Plan, Release

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


def arrays_from_root(engine: Engine, work: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays that ``work`` returns on the root, on every rank; an error of ``work`` is raised on every rank."""
    return engine.broadcast_arrays(on_root_only(engine, work))


def plan_from_root(engine: Engine, read: Callable[[], Plan]) -> Plan:
    """The plan that the root reads, on every rank."""
    held: list[Plan] = []

    def header() -> dict[str, object]:
        held.append(read())
        return held[0].header()

    shared = engine.on_root(header)
    arrays = arrays_from_root(engine, lambda: held[0].arrays())
    return held[0] if held else Plan.restore(shared, arrays)


def release_from_root(engine: Engine, plan: Plan, read: Callable[[], Release | None]) -> Release | None:
    """The release that the root reads, on every rank; None when it is not there."""
    held: list[Release] = []

    def header() -> dict[str, object] | None:
        release = read()
        if release is None:
            return None
        held.append(release)
        return release.header()

    shared = engine.on_root(header)
    if shared is None:
        return None
    arrays = arrays_from_root(engine, lambda: held[0].arrays())
    return held[0] if held else Release.restore(plan, shared, arrays)
