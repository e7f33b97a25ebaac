"""Voids in the ledger: what was never drawn is given back once and never drawn later; what was drawn stays charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_child import CAP, EVENT, SUMS, reserve

from distqexp.errors import BudgetError, DistqexpError, FileContentError, UsageError
from distqexp.privacy.expenses import Part
from distqexp.privacy.ledger import Ledger

NOISE = np.array([10, -20, 30, -40, 50], dtype=np.int64)
SMALL = replace(EVENT, mu=0.01)
RELEASE = "plan/0/state"
VOID = {"population": "ward", "release": RELEASE}


def site(ledger: Ledger, release: str = RELEASE, role: str = "site-a", **changes: Any) -> Any:
    """What a site charges when it sketches."""
    reservation = reserve(ledger, **({"key": f"{role}/{release}", "event": SMALL} | changes))
    ledger.commit(reservation, None)
    return reservation


def curator(ledger: Ledger, release: str = RELEASE, state: str = "reserved", **changes: Any) -> Any:
    """What the curator charges for a release, as far as it came."""
    reservation = reserve(ledger, **({"key": f"release/{release}", "event": SMALL} | changes))
    if state != "reserved":
        ledger.persist_noise(reservation, NOISE)
    if state == "committed":
        ledger.commit(reservation, SUMS + NOISE)
    return reservation


def states(ledger: Ledger) -> list[str]:
    return [row.state for row in ledger.rows()]


def unchanged(ledger: Ledger, act: Callable[[], Any], kind: type[DistqexpError], match: str) -> None:
    """The act is refused in one line and leaves the ledger as it is."""
    before = ledger.export()
    with pytest.raises(kind, match=match) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert ledger.export() == before


# --- at the coordinator ------------------------------------------------------------------------------------------


def test_a_void_release_is_refused_for_ever_whatever_the_sums(path: Path, ledger: Ledger) -> None:
    first = curator(ledger)
    voided = ledger.void(**VOID)
    assert (voided.number, states(ledger), ledger.spent("ward").mu) == (2, ["voided"], 0.0)
    assert ledger.void(**VOID) == voided
    with Ledger.open(path) as later:
        for changes in ({}, {"sums": SUMS + 1}, {"universe": "insecure-seed-1"}, {"event": EVENT}, {"population": "w"}):
            unchanged(later, lambda changes=changes: curator(later, **changes), FileContentError, "entry 2 voided")
        unchanged(
            later, lambda: later.persist_noise(first, NOISE), FileContentError, "voided, its charge was given back"
        )
        for released in (None, SUMS):
            unchanged(later, lambda released=released: later.commit(first, released), FileContentError, "voided")
        unchanged(later, lambda: later.noise(first), UsageError, "voided, expected drawn")
        unchanged(later, lambda: later.noisy_sums(first), UsageError, "voided, expected committed")
        assert not list(path.with_name("ledger.sqlite.files").glob("*.npy"))
        # Other rounds, plans and states go on.
        for release in ("plan/0/other", "plan/1/state", "other/0/state"):
            assert curator(later, release).state == "reserved"
        later.verify()


@pytest.mark.parametrize("state", ["drawn", "committed"])
@pytest.mark.parametrize("changes", [{}, {"universe": "insecure-seed-1"}, {"population": "elsewhere"}])
@pytest.mark.parametrize("release", [RELEASE, "plan/0/other"])
def test_after_a_draw_of_the_round_at_any_state_no_void_exists(
    ledger: Ledger, state: str, changes: dict[str, Any], release: str
) -> None:
    curator(ledger, release, state, **changes)
    curator(ledger, sums=SUMS + 1)
    unchanged(ledger, lambda: ledger.void(**VOID), UsageError, "has a draw for round 0")


def test_a_draw_that_a_kill_left_without_its_entry_is_a_draw(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    reservation = curator(ledger)
    with monkeypatch.context() as patch:
        patch.setattr("distqexp.privacy.ledger.chain.Chain.append", killed)
        with pytest.raises(Killed):
            ledger.persist_noise(reservation, NOISE)
    assert states(ledger) == ["reserved"]
    unchanged(ledger, lambda: ledger.void(**VOID), UsageError, "has a draw")
    assert curator(ledger).state == "drawn"


def test_a_round_that_a_later_one_builds_on_was_released(ledger: Ledger) -> None:
    """Also by a row of a site that shares the ledger, or by one that was given back."""
    site(ledger, "plan/1/state")
    unchanged(ledger, lambda: ledger.void(**VOID), UsageError, "entry 1 is of round 1")
    ledger.accept_void(population="ward", release="plan/1/state", roles={"site-a"})
    unchanged(ledger, lambda: ledger.void(**VOID), UsageError, "entry 1 is of round 1")


def test_a_later_round_is_voided_in_the_ledger_that_released_the_one_before(ledger: Ledger) -> None:
    later = {"population": "ward", "release": "plan/1/next"}
    unchanged(ledger, lambda: ledger.void(**later), UsageError, "no release of round 0")
    curator(ledger, state="drawn")
    unchanged(ledger, lambda: ledger.void(**later), UsageError, "no release of round 0")
    ledger.commit(curator(ledger), SUMS + NOISE)
    curator(ledger, "plan/1/next")
    ledger.void(**later)
    assert states(ledger) == ["committed", "voided"]
    assert ledger.spent("ward").mu == pytest.approx(0.01, rel=1e-12)
    unchanged(ledger, lambda: ledger.void(**VOID), UsageError, "entry")


# --- at a site ---------------------------------------------------------------------------------------------------


def test_a_site_takes_its_charge_back_once(ledger: Ledger) -> None:
    site(ledger, event=EVENT)
    other = {"population": "ward", "cap": CAP, "charges": [ledger.rows()[0].charge._replace(key="site-a/next/0")]}
    with pytest.raises(BudgetError):
        ledger.check(**other)
    [row] = ledger.accept_void(**VOID, roles={"site-a", "site-b"})
    assert (row.id, states(ledger), ledger.spent("ward").mu) == (1, ["voided"], 0.0)
    ledger.check(**other)
    unchanged(ledger, lambda: ledger.accept_void(**VOID, roles={"site-a"}), FileContentError, "entry 3 gave the charge")
    # The same sums again are a new charge, which the same void doesn't give back.
    again = site(ledger, event=EVENT)
    assert (again.id, states(ledger)) == (4, ["voided", "committed"])
    assert ledger.spent("ward").mu == pytest.approx(EVENT.mu, rel=1e-12)
    unchanged(ledger, lambda: ledger.accept_void(**VOID, roles={"site-a"}), FileContentError, "it counts once")
    with pytest.raises(BudgetError):
        ledger.check(**other)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"release": "plan/1/state"}, "no charge of site-a for round 1"),
        ({"release": "other/0/state"}, "no charge of site-a for round 0 of plan other"),
        ({"release": "plan/0/other"}, "at state other"),
        ({"population": "elsewhere"}, "is of population 'ward', the void of 'elsewhere'"),
        ({"roles": {"site-b"}}, "no charge of site-b"),
        ({"roles": {"release"}}, "no charge of release"),
        ({"roles": set()}, "no charge of"),
    ],
)
def test_a_void_of_something_else_gives_nothing_back(ledger: Ledger, change: dict[str, Any], match: str) -> None:
    site(ledger)
    unchanged(ledger, lambda: ledger.accept_void(**({**VOID, "roles": {"site-a"}} | change)), FileContentError, match)
    assert states(ledger) == ["committed"]


@pytest.mark.parametrize("universe", ["private", "insecure-seed-1"])
def test_a_round_that_was_released_as_the_site_knows_stays_charged(ledger: Ledger, universe: str) -> None:
    site(ledger, universe=universe)
    site(ledger, "plan/1/next", universe=universe)
    act = lambda: ledger.accept_void(**VOID, roles={"site-a"})  # noqa: E731
    unchanged(ledger, act, FileContentError, r"by entry 3 \(round 1\) round 0 was released")
    ledger.accept_void(population="ward", release="plan/1/next", roles={"site-a"})
    unchanged(ledger, act, FileContentError, "round 0 was released")
    assert states(ledger) == ["committed", "voided"]


@pytest.mark.parametrize("state", ["drawn", "committed"])
def test_a_draw_in_a_shared_ledger_stands_against_a_void_from_elsewhere(ledger: Ledger, state: str) -> None:
    site(ledger)
    curator(ledger, state=state)
    unchanged(ledger, lambda: ledger.accept_void(**VOID, roles={"site-a"}), FileContentError, "was released")


def test_sites_and_curator_of_one_ledger(ledger: Ledger) -> None:
    for role in ("site-a", "site-b"):
        site(ledger, role=role)
    curator(ledger, event=EVENT)
    assert ledger.spent("ward").mu == pytest.approx(EVENT.mu, rel=1e-12)
    ledger.void(**VOID)
    assert ledger.spent("ward").mu == pytest.approx(SMALL.mu, rel=1e-12)
    assert [row.key for row in ledger.accept_void(**VOID, roles={"site-a", "site-b"})] == [
        f"site-a/{RELEASE}",
        f"site-b/{RELEASE}",
    ]
    assert ledger.spent("ward").mu == 0.0
    assert [row.charge.key for row in ledger.rows()] == [f"site-a/{RELEASE}", f"site-b/{RELEASE}", f"release/{RELEASE}"]


def test_test_universes_are_given_back_too(ledger: Ledger) -> None:
    for universe in ("private", "insecure-seed-1", "insecure-seed-2"):
        site(ledger, universe=universe)
    assert len(ledger.accept_void(**VOID, roles={"site-a"})) == 3
    assert [ledger.spent("ward", f"insecure-seed-{seed}").mu for seed in (1, 2)] == [0.0, 0.0]


def test_a_sketch_that_was_under_way_is_not_finished_under_a_charge_that_was_given_back(ledger: Ledger) -> None:
    reservation = reserve(ledger, key=f"site-a/{RELEASE}")
    ledger.accept_void(**VOID, roles={"site-a"})
    unchanged(ledger, lambda: ledger.commit(reservation, None), FileContentError, "sketch again")
    assert site(ledger).id == 3


@pytest.mark.parametrize("voided", [True, False])
def test_the_parts_of_a_sketch_that_no_release_used_bind_nobody(ledger: Ledger, voided: bool) -> None:
    """The units of the void sketch paid for nothing, so that they may stand in another part afterwards."""
    site(ledger, "plan/0/state", part=Part(0, 2), basis=b"order of the files")
    if voided:
        ledger.accept_void(**VOID, roles={"site-a"})
    site(ledger, "plan/1/state", part=Part(1, 2), basis=b"another order")
    assert ledger.rows()[-1].part == (Part(1, 2) if voided else None)
