"""From the root to every rank: plans and releases travel as buffers, their headers as small messages."""

from __future__ import annotations

from collections.abc import Callable

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root


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
