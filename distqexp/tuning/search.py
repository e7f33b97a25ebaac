"""The search: random settings, more noise seeds for the leaders, then steps from the best setting to its neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from distqexp.config import TuneConfig
from distqexp.errors import UsageError
from distqexp.tuning.space import Setting, Space
from distqexp.tuning.trials import Summary

LEADERS = 3
"""The number of settings that get the most seeds at a time."""
MORE, MOST = 3, 5
"""The best quarter gets MORE times the first number of seeds, the leaders MOST times."""


def search(space: Space, run: Callable[[Setting, int], Summary], tune: TuneConfig) -> list[Summary]:
    """Try settings, and return their summaries in the order of trial; ``best_of`` picks one.

    Two thirds of ``tune.trials`` settings (all settings of a grid that is no larger) come from the random order; the rest are
    neighbours of the best setting so far, as long as they bring a better one.

    Args:
        space: The grid of settings.
        run: ``run(setting, seeds)`` makes those of the setting's runs with the first ``seeds`` seeds that are missing, and returns the
            summary of all of them.
        tune: The section [tune] of the config.
    """
    count = tune.trials if space.size <= tune.trials else math.ceil(tune.trials * 2 / 3)
    summaries = {setting: run(setting, tune.seeds) for setting in space.first(count, tune.seed)}
    best: Setting | None = None
    while True:
        _promote(summaries, run, tune.seeds)
        leaders = (setting for setting, summary in summaries.items() if summary.seeds >= MOST * tune.seeds)
        leader = max(leaders, key=lambda setting: summaries[setting].rank)
        if leader == best:
            return list(summaries.values())
        best = leader
        new_settings = [setting for setting in space.neighbours(best) if setting not in summaries]
        for setting in new_settings[: tune.trials - len(summaries)]:
            summaries[setting] = run(setting, tune.seeds)


def best_of(summaries: Sequence[Summary], seeds: int) -> Summary:
    """Of the settings with the most seeds, return the one with the highest mean less its standard error.

    Ties go to the smaller loss.

    Args:
        summaries: The settings that were tried.
        seeds: The number of seeds that each setting gets at first.

    Raises:
        UsageError: All of them diverged.
    """
    leaders = [summary for summary in summaries if summary.seeds >= MOST * seeds]
    best = max(leaders, key=lambda summary: summary.rank)
    if best.mean == -math.inf:
        note = next((run.note for run in best.runs if run.note), "diverged")
        raise UsageError(
            f"tune: no setting that was tried worked ({note}); try smaller steps, larger damping, more units"
        )
    return best


def _promote(summaries: dict[Setting, Summary], run: Callable[[Setting, int], Summary], seeds: int) -> None:
    """Run the best quarter of the settings with more seeds, and the leaders among those with the most."""

    def leaders(settings: Sequence[Setting], count: int) -> list[Setting]:
        return sorted(settings, key=lambda s: (summaries[s].mean, -summaries[s].loss), reverse=True)[:count]

    def raise_to(settings: Sequence[Setting], least: int) -> None:
        for setting in settings:
            if summaries[setting].seeds < least:
                summaries[setting] = run(setting, least)

    raise_to(leaders(list(summaries), math.ceil(len(summaries) / 4)), MORE * seeds)
    raise_to(leaders([s for s in summaries if summaries[s].seeds >= MORE * seeds], LEADERS), MOST * seeds)
