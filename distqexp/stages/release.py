"""Stage 4, release: charge the ledger, draw the noise, move the parameters. Only the root draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.artefacts.moves import halved, kept_part
from distqexp.artefacts.named import next_lineage
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.recomputed import refuse_unlike
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.config import DataConfig
from distqexp.engines.base import Engine
from distqexp.engines.collectives import arrays_from_root
from distqexp.errors import FileContentError
from distqexp.gradients.worker import Worker
from distqexp.mechanism.rule import released_point
from distqexp.mechanism.shares import DrawRule, SumOfShares
from distqexp.privacy.ledger.books import Reservation
from distqexp.stages.charging import Charging, charge
from distqexp.stages.completing import state_after
from distqexp.stages.guard import Guard
from distqexp.stages.lifting import whitening_of
from distqexp.stages.sampling import forget_coins, forgetting_refused


def draw_release(plan: Plan, state: RoundState, quadratic: Quadratic, charging: Charging) -> npt.NDArray[Any]:
    """Return the noisy sums (plan.coordinates,) of a round: reserve, draw, persist, commit. Runs on the root only.

    The draw (the noise, or with a trust region the point itself) is stored with mode 0600 in the ledger's folder before it is
    used, and a restart uses it again; it is erased when the noisy sums are stored in its place. With noise in shares nothing is
    drawn: the sums hold it.

    Args:
        plan: The plan.
        state: The state of the round.
        quadratic: The pooled sums of the round.
        charging: The ledger to charge.

    Raises:
        FileContentError: The quadratic is of another round or state.
        BudgetError: The population's cap doesn't allow the release.
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
    with forgetting_refused(plan, charging, "release", state.round):
        reservation = charge(
            plan, state, quadratic.sums, charging, "release", basis=quadratic.basis, everybody=quadratic.everybody
        )
    rule = SumOfShares() if plan.config.mechanism.tolerated_sites else plan.rule(state)
    noisy_sums = paid_draw(charging, reservation, rule, quadratic.sums, state.round)
    forget_coins(plan, charging, "release", range(state.round, state.round + 1))
    return noisy_sums


def paid_draw(
    charging: Charging, reservation: Reservation, rule: DrawRule, sums: IntegerArray, round: int
) -> npt.NDArray[Any]:
    """Return what ``rule`` releases of ``sums``, which ``reservation`` paid for.

    It is drawn, stored and committed, or taken from the ledger where an earlier attempt got that far.
    """
    ledger = charging.ledger
    if reservation.state == "committed":
        return np.asarray(ledger.noisy_sums(reservation))
    draw = stored_draw(charging, reservation, lambda: rule.draw(sums, charging.noise_seed, round))
    noisy_sums = rule.noisy_sums(sums, draw)
    ledger.commit(reservation, noisy_sums)
    return noisy_sums


