"""What the charges of a ledger amount to for one unit. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from distqexp.privacy.events import Cost, Release, added, cost, of_group, worst
from distqexp.privacy.units import Declared, group_of, mixture


class Part(NamedTuple):
    """Part ``number``, from 0, of the ``parts`` disjoint parts that a plan splits the units into."""

    number: int
    parts: int


class Charge(NamedTuple):
    """A release that is paid for.

    key: "ROLE/RELEASE", RELEASE beginning with "PLAN/"; an empty key is a release of its own. part: whose units the
    release is about; None: everybody's. unit: whom it protects, see ledger_units; None: not known.
    """

    key: str
    adjacency: str
    event: Release
    part: Part | None = None
    unit: str | None = None


def expenses(charges: Sequence[Charge], declared: Declared | None = None) -> Cost:
    """At least what any one unit pays for.

    declared: what a unit is, where the data owner says so: charges for single records then count for as many as a unit
    has at most. Otherwise all charges must be for one kind of unit. Raises ValueError for a mixture.

    A site charges its sketch and the curator the release that uses it: where both keep one ledger, one release is
    one expense, the largest of the roles'. A unit is in one shard, so the sites of one release don't add up
    either. Charges of the same role do: they are releases of different sums.

    A unit is in one part of a plan, and pays for the rounds of that part: the worst part counts. Plans split the
    units each in its own way, so what they cost adds up, and so does what is charged to everybody. A release whose
    charges disagree about the part is charged to everybody.

    Charges under several adjacencies are brought to replace-one: replacing a unit is removing one and adding
    another, twice the mu and the epsilon.

    Members of a group may be in different parts. For mu, epsilon and rho it is worst when all are in one, but the slack of
    discrete noise is that of every round that one of them takes part in (docs/proofs/composition.md).
    """
    if reason := mixture({charge.unit for charge in charges}, declared):
        raise ValueError(reason)
    replaced = any(charge.adjacency == "replace-one" for charge in charges)
    releases: dict[str, list[Charge]] = {}
    grouped: set[str] = set()
    for number, charge in enumerate(charges):
        doubled = replaced and charge.adjacency != "replace-one"
        size = (2 if doubled else 1) * (group_of(charge.unit, declared) or 1)
        [event] = of_group([charge.event], size)
        release = charge.key.partition("/")[2] or f"charge {number}"
        if size > 1:
            grouped.add(release.partition("/")[0])
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
    for (plan, _), parts in partitions.items():
        costs = [added(costs) for costs in parts.values()]
        slack = math.fsum(paid.divergence for paid in costs)
        everybody.append(replace(worst(costs), divergence=slack) if plan in grouped else worst(costs))
    return added(everybody)


def _largest_role(charges: Sequence[Charge]) -> Cost:
    """The cost of one release: of every figure the largest of its roles'."""
    roles: dict[str, list[Release]] = {}
    for charge in charges:
        roles.setdefault(charge.key.partition("/")[0], []).append(charge.event)
    return worst(cost(events) for events in roles.values())


def _common_part(charges: Sequence[Charge]) -> Part | None:
    """The part of all charges, when it is one and makes sense."""
    parts = {charge.part for charge in charges}
    part = parts.pop() if len(parts) == 1 else None
    return part if part is not None and part.parts > 1 and 0 <= part.number < part.parts else None
