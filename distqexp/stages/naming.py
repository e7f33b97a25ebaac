"""Under which name private records are charged: the site's own for a plan's population, and a warning where a file has two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from distqexp.artefacts.plan import Plan
from distqexp.config import DataConfig
from distqexp.privacy.ledger.populations import Accepted
from distqexp.problem.contents import content_digests
from distqexp.problem.sources import Readers
from distqexp.stages.charging import Charging


def accepted_as(plan: Plan, charging: Charging, asked: str | None) -> Charging:
    """Charging under the site's own name of the plan's population. asked: what a person says it is. Raises UsageError."""
    accepted = Accepted(plan.config.data.population, asked)
    local = charging.ledger.local_population(accepted, charging.universe)
    return replace(charging, population=local, accepted=accepted)


def with_contents(
    charging: Charging, population: str, sources: Sequence[DataConfig], readers: Readers | None = None
) -> Charging:
    """Charging that remembers what the sources hold; warns on standard error where it was charged under another name.

    population: where it is charged to now. readers: of the process. One process only.
    """
    found: list[bytes] = []
    for data in sources:
        digests = [charging.ledger.keyed_digest(b"content", digest) for digest in content_digests(data, readers)]
        names = charging.ledger.charged_elsewhere(population, digests, charging.universe)
        if names:
            shard = f"shard {data.shard!r}" if data.shard else "data.private"
            others = ", ".join(map(repr, names))
            sys.stderr.write(
                f"distqexp: warning: {shard}: the same file, or one with the same unit ids, was charged to population {others} before "
                f"and is charged to {population!r} now: whoever is in both has both budgets spent on them; use one name for one "
                "group of patients\n"
            )
        found += digests
    sys.stderr.flush()
    return replace(charging, contents=tuple(found))
