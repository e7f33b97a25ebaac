"""What a release costs, and whom: the budget's check beforehand, the charge, and what the ledger says of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.errors import FileContentError
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.ledger import Cap, Ledger, LedgerRow, Provenance
from distqexp.privacy.ledger.books import Reservation
from distqexp.privacy.ledger.populations import PlanPopulation
from distqexp.privacy.ledger.recognised import BlockDigests
from distqexp.privacy.soundness import require_certifiable


@dataclass(frozen=True)
class Charging:
    """Where a release is charged: the ledger, the books for real or for test noise, and the names that a site uses.

    Attributes:
        ledger: The ledger.
        noise_seed: The seed of a test run's noise, or None for real noise.
        unit: At a site, whom its shard protects: the column of the unit ids, or "record". None: as the plan says.
        population: At a site, its own name of the plan's population. None: as the plan says.
        plan_population: At a site, what the plan calls that population.
        contents: Digests of what the data files hold, where the files are at hand. Private.
    """

    ledger: Ledger
    noise_seed: int | None = None
    unit: str | None = None
    population: str | None = None
    plan_population: PlanPopulation | None = None
    contents: tuple[bytes, ...] = ()

    @property
    def universe(self) -> str:
        """The name of the books. Runs with seeded noise are test runs: each seed has its own books, marked NOT PRIVATE."""
        return "private" if self.noise_seed is None else f"insecure-seed-{self.noise_seed}"

    def population_of(self, plan: Plan) -> str:
        """Return the name of the population that the plan's budget is kept under."""
        return self.population or plan.config.data.population


def _plan_cap(plan: Plan) -> Cap:
    """The config's own budget, which caps a population that has no cap."""
    return Cap(epsilon=plan.config.privacy.epsilon, delta=plan.config.privacy.delta)


def round_key(plan: Plan, round: int, role: str) -> str:
    """Return the first part of a charge's key: the role ("release" at the curator, "site-SHARD" at a site), the plan and the round."""
    return f"{role}/{plan.plan_id}/{round}"


def _charge_key(plan: Plan, state: RoundState, role: str) -> str:
    """The public identity of a charge: the round and the state that it builds on.

    Without the state, a round that is repeated on another release would share the charge and the draw exactly when the sums
    happen to agree: the number of charges, and a repeated release, would tell something about the records.
    """
    return f"{round_key(plan, state.round, role)}/{state.identity()}"


def check_budget(plan: Plan, charging: Charging, role: str, first_round: int = 0, *, cap: Cap | None = None) -> None:
    """Refuse a run, before any private record is read, when its rounds from ``first_round`` on exceed the budget.

    Rounds that an earlier attempt has reserved already cost nothing again. ``role`` says who charges: "release" at the curator,
    "site-SHARD" at a site. ``cap`` is what a person is about to set where the ledger has none; the config's own when None. Raises
    BudgetError.
    """
    # The most that a round may cost, whatever its clip turns out to be.
    event = _dearest_event(plan)
    population = charging.population_of(plan)
    rows = _standing_rows(charging, population)
    # By site or by curator, one release is one expense: see Ledger.reserve.
    earlier_rounds = {_round_of(row).partition("/")[2] for row in rows}
    adjacency = plan.config.privacy.adjacency
    charges = [
        Charge(round_key(plan, r, role), adjacency, event, plan.part(r))
        for r in range(first_round, plan.config.mechanism.rounds)
    ]
    # The certificate will cover the rounds that are charged already, too.
    require_certifiable(expenses(charges).guarantee().epsilon(plan.config.privacy.delta) if charges else 1.0)
    charging.ledger.check(
        population=population,
        cap=cap or _plan_cap(plan),
        charges=[charge for charge in charges if charge.key.partition("/")[2] not in earlier_rounds],
        universe=charging.universe,
        unit=charging.unit or plan.config.unit,
    )


