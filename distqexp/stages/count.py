"""A noisy count of the private units: a small release of its own, for whoever has no public figure for ``privacy.units``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distqexp.config import Config, config_to_tree, without_paths
from distqexp.errors import UsageError
from distqexp.mechanism.grid import Grid, choose_grid
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy import gdp
from distqexp.privacy.calibration import calibrate
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger.books import Cap
from distqexp.privacy.units import group_of
from distqexp.problem.dataset import count_units
from distqexp.stages.charging import Charging
from distqexp.stages.naming import with_contents
from distqexp.stages.overlaps import refuse_common_units
from distqexp.stages.release import paid_draw
from distqexp.storage.canonical import plan_identity

REST = 0.99
"""Of the epsilon that is left in theory: what discrete noise and rounding take is less than the remainder."""


@dataclass(frozen=True)
class UnitCount:
    """A released count. Public: paid for.

    units: the noisy count, 1 at least. deviation: standard deviation of its noise. epsilon, delta: what it cost alone. left:
    about the epsilon, at the config's delta, that the population's cap leaves for a run.
    """

    units: int
    deviation: float
    epsilon: float
    delta: float
    population: str
    left: float
    private: bool

    def lines(self) -> list[str]:
        """For people."""
        paid = f"(epsilon {self.epsilon:g}, delta {self.delta:g}, charged to {self.population})"
        return [
            *([] if self.private else ["NOT PRIVATE: noise from a seed"]),
            f"units: {self.units:,} +- {self.deviation:,.1f} {paid}",
            f"set privacy.units = {self.units}; a run may spend about epsilon {self.left:.4g}",
        ]

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def release_count(config: Config, charging: Charging, epsilon: float) -> UnitCount:
    """Count the units that are there in every private shard, with discrete Gaussian noise for ``epsilon`` at the config's delta.

    Under zero-out and add-remove a unit moves the count by ``privacy.presence`` at most. The same records again give the stored
    count and cost nothing. Needs a cap in the ledger: count and run share it. Raises UsageError, BudgetError.
    """
    privacy, population = config.privacy, config.data.population
    if privacy.adjacency == "replace-one":
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
    # Without the figure that is looked for; the rest says which units are counted, and how.
    settings = config_to_tree(without_paths(config))
    counted = {
        "data": settings["data"],
        "adjacency": privacy.adjacency,
        "presence": privacy.presence,
        "event": asdict(event),
    }
    plan = f"count-{plan_identity(counted, {})}"
    charge = Charge(f"release/{plan}/0", privacy.adjacency, event)
    rows = [row for row in charging.ledger.rows(population) if row.universe == charging.universe]
    if all(row.key != charge.key for row in rows):
        # Before a record is read.
        charging.ledger.check(
            population=population, cap=cap, charges=[charge], universe=charging.universe, unit=config.unit
        )
    charging = with_contents(charging, population, config.data.private)
    refuse_common_units(config.data.private, privacy.presence)
    sums = np.array([grid.clip_integer * sum(count_units(data) for data in config.data.private)], dtype=np.int64)
    reservation = charging.ledger.reserve(
        population=population, key=charge.key, event=event, adjacency=privacy.adjacency, cap=cap, sums=sums,
        universe=charging.universe, unit=config.unit, contents=charging.contents,
    )  # fmt: skip
    noisy = paid_draw(charging, reservation, ReleaseRule(1, grid, "discrete"), sums, round=0)
    return UnitCount(
        units=max(1, round(int(noisy[0]) / grid.clip_integer)),
        deviation=grid.sigma / grid.clip_integer,
        epsilon=epsilon,
        delta=privacy.delta,
        population=population,
        left=_left(charging, config, cap),
        private=charging.insecure_seed is None,
    )


def _noise(config: Config, epsilon: float) -> tuple[Grid, GaussianRelease]:
    """A unit is a clip of 1, on as fine a grid as the calibration asks for."""
    privacy = config.privacy
    calibration = calibrate(epsilon=epsilon, delta=privacy.delta, rounds=1, k=1, noise="discrete")
    grid = choose_grid(
        1.0, calibration.mu_round, calibration.sigma_minimum, privacy.adjacency, presence=privacy.presence
    )
    return grid, GaussianRelease(mu=grid.mu, coordinates=1, sigma=float(grid.sigma))


def _left(charging: Charging, config: Config, cap: Cap) -> float:
    """About what a run with this config may still spend: of mu^2 what is not spent, by as many of its units as count together."""
    spent = charging.ledger.spent(config.data.population, charging.universe).mu
    whole, size = gdp.mu(cap.epsilon, cap.delta), group_of(config.unit, cap.units) or 1
    mu = math.sqrt(whole**2 - spent**2) / size if spent < whole else 0.0
    return REST * gdp.epsilon(config.privacy.delta, mu) if mu else 0.0
