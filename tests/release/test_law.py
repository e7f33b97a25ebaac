"""The law of what leaves, through the real release stage and ledger: theta ~ N(theta - P A^{-1} sum, T P A^{-1} P^T).

Seeded draws are the same every time: their checks can't raise an alarm later. The two tests that draw from the
operating system's entropy state theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import ALARM, NOISES, WIDE, draws, p_values, quadratic
from numpy.typing import NDArray
from scipy.stats import chi2, kstest
from sketching_oracle import dense_matrix
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.state import RoundState
from distqexp.engines.serial import SerialEngine
from distqexp.errors import BudgetError
from distqexp.gradients.setup import subspace_of
from distqexp.privacy.ledger import Ledger
from distqexp.stages.charging import Charging
from distqexp.stages.release import Draw, draw_release, make_release


def wide_plan(folder: Path, noise: str, **sections: Mapping[str, Any]) -> Plan:
    """A plan with k = 4,003 coordinates, of the identity geometry."""
    model = {**WIDE, "loss": "cross-entropy"}
    mechanism = {"clip": 0.05, "noise": noise}
    return plan_of(make_config(folder, "mlp", public=False, model=model, mechanism=mechanism, **sections))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("seed", [None, 11])
def test_the_draw_has_the_calibrated_law_and_a_smaller_one_is_rejected(
    noise: str, seed: int | None, tmp_path: Path, own_ledger: Path
) -> None:
    """Unseeded: false alarm below 4e-9 (two checks of 1e-9, a correlation within 6 deviations).

    The planted mechanism draws a tenth less noise: its mean square lies 11 deviations from the threshold.
    """
    plan = wide_plan(tmp_path, noise)
    assert plan.state.grid.sigma > 2**12
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("somebody", 50.0, 0.5)
        standard = draws(plan, plan.state, ledger, 3, seed)
        assert min(p_values(standard)) > ALARM
        assert abs(np.mean(standard[1:] * standard[:-1])) * np.sqrt(standard.size - 1) < 6
        grid = plan.state.grid
        leaky = replace(plan.state, grid=replace(grid, sigma=int(0.9 * grid.sigma)))
        assert p_values(draws(plan, leaky, ledger, 3, seed))[1] < ALARM


def test_a_tenth_less_noise_does_not_fit_the_budget(tmp_path: Path, own_ledger: Path) -> None:
    """The charge is that of the state's own grid: less noise costs more, and the config's cap refuses it."""
    plan = wide_plan(tmp_path, "discrete")
    grid = plan.state.grid
    leaky = replace(plan.state, grid=replace(grid, sigma=int(0.9 * grid.sigma)))
    with Ledger.open(own_ledger) as ledger:
        with pytest.raises(BudgetError):
            draws(plan, leaky, ledger, 1, None)
        assert ledger.rows() == []
        draws(plan, plan.state, ledger, 1, None)
        assert [row.event.mu for row in ledger.rows()] == [grid.mu]


GEOMETRIES = [
    ("identity", "identity"),
    ("identity", "dense"),
    ("gaussian", "dense"),
    ("rademacher", "diagonal"),
    ("sjlt", "dense"),
    ("srht", "identity"),
]


def small_plan(folder: Path, subspace: str, precision: str, rounds: int = 1, noise: str = "discrete") -> Plan:
    """A float64 plan with d = 43."""
    public = random_table("double", [1, 2, 3, 1, 4], seed=2)
    public.write(folder / "public.h5")
    config = make_config(
        folder,
        "double",
        subspace={"kind": subspace} | ({} if subspace == "identity" else {"k": 9}),
        precision={"kind": precision, "damping": 0.2},
        mechanism={"rounds": rounds, "step": 0.7, "noise": noise, "clip": 0.05},
    )
    return plan_of(config)


def dense_a(plan: Plan, state: RoundState) -> NDArray[np.float64]:
    """A from the stored inverse factor, by plain inversion."""
    stored = state.precision["inverse_factor"]
    inverse = stored if stored.ndim == 2 else np.diag(np.broadcast_to(stored, (plan.k,)))
    return np.linalg.inv(inverse.T @ inverse)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("subspace", "precision"), GEOMETRIES)
def test_theta_moves_by_the_dense_formula(
    subspace: str, precision: str, noise: str, tmp_path: Path, own_ledger: Path
) -> None:
    """theta_{r+1} = theta_r - P A^{-1} (sum of clipped gradients + L h noise), over two rounds, each with its own P."""
    plan = small_plan(tmp_path, subspace, precision, rounds=2, noise=noise)
    state: RoundState | None = plan.state
    random = np.random.default_rng(4)
    rounds = 0
    with Ledger.open(own_ledger) as ledger:
        while state is not None:
            sums = random.integers(-(10**7), 10**7, plan.k)
            noisy = draw_release(plan, state, quadratic(plan, state, sums), Charging(ledger, 5))
            release = make_release(plan, state, Draw(noisy, 5), public_of(tmp_path), SerialEngine())
            factor = np.linalg.cholesky(dense_a(plan, state))
            matrix = dense_matrix(subspace_of(plan.config, plan.d, plan.k, state.round))
            gradient_sum = factor @ (sums * state.grid.step)  # back from whitened coordinates
            noise_part = factor @ ((noisy - sums) * state.grid.step)
            expected = state.theta - matrix @ np.linalg.solve(dense_a(plan, state), gradient_sum + noise_part)
            moved = np.abs(expected - state.theta).max()
            assert moved > 0
            np.testing.assert_allclose(release.theta, expected, rtol=0, atol=1e-9 * moved)
            assert np.array_equal(release.noisy_sums, noisy)
            if release.next_state is not None:
                assert release.next_state.theta.tobytes() == release.theta.tobytes()
                assert release.next_state.round == state.round + 1
            state, rounds = release.next_state, rounds + 1
    assert rounds == 2


def public_of(folder: Path) -> Any:
    return make_config(folder, "double").data.public


@pytest.mark.parametrize(("subspace", "precision"), [("identity", "dense"), ("gaussian", "dense")])
def test_many_releases_spread_as_the_exponential_mechanism(
    subspace: str, precision: str, tmp_path: Path, own_ledger: Path
) -> None:
    """60 seeded releases of the same sums: the quadratic form A / T of what theta moved beyond its mean is
    chi-square with k degrees of freedom, and 10 % less noise would be seen."""
    plan = small_plan(tmp_path, subspace, precision)
    state, count = plan.state, 60
    sums = np.random.default_rng(7).integers(-(10**7), 10**7, plan.k)
    a, temperature = dense_a(plan, state), state.grid.temperature
    assert temperature == (state.grid.sigma * state.grid.step) ** 2
    matrix = dense_matrix(subspace_of(plan.config, plan.d, plan.k, 0))
    mean = -np.linalg.solve(a, np.linalg.cholesky(a) @ (sums * state.grid.step))
    forms, whitened = [], []
    with Ledger.open(own_ledger) as ledger:
        for seed in range(count):
            noisy = draw_release(plan, state, quadratic(plan, state, sums), Charging(ledger, seed))
            release = make_release(plan, state, Draw(noisy, seed), None, SerialEngine())
            w = np.linalg.lstsq(matrix, release.theta - state.theta, rcond=None)[0]
            forms.append((w - mean) @ a @ (w - mean) / temperature)
            whitened.append(np.linalg.cholesky(a).T @ (w - mean) / np.sqrt(temperature))
    assert kstest(forms, chi2(plan.k).cdf).pvalue > 1e-6
    assert min(p_values(np.concatenate(whitened))) > 1e-6
    if plan.k > 40:
        assert p_values(0.9 * np.concatenate(whitened))[1] < 1e-6
