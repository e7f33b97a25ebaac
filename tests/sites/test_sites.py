"""Sites that share no machine: each with a folder, a ledger and processes of its own, and files between them.

Three rounds by hand give the same integer sums, releases and model, byte for byte, as one run over the same shards.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consortium import ROUNDS, SEED, SHARDS, Consortium, gather
from run_harness import Commands, overrides, write_table

from distqexp import api
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.errors import FileContentError
from distqexp.privacy.ledger import Ledger
from distqexp.stages import by_hand
from distqexp.stages.export import certificate_of


@pytest.mark.process
def test_three_rounds_by_files_are_one_run(consortium: Consortium) -> None:
    consortium.all_rounds(own_processes=1)
    consortium.check_against(consortium.as_one_run())


def test_sketching_the_same_records_again_costs_nothing(consortium: Consortium) -> None:
    consortium.plan()
    first = consortium.sketch("north", 0).read_bytes()
    (consortium.site("north") / "north-0.h5").unlink()
    assert consortium.sketch("north", 0).read_bytes() == first
    assert consortium.charges(consortium.site("north")) == [("site-north", "0")]


def test_other_records_of_a_site_are_charged_anew_while_the_budget_lasts(consortium: Consortium) -> None:
    consortium.plan()
    folder = consortium.site("north")
    consortium.sketch("north", 0)
    arguments = ["sketch", "plan.h5", "--data", "north.csv", "--shard", "north", "--insecure-noise-seed", SEED, "--out"]
    write_table(folder / "north.csv", 50, 12)
    consortium.at(folder).done(*arguments, "again.h5")
    # Two charges for round 0: of the budget for three rounds, rounds 1 and 2 don't fit any more.
    write_table(folder / "north.csv", 51, 12)
    refusal = consortium.at(folder).distqexp(*arguments, "once-more.h5")
    refusal.refused(4, "budget spent", "2 releases on record and 2 more")
    assert consortium.charges(folder) == [("site-north", "0")] * 2
    assert not list(folder.glob("once-more.h5*"))


def test_a_sketch_that_was_interrupted_after_its_charge(consortium: Consortium) -> None:
    consortium.plan()
    undisturbed = consortium.sketch("east", 0).read_bytes()
    folder = consortium.site("east")
    (folder / "east-0.h5").unlink()
    shutil.rmtree(folder / "books")

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with consortium.patch.context() as patch:
        patch.setattr(by_hand, "whole_sketch", killed)
        with pytest.raises(Killed):
            consortium.sketch("east", 0)
    assert (folder / "east-0.h5.parts").stat().st_mode & 0o077 == 0
    assert not (folder / "east-0.h5").exists()
    assert consortium.sketch("east", 0).read_bytes() == undisturbed
    assert consortium.charges(folder) == [("site-east", "0")]


@pytest.mark.slow
def test_pool_wants_exactly_the_shards_of_the_plan(consortium: Consortium) -> None:
    consortium.plan()
    sketches = [consortium.sketch(shard, 0) for shard in SHARDS]
    curator = consortium.at(consortium.curator)
    new = consortium.curator / "new.h5"
    curator.distqexp("pool", "plan.h5", *sketches[:3], "--out", new).refused(3, "west", "missing")
    curator.distqexp("pool", "plan.h5", *sketches, sketches[1], "--out", new).refused(3, "'south' again")
    curator.distqexp("pool", "plan.h5", *sketches[:3], sketches[0], "--out", new).refused(3, "'north' again")
    curator.distqexp("pool", "plan.h5", *sketches[:3], "plan.h5", "--out", new).refused(3, "'plan'", "'sketch'")
    curator.distqexp("pool", "plan.h5", *sketches[:3], "gone.h5", "--out", new).refused(2, "gone.h5", "no such file")
    assert not new.exists()
    consortium.pool(0, sketches)


@pytest.mark.slow
def test_rounds_and_releases_are_not_mixed(consortium: Consortium, own_ledger: Path) -> None:
    consortium.plan()
    first = [consortium.sketch(shard, 0) for shard in SHARDS]
    consortium.pool(0, first)
    consortium.release(0)
    second = [consortium.sketch(shard, 1) for shard in SHARDS[:3]]
    # A fourth site works from another release of the same round of the same plan.
    curator = consortium.at(consortium.curator)
    consortium.patch.setenv("DISTQEXP_LEDGER", str(own_ledger))
    curator.done(*consortium.release_command(0, "other.h5", seed="18"))
    shutil.copy(consortium.curator / "other.h5", consortium.site("west") / "release-000.h5")
    stray = consortium.sketch("west", 1, seed="18")

    curator, new = consortium.at(consortium.curator), consortium.curator / "new.h5"
    curator.distqexp("pool", "plan.h5", *second, stray, "--out", new).refused(3, "west-1.h5", "another release")
    curator.distqexp("pool", "plan.h5", *second, first[3], "--out", new).refused(3, "west-0.h5: round 0", "round 1")
    assert not new.exists()

    shutil.copy(consortium.curator / "release-000.h5", consortium.site("west"))
    (consortium.site("west") / "west-1.h5").unlink()
    consortium.pool(1, [*second, consortium.sketch("west", 1)])
    wrong = consortium.release_command(1, "new.h5")
    curator = consortium.at(consortium.curator)
    mistaken = ["other.h5" if word == "release-000.h5" else word for word in wrong]
    curator.distqexp(*mistaken).refused(2, "--insecure-noise-seed: found 17", "18")
    curator.distqexp(*mistaken[:-1], "18").refused(3, "sketched at")
    without = [word for word in wrong if word not in ("--previous", "release-000.h5")]
    curator.distqexp(*without).refused(3, "quadratic: round 1")
    assert not new.exists()
    assert consortium.charges(consortium.curator) == [("release", "0")]
    consortium.release(1)


@pytest.mark.slow
def test_a_release_repeated_is_the_same_file_and_one_charge(consortium: Consortium) -> None:
    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    command = [word for word in consortium.release_command(0, "a.h5") if word not in ("--insecure-noise-seed", SEED)]
    curator = consortium.at(consortium.curator)
    curator.done(*command)
    curator.done(*["b.h5" if word == "a.h5" else word for word in command])
    assert (consortium.curator / "a.h5").read_bytes() == (consortium.curator / "b.h5").read_bytes()
    assert consortium.charges(consortium.curator) == [("release", "0")]
    curator.distqexp(*command).refused(2, "a.h5", "exists")
    # Without --keep-quadratic the private file goes.
    command = ["c.h5" if word == "a.h5" else word for word in command if word != "--keep-quadratic"]
    curator.done(*command)
    assert not (consortium.curator / "quadratic-000.h5").exists()


def test_what_a_site_can_get_wrong(consortium: Consortium) -> None:
    consortium.plan()
    folder = consortium.site("north")
    site, start = consortium.at(folder), ["sketch", "plan.h5", "--out", "out.h5"]
    site.distqexp(*start).refused(2, "not in the plan", "north, south, east, west", "--shard")
    site.distqexp(*start, "--shard", "norht", "--data", "north.csv").refused(2, "norht", "not in the plan")
    site.distqexp(*start, "--shard", "north").refused(2, "--data", "csv file of shard north")
    site.distqexp(*start, "--shard", "north", "--data", "gone.csv").refused(2, "gone.csv", "no such file")
    site.distqexp(*start, "--shard", "north", "--data", "north.csv", "--release", "gone.h5").refused(2, "gone.h5")
    site.distqexp("sketch", "plan.h5", "--data", "north.csv", "--out", "no/where.h5").refused(2, "folder")
    site.distqexp("sketch", "plan.h5", "--data", "north.csv", "--out", "plan.h5").refused(2, "exists")
    site.distqexp("sketch", "north.csv", "--data", "north.csv", "--out", "out.h5").refused(3, "north.csv")
    assert not list(folder.glob("out.h5*"))
    assert consortium.charges(folder) == []


def test_what_the_coordinator_can_get_wrong(consortium: Consortium) -> None:
    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    curator = consortium.at(consortium.curator)
    release = ["release", "plan.h5", "quadratic-000.h5", "--out", "new.h5"]
    curator.distqexp(*release).refused(2, "--config", "data.public")
    other = overrides("mechanism.step=0.5")
    curator.distqexp(*release, "--config", "task.toml", *other).refused(3, "not the one that plan")
    assert not (consortium.curator / "new.h5").exists()
    assert consortium.charges(consortium.curator) == []
    consortium.release(0)
    export = ["export", "plan.h5", "release-000.h5", "--out", "model"]
    curator.distqexp(*export).refused(2, "rounds [0]", "each of 0 to 2 once")
    assert not (consortium.curator / "model").exists()


@pytest.mark.slow
def test_export_refuses_another_ledger_and_another_config_before_it_writes(
    consortium: Consortium, own_ledger: Path
) -> None:
    consortium.all_rounds(own_processes=0)
    releases = [f"release-{round:03d}.h5" for round in range(ROUNDS)]
    curator = consortium.at(consortium.curator)
    export = ["export", "plan.h5", *releases, "--out", "again"]
    curator.distqexp(*export, "--config", "task.toml", "--set", "mechanism.step=0.5").refused(3, "not the one")
    curator.distqexp(*export, releases[0]).refused(2, "rounds [0, 0, 1, 2]")
    curator.distqexp("sketch", "plan.h5", "--shard", "north", "--data", "x.csv", "--release", releases[2],
                     "--insecure-noise-seed", SEED, "--out", "x.h5").refused(3, "last round")  # fmt: skip
    consortium.patch.setenv("DISTQEXP_LEDGER", str(own_ledger))
    curator.distqexp(*export).refused(3, "no charge", "use the ledger that the release was charged to")
    assert not (consortium.curator / "again").exists()


@pytest.mark.slow
def test_seeded_and_private_rounds_do_not_go_together(consortium: Consortium) -> None:
    """Neither a draw from real entropy on top of a seeded round nor a sketch for one; and no certificate claims a guarantee."""
    consortium.plan()
    consortium.pool(0, [consortium.sketch(shard, 0) for shard in SHARDS])
    consortium.release(0)
    site = consortium.at(consortium.site("north"))
    command = ["sketch", "plan.h5", "--data", "north.csv", "--release", "release-000.h5", "--out", "north-1.h5"]
    site.distqexp(*command).refused(3, "NOT PRIVATE", SEED)
    site.distqexp(*command, "--insecure-noise-seed", "18").refused(3, "noise seed 17", "18")
    assert not list(consortium.site("north").glob("north-1.h5*"))
    assert consortium.charges(consortium.site("north")) == [("site-north", "0")]
    assert {row.private for row in Ledger.open(consortium.site("north") / "books" / "ledger.sqlite").rows()} == {False}

    consortium.pool(1, [consortium.sketch(shard, 1) for shard in SHARDS])
    curator = consortium.at(consortium.curator)
    curator.distqexp(*consortium.release_command(1)[:-2]).refused(2, "--insecure-noise-seed: found None", SEED)
    curator.distqexp(*consortium.release_command(1, seed="18")).refused(2, "found 18", SEED)
    assert consortium.charges(consortium.curator) == [("release", "0")]
    consortium.release(1)
    consortium.pool(2, [consortium.sketch(shard, 2) for shard in SHARDS])
    consortium.release(2)

    # A mark taken out of one release by hand: the others still have theirs.
    paths = [consortium.curator / f"release-{round:03d}.h5" for round in range(ROUNDS)]
    plan = Plan.read(consortium.curator / "plan.h5")
    releases = [Release.read(path, plan) for path in paths]
    releases[1] = replace(releases[1], noise_seed=None)
    certificate = certificate_of(plan, releases, "ab" * 32, {}, [None] * ROUNDS)
    assert certificate["private"] is False
    assert certificate["statement"].startswith("NOT PRIVATE")
    paths[1].unlink()
    releases[1].write(paths[1])
    consortium.at(consortium.curator)
    with pytest.raises(FileContentError, match="noise seed None; round 0 has 17"):
        api.export("plan.h5", paths, consortium.curator / "model")


# --- the ICU units of set b --------------------------------------------------------------------------------------

UNITS = {
    "ccu": "CCU == 1",
    "csru": "CSRU == 1",
    "sicu": "SICU == 1",
    "micu": "CCU == 0 and CSRU == 0 and SICU == 0",
}


def icu_tree(data_folder: Path) -> dict[str, Any]:
    """Three rounds of the logistic task; the shards are the units of set b."""
    roles = {"target": "In-hospital_death", "exclude": ["recordid", "SAPS-I", "SOFA", "Length_of_stay", "Survival"]}
    set_b = str(data_folder / "icu2012" / "set-b.csv.gz")
    return {
        "model": {
            "factory": "distqexp.problem.models:logistic",
            "args": {"inputs": 186, "outputs": 1, "bias": False},
            "loss": "binary-cross-entropy",
            "pretrain": {"epochs": 20, "optimiser": "lbfgs", "learning_rate": 1.0, "weight_decay": 0.01},
        },
        "data": {
            "population": "icu2012-set-b",
            "public": {
                "format": "csv",
                "path": str(data_folder / "icu2012" / "set-a.csv.gz"),
                "where": UNITS["micu"],
                "columns": roles | {"missing_flag_above": 0.05, "constant": True},
            },
            "private": [
                {"format": "csv", "path": set_b, "columns": roles, "where": where, "unit": "recordid", "shard": shard}
                for shard, where in UNITS.items()
            ],
            "eval": {"format": "csv", "path": set_b, "columns": roles, "rows": [[3000, 4000]]},
            "eval_private": True,  # records of the shards
        },
        "privacy": {"epsilon": 1.0, "delta": 2.5e-5, "units": 4000},
        "precision": {"kind": "dense", "damping": 3.0, "samples": 1000},
        "mechanism": {"rounds": ROUNDS, "clip_quantile": 0.9},
    }


def write_units(data_folder: Path, consortium: Consortium) -> dict[str, int]:
    """Each unit's own rows of set b, field by field as they stand there; returns how many each has."""
    with gzip.open(data_folder / "icu2012" / "set-b.csv.gz", "rt", encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    flags = [header.index(name) for name in ("CCU", "CSRU", "SICU")]
    count = {}
    for shard in UNITS:
        wanted = ["1" if name == shard.upper() else "0" for name in ("CCU", "CSRU", "SICU")]
        mine = [row for row in rows if [row[flag] for flag in flags] == wanted]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *mine])
        (consortium.site(shard) / f"{shard}.csv").write_text(text.getvalue(), "utf-8")
        count[shard] = len(mine)
    return count


@pytest.mark.process
@pytest.mark.slow
def test_the_four_icu_units_of_set_b(
    tmp_path: Path, data_folder: Path, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = gather(tmp_path, icu_tree(data_folder), tuple(UNITS), run, monkeypatch)
    count = write_units(data_folder, consortium)
    assert sum(count.values()) == 4000
    assert min(count.values()) > 300
    consortium.all_rounds(own_processes=ROUNDS)
    consortium.check_against(consortium.as_one_run())


def test_patients_of_the_sites_have_several_scattered_records(consortium: Consortium) -> None:
    """Otherwise the comparison above would not test units."""
    lines = (consortium.site("west") / "west.csv").read_text("utf-8").splitlines()[1:]
    patients = [line.split(",")[0] for line in lines]
    assert len(set(patients)) < len(patients)
    grouped = sorted(patients, key=patients.index)
    assert patients != grouped
