"""What charges amount to: one release once, however many roles of one ledger charged it; different sums add up."""

from __future__ import annotations

import math

from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.expenses import Charge, expenses


def charge(key: str, mu: float = 0.5, adjacency: str = "zero-out") -> Charge:
    return Charge(key, adjacency, GaussianRelease(mu=mu, coordinates=10, sigma=1000.0))


def total(*charges: Charge) -> float:
    return expenses(charges).guarantee().mu


def test_sites_and_curator_of_one_release_pay_once() -> None:
    assert math.isclose(total(charge("site-a/p/0/s"), charge("site-b/p/0/s"), charge("release/p/0/s")), 0.5)


def test_rounds_plans_and_states_add_up() -> None:
    for other in ("release/p/1/s", "release/q/0/s", "release/p/0/t"):
        assert math.isclose(total(charge("release/p/0/s"), charge(other)), math.sqrt(0.5))


def test_other_sums_of_the_same_role_add_up() -> None:
    assert math.isclose(total(charge("release/p/0/s"), charge("release/p/0/s")), math.sqrt(0.5))
    twice_at_one_site = [
        charge("site-a/p/0/s"),
        charge("site-a/p/0/s"),
        charge("site-b/p/0/s"),
        charge("release/p/0/s"),
    ]
    assert math.isclose(total(*twice_at_one_site), math.sqrt(0.5))


def test_the_largest_role_counts() -> None:
    assert math.isclose(total(charge("site-a/p/0/s", 0.2), charge("release/p/0/s", 0.7)), 0.7)


def test_keys_without_a_release_are_releases_of_their_own() -> None:
    assert math.isclose(total(charge(""), charge(""), charge("lonely"), charge("lonely")), 1.0)


def test_replace_one_doubles_the_others() -> None:
    assert math.isclose(
        total(charge("release/p/0/s", 0.5), charge("release/p/1/s", 0.5, "replace-one")), math.sqrt(1.25)
    )
