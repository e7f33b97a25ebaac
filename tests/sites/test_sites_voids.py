"""Rounds that are given up between sites: the coordinator's void, what each site checks it against, and what it costs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from consortium import SEED, SHARDS, Consortium
from run_harness import Commands, table_tree, write_task
from void_files import accept, history, states

from distqexp import api
from distqexp.errors import FileContentError
from distqexp.mechanism.rule import ReleaseRule
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.head import Anchor
from distqexp.stages.void import Void
from distqexp.storage.hdf5 import read_file, write_file


def dropped_out(consortium: Consortium, missing: str = "west") -> Path:
    """All sites but one sketch round 0, and the coordinator gives the round up; returns the void file."""
    consortium.plan()
    for shard in SHARDS:
        if shard != missing:
            consortium.sketch(shard, 0)
    said = consortium.at(consortium.curator).done("void", "plan.h5", "--out", "void-000.h5").out
    assert "never released" in said
    assert "not signed yet" in said
    return consortium.curator / "void-000.h5"


def forged(path: Path, out: Path, header: Mapping[str, Any] = {}, plan_id: str = "") -> Path:
    """The void with other fields, and right checksums."""
    stored = read_file(path)
    write_file(
        out,
        kind="void",
        plan_id=plan_id or stored.plan_id,
        header={**stored.header, **header},
        arrays={},
        private=False,
    )
    return out


def test_a_site_drops_out_and_the_others_take_their_charge_back(consortium: Consortium) -> None:
    file = dropped_out(consortium)
    north = consortium.at(consortium.site("north"))
    assert "given back" in accept(consortium, "north", file).out
    assert states(consortium.site("north")) == ["voided"]
    shown = north.done("ledger", "show").out.splitlines()
    assert shown[-1].endswith("voided") or ", voided" in shown[-1]
    assert "spent in all: mu 0" in shown[1]
    before = history(consortium.site("north"))
    accept(consortium, "north", file).refused(3, "already", "once")
    accept(consortium, "west", file).refused(2, "no ledger there")
    assert history(consortium.site("north")) == before
    # The same records again are charged anew.
    (consortium.site("north") / "north-0.h5").unlink()
    consortium.sketch("north", 0)
    assert states(consortium.site("north")) == ["voided", "committed"]
    accept(consortium, "north", file).refused(3, "already")


def test_a_void_round_is_never_released(consortium: Consortium) -> None:
    dropped_out(consortium)
    sketches = [consortium.curator / f"{shard}-0.h5" for shard in SHARDS[:3]]
    consortium.pool(0, [*sketches, consortium.sketch("west", 0)])
    before = history(consortium.curator)
    seeded = consortium.release_command(0, "new.h5")
    private = [word for word in seeded if word not in ("--insecure-noise-seed", SEED)]
    curator = consortium.at(consortium.curator)
    for command in (seeded, private, seeded):
        curator.distqexp(*command).refused(3, "voided this round", "never released")
    assert not (consortium.curator / "new.h5").exists()
    assert history(consortium.curator) == before
    assert (consortium.curator / "quadratic-000.h5").exists()


@pytest.mark.slow
def test_the_same_void_again_is_the_same_file_and_no_second_entry(consortium: Consortium) -> None:
    file = dropped_out(consortium)
    before, whole = history(consortium.curator), file.read_bytes()
    curator = consortium.at(consortium.curator)
    curator.done("void", "plan.h5", "--out", "void-000.h5")
    curator.done("void", "plan.h5", "--out", "copy.h5")
    file.unlink()
    curator.done("void", "plan.h5", "--out", "void-000.h5")
    assert (consortium.curator / "copy.h5").read_bytes() == file.read_bytes() == whole
    assert history(consortium.curator) == before
    assert [entry["body"]["action"] for entry in before] == ["void"]
    # Another file is not overwritten, and costs no entry.
    other = forged(file, consortium.curator / "other.h5", {"round": 1})
    for name in ("plan.h5", "task.toml", other.name):
        curator.distqexp("void", "plan.h5", "--out", name).refused(2, name, "exists")
    curator.distqexp("void", "plan.h5", "--out", "no/void.h5").refused(2, "folder")
    curator.distqexp("void", "void-000.h5", "--out", "new.h5").refused(3, "'void'", "'plan'")
    assert history(consortium.curator) == before
    assert "not signed yet" in curator.done("inspect", file).out
    assert "every checksum holds" in curator.done("verify", file).out


def killed_release(consortium: Consortium, owner: type, step: str) -> Commands:
    """Round 0 is planned, sketched and pooled, and its release killed at a step. Returns the coordinator's commands."""

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    curator = consortium.at(consortium.curator)
    with consortium.patch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(Killed):
            curator.distqexp(*consortium.release_command(0))
    return curator


@pytest.mark.slow
def test_after_a_draw_no_void_exists(consortium: Consortium, own_ledger: Path) -> None:
    """Not after a release, not after a draw that a kill kept from its release, not where the release only lies there."""
    curator = killed_release(consortium, Ledger, "commit")
    before = history(consortium.curator)
    curator.distqexp("void", "plan.h5", "--out", "void.h5").refused(2, "has a draw", "nothing can be voided")
    assert history(consortium.curator) == before
    consortium.release(0)
    for ledger, words in ((None, "released"), (own_ledger, "release-000.h5")):
        if ledger:  # by mistake another ledger, that knows of nothing
            consortium.patch.setenv("DISTQEXP_LEDGER", str(ledger))
        curator.distqexp("void", "plan.h5", "--out", "void.h5").refused(2, words)
    assert not (consortium.curator / "void.h5").exists()
    assert not own_ledger.exists()


