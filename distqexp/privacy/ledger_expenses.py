"""What the charges of a ledger amount to for one unit. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from distqexp.privacy.events import GaussianRelease

Charge = tuple[str, str, GaussianRelease]
"""Key, adjacency and event of a charge. The key is "ROLE/RELEASE"; an empty one is a release of its own."""


def expenses(charges: Sequence[Charge]) -> list[GaussianRelease]:
    """The events that a unit pays for.

    A site charges its sketch and the curator the release that uses it: where both keep one ledger, one release is
    one expense, the largest of the roles'. A unit is in one shard, so the sites of one release don't add up
    either. Charges of the same role do: they are releases of different sums.

    Charges under several adjacencies are brought to replace-one: replacing a unit is removing one and adding
    another, twice the mu.
    """
    replaced = any(adjacency == "replace-one" for _, adjacency, _ in charges)
    releases: dict[str, dict[str, list[GaussianRelease]]] = {}
    for number, (key, adjacency, event) in enumerate(charges):
        role, _, release = key.partition("/")
        doubled = replaced and adjacency != "replace-one"
        roles = releases.setdefault(release or f"charge {number}", {})
        roles.setdefault(role, []).append(replace(event, mu=2 * event.mu) if doubled else event)
    largest = [max(roles.values(), key=_size) for roles in releases.values()]
    return [event for events in largest for event in events]


def _size(events: Sequence[GaussianRelease]) -> float:
    return math.fsum(event.mu**2 for event in events)
