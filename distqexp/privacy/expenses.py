"""The cost of the charges of a ledger to one unit. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from distqexp.kinds import Adjacency
from distqexp.privacy.events import Cost, Event, GaussianRelease, cost, of_group, total_cost, worst_cost
from distqexp.privacy.units import UnitDeclaration, group_size, mixture


class Part(NamedTuple):
    """Part ``number``, from 0, of the ``parts`` disjoint parts that a plan splits the units into."""

    number: int
    parts: int


class Charge(NamedTuple):
    """The charge for one release.

    Attributes:
        key: "ROLE/RELEASE", where RELEASE begins with "PLAN/"; an empty key is a release of its own.
        adjacency: What one unit more or less means for the release.
        event: The release as a privacy event.
        part: The part whose units are charged; None charges everybody.
        unit: The unit that the release protects, see ``privacy.units``; None where it is unknown.
    """

    key: str
    adjacency: Adjacency
    event: Event
    part: Part | None = None
    unit: str | None = None

    def of_everybody(self) -> Charge:
        """Return the charge as if every unit took part in the release; only a sampled one is another then."""
        event = self.event
        return self._replace(event=replace(event, sampling=1.0)) if isinstance(event, GaussianRelease) else self


def expenses(charges: Sequence[Charge], declaration: UnitDeclaration | None = None) -> Cost:
    """Bound the cost that any one unit bears.

    A site charges its sketch and the curator the release that uses it: where both keep one ledger, one release is
    one expense, the largest of the roles'. A unit is in one shard, so the charges of the sites of one release don't add up
    either. Charges of the same role do: they are releases of different sums.

    A unit is in one part of a plan, and pays for the rounds of that part: the most expensive part counts. Each plan splits
    the units in its own way, so the costs of plans add up, and so do the charges to everybody. A release whose
    charges disagree about the part is charged to everybody.

    Charges under several adjacencies are converted to replace-one: replacing a unit is removing one and adding
    another, which costs twice the mu and the epsilon. A sampled release then counts as if every unit took part.

    Members of a group may be in different parts. For mu, epsilon and rho the worst case has all of them in one part, but the
    slack of discrete noise is that of every round that one of them takes part in (docs/proofs/composition.md).

    Args:
        charges: The charges.
        declaration: The units that the data owner declared, if any: charges for single records then count for as many records
            as a unit has at most. Without it all charges must be for one kind of unit.

    Raises:
        ValueError: The charges are for units that can't be counted together.
    """
    if reason := mixture({charge.unit for charge in charges}, declaration):
        raise ValueError(reason)
    any_replace_one = any(charge.adjacency == Adjacency.REPLACE_ONE for charge in charges)
    releases: dict[str, list[Charge]] = {}
    plans_with_groups: set[str] = set()
    for number, charge in enumerate(charges):
        doubled = any_replace_one and charge.adjacency != Adjacency.REPLACE_ONE
        size = (2 if doubled else 1) * (group_size(charge.unit, declaration) or 1)
        [event] = of_group([charge.event], size, replaced=doubled)
        release = charge.key.partition("/")[2] or f"charge {number}"
        if size > 1:
            plans_with_groups.add(release.partition("/")[0])
        releases.setdefault(release, []).append(charge._replace(event=event))
    costs: list[Cost] = []
    partitions: dict[tuple[str, int], dict[int, list[Cost]]] = {}
    for release, release_charges in releases.items():
        release_cost = _largest_role(release_charges)
        part = _common_part(release_charges)
        plan, slash, _ = release.partition("/")
        if part is None or not slash:
            costs.append(release_cost)
        else:
            partitions.setdefault((plan, part.parts), {}).setdefault(part.number, []).append(release_cost)
    for (plan, _), parts in partitions.items():
        part_costs = [total_cost(round_costs) for round_costs in parts.values()]
        plan_cost = worst_cost(part_costs)
        if plan in plans_with_groups:
            plan_cost = replace(
                plan_cost,
                divergence=math.fsum(item.divergence for item in part_costs),
                shares_variation=math.fsum(item.shares_variation for item in part_costs),
            )
        costs.append(plan_cost)
    return total_cost(costs)


def _largest_role(charges: Sequence[Charge]) -> Cost:
    """Return the cost of one release: for every figure the largest of its roles."""
    roles: dict[str, list[Event]] = {}
    for charge in charges:
        roles.setdefault(charge.key.partition("/")[0], []).append(charge.event)
    return worst_cost(cost(events) for events in roles.values())


def _common_part(charges: Sequence[Charge]) -> Part | None:
    """Return the part that all charges name, or None where they disagree or the part is not a valid one."""
    parts = {charge.part for charge in charges}
    part = parts.pop() if len(parts) == 1 else None
    return part if part is not None and part.parts > 1 and 0 <= part.number < part.parts else None
