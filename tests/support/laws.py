"""Many releases of one plan, and how likely they are under a law."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, kstest

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.artefacts.sums import Quadratic
from distqexp.privacy.ledger import Ledger
from distqexp.stages.charging import Charging
from distqexp.stages.release import draw_release

ALARM = 1e-9


NOISES = ("discrete", "gaussian")


WIDE = {"factory": "distqexp.problem.models:mlp", "args": {"inputs": 6, "outputs": 3, "hidden": [400]}}


def draws(plan: Plan, state: RoundState, ledger: Ledger, count: int, seed: int | None) -> NDArray[np.float64]:
    """Noise of ``count`` releases in units of the plan's sigma: noisy sums minus sums. Each has sums of its own."""
    random = np.random.default_rng(0)
    found = []
    for i in range(count):
        sums = random.integers(-(10**6), 10**6, plan.k)
        charging = Charging(ledger, None if seed is None else seed + i)
        noisy = draw_release(plan, state, quadratic(plan, state, sums), charging)
        found.append((noisy - sums) / plan.state.grid.sigma)
    return np.concatenate(found)


def quadratic(plan: Plan, state: RoundState, sums: NDArray[np.int64]) -> Quadratic:
    return Quadratic(plan_id=plan.plan_id, round=state.round, state=state.identity(), sums=sums)


def p_values(standard: NDArray[np.float64]) -> tuple[float, float]:
    """Kolmogorov-Smirnov and two-sided mean square against N(0, 1). A grid of sigma >= 2^12 steps doesn't show."""
    square = float(np.square(standard).sum())
    tails = chi2.cdf(square, standard.size), chi2.sf(square, standard.size)
    return float(kstest(standard, "norm").pvalue), 2 * float(min(tails))
