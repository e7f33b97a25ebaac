"""Noise in shares: what a site hands on, who may not run such a plan, and what the plan says of it. Public but for the sums."""

from __future__ import annotations

import math

from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.privacy.ledger.books import Reservation
from distqexp.stages.charging import Charging
from distqexp.stages.release import paid_draw


def refuse_one_group(config: Config) -> None:
    """Refuse noise in shares where one group of processes has every site's records. Raises UsageError."""
    tolerated = config.mechanism.tolerated_sites
    if tolerated:
        raise UsageError(
            f"mechanism.tolerated_sites: found {tolerated}; expected 0 in one group of processes: noise in shares is for sites, by "
            "distqexp study, or by sketch, pool and release by hand"
        )


def refuse_seed(plan: Plan, noise_seed: int | None) -> None:
    """Refuse a noise seed with noise in shares, before anything is charged. Raises UsageError."""
    if plan.config.mechanism.tolerated_sites and noise_seed is not None:
        raise UsageError(
            f"insecure noise seed: found {noise_seed}; expected none with mechanism.tolerated_sites: every site would draw the same share"
        )


def handed_on(
    plan: Plan, state: RoundState, sums: IntegerArray, charging: Charging, reservation: Reservation
) -> IntegerArray:
    """Commit a site's charge and return what its sketch holds, int64 (width,): its exact sums or, with noise in shares, the noisy ones.

    The share is stored before it is used and the noisy sums after it, so that the same sums give the same noisy sums again: fresh
    noise on them would average out. Both are private.
    """
    if not plan.config.mechanism.tolerated_sites:
        charging.ledger.commit(reservation, None)
        return sums
    return paid_draw(charging, reservation, plan.share(state), sums, state.round)


def describe_shares(plan: Plan) -> list[str]:
    """Return the line that the command ``plan`` prints on noise in shares, if the plan has it."""
    config, shares = plan.config, plan.config.noise_shares
    if not config.mechanism.tolerated_sites:
        return []
    sites, share = len(config.shards), plan.share(plan.state).sigma
    return [
        f"noise in shares: each of {sites} sites draws a share of sigma {share} grid units, and any {shares} are the whole noise; with all "
        f"present its variance is {sites}/{shares} = {config.noise_excess:.3g} times the planned one (its length "
        f"{math.sqrt(config.noise_excess):.3g} times)"
    ]
