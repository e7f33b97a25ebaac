"""Runs of a head on a frozen body: the body runs once a record, in all, and nothing of what it gives is left behind."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_harness import QUICK, released, seeded_serial_run, settings
from run_harness import Commands
from same_bytes import KRONECKER_PCA, MLP

from distqexp import api
from distqexp.artefacts.release import Release
from distqexp.config import load_config
from distqexp.gradients.worker import Worker
from distqexp.problem.feature_cache import FeatureCache
from distqexp.problem.features import FeatureFile, writer_of_features
from distqexp.problem.frozen import FrozenPart
from distqexp.problem.slots import NO_ROW
from distqexp.stages import rounds
from distqexp.stages.built import read_plan
from distqexp.stages.folder import open_folder
from distqexp.storage.hdf5 import read_file

PROBE = (*QUICK, *MLP, *KRONECKER_PCA, 'model.trainable=["3.*"]')
SAMPLED = (*PROBE, "mechanism.sampling=0.25")
VIEWS = (*PROBE, "augment.views=2", "augment.shift=1.0")


def thetas(run: Path) -> list[np.ndarray]:
    plan = read_plan(run / "plan.h5")
    return [Release.read(path, plan).theta for path in sorted(run.glob("release-*.h5"))]


@pytest.mark.parametrize("overrides", [PROBE, SAMPLED, VIEWS], ids=["plain", "sampled", "views"])
def test_a_run_on_features_is_the_run_on_records(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "records").mkdir()
    on_features = seeded_serial_run(tmp_path / "features", overrides)
    monkeypatch.setattr(Worker, "frozen", None)
    on_records = seeded_serial_run(tmp_path / "records", overrides)
    assert set(released(on_features)) == set(released(on_records))
    pairs = list(zip(thetas(on_features), thetas(on_records), strict=True))
    assert len(pairs) == 3
    for one, other in pairs:
        assert np.abs(one).max() > 0.01
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overrides", [PROBE, SAMPLED], ids=["plain", "sampled"])
def test_the_body_runs_once_a_record(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, rows = FrozenPart.features, []

    def features(self: FrozenPart, inputs: torch.Tensor) -> torch.Tensor:
        rows.append(len(inputs))
        return original(self, inputs)

    read, looked_up = FeatureFile.read, []

    def look_up(self: FeatureFile, numbers: Any) -> torch.Tensor:
        looked_up.append(len(numbers))
        mode = stat.S_IMODE(self.path.stat().st_mode)
        assert mode == 0o600
        return read(self, numbers)

    monkeypatch.setattr(FrozenPart, "features", features)
    monkeypatch.setattr(FeatureFile, "read", look_up)
    run = seeded_serial_run(tmp_path, (*overrides, "mechanism.rounds=4", "precision.refresh=4", "precision.samples=64"))
    assert looked_up
    public = 64 + 64 + 500  # moments and norms, which are looked up; the guard; the report's losses
    private = -(-slots_of(run) // 64) * 64
    assert private < sum(rows) <= private + public
    assert not list(run.glob("features*"))


@pytest.mark.parametrize("views", [False, True], ids=["plain", "views"])
def test_public_records_alone_go_through_the_body_once_for_all_rounds(
    views: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, asked, given = FeatureCache.of, list[torch.Tensor](), list[tuple[torch.Tensor, torch.Tensor]]()

    def remembered(self: FeatureCache, inputs: torch.Tensor, features: Any) -> torch.Tensor:
        def make(batch: torch.Tensor) -> torch.Tensor:
            made = features(batch)
            given.append((made, made.clone()))
            return made

        asked.append(inputs)
        return of(self, inputs, make)

    monkeypatch.setattr(FeatureCache, "of", remembered)
    seeded_serial_run(tmp_path, (*(VIEWS if views else PROBE), "mechanism.rounds=4", "precision.samples=597"))
    batches = -(-597 // 64)  # of all public records, which every round asks for twice: for its moments and its norms
    assert len(asked) == 4 * 2 * batches
    assert len(given) == batches * (1 + 4 * views)  # norms are those of views, which are others in every round
    for made, copy in given:
        assert torch.equal(made, copy)  # nobody writes into what is kept


def slots_of(run: Path) -> int:
    return int(read_plan(run / "plan.h5").config.privacy.units)


def test_a_run_that_fails_leaves_no_features(
    tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []

    def fail(*_: object) -> None:
        seen.extend((tmp_path / "run").glob("features*"))
        raise OSError("no more")

    monkeypatch.setattr(rounds, "sketch_same_records", fail)
    outcome = Commands(capsys).fit("--out", tmp_path / "run", *settings(*PROBE))
    assert outcome.code != 0
    assert [path.name for path in seen] == ["features-000.npy"]
    assert not list((tmp_path / "run").glob("features*"))


def test_a_killed_run_s_features_go_when_it_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "features-000.npy").write_bytes(b"private")
    (tmp_path / "plan.h5").write_bytes(b"")
    open_folder(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.h5"]


def test_features_are_looked_up_by_row(tmp_path: Path) -> None:
    slot_rows = np.array([7, NO_ROW, 3, 9, NO_ROW, 4])
    values = np.arange(12, dtype=np.float64).reshape(6, 2)

    def blocks() -> Iterator[np.ndarray]:
        yield values[:4]
        yield np.concatenate([values[4:], np.zeros((2, 2))])  # padded: what is beyond the last slot is left out

    with (tmp_path / "features.npy").open("wb") as file:
        writer_of_features((6, 2), "<f4", blocks())(file)
    assert np.array_equal(np.load(tmp_path / "features.npy"), values.astype(np.float32))
    kept = FeatureFile.of_slots(tmp_path / "features.npy", slot_rows)
    found = kept.read(np.array([9, NO_ROW, 3, 7, 9]))
    assert np.array_equal(found.numpy(), np.stack([values[3], [0, 0], values[2], values[0], values[3]]))


def test_the_stages_by_hand_sum_the_same_integers(tmp_path: Path, own_ledger: Path) -> None:
    """A site runs the whole body in each round; nothing but the micro-batches of its features differs."""
    run = seeded_serial_run(tmp_path, PROBE)
    config = load_config(None, PROBE)
    plan, sketch, pooled = (tmp_path / name for name in ("plan.h5", "sketch.h5", "quadratic.h5"))
    api.plan(config, plan)
    assert plan.read_bytes() == (run / "plan.h5").read_bytes()
    api.sketch(plan, None, sketch, insecure_noise_seed=7)
    api.pool(plan, [sketch], pooled)
    sums = [read_file(path).arrays["sums"] for path in (pooled, run / "quadratic-000.h5")]
    assert np.array_equal(*sums)
    assert sums[0].any()
    assert not list(tmp_path.rglob("features*"))
