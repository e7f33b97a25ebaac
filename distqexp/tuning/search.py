"""The search: random settings, more noise seeds for the leaders, then steps from the best one to its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from distqexp.config import TuneConfig
from distqexp.errors import UsageError
from distqexp.tuning.space import Setting, Space
from distqexp.tuning.trials import Summary

LEADERS = 3
"""So many settings get the most seeds at a time."""
MORE, MOST = 3, 5
"""How many times the first number of seeds the best quarter and the leaders get."""


def search(space: Space, run: Callable[[Setting, int], Summary], tune: TuneConfig) -> list[Summary]:
    """All settings that were tried, in the order of trial; ``chosen`` picks one.

    ``run(setting, seeds)`` makes what is missing of a setting's runs with the first so many seeds and returns these. Two
    thirds of ``tune.trials`` settings (all of a grid that is no larger) come from the random order; the rest are neighbours
    of the best so far, as long as they bring a better one.
    """
    count = tune.trials if space.size <= tune.trials else math.ceil(tune.trials * 2 / 3)
    tried = {setting: run(setting, tune.seeds) for setting in space.first(count, tune.seed)}
    best: Setting | None = None
    while True:
        _promote(tried, run, tune.seeds)
        leader = max((s for s in tried if tried[s].seeds >= MOST * tune.seeds), key=lambda s: tried[s].rank)
        if leader == best:
            return list(tried.values())
        best = leader
        fresh = [setting for setting in space.neighbours(best) if setting not in tried]
        for setting in fresh[: tune.trials - len(tried)]:
            tried[setting] = run(setting, tune.seeds)


def chosen(summaries: Sequence[Summary], seeds: int) -> Summary:
    """Of the settings that got the most seeds the one with the highest mean less its standard error; ties by the smaller loss.

    seeds: a setting's at first. Raises UsageError when all of them diverged.
    """
    leaders = [summary for summary in summaries if summary.seeds >= MOST * seeds]
    best = max(leaders, key=lambda summary: summary.rank)
    if best.mean == -math.inf:
        note = next((run.note for run in best.runs if run.note), "diverged")
        raise UsageError(
            f"tune: no setting that was tried worked ({note}); try smaller steps, larger damping, more units"
        )
    return best


def _promote(tried: dict[Setting, Summary], run: Callable[[Setting, int], Summary], seeds: int) -> None:
    def leading(settings: Sequence[Setting], count: int) -> list[Setting]:
        return sorted(settings, key=lambda s: (tried[s].mean, -tried[s].loss), reverse=True)[:count]

    def raise_to(settings: Sequence[Setting], least: int) -> None:
        for setting in settings:
            if tried[setting].seeds < least:
                tried[setting] = run(setting, least)

    raise_to(leading(list(tried), math.ceil(len(tried) / 4)), MORE * seeds)
    raise_to(leading([s for s in tried if tried[s].seeds >= MORE * seeds], LEADERS), MOST * seeds)