def ledger_entry(plan: Plan, charging: Charging, round: int) -> dict[str, Any]:
    """Return the number and the hash of the charge for a round's release, both public.

    Raises FileContentError when the ledger has no such charge.
    """
    key = round_key(plan, round, "release")
    rows = [row for row in _standing_rows(charging, charging.population_of(plan)) if _round_of(row) == key]
    if not rows:
        raise FileContentError(
            f"{charging.ledger.path}: no charge for round {round} of plan {plan.plan_id[:16]}; "
            "use the ledger that the release was charged to"
        )
    return {"entry": rows[-1].id, "hash": rows[-1].hash}


def charged_parts(plan: Plan, charging: Charging) -> list[Part | None]:
    """Return the part whose units each round of the plan was charged to; None for everybody's, and where the ledger is silent."""
    rows = _standing_rows(charging, charging.population_of(plan))
    payers: list[Part | None] = []
    for round in range(plan.config.mechanism.rounds):
        key = round_key(plan, round, "release")
        parts = {row.part for row in rows if _round_of(row) == key}
        payers.append(parts.pop() if len(parts) == 1 else None)
    return payers


def charged_to_everybody(plan: Plan, state: RoundState, charging: Charging, *, everybody: bool = False) -> bool:
    """Return whether everybody pays for a charged round's release, although the plan has parts; ``everybody``: its sketches say so."""
    if plan.config.mechanism.parts == 1:
        return False
    return everybody or charged_parts(plan, charging)[state.round] is None


def charge(
    plan: Plan,
    state: RoundState,
    sums: IntegerArray | BlockDigests,
    charging: Charging,
    role: str,
    *,
    basis: bytes = b"",
    everybody: bool = False,
) -> Reservation:
    """Reserve the round's budget for exactly these sums; the same sums again cost nothing.

    Args:
        plan: The plan.
        state: The state of the round.
        sums: The exact sums to be released, or what stands for them. Private.
        charging: The ledger and the names to charge under.
        role: Who charges: "release" at the curator, "site-SHARD" at a site.
        basis: What the parts of the units depend on, see ``Partition``. Private.
        everybody: Whether the round was charged to everybody elsewhere; then it is here, too.

    Raises:
        BudgetError: The population's cap doesn't allow the charge.
    """
    return charging.ledger.reserve(
        Charge(
            _charge_key(plan, state, role),
            plan.config.privacy.adjacency,
            plan.event(state.grid),
            None if everybody else plan.part(state.round),
            charging.unit or plan.config.unit,
        ),
        population=charging.population_of(plan),
        cap=_plan_cap(plan),
        sums=sums,
        universe=charging.universe,
        plan_population=charging.plan_population,
        provenance=Provenance(basis, charging.contents),
    )


def everybody_pays(plan: Plan, reservation: Reservation) -> bool:
    """Return whether a charge is everybody's although the plan has parts; the sketch or the release has to say so."""
    return plan.config.mechanism.parts > 1 and reservation.part is None


def _dearest_event(plan: Plan) -> Event:
    """The privacy event of the dearest round that the plan's calibration allows."""
    calibration, first = plan.calibration, plan.event(plan.state.grid)
    if calibration.epsilon_round is not None:
        return BoundedRelease(mu=calibration.mu_round, epsilon=calibration.epsilon_round, coordinates=plan.k)
    if isinstance(first, BoundedRelease):
        return GaussianRelease(mu=calibration.mu_round, coordinates=plan.coordinates)
    sigma = None if first.sigma is None else float(calibration.sigma_minimum)
    return replace(first, mu=calibration.mu_round, sigma=sigma)


def _standing_rows(charging: Charging, population: str) -> list[LedgerRow]:
    """The charges of a population in these books that were not given back."""
    rows = charging.ledger.rows(population)
    return [row for row in rows if row.universe == charging.universe and row.state != "voided"]


def _round_of(row: LedgerRow) -> str:
    return row.key.rpartition("/")[0]
