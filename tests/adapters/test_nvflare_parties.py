"""What FLARE carries, with a function in FLARE's place: the same bytes as by files, and refusals that tell nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flare_parties import CLIENTS, ROUNDS, SHARDS, Parties, make_parties

from distqexp.adapters.nvflare.settings import COORDINATOR_FILE, site_file
from distqexp.adapters.nvflare.site import attempt
from distqexp.adapters.nvflare.wire import SKETCH, VISIT, meaning
from distqexp.errors import DistqexpError, EngineError, FileContentError, UsageError

NORTH, SOUTH, WEST = CLIENTS


def require_the_files_way(parties: Parties, files: Path) -> None:
    for name in (f"{kind}-{round:03d}.h5" for kind in ("quadratic", "release") for round in range(ROUNDS)):
        assert (parties.out / name).read_bytes() == (files / name).read_bytes(), name
    for name in ("model.safetensors", "certificate.json"):
        assert (parties.out / "model" / name).read_bytes() == (files / "model" / name).read_bytes(), name
    for shard in SHARDS:
        assert [key.split("/")[2] for key in parties.charges(shard)] == ["0", "1"]
        assert list((parties.root / shard / "scratch").iterdir()) == []
    assert not list(parties.out.glob(".pooling-*"))


def test_a_trusted_curator_pools_the_integers_of_the_files_way(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    parties.absent = {(SKETCH, WEST)}
    with pytest.raises(EngineError, match="clinic-west: no answer in time"):
        parties.coordinator().run(parties.ask)
    parties.absent = set()
    parties.coordinator().run(parties.ask)  # north and south sketch round 0 again, and are charged once
    require_the_files_way(parties, files)
    assert parties.coordinator().run(parties.ask)["noise_seed"] == 5  # all is there: nothing is asked
    names = [name for name, _ in parties.asked]
    assert names == [SKETCH] * 3
    assert [len(payloads[NORTH]["releases"]) for _, payloads in parties.asked] == [0, 0, 1]
    for client in CLIENTS:
        log = (parties.local / site_file(client)).with_suffix(".log")
        assert log.stat().st_mode & 0o777 == 0o600
    assert parties.out.stat().st_mode & 0o777 == 0o700


def test_a_client_with_the_sketch_of_another_shard_is_refused(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    parties.change(NORTH, shard="south")
    with pytest.raises(FileContentError, match=f"client {NORTH}: sketch of shard 'south'; expected its own, north"):
        parties.coordinator().run(parties.ask)
    assert not (parties.out / "quadratic-000.h5").exists()


@pytest.mark.parametrize(
    ("task", "change", "payload", "code", "words"),
    [
        (SKETCH, {"plan_id": "0" * 64}, {}, 3, "belongs to another plan"),
        (SKETCH, {}, {"plan": "text"}, 3, "expected bytes"),
        (SKETCH, {}, {"releases": [1]}, 3, "expected bytes"),
        (SKETCH, {"shard": "east"}, {}, 2, "not in the plan"),
        (VISIT, {}, {}, 2, "expected the folder of a study"),
        ("train", {}, {}, 2, "expected one of"),
        (SKETCH, {"unknown": 1}, {}, 2, "unknown"),
        (SKETCH, {"shard": 7}, {}, 2, "shard is a int; expected a str"),
        (SKETCH, {"exchange": "study"}, {}, 2, "expected either plan_id"),
    ],
)
def test_a_site_refuses_and_tells_its_own_log_alone(
    files: Path, tmp_path: Path, task: str, change: dict[str, Any], payload: dict[str, Any], code: int, words: str
) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    parties.change(WEST, **change)
    whole = {"plan": (files / "plan.h5").read_bytes(), "releases": []}
    assert attempt(parties.local / site_file(WEST), task, whole | payload) == (code, {})
    (line,) = parties.log(WEST).splitlines()
    assert line.startswith("distqexp: ")
    assert words in line
    assert not (parties.root / "west" / "ledger.sqlite").exists() or not parties.charges("west")
    assert not list((parties.root / "west" / "scratch").iterdir())


def test_a_log_that_others_can_read_is_closed_and_one_that_fails_tells_nothing(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    log = (parties.local / site_file(WEST)).with_suffix(".log")
    log.write_text("")
    log.chmod(0o644)
    assert attempt(parties.local / site_file(WEST), "train", {}) == (2, {})
    assert log.stat().st_mode & 0o777 == 0o600
    log.unlink()
    log.mkdir()
    assert attempt(parties.local / site_file(WEST), "train", {}) == (6, {})


def test_the_coordinator_learns_a_class_of_errors(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    parties.change(WEST, plan_id="0" * 64)
    with pytest.raises(DistqexpError) as caught:
        parties.coordinator().run(parties.ask)
    told = (
        f"client {WEST}: exit code 3: it refused a file's content; its own log says why: mend it and run the job again"
    )
    assert str(caught.value) == told
    assert meaning(99) == "exit code 99: it failed"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('clinic-west = "west"', 'clinic-west = "east"', "sites east, north, south; expected a client for each"),
        ('clinic-west = "west"', 'clinic-west = "north"', "the same name twice in sites"),
        ("[sites]", "[places]", "unknown places"),
        ('clinic-west = "west"', "clinic-west = 3", "sites is a dict"),
        ('clinic-south = "south"\n', "", "expected a client for each"),
        ("[sites]", 'exchange = "study"\n[sites]', "expected either plan"),
    ],
)
def test_settings_of_a_coordinator_that_do_not_fit_are_refused_before_a_task(
    files: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    path = parties.local / COORDINATOR_FILE
    path.write_text(path.read_text().replace(f'"{old.split()[0]}"', old.split()[0]).replace(old, new))
    with pytest.raises(UsageError, match=words):
        parties.coordinator()
    assert not parties.out.exists()
