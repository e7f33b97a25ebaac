"""Voids of rounds that were released after all: a site that meets the release writes the charge down again, before anything is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from consortium import SEED, SHARDS, Consortium
from ledger_child import EVENT, reserve
from void_files import accept, history, ledger_of, states

from distqexp import api
from distqexp.errors import FileContentError, UsageError
from distqexp.privacy.ledger import Cap, Ledger

UNIVERSE = f"insecure-seed-{SEED}"
WARNING = "knows nothing of plan"


def falsely_voided(consortium: Consortium) -> Path:
    """Round 0 is released, and another ledger voids it; the north has its charge back. Returns the north's folder."""
    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    elsewhere = consortium.root / "elsewhere"
    (elsewhere / "books").mkdir(parents=True)
    shutil.copy(consortium.curator / "plan.h5", elsewhere)
    assert WARNING in consortium.at(elsewhere).done("void", "plan.h5", "--out", "void-000.h5").err
    consortium.release(0)
    assert "given back" in accept(consortium, "north", elsewhere / "void-000.h5").out
    north = consortium.site("north")
    assert states(north) == ["voided"]
    return north


def mu(folder: Path) -> float:
    with ledger_of(folder) as ledger:
        return float(ledger.spent("patients", UNIVERSE).mu)


@pytest.mark.slow
def test_the_charge_of_a_released_round_stands_again_before_anything_is_read(consortium: Consortium) -> None:
    north = falsely_voided(consortium)
    paid = mu(consortium.site("south"))
    assert (mu(north), paid > 0) == (0, True)
    command = ["sketch", "plan.h5", "--data", "north.csv", "--out", "north-1.h5", "--release", "release-000.h5"]
    command += ["--insecure-noise-seed", SEED]
    (north / "north.csv").rename(north / "away.csv")  # refused all the same
    line = (
        consortium.at(north).distqexp(*command).refused(3, "round 0", "voided", "void was false", "ask the coordinator")
    )
    assert len(line.strip().splitlines()) == 1
    assert not list(north.glob("north-1.h5*"))
    assert (states(north), mu(north)) == (["committed"], paid)
    assert history(north)[-1]["body"]["action"] == "reinstate"
    (north / "away.csv").rename(north / "north.csv")
    # The void is worth nothing any more, and the next try pays for its own round on top.
    accept(consortium, "north", consortium.root / "elsewhere" / "void-000.h5").refused(3, "already", "once")
    consortium.sketch("north", 1)
    consortium.sketch("south", 1)
    assert states(north) == ["committed", "committed"]
    assert mu(north) == mu(consortium.site("south")) > paid


def command(plan: Path, site: Path, out: Path, books: Path, name: str) -> None:
    release = site / "release-000.h5"
    if name == "void":
        api.void(plan, out, release=release, ledger=books)
    elif name == "export":
        api.export(plan, [release], out, ledger=books)
    elif name == "release":
        api.release(plan, "missing.h5", out, previous=release, insecure_noise_seed=int(SEED), ledger=books)
    else:
        seed = None if name == "sketch" else 99
        api.sketch(
            plan, site / "north.csv", out, release=release, shard="north", insecure_noise_seed=seed, ledger=books
        )


@pytest.mark.slow
def test_every_command_that_takes_a_release_tells(consortium: Consortium) -> None:
    """Whatever else is wrong with the command: the release isn't of its noise, rounds are missing, files are."""
    north = falsely_voided(consortium)
    plan = north / "plan.h5"
    for name in ("sketch", "other noise", "void", "export", "release"):
        books = shutil.copytree(north / "books", consortium.root / name) / "ledger.sqlite"
        out = consortium.root / f"{name}.h5"
        with pytest.raises(FileContentError, match=r"round 0 of plan .* the void was false"):
            command(plan, north, out, books, name)
        with Ledger.open(books) as ledger:
            assert [row.state for row in ledger.rows()] == ["committed"], name


def test_rows_that_stand_again(tmp_path: Path) -> None:
    """Rounds up to the release's, of this plan alone; counted beyond a cap; never given back again, under no other state."""
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for key in ("site-a/p/0/s", "site-a/p/1/t", "site-a/q/0/s"):
            ledger.commit(reserve(ledger, key=key, cap=Cap(50.0, 1e-2)), None)
        paid = ledger.spent("ward").mu
        roles = ["site-a"]
        with pytest.raises(FileContentError, match="was released"):  # a later round stands
            ledger.accept_void(population="ward", release="p/0/s", roles=roles)
        for release in ("p/1/t", "q/0/s"):
            ledger.accept_void(population="ward", release=release, roles=roles)
        ledger.set_cap("ward", 1e-3, 1e-9)
        before = ledger.export()
        assert ledger.reinstate(plan="p", round=0) == []
        assert ledger.export() == before
        assert [row.id for row in ledger.reinstate(plan="p", round=1)] == [3]
        assert ledger.reinstate(plan="p", round=5) == []
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert [row.state for row in ledger.rows()] == ["committed", "committed", "voided"]
        [*_, last] = ledger.export()
        assert last["body"] == {"action": "reinstate", "plan": "p", "round": 1, "reservations": [3]}
        ledger.reinstate(plan="q", round=0)
        assert ledger.spent("ward").mu == paid
        ledger.set_cap("ward", 50.0, 1e-2)
        ledger.commit(reserve(ledger, key="site-a/q/0/other", cap=Cap(50.0, 1e-2), event=EVENT), None)
        for release in ("p/1/t", "q/0/s", "q/0/other"):
            with pytest.raises(FileContentError, match=r"once|was released"):
                ledger.accept_void(population="ward", release=release, roles=roles)
        ledger.verify()


def test_a_reinstated_charge_is_no_release_to_build_a_void_on(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        reserve(ledger, key="release/p/0/s")
        ledger.void(population="ward", release="p/0/s")
        ledger.reinstate(plan="p", round=0)
        assert [row.state for row in ledger.rows()] == ["committed"]
        with pytest.raises(UsageError, match="no release of round 0"):
            ledger.void(population="ward", release="p/1/t")
        with pytest.raises(UsageError, match="has a draw"):
            ledger.void(population="ward", release="p/0/other")


def test_a_void_in_a_ledger_that_knows_nothing_of_the_plan_warns_once(consortium: Consortium) -> None:
    consortium.plan()
    curator = consortium.at(consortium.curator)
    [line] = curator.done("void", "plan.h5", "--out", "void-000.h5").err.splitlines()
    assert line.startswith("distqexp: warning: ")
    assert WARNING in line
    assert "DISTQEXP_LEDGER" in line
    assert curator.done("void", "plan.h5", "--out", "copy.h5").err == ""
