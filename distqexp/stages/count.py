"""A noisy count of the private units: a small release of its own, for whoever has no public figure for ``privacy.units``.

The count is paid for from the population's cap, which it shares with the run.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distqexp.config import Config, config_to_tree, without_paths
from distqexp.errors import UsageError
from distqexp.kinds import Adjacency, Noise
from distqexp.mechanism.grid import Grid, GridOptions, choose_grid
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy import gdp
from distqexp.privacy.calibration import calibrate
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Cap, Provenance
from distqexp.privacy.units import group_size
from distqexp.problem.dataset import count_units
from distqexp.stages.charging import Charging
from distqexp.stages.naming import with_contents
from distqexp.stages.overlaps import refuse_common_units
from distqexp.stages.release import paid_draw
from distqexp.storage.canonical import plan_identity

REST = 0.99
"""The share of the theoretically remaining epsilon that is promised: discrete noise and rounding take less than what is held back."""


@dataclass(frozen=True)
class UnitCount:
    """A released count. It is public, and paid for.

    Attributes:
        units: The noisy count, at least 1.
        deviation: The standard deviation of its noise.
        epsilon: The epsilon that the count alone cost.
        delta: The delta that the count alone cost.
        population: The population that was charged.
        left: About the epsilon that the population's cap leaves for a run at the config's delta.
        private: False when the noise came from a seed.
    """

    units: int
    deviation: float
    epsilon: float
    delta: float
    population: str
    left: float
    private: bool

    def lines(self) -> list[str]:
        """Return the count in lines for people."""
        paid = f"(epsilon {self.epsilon:g}, delta {self.delta:g}, charged to {self.population})"
        return [
            *([] if self.private else ["NOT PRIVATE: noise from a seed"]),
            f"units: {self.units:,} +- {self.deviation:,.1f} {paid}",
            f"set privacy.units = {self.units}; a run may spend about epsilon {self.left:.4g}",
        ]

    def tree(self) -> dict[str, Any]:
        """Return the count as JSON types."""
        return asdict(self)


def release_count(config: Config, charging: Charging, epsilon: float) -> UnitCount:
    """Count the units present in the private shards, with discrete Gaussian noise for ``epsilon`` at the config's delta.

    Under zero-out and add-remove a unit moves the count by at most ``privacy.presence``. The same records again give the stored
    count and cost nothing. The ledger must have a cap, which count and run share. Raises UsageError or BudgetError.
    """
    privacy, population = config.privacy, config.data.population
    if privacy.adjacency == Adjacency.REPLACE_ONE:
        raise UsageError(
            "privacy.adjacency: found replace-one, where the number of units is public; expected zero-out or add-remove: "
            "set privacy.units to the number itself"
        )
    if privacy.delta == 0:
        raise UsageError("privacy.delta: found 0; expected above 0: the count's noise is Gaussian")
    cap = charging.ledger.cap(population)
    if cap is None:
        raise UsageError(
            f"population {population}: no cap in the ledger; expected one, which count and run share: "
            f"distqexp ledger cap {population} --epsilon {privacy.epsilon:g} --delta {privacy.delta:g}"
        )
    grid, event = _noise(config, epsilon)
    # privacy.units, which the count is to find, stays out; the rest says which units are counted, and how.
    settings = config_to_tree(without_paths(config))
    identity = {
        "data": settings["data"],
        "adjacency": str(privacy.adjacency),
        "presence": privacy.presence,
        "event": asdict(event),
    }
    charge = Charge(f"release/count-{plan_identity(identity, {})}/0", privacy.adjacency, event, unit=config.unit)
    rows = [row for row in charging.ledger.rows(population) if row.universe == charging.universe]
    if all(row.key != charge.key for row in rows):
        # A budget that is too small is refused before any record is read.
        charging.ledger.check(
            population=population, cap=cap, charges=[charge], universe=charging.universe, unit=config.unit
        )
    charging = with_contents(charging, population, config.data.private)
    refuse_common_units(config.data.private, privacy.presence)
    sums = np.array([grid.clip_integer * sum(count_units(data) for data in config.data.private)], dtype=np.int64)
    reservation = charging.ledger.reserve(
        charge,
        population=population,
        cap=cap,
        sums=sums,
        universe=charging.universe,
        provenance=Provenance(contents=charging.contents),
    )
    noisy_sums = paid_draw(charging, reservation, ReleaseRule(1, grid, Noise.DISCRETE), sums, round=0)
    return UnitCount(
        units=max(1, round(int(noisy_sums[0]) / grid.clip_integer)),
        deviation=grid.sigma / grid.clip_integer,
        epsilon=epsilon,
        delta=privacy.delta,
        population=population,
        left=_epsilon_left(charging, config, cap),
        private=charging.noise_seed is None,
    )


def _noise(config: Config, epsilon: float) -> tuple[Grid, GaussianRelease]:
    """Choose grid and privacy event of the count: a unit is a clip of 1, on as fine a grid as the calibration asks for."""
    privacy = config.privacy
    calibration = calibrate(epsilon=epsilon, delta=privacy.delta, rounds=1, k=1, noise=Noise.DISCRETE)
    options = GridOptions(presence=privacy.presence)
    grid = choose_grid(1.0, calibration.mu_round, calibration.sigma_minimum, privacy.adjacency, options)
    return grid, GaussianRelease(mu=grid.mu, coordinates=1, sigma=float(grid.sigma))


def _epsilon_left(charging: Charging, config: Config, cap: Cap) -> float:
    """About the epsilon that a run may still spend: what is left of the cap's mu^2, for a group of units that count together."""
    spent_mu = charging.ledger.spent(config.data.population, charging.universe).mu
    cap_mu, size = gdp.mu(cap.epsilon, cap.delta), group_size(config.unit, cap.declaration) or 1
    mu = math.sqrt(cap_mu**2 - spent_mu**2) / size if spent_mu < cap_mu else 0.0
    return REST * gdp.epsilon(config.privacy.delta, mu) if mu else 0.0
