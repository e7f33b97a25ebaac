"""Cross-checks of the composed guarantee against dp-accounting on a grid of (mu, delta, rounds)."""

from __future__ import annotations

import dp_accounting
import pytest
from accounting import compose, spent, spent_epsilon, to_dp_event
from dp_accounting import pld, rdp
from dp_accounting.pld import privacy_loss_distribution

from distqexp.privacy.calibration import calibrate
from distqexp.privacy.events import GaussianRelease

MUS = (0.05, 0.3, 1.0)
DELTAS = (1e-8, 1e-5, 1e-3)
ROUNDS = (1, 4, 20)


@pytest.mark.slow
@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_privacy_loss_distribution_brackets_epsilon(mu: float, rounds: int) -> None:
    events = [GaussianRelease(mu, coordinates=10)] * rounds
    upper, lower = (
        privacy_loss_distribution.from_gaussian_mechanism(
            1 / mu, pessimistic_estimate=pessimistic, value_discretization_interval=1e-4
        ).self_compose(rounds)
        for pessimistic in (True, False)
    )
    for delta in DELTAS:
        epsilon = spent_epsilon(events, delta)
        above, below = upper.get_epsilon_for_delta(delta), lower.get_epsilon_for_delta(delta)
        assert below - 1e-6 <= epsilon <= above + 1e-6
        assert above - below < 0.01
        if epsilon > 0:
            assert upper.get_delta_for_epsilon(epsilon) >= spent(events, epsilon) * (1 - 1e-6)


@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_accountants_agree_with_the_composed_event(mu: float, rounds: int) -> None:
    events = [GaussianRelease(mu, coordinates=10)] * rounds
    by_pld = pld.PLDAccountant(value_discretization_interval=1e-3).compose(to_dp_event(events))
    by_rdp = rdp.RdpAccountant().compose(to_dp_event(events))
    for delta in DELTAS:
        epsilon = spent_epsilon(events, delta)
        assert epsilon == pytest.approx(by_pld.get_epsilon(delta), rel=0.01, abs=0.01)
        assert by_rdp.get_epsilon(delta) >= epsilon - 1e-9


@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_count_is_the_same_as_so_many_composes(mu: float, rounds: int) -> None:
    """Ours, and the RDP accountant's on the events that we hand it (it ignores the count of some event types)."""
    event = GaussianRelease(mu, coordinates=1000, sigma=4096.0)
    once, many = compose([event], times=rounds), compose([event] * rounds)
    assert once.mu == pytest.approx(many.mu, rel=1e-14)
    assert once.total_variation == pytest.approx(many.total_variation, rel=1e-14)
    assert once.rho == pytest.approx(many.rho, rel=1e-14)
    single = to_dp_event([event])
    counted = rdp.RdpAccountant().compose(single, rounds)
    repeated = rdp.RdpAccountant()
    for _ in range(rounds):
        repeated.compose(single)
    together = rdp.RdpAccountant().compose(to_dp_event([event] * rounds))
    for delta in DELTAS:
        assert counted.get_epsilon(delta) == pytest.approx(repeated.get_epsilon(delta), rel=1e-12)
        assert counted.get_epsilon(delta) == pytest.approx(together.get_epsilon(delta), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("rounds", [1, 20])
def test_their_calibration_finds_the_same_noise(epsilon: float, rounds: int) -> None:
    delta = 1e-5
    calibration = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=1, noise="gaussian")
    multiplier = dp_accounting.calibrate_dp_mechanism(
        lambda: pld.PLDAccountant(value_discretization_interval=1e-3),
        lambda noise: dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), rounds),
        epsilon,
        delta,
        tol=1e-4,
    )
    assert 1 / calibration.mu_round == pytest.approx(multiplier, rel=0.01)
