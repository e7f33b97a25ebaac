"""Stage 4, release: charge the ledger, draw the noise, move the parameters. The root alone draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import DataConfig
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.errors import FileContentError
from distqexp.expansion.source import curvature_source
from distqexp.expansion.state import next_state
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.setup import subspace_of
from distqexp.gradients.worker import Worker
from distqexp.mechanism.rule import ReleaseRule, released_point
from distqexp.privacy.ledger.books import Reservation
from distqexp.stages.charging import Charging, charge


def draw_release(plan: Plan, state: RoundState, quadratic: Quadratic, charging: Charging) -> npt.NDArray[Any]:
    """The noisy sums (plan.coordinates,): reserve, draw, persist, commit. A restart reuses the persisted draw; root only.

    What is drawn (noise, or with a trust region the point itself) is stored (mode 0600, in the ledger's folder) before it is
    used; it is erased when the noisy sums are stored in its place. Raises BudgetError.
    """
    if quadratic.round != state.round:
        raise FileContentError(
            f"quadratic: round {quadratic.round}; the state is of round {state.round}: pool that round"
        )
    if quadratic.state != state.identity():
        raise FileContentError(
            f"quadratic: sketched at state {quadratic.state[:16]}; expected {state.identity()[:16]}: "
            "give the release that the sites worked from"
        )
    reservation = charge(
        plan, state, quadratic.sums, charging, "release", basis=quadratic.basis, everybody=quadratic.everybody
    )
    return paid_draw(charging, reservation, plan.rule(state), quadratic.sums, state.round)


def paid_draw(
    charging: Charging, reservation: Reservation, rule: ReleaseRule, sums: IntegerArray, round: int
) -> npt.NDArray[Any]:
    """What ``rule`` releases of ``sums``, which ``reservation`` paid for: drawn, stored, committed; or what was stored before."""
    ledger = charging.ledger
    if reservation.state == "committed":
        return np.asarray(ledger.released(reservation))
    if reservation.state == "drawn":
        drawn = np.asarray(ledger.noise(reservation))
    else:
        drawn = rule.draw(sums, charging.insecure_seed, round)
        ledger.persist_noise(reservation, drawn)
    noisy_sums = rule.released(sums, drawn)
    ledger.commit(reservation, noisy_sums)
    return noisy_sums


def moved_parameters(
    plan: Plan, state: RoundState, noisy_sums: npt.NDArray[Any], worker: Worker | None = None
) -> FloatArray:
    """theta_{r+1} = theta_r + P L^{-T} y with y = -h (noisy sums), plus a share of the last move: post-processing, free."""
    y = released_point(noisy_sums[: plan.k], state.grid)
    precision = precision_from_arrays(plan.config.precision.kind, plan.k, dict(state.precision))
    blocks = (worker or Worker.of_plan(plan)).blocks if plan.config.by_blocks else None
    subspace = subspace_of(plan.config, plan.d, plan.k, state.round, blocks, state.subspace)
    moved = state.theta + Whitening(subspace, precision).lift(y)
    if state.velocity is None:
        return moved
    return moved + plan.config.mechanism.momentum * state.velocity


def make_release(
    plan: Plan,
    state: RoundState,
    noisy_sums: npt.NDArray[Any] | None,
    insecure_seed: int | None,
    public: DataConfig | None,
    engine: Engine,
    *,
    everybody: bool = False,
    worker: Worker | None = None,
) -> Release:
    """The release of a round with the next round's state; every rank takes part.

    noisy_sums, everybody: what was drawn, and whether it is charged to everybody whatever the part; the root brings them.
    """
    worker = worker or Worker.of_plan(plan)

    def move() -> dict[str, npt.NDArray[Any]]:
        if noisy_sums is None:
            raise FileContentError("release: the root has no noisy sums; draw them first")
        theta = moved_parameters(plan, state, noisy_sums, worker)
        return {"noisy_sums": noisy_sums, "theta": theta, "everybody": np.array([everybody])}

    moved = arrays_from_root(engine, move)
    following = None
    if state.round + 1 < plan.config.mechanism.rounds:
        anew = plan.config.precision.made_at(state.round + 1) == state.round + 1
        source = curvature_source(plan.config, public, plan.schema, state.round + 1, worker.readers) if anew else None
        following = next_state(
            worker=worker,
            calibration=plan.calibration,
            theta=moved["theta"],
            round=state.round + 1,
            k=plan.k,
            source=source,
            engine=engine,
            previous=state,
        )
    return Release(
        plan_id=plan.plan_id,
        round=state.round,
        noisy_sums=moved["noisy_sums"],
        theta=moved["theta"],
        used=state.header(),
        next_state=following,
        insecure_seed=insecure_seed,
        everybody=bool(moved["everybody"][0]),
    )
