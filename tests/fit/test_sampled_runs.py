"""Whole runs with sampled rounds: what is summed, who is read, what is kept and erased, and what shows of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import Killed, killing, noise_files, ran, rows_of, small_config
from numpy.typing import NDArray
from run_harness import Commands
from small_runs import plan_of, unit_integers

from distqexp import api
from distqexp.artefacts.release import diagnostics_of
from distqexp.config import Config
from distqexp.config.checks import check
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.mechanism.coins import toss_insecure_coins
from distqexp.privacy.events import GaussianRelease
from distqexp.privacy.ledger.ledger import Ledger
from distqexp.problem.dataset import Dataset
from distqexp.report.progress import ProgressEvent
from distqexp.stages import release as release_stage
from distqexp.stages import rounds as rounds_stage
from distqexp.stages import sampling as sampling_stage
from distqexp.stages import sketch as sketch_stage
from distqexp.stages.plan import describe_plan
from distqexp.stages.shards import open_shards
from distqexp.storage.hdf5 import read_file

SAMPLING, ROUNDS, SEED = 0.4, 3, 5
SAMPLED = {
    "mechanism": {"rounds": ROUNDS, "sampling": SAMPLING},
    "output": {"keep_sketches": True},
}


def config_of(folder: Path, **sections: Any) -> Config:
    """Eighteen units of one to nine records; a micro-batch holds fewer than the largest unit has."""
    merged = {**SAMPLED, **sections}
    config = small_config(folder, **{name: dict(values) for name, values in merged.items()})
    return replace(config, engine=replace(config.engine, micro_batch=4))


def sums(out: Path, round: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = read_file(out / f"quadratic-{round:03d}.h5").arrays["sums"]
    return found


def coin_files(ledger: Path) -> list[str]:
    return [path.name for path in Path(f"{ledger}.files").glob("coins-*")]


@pytest.mark.parametrize("adjacency", ["zero-out", "add-remove"])
def test_a_round_sums_the_integers_of_the_drawn_units_exactly(adjacency: str, tmp_path: Path, own_ledger: Path) -> None:
    """The oracle: every unit's integers from a pass over everybody, and the coins that the seed gives."""
    config = config_of(tmp_path, privacy={"adjacency": adjacency})
    result = ran(config, tmp_path / "out", insecure_noise_seed=SEED)
    state, plan = result.plan.state, result.plan
    everybody = replace(plan, config=replace(plan.config, mechanism=replace(plan.config.mechanism, sampling=1.0)))
    for release in result.releases:
        integers = unit_integers(config, everybody, state)
        coins = toss_insecure_coins(len(integers), SAMPLING, SEED, state.round, "all")
        assert 0 < coins.sum() < len(coins)
        assert np.array_equal(sums(tmp_path / "out", state.round), integers[coins].sum(axis=0))
        state = release.next_state or state


def test_only_drawn_units_are_read(tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, opened, original = config_of(tmp_path), [], Dataset.read

    def read(self: Dataset, rows: Any, views: Any = None) -> Any:
        if self.private:
            opened.append([int(row) for row in rows if row >= 0])
        return original(self, rows, views)

    monkeypatch.setattr(Dataset, "read", read)
    result = ran(config, tmp_path / "out", insecure_noise_seed=SEED)
    [source] = open_shards(result.plan, config.data.private, SerialEngine()).sources
    slots = source.slots
    expected = []
    for round in range(ROUNDS):
        coins = toss_insecure_coins(slots.units, SAMPLING, SEED, round, "all")
        expected += slots.rows[coins[slots.unit]].tolist()
    assert sorted(row for rows in opened for row in rows) == sorted(expected)


def test_coins_are_the_systems_and_gone_after_the_run(tmp_path: Path, own_ledger: Path) -> None:
    config = config_of(tmp_path)
    tosses: list[bytes] = []
    original = Ledger.coins

    def coins(self: Ledger, *arguments: Any) -> Any:
        found = original(self, *arguments)
        tosses.append(found.tobytes())
        assert len(coin_files(own_ledger)) == 1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "coins", coins)
        result = ran(config, tmp_path / "out")
        ran(replace(config, data=replace(config.data, population="other")), tmp_path / "again")
    # Six tosses of 18 coins: two are alike with a probability below 1e-3, all three of both runs below 1e-11.
    assert len(tosses) == 2 * ROUNDS
    assert tosses[:ROUNDS] != tosses[ROUNDS:]
    assert len(set(tosses[:ROUNDS])) > 1
    assert coin_files(own_ledger) == []
    assert noise_files(own_ledger) == []
    rows = [row for row in rows_of(own_ledger) if row.population != "other"]
    assert [row.event for row in rows] == [result.plan.event(result.plan.state.grid)] * ROUNDS
    assert all(isinstance(row.event, GaussianRelease) and row.event.sampling == SAMPLING for row in rows)


