"""What a release costs whom: the budget that is looked at first, the charge, and what the ledger says of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.errors import FileContentError
from distqexp.privacy.events import BoundedRelease, GaussianRelease
from distqexp.privacy.events import Release as Event
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.ledger import Cap, Ledger, LedgerRow
from distqexp.privacy.ledger.books import Reservation
from distqexp.privacy.ledger.populations import Accepted
from distqexp.privacy.soundness import require_certifiable


@dataclass(frozen=True)
class Charging:
    """Whom a release is charged to: the ledger, and the universe of real or of test noise.

    At a site: unit: whom its shard protects, the column of the unit ids or "record". population: the site's own name of the
    plan's, accepted: what the plan calls it. Elsewhere these are as the plan says. contents: digests of what the
    files hold, private; where they are at hand.
    """

    ledger: Ledger
    insecure_seed: int | None = None
    unit: str | None = None
    population: str | None = None
    accepted: Accepted | None = None
    contents: tuple[bytes, ...] = ()

    @property
    def universe(self) -> str:
        """Runs with seeded noise are test runs: each seed has its own books, marked NOT PRIVATE."""
        return "private" if self.insecure_seed is None else f"insecure-seed-{self.insecure_seed}"

    def population_of(self, plan: Plan) -> str:
        """The name that the plan's budget is kept under."""
        return self.population or plan.config.data.population


def plan_cap(plan: Plan) -> Cap:
    """The config's own budget: the cap of a population that has none."""
    return Cap(epsilon=plan.config.privacy.epsilon, delta=plan.config.privacy.delta)


def round_key(plan: Plan, round: int, role: str) -> str:
    """Who charges (site or curator), the plan and the round: the first part of a charge's key."""
    return f"{role}/{plan.plan_id}/{round}"


def charge_key(plan: Plan, state: RoundState, role: str) -> str:
    """The public identity of a charge: the round, and the state that it builds on.

    Without the state, a round repeated on another release would share a charge and a draw exactly when the
    sums happen to agree: the number of charges, and a repeated release, would tell of the records.
    """
    return f"{round_key(plan, state.round, role)}/{state.identity()}"


def check_budget(plan: Plan, charging: Charging, role: str, first_round: int = 0) -> None:
    """Refuse before a private record is read when the rounds from ``first_round`` on don't fit. Raises BudgetError.

    Rounds that are reserved already, by an earlier attempt, cost nothing again.
    """
    # What a round may cost at most, whatever its clip turns out to be.
    event = _dearest(plan)
    population = charging.population_of(plan)
    rows = _standing(charging, population)
    # Whoever charged the round, site or curator: one release is one expense, see Ledger.reserve.
    charged = {_round_of(row).partition("/")[2] for row in rows}
    adjacency = plan.config.privacy.adjacency
    planned = [
        Charge(round_key(plan, r, role), adjacency, event, plan.part(r))
        for r in range(first_round, plan.config.mechanism.rounds)
    ]
    # The certificate that is planned: rounds that are charged already are part of it.
    require_certifiable(expenses(planned).guarantee().epsilon(plan.config.privacy.delta) if planned else 1.0)
    charging.ledger.check(
        population=population,
        cap=plan_cap(plan),
        charges=[charge for charge in planned if charge.key.partition("/")[2] not in charged],
        universe=charging.universe,
        unit=charging.unit or plan.config.unit,
    )


def ledger_entry(plan: Plan, charging: Charging, round: int) -> dict[str, Any]:
    """Number and hash of the charge of a round's release: public. Raises FileContentError when there is none."""
    key = round_key(plan, round, "release")
    rows = [row for row in _standing(charging, charging.population_of(plan)) if _round_of(row) == key]
    if not rows:
        raise FileContentError(
            f"{charging.ledger.path}: no charge for round {round} of plan {plan.plan_id[:16]}; "
            "use the ledger that the release was charged to"
        )
    return {"entry": rows[-1].id, "hash": rows[-1].hash}


def charged_parts(plan: Plan, charging: Charging) -> list[Part | None]:
    """Whose units each round of the plan was charged to; None, everybody's, also where the ledger doesn't say."""
    rows = _standing(charging, charging.population_of(plan))
    found: list[Part | None] = []
    for round in range(plan.config.mechanism.rounds):
        key = round_key(plan, round, "release")
        parts = {row.part for row in rows if _round_of(row) == key}
        found.append(parts.pop() if len(parts) == 1 else None)
    return found


def charged_to_everybody(plan: Plan, state: RoundState, quadratic: Quadratic, charging: Charging) -> bool:
    """Whether the release of a round that the ledger has charged is everybody's, although the plan has parts."""
    if plan.config.mechanism.parts == 1:
        return False
    return quadratic.everybody or charged_parts(plan, charging)[state.round] is None


def charge(
    plan: Plan,
    state: RoundState,
    sums: IntegerArray,
    charging: Charging,
    role: str,
    *,
    basis: bytes = b"",
    everybody: bool = False,
) -> Reservation:
    """Reserve the round's budget for exactly these sums; the same sums again cost nothing. Raises BudgetError.

    basis: what the parts of their units rest on, private. everybody: charged to everybody elsewhere, and so here.
    """
    return charging.ledger.reserve(
        population=charging.population_of(plan),
        key=charge_key(plan, state, role),
        event=plan.event(state.grid),
        adjacency=plan.config.privacy.adjacency,
        cap=plan_cap(plan),
        sums=sums,
        universe=charging.universe,
        part=None if everybody else plan.part(state.round),
        basis=basis,
        unit=charging.unit or plan.config.unit,
        accepted=charging.accepted,
        contents=charging.contents,
    )


def everybody_pays(plan: Plan, reservation: Reservation) -> bool:
    """Whether a charge is everybody's although the plan has parts: a sketch or a release says so."""
    return plan.config.mechanism.parts > 1 and reservation.part is None


def _dearest(plan: Plan) -> Event:
    calibration, discrete = plan.calibration, plan.config.mechanism.noise == "discrete"
    if calibration.epsilon_round is not None:
        return BoundedRelease(mu=calibration.mu_round, epsilon=calibration.epsilon_round, coordinates=plan.k)
    sigma = float(calibration.sigma_minimum) if discrete else None
    return GaussianRelease(mu=calibration.mu_round, coordinates=plan.coordinates, sigma=sigma)


def _standing(charging: Charging, population: str) -> list[LedgerRow]:
    """The charges of a population in this universe that were not given back."""
    rows = charging.ledger.rows(population)
    return [row for row in rows if row.universe == charging.universe and row.state != "voided"]


def _round_of(row: LedgerRow) -> str:
    return row.key.rpartition("/")[0]