def test_a_reservation_that_was_never_drawn_is_given_back_at_the_coordinator(consortium: Consortium) -> None:
    curator = killed_release(consortium, ReleaseRule, "draw")
    assert states(consortium.curator) == ["reserved"]
    curator.done("void", "plan.h5", "--out", "void.h5")
    assert states(consortium.curator) == ["voided"]
    curator.distqexp(*consortium.release_command(0)).refused(3, "voided this round")


@pytest.mark.slow
def test_forged_voids_give_nothing_back(consortium: Consortium) -> None:
    file = dropped_out(consortium)
    site = consortium.site("north")
    before = history(site)
    other = "0123456789abcdef" * 4
    for number, (changes, plan_id, words) in enumerate(
        [
            ({"round": 1}, "", ["round 1"]),
            ({"state": other}, "", ["state 0123456789abcdef"]),
            ({}, other, ["plan 0123456789abcdef"]),
            ({"population": "everyone"}, "", ["everyone", "patients"]),
            ({"shards": ["south", "east", "west"]}, "", ["no charge of", "site-south"]),
            ({"shards": []}, "", ["no charge of"]),
        ]
    ):
        path = forged(file, consortium.root / f"forged-{number}.h5", changes, plan_id)
        accept(consortium, "north", path).refused(3, *words)
    for number, changes in enumerate(
        [
            {"round": -1}, {"round": True}, {"round": "0"}, {"round": None}, {"state": "x"}, {"state": 5}, {"shards": "north"},
            {"shards": [1]}, {"shards": ["a\nb"]}, {"population": None}, {"ledger": None}, {"ledger": {"entry": 1}},
            {"ledger": {"entry": 1, "hash": "no"}},
        ]
    ):  # fmt: skip
        path = forged(file, consortium.root / f"malformed-{number}.h5", changes)
        accept(consortium, "north", path).refused(3, "not those of a void")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    (consortium.root / "damaged.h5").write_bytes(damaged)
    accept(consortium, "north", consortium.root / "damaged.h5").refused(3, "checksum")
    accept(consortium, "north", consortium.site("north") / "plan.h5").refused(3, "'plan'", "'void'")
    assert history(site) == before
    assert "given back" in accept(consortium, "north", file).out


@pytest.mark.slow
def test_a_later_round_is_given_up(consortium: Consortium, own_ledger: Path) -> None:
    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    consortium.release(0)
    consortium.sketch("north", 1)
    curator = consortium.at(consortium.curator)
    curator.distqexp("void", "plan.h5", "--out", "void-000.h5").refused(2, "released")
    after = ["void", "plan.h5", "--release", "release-000.h5", "--out", "void-001.h5"]
    consortium.patch.setenv("DISTQEXP_LEDGER", str(own_ledger))
    curator.distqexp(*after).refused(2, "no release of round 0")
    consortium.at(consortium.curator).done(*after)
    assert Void.read(consortium.curator / "void-001.h5").round == 1
    assert "given back" in accept(consortium, "north", consortium.curator / "void-001.h5").out
    assert states(consortium.site("north")) == ["committed", "voided"]
    accept(consortium, "south", consortium.curator / "void-001.h5").refused(3, "no charge of", "rounds [0]")


def test_a_void_of_a_round_that_was_released_is_refused_where_it_is_known(consortium: Consortium) -> None:
    """A coordinator with another ledger lies, or errs: the site that sketched the next round knows better."""
    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    elsewhere = consortium.root / "elsewhere"
    (elsewhere / "books").mkdir(parents=True)
    shutil.copy(consortium.curator / "plan.h5", elsewhere)
    consortium.at(elsewhere).done("void", "plan.h5", "--out", "void-000.h5")
    consortium.release(0)
    consortium.sketch("north", 1)
    before = history(consortium.site("north"))
    accept(consortium, "north", elsewhere / "void-000.h5").refused(3, "round 0 was released")
    assert history(consortium.site("north")) == before


def test_a_run_that_was_abandoned_before_its_draw(
    run: Commands,
    tmp_path: Path,
    own_ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``fit`` plays site and curator in one: the charge comes back, and the run can't go on."""

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    task = write_task(tmp_path, table_tree())
    with monkeypatch.context() as patch:
        patch.setattr(ReleaseRule, "draw", killed)
        with pytest.raises(Killed):
            run.fit(task, "--out", tmp_path / "run")
    run.done("void", tmp_path / "run" / "plan.h5", "--out", tmp_path / "void.h5")
    with Ledger.open(own_ledger) as ledger:
        assert [row.state for row in ledger.rows()] == ["voided"]
        assert ledger.spent("patients").mu == 0
    run.fit(task, "--out", tmp_path / "run", "--resume").refused(3, "voided this round")
    assert run.fit(task, "--out", tmp_path / "other", "--set", "subspace.seed=5").code == 0


def test_the_functions_say_what_they_did(consortium: Consortium) -> None:
    consortium.plan()
    consortium.sketch("north", 0)
    books = consortium.curator / "books" / "ledger.sqlite"
    made = api.void(consortium.curator / "plan.h5", consortium.root / "void.h5", ledger=books)
    with Ledger.open(books) as ledger:
        assert (made.entry, made.shards, made.round) == (Anchor(1, ledger.export()[0]["hash"]), SHARDS, 0)
    assert Void.read(consortium.root / "void.h5") == made
    site = consortium.site("north") / "books" / "ledger.sqlite"
    [row] = api.accept_void(consortium.root / "void.h5", ledger=site)
    assert row.key.startswith("site-north/")
    with pytest.raises(FileContentError, match="once"):
        api.accept_void(consortium.root / "void.h5", ledger=site)
    assert api.ledger_head(site) == "3:" + history(consortium.site("north"))[-1]["hash"]
