"""Random histories of charges, draws, voids and rollbacks: what stays charged is what an oracle in plain words says."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_child import SUMS, reserve

from distqexp.errors import DistqexpError
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.ledger import Cap, Ledger

NOISE = np.array([10, -20, 30, -40, 50], dtype=np.int64)
LARGE = Cap(100.0, 0.5)


class Oracle:
    """What stays charged, by the rules in words: a list of charges with what became of each."""

    def __init__(self) -> None:
        self.charges: list[dict[str, Any]] = []
        self.void: set[tuple[str, int, str]] = set()
        self.accepted: set[tuple[str, int, str]] = set()

    def of_plan(self, plan: str) -> list[dict[str, Any]]:
        return [charge for charge in self.charges if charge["at"][0] == plan]

    def find(self, role: str, at: tuple[str, int, str], sums: int) -> dict[str, Any] | None:
        same = [
            c for c in self.charges if (c["role"], c["at"], c["sums"]) == (role, at, sums) and c["state"] != "voided"
        ]
        return same[0] if same else None

    def may_void(self, at: tuple[str, int, str]) -> bool:
        plan, round, _ = at
        mine = self.of_plan(plan)
        drawn = any(
            c["role"] == "release" and c["at"][1] == round and c["state"] in ("drawn", "committed") for c in mine
        )
        later = any(c["at"][1] > round for c in mine)
        before = round == 0 or any(
            c["role"] == "release" and c["at"][1] == round - 1 and c["state"] == "committed" for c in mine
        )
        return at in self.void or (before and not drawn and not later)

    def may_accept(self, at: tuple[str, int, str], role: str) -> bool:
        plan, round, _ = at
        mine = self.of_plan(plan)
        standing = any(c["role"] == role and c["at"] == at and c["state"] != "voided" for c in mine)
        later = any(c["at"][1] > round for c in mine)
        drawn = any(
            c["role"] == "release" and c["at"][1] == round and c["state"] in ("drawn", "committed") for c in mine
        )
        return standing and not later and not drawn and at not in self.accepted

    def mu(self) -> float:
        """Of each release the dearest role, whose own charges add up."""
        total: dict[tuple[str, int, str], dict[str, float]] = {}
        for charge in self.charges:
            if charge["state"] != "voided":
                roles = total.setdefault(charge["at"], {})
                roles[charge["role"]] = roles.get(charge["role"], 0.0) + charge["mu"] ** 2
        return math.sqrt(sum(max(roles.values()) for roles in total.values()))


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_charge_what_an_oracle_says(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "ledger.sqlite"
    random, oracle = np.random.default_rng(seed), Oracle()
    ledger, outcomes = Ledger.open(path), set()
    for _ in range(60):
        at = (
            str(random.choice(["p", "q"])),
            int(random.integers(3) * random.integers(2)),
            str(random.choice(["s", "t"])),
        )
        role, sums = str(random.choice(["site-a", "site-b", "release", "release"])), int(random.integers(2))
        name = "/".join(map(str, at))
        action = str(random.choice(["charge", "charge", "charge", "void", "accept", "accept", "reopen", "put back"]))
        if action == "charge":
            granted = role != "release" or at not in oracle.void
            mu = 0.01 * (1 + sums)
            event = GaussianRelease(mu, 5, 2.0**20)
            act = partial(reserve, ledger, key=f"{role}/{name}", event=event, sums=SUMS + sums, cap=LARGE)
            if happens(act, granted):
                charge = oracle.find(role, at, sums)
                if charge is None:
                    charge = {"role": role, "at": at, "sums": sums, "mu": mu, "state": "reserved"}
                    oracle.charges.append(charge)
                reservation = act()
                assert reservation.state == charge["state"]
                goes = int(random.integers(3))
                if role == "release" and goes and charge["state"] == "reserved":
                    ledger.persist_noise(reservation, NOISE)
                    charge["state"] = "drawn"
                if charge["state"] == "drawn" and goes == 2:
                    ledger.commit(reservation, SUMS)
                    charge["state"] = "committed"
                elif role != "release":
                    ledger.commit(reservation, None)
                    charge["state"] = "committed"
        elif action == "void":
            granted = oracle.may_void(at)
            if happens(partial(ledger.void, population="ward", release=name), granted):
                for charge in oracle.charges:
                    if (charge["role"], charge["at"]) == ("release", at) and at not in oracle.void:
                        charge["state"] = "voided"
                oracle.void.add(at)
        elif action == "accept":
            granted = oracle.may_accept(at, role)
            act = partial(ledger.accept_void, population="ward", release=name, roles={role})
            if role == "release":
                continue
            if happens(act, granted):
                oracle.accepted.add(at)
                for charge in oracle.charges:
                    if (charge["role"], charge["at"]) == (role, at):
                        charge["state"] = "voided"
        else:
            before = path.read_bytes()
            if action == "put back":  # by one entry: it is redone
                ledger.set_cap("other", 1.0, 1e-5)
                path.write_bytes(before)
            ledger.close()
            ledger, granted = Ledger.open(path), True
        outcomes.add((action, granted))
        assert [row.state for row in ledger.rows()] == [charge["state"] for charge in oracle.charges]
        assert ledger.spent("ward").mu == pytest.approx(oracle.mu(), rel=1e-9, abs=1e-12)
    ledger.verify()
    ledger.close()
    assert {("charge", True), ("void", False), ("accept", False)} <= outcomes


def happens(act: Callable[[], Any], expected: bool) -> bool:
    """Do it, or see that it is refused, as expected."""
    if expected:
        act()
    else:
        with pytest.raises(DistqexpError):
            act()
    return expected
