"""What FLARE carries, with a function in FLARE's place: the same bytes as by files, and refusals that tell nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flare_parties import CLIENTS, ROUNDS, SHARDS, Parties, by_files, make_parties

from distqexp.adapters.nvflare.settings import COORDINATOR_FILE, site_file
from distqexp.adapters.nvflare.site import attempt
from distqexp.adapters.nvflare.wire import ANSWER, MASK, SKETCH, meaning
from distqexp.errors import DistqexpError, EngineError, FileContentError, StoppedError, UsageError
from distqexp.storage.hdf5 import read_file

NORTH, SOUTH, WEST = CLIENTS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by files, and the plan."""
    return by_files(tmp_path_factory.mktemp("files") / "run")


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


def test_with_masks_the_sums_are_the_same_and_no_sketch_is_sent(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5", masks=True)
    parties.coordinator().run(parties.ask)
    require_the_files_way(parties, files)
    assert [name for name, _ in parties.asked] == [MASK, ANSWER] * ROUNDS
    for round, answers in enumerate(parties.answered[::2]):
        for client, (code, payload) in answers.items():
            assert (code, set(payload)) == (0, {"masked", "seeds", "state"})
            plain = read_file(files / f"{CLIENTS[client]}.{round}.h5").arrays["sums"]
            assert plain[:64].tobytes() not in payload["masked"]


def test_a_masked_round_goes_on_without_a_site_and_repeats_over_the_same_ones(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5", masks=True, k_min=2)
    parties.last_round = 0
    parties.absent = {(MASK, WEST), (ANSWER, SOUTH)}
    with pytest.raises(FileContentError, match="expected those of 2 helpers"):
        parties.coordinator().run(parties.ask)
    parties.absent = set()
    with pytest.raises(StoppedError):
        parties.coordinator().run(parties.ask)
    assert [set(payloads) for _, payloads in parties.asked[2:]] == [{NORTH, SOUTH}] * 2
    sums = read_file(parties.out / "quadratic-000.h5").arrays["sums"]
    plain = [read_file(files / f"{shard}.0.h5").arrays["sums"] for shard in ("north", "south")]
    np.testing.assert_array_equal(sums, plain[0] + plain[1])
    assert [len(parties.charges(shard)) for shard in SHARDS] == [1, 1, 0]


def test_a_client_with_the_sketch_of_another_shard_is_refused(files: Path, tmp_path: Path) -> None:
    parties = make_parties(tmp_path, files / "plan.h5")
    parties.change(NORTH, shard="south")
    with pytest.raises(FileContentError, match=f"client {NORTH}: sketch of shard 'south'; expected its own, north"):
        parties.coordinator().run(parties.ask)
    assert not (parties.out / "quadratic-000.h5").exists()


@pytest.mark.parametrize(
    ("masks", "task", "change", "payload", "code", "words"),
    [
        (False, SKETCH, {"plan_id": "0" * 64}, {}, 3, "belongs to another plan"),
        (False, SKETCH, {}, {"plan": "text"}, 3, "expected bytes"),
        (False, SKETCH, {}, {"releases": [1]}, 3, "expected bytes"),
        (False, SKETCH, {"shard": "east"}, {}, 2, "not in the plan"),
        (False, MASK, {}, {}, 2, "expected study"),
        (False, "train", {}, {}, 2, "expected one of"),
        (False, SKETCH, {"unknown": 1}, {}, 2, "unknown"),
        (False, SKETCH, {"shard": 7}, {}, 2, "shard is a int; expected a str"),
        (True, SKETCH, {}, {}, 3, "task: without masks"),
        (True, MASK, {}, {"round": 1}, 3, "round 1 after releases of rounds []"),
        (True, MASK, {}, {"round": 9}, 2, "round 9"),
        (True, MASK, {"plan_id": "0" * 64}, {}, 2, "expected either plan_id"),
        (True, ANSWER, {}, {"closing": b"", "seeds": []}, 2, "no helper_log"),
    ],
)
def test_a_site_refuses_and_tells_its_own_log_alone(
    files: Path,
    tmp_path: Path,
    masks: bool,
    task: str,
    change: dict[str, Any],
    payload: dict[str, Any],
    code: int,
    words: str,
) -> None:
    parties = make_parties(tmp_path, files / "plan.h5", masks=masks)
    parties.change(WEST, **change)
    whole = {"plan": (files / "plan.h5").read_bytes(), "releases": [], "round": 0, "attempt": 0}
    assert attempt(parties.local / site_file(WEST), task, whole | payload) == (code, {})
    (line,) = parties.log(WEST).splitlines()
    assert line.startswith("distqexp: ")
    assert words in line
    assert not (parties.root / "west" / "ledger.sqlite").exists() or not parties.charges("west")
    assert not list((parties.root / "west" / "scratch").iterdir())


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
