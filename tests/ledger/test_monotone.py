"""Random histories of charges: one more never makes the total smaller, whatever adjacency, part, role or group it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.ledger.books import Cap
from distqexp.privacy.soundness import require_sound
from distqexp.privacy.units import UnitDeclaration

HISTORIES = 100
LENGTH = 8
SLACK = 1e-9


def random_event(random: np.random.Generator, wide: bool) -> Event:
    low, high = (-12, 6) if wide else (-2, 0.5)
    mu, epsilon = (float(10 ** random.uniform(low, high)) for _ in range(2))
    kind = random.integers(3)
    if kind == 0:
        return BoundedRelease(mu, epsilon, 10)
    sigma = float(10 ** random.uniform(1, 15)) if kind == 1 else None
    return GaussianRelease(mu, int(random.integers(1, 1000)), sigma)


def random_history(random: np.random.Generator) -> tuple[list[Charge], UnitDeclaration | None]:
    declared = [
        None,
        UnitDeclaration("pid", int(random.integers(1, 60))),
        UnitDeclaration("record"),
        UnitDeclaration("pid"),
    ][random.integers(4)]
    units = {
        "None": [None, "record", "pid"][int(random.integers(3)) :][:1],
        "pid": ["pid", "record", None] if declared and declared.records else ["pid"],
        "record": ["record", None],
    }[declared.unit if declared else "None"]
    wide = bool(random.integers(2))
    charges = []
    for _ in range(LENGTH):
        plan, round, state = (random.integers(n) for n in (3, 4, 2))
        role = ["release", "site-a", "site-b"][random.integers(3)]
        key = ["", "lonely", f"{role}/p{plan}/{round}/{state}", f"{role}/p{plan}/{round}/{state}"][random.integers(4)]
        part = [None, Part(int(round % 2), 2), Part(int(round % 3), 3), Part(5, 2)][
            random.choice(4, p=[0.3, 0.4, 0.2, 0.1])
        ]
        adjacency = str(random.choice(["zero-out", "add-remove", "replace-one"], p=[0.6, 0.25, 0.15]))
        unit = units[random.integers(len(units))]
        charges.append(Charge(key, adjacency, random_event(random, wide), part, unit))
    return charges, declared


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_one_more_charge_is_never_less(seed: int) -> None:
    random = np.random.default_rng([12, seed])
    kinds = set()
    for _ in range(HISTORIES // 4):
        charges, declared = random_history(random)
        kinds.add(declared.unit if declared else None)
        before = expenses(charges[:1], declared).guarantee()
        for count in range(2, LENGTH + 1):
            after = expenses(charges[:count], declared).guarantee()
            for epsilon in (0.0, 0.1, 1.0, 20.0, 1e5):
                assert after.delta(epsilon) >= before.delta(epsilon) * (1 - SLACK)
            for delta in (0.0, 1e-300, 1e-9, 1e-2, 0.9):
                assert after.epsilon(delta) >= before.epsilon(delta) * (1 - SLACK)
            assert require_sound(after, 1e-5, before) > 0
            before = after
    assert kinds == {None, "pid", "record"}


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_charges_does_not_count(seed: int) -> None:
    random = np.random.default_rng([13, seed])
    for _ in range(HISTORIES // 4):
        charges, declared = random_history(random)
        named = [c._replace(key=c.key if c.key.count("/") else f"release/q/{i}/s") for i, c in enumerate(charges)]
        mixed = [named[i] for i in random.permutation(LENGTH)]
        first, second = (expenses(order, declared).guarantee() for order in (named, mixed))
        for epsilon in (0.0, 1.0, 20.0):
            assert math.isclose(first.delta(epsilon), second.delta(epsilon), rel_tol=SLACK)


def test_a_cap_that_admits_pure_releases_only_says_so_of_a_gaussian_one() -> None:
    guarantee = expenses([Charge("release/p/0/s", "zero-out", GaussianRelease(0.1, 5))]).guarantee()
    assert guarantee.epsilon(Cap(1.0, 0.0).delta) == math.inf
    assert require_sound(guarantee, 0.0, epsilon=1.0) == math.inf
