"""The name that private records are charged under, which is the site's own, and a warning where a file has two names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from distqexp.artefacts.plan import Plan
from distqexp.config import DataConfig
from distqexp.privacy.ledger.populations import PlanPopulation
from distqexp.problem.contents import content_digests
from distqexp.problem.sources import Readers
from distqexp.stages.charging import Charging


def charging_at_site(plan: Plan, charging: Charging, population: str | None) -> Charging:
    """Return ``charging`` under the site's own name of the plan's population.

    ``population`` is the name that a person gave, if any. Raises UsageError where one is needed, or differs from the earlier one.
    """
    plan_population = PlanPopulation(plan.config.data.population, population)
    local = charging.ledger.local_population(plan_population, charging.universe)
    return replace(charging, population=local, plan_population=plan_population)


def with_contents(
    charging: Charging,
    population: str,
    sources: Sequence[DataConfig],
    readers: Readers | None = None,
    warn: Callable[[list[str]], None] | None = None,
) -> Charging:
    """Return ``charging`` with digests of what the sources hold; call it in one process only.

    Where the ledger charged the same contents under another name before, it warns.

    Args:
        charging: The ledger and the names to charge under.
        population: The population that is charged now.
        sources: The sources of private records.
        readers: The readers of this process; the files are opened anew when None.
        warn: What gets the lines of warning; standard error when None.
    """
    contents: list[bytes] = []
    lines: list[str] = []
    for data in sources:
        digests = [charging.ledger.keyed_digest(b"content", digest) for digest in content_digests(data, readers)]
        names = charging.ledger.charged_elsewhere(population, digests, charging.universe)
        if names:
            shard = f"shard {data.shard!r}" if data.shard else "data.private"
            others = ", ".join(map(repr, names))
            lines.append(
                f"distqexp: warning: {shard}: the same file, or one with the same unit ids, was charged to population {others} before "
                f"and is charged to {population!r} now: whoever is in both has both budgets spent on them; use one name for one "
                "group of patients"
            )
        contents += digests
    (warn or warn_people)(lines)
    return replace(charging, contents=tuple(contents))


def warn_people(lines: list[str]) -> None:
    """Write lines of warning on standard error."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()