KILLS = {
    "before the sums": (sketch_stage, "sketch_round", True),
    "after the sums": (sketch_stage, "sketch_round", False),
    "before the charge": (release_stage, "charge", True),
    "after the charge": (release_stage, "charge", False),
    "before the draw is used": (release_stage, "paid_draw", True),
    "after the release is paid": (release_stage, "paid_draw", False),
    "before the coins are erased": (release_stage, "forget_coins", True),
    "before the release is made": (rounds_stage, "make_release", True),
}


@pytest.mark.parametrize("lost", ["nothing", "the sums"])
@pytest.mark.parametrize("name", KILLS)
def test_a_resumed_round_takes_the_same_units(
    name: str, lost: str, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One charge a round, and of one round one toss of coins, as long as nothing was released."""
    module, function, before = KILLS[name]
    config, out, tosses, calls = config_of(tmp_path), tmp_path / "out", [], iter([False, True])
    toss = sampling_stage.toss_coins

    def counted(units: int, sampling: float) -> NDArray[np.bool_]:
        tosses.append(units)
        return toss(units, sampling)

    monkeypatch.setattr(sampling_stage, "toss_coins", counted)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, killing(getattr(module, function), lambda *_, **__: next(calls), before))
        with pytest.raises(Killed):
            api.fit(config, out)
    quadratic = out / "quadratic-001.h5"
    first = sums(out, 1) if quadratic.exists() else None
    released = name in ("after the release is paid", "before the coins are erased", "before the release is made")
    if lost == "the sums" and not released:
        for path in [quadratic, *out.glob("sketch-001-*")]:
            path.unlink(missing_ok=True)
    result = ran(config, out, resume=True)
    assert first is None or np.array_equal(sums(out, 1), first)
    assert len(tosses) == len(rows_of(own_ledger)) == ROUNDS
    assert coin_files(own_ledger) == []
    assert result.certificate["epsilon"] <= config.privacy.epsilon


def test_a_checkpoint_of_other_coins_is_never_taken_up(
    tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coins are lost (a ledger without them comes back from a backup), the checkpoint is not."""
    config, out, calls = config_of(tmp_path), tmp_path / "out", iter([True])
    with monkeypatch.context() as patch:
        stop = killing(sketch_stage.sketch_round, lambda *_, **__: next(calls), False)
        patch.setattr(sketch_stage, "sketch_round", stop)
        with pytest.raises(Killed):
            api.fit(config, out)
    [old] = out.glob("sketch-000-*")
    for path in Path(f"{own_ledger}.files").glob("coins-*"):
        path.unlink()
    monkeypatch.setattr(sampling_stage, "toss_coins", lambda units, _: np.zeros(units, dtype=bool))
    ran(config, out, resume=True)
    assert not old.exists() or not np.any(read_file(old).arrays["sums"])
    assert not sums(out, 0).any()


def public_traces(folder: Path, coins: NDArray[np.bool_] | None, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run shows but for released values: progress, sizes, shapes and headers of files, the ledger's rows, all but hashes."""
    folder.mkdir()
    patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
    patch.chdir(folder)
    events: list[tuple[str, int | None, float | None]] = []

    def see(event: ProgressEvent) -> None:
        events.append((event.stage, event.round, event.share))

    if coins is not None:
        patch.setattr(sampling_stage, "toss_coins", lambda units, _: coins)
    # One round: the second round's figures would follow from the first release.
    config = config_of(folder, mechanism={**SAMPLED["mechanism"], "rounds": 1})
    result = ran(config, folder / "out", callback=see)
    stored = {path.name: read_file(path) for path in sorted((folder / "out").glob("*.h5"))}
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        rows = [{name: value for name, value in entry["body"].items() if name != "key"} for entry in ledger.export()]
    certificate = {**result.certificate, "model_sha256": "", "ledger": ""}
    return {
        "events": events,
        "files": {path.name: path.stat().st_size for path in (folder / "out").iterdir() if path.suffix == ".h5"},
        "headers": {name: (file.kind, file.plan_id, dict(file.header)) for name, file in stored.items()},
        "arrays": {name: {key: array.shape for key, array in file.arrays.items()} for name, file in stored.items()},
        "done": [file.arrays["done"].tolist() for file in stored.values() if file.kind == "sketch"],
        "rows": rows,
        "certificate": json.loads(json.dumps(certificate)),
        "ledger files": sorted(path.name for path in Path(f"{folder}/ledger.sqlite.files").iterdir()),
    }


def test_nothing_outside_the_ledgers_folder_tells_who_or_how_many_were_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody, three units, everybody but one: every file has the same size, shapes and header, and every event is the same."""
    units = 18
    tosses = [np.arange(units) < count for count in (0, 3, 9)]
    with monkeypatch.context() as patch:
        first, *others = [public_traces(tmp_path / str(i), coins, patch) for i, coins in enumerate(tosses)]
    assert first["done"]
    for other in others:
        assert other == first


def test_a_plan_and_its_certificate_say_how_units_were_sampled(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    result = ran(config_of(tmp_path), tmp_path / "out")
    certificate = result.certificate
    assert certificate["sampling"]["rate"] == SAMPLING
    assert 0 < certificate["sampling"]["failure"] <= 1e-6 * certificate["delta"] * (1 + 1e-9)
    assert [entry["sampling"] for entry in certificate["rounds"]] == [SAMPLING] * ROUNDS
    assert certificate["noise"]["arithmetic"] != "exact integer"
    assert 0.99 < certificate["epsilon"] <= 1.0
    assert certificate["mu"] > 0.2
    shown = run.done("verify", tmp_path / "out").out
    assert "every figure of plan and releases" in shown
    assert f"sampled at {SAMPLING:g}" in run.done("ledger", "show").out
    words = f"each of a secret sample at {SAMPLING:g} (the work of 1.2 passes)"
    assert words in describe_plan(result.plan)[1]


def test_a_certificate_with_another_rate_is_refused(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    ran(config_of(tmp_path), tmp_path / "out")
    path = tmp_path / "out" / "certificate.json"
    original = json.loads(path.read_text("utf-8"))
    for rate, everywhere in ((0.1, False), (0.1, True)):
        tree = json.loads(json.dumps(original))
        tree["sampling"]["rate"] = rate
        for entry in tree["rounds"] if everywhere else []:
            entry["sampling"] = rate
        path.write_text(json.dumps(tree, sort_keys=True, indent=2) + "\n", "utf-8")
        run.distqexp("verify", tmp_path / "out").refused(3, "sampling")


def test_diagnostics_estimate_all_units_from_the_sample(tmp_path: Path, own_ledger: Path) -> None:
    config = config_of(tmp_path, diagnostics={"share": 0.2}, privacy={"epsilon": 10.0})
    result = ran(config, tmp_path / "out", insecure_noise_seed=SEED)
    diagnostics = diagnostics_of(result.plan, result.releases[0])
    assert diagnostics is not None
    drawn = int(toss_insecure_coins(18, SAMPLING, SEED, 0, "all").sum())
    assert diagnostics.units == pytest.approx(drawn / SAMPLING, abs=6 * diagnostics.units_deviation)
    assert diagnostics.units_deviation > np.sqrt(drawn * (1 - SAMPLING)) / SAMPLING


REFUSED = [
    ({"mechanism": {"parts": 3}}, "mechanism.sampling"),
    ({"mechanism": {"trust_radius": 1.0, "noise": "gaussian"}}, "mechanism.sampling"),
    ({"privacy": {"adjacency": "replace-one"}}, "mechanism.sampling"),
    ({"mechanism": {"sampling": 0.0}}, "mechanism.sampling"),
    ({"mechanism": {"sampling": 1.5}}, "mechanism.sampling"),
    ({"mechanism": {"rounding": "batch"}}, "mechanism.rounding"),
]


@pytest.mark.parametrize(("changes", "key"), REFUSED)
def test_what_does_not_go_with_samples_is_refused(changes: dict[str, dict[str, Any]], key: str, tmp_path: Path) -> None:
    good = config_of(tmp_path)
    check(good)
    sections = {name: {**SAMPLED.get(name, {}), **values} for name, values in changes.items()}
    with pytest.raises(UsageError, match=key.replace(".", r"\.")):
        config_of(tmp_path, **sections)


def test_a_unit_of_two_shards_has_two_coins(tmp_path: Path) -> None:
    """It joins a round where either falls."""
    config = config_of(tmp_path, privacy={"presence": 2})
    event = plan_of(config).event(plan_of(config).state.grid)
    assert isinstance(event, GaussianRelease)
    assert event.sampling == pytest.approx(1 - (1 - SAMPLING) ** 2, rel=1e-9)
