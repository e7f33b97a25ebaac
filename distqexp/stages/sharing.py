"""Brings plans and releases from the root to every rank: arrays travel as buffers, headers as small messages."""

from __future__ import annotations

from collections.abc import Callable

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.problem.pages import in_pages


def plan_from_root(engine: Engine, read: Callable[[], Plan]) -> Plan:
    """Return on every rank the plan that ``read`` returns on the root. Collective."""
    original: list[Plan] = []

    def header() -> dict[str, object]:
        original.append(read())
        return original[0].header()

    tree = engine.on_root(header)
    arrays = arrays_from_root(engine, lambda: original[0].arrays())
    named, theta = {}, {}
    if tree.get("named") and not engine.on_root(lambda: original[0].lacking):
        named = in_pages(
            arrays_from_root(engine, lambda: {name: original[0].weights[name] for name in original[0].named})
        )
        theta = arrays_from_root(engine, lambda: {"theta": original[0].state.theta})
    if original:
        return original[0]
    plan = Plan.restore(tree, arrays)
    return plan.with_weights(named, theta["theta"]) if theta else plan


def release_from_root(engine: Engine, plan: Plan, read: Callable[[], Release | None]) -> Release | None:
    """Return on every rank the release that ``read`` returns on the root, or None when it returns none. Collective."""
    original: list[Release] = []

    def header() -> dict[str, object] | None:
        release = read()
        if release is None:
            return None
        original.append(release)
        return release.header()

    tree = engine.on_root(header)
    if tree is None:
        return None
    arrays = arrays_from_root(engine, lambda: original[0].arrays())
    return original[0] if original else Release.restore(plan, tree, arrays)
