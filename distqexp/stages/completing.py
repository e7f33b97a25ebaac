"""The state of a round from public records, for a release that left it out: a run keeps the latest one alone in its files."""

from __future__ import annotations

from collections.abc import Callable

from distqexp.arrays import FloatArray
from distqexp.artefacts.plan import Plan, other_rules, same_rules
from distqexp.artefacts.recomputed import refuse_unlike
from distqexp.artefacts.release import Release
from distqexp.artefacts.state import RoundState
from distqexp.config import Config, DataConfig
from distqexp.engines.base import Engine
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.expansion.source import curvature_source
from distqexp.expansion.state import next_state
from distqexp.gradients.automatic import adopted
from distqexp.gradients.worker import Worker
from distqexp.problem.pretrained import resolved

TOLERANCE = 1e-6
"""Relative, for the clip: sums on another processor or library differ by far less."""


def public_data(plan: Plan, config: Config | None) -> DataConfig | None:
    """Return the plan's public records with the files of ``config``; None where it has none, or nothing says where they lie.

    Raises FileContentError where the plan was made from another config.
    """
    public = plan.config.data.public
    if public is None or (config is None and public.format != "digits"):
        return None
    return public if config is None else same_config(plan, config).data.public


def needs_public_data(plan: Plan) -> bool:
    """Whether the states of later rounds are computed from public records."""
    return plan.config.data.public is not None and plan.config.precision.source == "public"


def required_public_data(plan: Plan, state: RoundState, config: Config | None) -> DataConfig | None:
    """Return the public records that the guard tries a release on and the next round's state is computed from.

    None where there are none, or where the state needs none and no config says where they lie: the guard then tries probes.
    Raises UsageError where they are needed and nothing says where they lie.
    """
    public = public_data(plan, config)
    if public is None and needs_public_data(plan) and state.round + 1 < plan.config.mechanism.rounds:
        raise UsageError(
            "--config: not given; expected the config whose data.public the next round's precision is computed from"
        )
    return public


def same_config(plan: Plan, config: Config) -> Config:
    """Return ``config``, or raise FileContentError where the plan was made from another one."""
    filled = adopted(resolved(config), plan.config)
    if not same_rules(plan, filled):
        raise FileContentError(
            f"config: not the one that plan {plan.plan_id[:16]} was made from ({other_rules(plan, filled)}); give that one"
        )
    return config


def state_after(
    plan: Plan, before: RoundState, theta: FloatArray, public: DataConfig | None, engine: Engine, worker: Worker
) -> RoundState:
    """Return the state of the round after ``before``, at released parameters. Collective: every rank gets the same state.

    Args:
        plan: The plan.
        before: The state of a round that isn't the last.
        theta: The parameters that the round released, (d,).
        public: The plan's public records, if it has any.
        engine: Where the work runs.
        worker: The rank's worker on the plan.

    Raises:
        UsageError: The public records are not of use.
    """
    round = before.round + 1
    anew = plan.config.refresh_round(round) == round
    source = curvature_source(plan.config, public, plan.schema, round, worker.readers) if anew else None
    return next_state(
        worker=worker,
        calibration=plan.calibration,
        theta=theta,
        round=round,
        source=source,
        engine=engine,
        previous=before,
    )


def completed_state(
    plan: Plan, before: RoundState, release: Release, public: DataConfig | None, engine: Engine, worker: Worker
) -> RoundState:
    """Return the state that follows from a release which left it out; arguments and errors are those of ``state_after``.

    It has the clip and the grid of the release. On the run's own kind of machine it is the run's state to the last bit.
    Raises FileContentError where the clip of the release is not the one that public records give.
    """
    state = state_after(plan, before, release.theta, public, engine, worker)
    rules = release.next_header
    if rules is None:
        return state
    refuse_unlike(f"release of round {release.round}: next.clip", rules["clip"], state.clip, TOLERANCE)
    return RoundState.restore(rules, state.arrays()).with_parameters(state.theta, state.velocity)


def completion(
    plan: Plan, config: Config | None, worker: Worker
) -> Callable[[RoundState, Release], RoundState | None] | None:
    """Return what completes a release in this process, or None where the public records that it takes are not at hand.

    Raises FileContentError where the plan was made from another config.
    """
    public = public_data(plan, config)
    if public is None and needs_public_data(plan):
        return None
    return lambda before, release: completed_state(plan, before, release, public, SerialEngine(), worker)