def stored_draw(charging: Charging, reservation: Reservation, draw: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return what was drawn and stored for a reservation, or draw and store it: nothing is used before it is stored. Private."""
    if reservation.state == "drawn":
        return np.asarray(charging.ledger.noise(reservation))
    drawn = draw()
    charging.ledger.persist_noise(reservation, drawn)
    return drawn


def moved_parameters(
    plan: Plan, state: RoundState, noisy_sums: npt.NDArray[Any], worker: Worker | None = None
) -> FloatArray:
    """Return theta_{r+1} = theta_r + P L^{-T} y with y = -h (noisy sums), plus momentum's share of the last move.

    This is post-processing of the noisy sums and costs no privacy.
    """
    y = released_point(noisy_sums[: plan.k], state.grid)
    theta = state.theta + whitening_of(plan, state, worker or Worker.of_plan(plan)).lift(y)
    if state.velocity is None:
        return theta
    return theta + plan.config.mechanism.momentum * state.velocity


def parameters_after(plan: Plan, before: RoundState, release: Release, worker: Worker | None = None) -> FloatArray:
    """Return the parameters (d,) that follow from a release's noisy sums and from the state that it builds on."""
    end = moved_parameters(plan, before, release.noisy_sums, worker)
    return kept_part(plan.state.theta, halved(before.theta, end, release.halvings), release.kept)


def completed_release(plan: Plan, before: RoundState, release: Release, worker: Worker) -> Release:
    """Return a release with the parameters and arrays that its file leaves out, from the state that it builds on; others as they are.

    Raises FileContentError where it builds on another state.
    """
    if not release.lacking:
        return release
    refuse_unlike(f"release of round {release.round}: used", dict(release.state_header), before.header())
    theta = parameters_after(plan, before, release, worker)
    return release.completed(before, theta, moving=plan.config.mechanism.momentum != 0)


class Draw(NamedTuple):
    """What was drawn for a round.

    Attributes:
        noisy_sums: The noisy sums (plan.coordinates,) on the root; None on other ranks.
        noise_seed: The seed of test noise, or None for real noise.
        everybody: Whether everybody is charged although the round uses one part; only the root has to know.
    """

    noisy_sums: npt.NDArray[Any] | None
    noise_seed: int | None = None
    everybody: bool = False


def make_release(
    plan: Plan,
    state: RoundState,
    draw: Draw,
    public: DataConfig | None,
    engine: Engine,
    worker: Worker | None = None,
    guard: Guard | None = None,
) -> Release:
    """Make the release of a round, together with the next round's state. Collective: every rank takes part.

    The guard halves the move until its loss on public records, or on probes, is within its bound. After the last round it takes the
    whole way back as far as that is no longer than noise alone would make it (``mechanism.discount``).

    Args:
        plan: The plan.
        state: The state of the round.
        draw: What the root drew for the round.
        public: The public records that the next round's state is computed from, if any.
        engine: The engine.
        worker: A worker on the plan; a new one when None.
        guard: The guard of the run, if there is one yet; the root alone uses it.
    """
    worker = worker or Worker.of_plan(plan)

    def move() -> dict[str, npt.NDArray[Any]]:
        if draw.noisy_sums is None:
            raise FileContentError("release: the root has no noisy sums; draw them first")
        end = moved_parameters(plan, state, draw.noisy_sums, worker)
        judge = guard or Guard(plan, public, worker)
        theta, halvings = judge.moved(state.theta, end)
        kept = judge.kept(state, theta)
        theta = kept_part(plan.state.theta, theta, kept)
        flags = {"everybody": np.array([draw.everybody]), "halvings": np.array([halvings]), "kept": np.array([kept])}
        return {"noisy_sums": draw.noisy_sums, "theta": theta, **flags}

    arrays = arrays_from_root(engine, move)
    successor = None
    if state.round + 1 < plan.config.mechanism.rounds:
        successor = state_after(plan, state, arrays["theta"], public, engine, worker)
        lineage = next_lineage(state.lineage, arrays["noisy_sums"], int(arrays["halvings"][0]), int(arrays["kept"][0]))
        successor = replace(successor, lineage=lineage)
    return Release(
        plan_id=plan.plan_id,
        round=state.round,
        noisy_sums=arrays["noisy_sums"],
        theta=arrays["theta"],
        state_header=state.header(),
        next_state=successor,
        noise_seed=draw.noise_seed,
        everybody=bool(arrays["everybody"][0]),
        halvings=int(arrays["halvings"][0]),
        kept=int(arrays["kept"][0]),
        same=_same_arrays(state, successor) if plan.named else (),
    )


def _same_arrays(before: RoundState, after: RoundState | None) -> tuple[str, ...]:
    """Return the names of the arrays of a state that are those of the state before it."""
    if after is None:
        return ()
    old = before.arrays()
    return tuple(
        sorted(name for name, array in after.arrays().items() if name in old and np.array_equal(array, old[name]))
    )
