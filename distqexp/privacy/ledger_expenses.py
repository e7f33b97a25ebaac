"""What the charges of a ledger amount to for one unit. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from distqexp.privacy.events import BoundedRelease, Cost, Release, added, cost, of_group, worst


class Part(NamedTuple):
    """Part ``number``, from 0, of the ``parts`` disjoint parts that a plan splits the units into."""

    number: int
    parts: int


class Charge(NamedTuple):
    """A release that is paid for.

    key: "ROLE/RELEASE", RELEASE beginning with "PLAN/"; an empty key is a release of its own. part: whose units the
    release is about; None: everybody's.
    """

    key: str
    adjacency: str
    event: Release
    part: Part | None = None


def expenses(charges: Sequence[Charge]) -> Cost:
    """At least what any one unit pays for.

    A site charges its sketch and the curator the release that uses it: where both keep one ledger, one release is
    one expense, the largest of the roles'. A unit is in one shard, so the sites of one release don't add up
    either. Charges of the same role do: they are releases of different sums.

    A unit is in one part of a plan, and pays for the rounds of that part: the worst part counts. Plans split the
    units each in its own way, so what they cost adds up, and so does what is charged to everybody. A release whose
    charges disagree about the part is charged to everybody.

    Charges under several adjacencies are brought to replace-one: replacing a unit is removing one and adding
    another, twice the mu and the epsilon.
    """
    replaced = any(charge.adjacency == "replace-one" for charge in charges)
    releases: dict[str, list[Charge]] = {}
    for number, charge in enumerate(charges):
        doubled = replaced and charge.adjacency != "replace-one"
        [event] = of_group([charge.event], 2 if doubled else 1)
        release = charge.key.partition("/")[2] or f"charge {number}"
        releases.setdefault(release, []).append(charge._replace(event=event))
    everybody: list[Cost] = []
    partitions: dict[tuple[str, int], dict[int, list[Cost]]] = {}
    for release, found in releases.items():
        paid = _largest_role(found)
        part = _common_part(found)
        plan, slash, _ = release.partition("/")
        if part is None or not slash:
            everybody.append(paid)
        else:
            partitions.setdefault((plan, part.parts), {}).setdefault(part.number, []).append(paid)
    return added([*everybody, *(worst(added(costs) for costs in parts.values()) for parts in partitions.values())])


def _largest_role(charges: Sequence[Charge]) -> Cost:
    """The cost of one release: the largest of its roles', and of every kind the largest where the kinds differ."""
    roles: dict[str, list[Release]] = {}
    for charge in charges:
        roles.setdefault(charge.key.partition("/")[0], []).append(charge.event)
    if any(isinstance(charge.event, BoundedRelease) for charge in charges):
        return worst(cost(events) for events in roles.values())
    return cost(max(roles.values(), key=_size))


def _common_part(charges: Sequence[Charge]) -> Part | None:
    """The part of all charges, when it is one and makes sense."""
    parts = {charge.part for charge in charges}
    part = parts.pop() if len(parts) == 1 else None
    return part if part is not None and part.parts > 1 and 0 <= part.number < part.parts else None


def _size(events: Iterable[Release]) -> float:
    return math.fsum(event.mu**2 for event in events)
