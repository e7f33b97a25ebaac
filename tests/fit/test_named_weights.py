"""Weights that a plan names by digest: whoever has the pretrained model goes on with it, nobody else, and nothing else changes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi_harness import run_ranks
from run_harness import Commands, table_tree, write_task

import distqexp
from distqexp import api
from distqexp.artefacts import named as naming
from distqexp.artefacts import release as release_module
from distqexp.artefacts.named import next_lineage
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import Config, load_config
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.setup import build_network
from distqexp.problem.weights import write_weights
from distqexp.stages.own_weights import completed_plan
from distqexp.storage.hdf5 import read_file

ROUNDS = 4
SEED = 3


@pytest.fixture(params=["kept", "left out"])
def states(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether finished rounds of a run keep the next round's state in their files."""
    if request.param == "left out":
        monkeypatch.setattr(release_module, "LIGHT", 0)
    return str(request.param)


@pytest.fixture
def config(tmp_path: Path, own_ledger: Path) -> Config:
    """A table's config with pretrained weights in a file, momentum, and a precision that is kept every other round."""
    tree = table_tree(mechanism={"rounds": ROUNDS, "momentum": 0.5}, precision={"kind": "dense", "refresh": 2})
    del tree["mechanism"]["clip"]
    tree["mechanism"]["clip_quantile"] = 0.5
    config = load_config(write_task(tmp_path, tree))
    network = build_network(config)
    rng = np.random.default_rng(5)
    weights = {
        name: (array + rng.normal(size=array.shape)).astype(array.dtype) for name, array in network.state().items()
    }
    write_weights(tmp_path / "pretrained.safetensors", weights)
    tree["model"].pop("pretrain", None)
    tree["model"] |= {"weights": str(tmp_path / "pretrained.safetensors")}
    return load_config(write_task(tmp_path, tree))


def run(config: Config, out: Path, **options: object) -> api.FitResult:
    result = api.fit(config, out, insecure_noise_seed=SEED, callback=lambda _: None, **options)  # type: ignore[arg-type]
    assert result is not None
    return result


@pytest.fixture
def embedded(tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> api.FitResult:
    """The run whose plan holds its weights, charged to another ledger: what every other one has to agree with."""
    with monkeypatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(tmp_path / "other-ledger.sqlite"))
        return run(config, tmp_path / "embedded")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, embedded: api.FitResult) -> None:
    """From here on every model counts as a large one."""
    monkeypatch.setattr(naming, "EMBEDDED", 0)


def model(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_a_run_is_the_same_and_its_files_have_neither_weights_nor_parameters(
    tmp_path: Path, config: Config, embedded: api.FitResult, large: None, states: str
) -> None:
    out = tmp_path / "named"
    result = run(config, out)
    assert model(out) == model(tmp_path / "embedded")
    assert result.certificate["epsilon"] == embedded.certificate["epsilon"]
    for ours, theirs in zip(result.releases, embedded.releases, strict=True):
        np.testing.assert_array_equal(ours.noisy_sums, theirs.noisy_sums)
    np.testing.assert_array_equal(result.releases[-1].theta, embedded.releases[-1].theta)
    assert [one.lacking for one in result.releases] == [True] * (ROUNDS - 1) + [False]  # memory holds one round
    names = {path.name: set(read_file(path).arrays) for path in out.glob("*.h5")}
    assert not [
        name for held in names.values() for name in held if "weights" in name or "theta" in name or "velocity" in name
    ]
    # precision.refresh = 2: round 1 goes on with the precision of round 0, which its release doesn't repeat.
    assert not any("precision" in name and "scale" not in name for name in names["release-000.h5"])
    lines = api.verify(out, config=config)
    assert len([line for line in lines if "and it builds on" in line]) == ROUNDS
    assert "not checked: its parameters" not in "".join(lines)
    assert any("its tensors are those of the last release" in line for line in lines)


@pytest.mark.parametrize("left", range(ROUNDS + 1))
def test_a_run_is_resumed_from_any_round(
    left: int, tmp_path: Path, config: Config, embedded: api.FitResult, large: None, states: str
) -> None:
    out = tmp_path / "named"
    run(config, out)
    before = {path.name: path.read_bytes() for path in out.glob("release-*.h5")}
    for number in range(left, ROUNDS):
        (out / f"release-{number:03d}.h5").unlink()
    for name in ("model.safetensors", "certificate.json"):
        (out / name).unlink()
    result = run(config, out, resume=True)
    np.testing.assert_array_equal(result.releases[-1].theta, embedded.releases[-1].theta)
    assert model(out) == model(tmp_path / "embedded")
    assert {path.name: path.read_bytes() for path in out.glob("release-*.h5")} == before


def by_hand(tmp_path: Path, config: Config, weights: Path | None) -> None:
    """All rounds by files, at a site that has a copy of the weights and not the plan's config."""
    folder = tmp_path / "hand"
    folder.mkdir()
    plan, data = folder / "plan.h5", tmp_path / "private.csv"
    api.plan(config, plan)
    releases: list[Path] = []
    for round in range(ROUNDS):
        names = [folder / f"{kind}-{round}.h5" for kind in ("sketch", "quadratic", "release")]
        seed = {"insecure_noise_seed": SEED}
        api.sketch(plan, data, names[0], release=releases[::-1] or None, weights=weights, **seed)  # type: ignore[arg-type]
        api.pool(plan, [names[0]], names[1])
        api.release(plan, names[1], names[2], previous=releases or None, config=config, **seed)  # type: ignore[arg-type]
        releases.append(names[2])
    api.export(plan, releases, tmp_path / "by-hand", config=config)


def test_by_files_sites_go_on_with_their_own_copy(
    tmp_path: Path, config: Config, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(tmp_path / "pretrained.safetensors", tmp_path / "site.safetensors"))
    by_hand(tmp_path, config, copy)
    assert model(tmp_path / "by-hand") == model(tmp_path / "embedded")
    hand = tmp_path / "hand"
    with pytest.raises(UsageError, match="--weights: not given"):
        api.sketch(hand / "plan.h5", tmp_path / "private.csv", tmp_path / "a.h5", insecure_noise_seed=SEED)
    monkeypatch.setenv("DISTQEXP_WEIGHTS", str(copy))
    with pytest.raises(UsageError, match=r"expected every release so far, from round 0"):
        api.sketch(
            hand / "plan.h5", tmp_path / "private.csv", tmp_path / "b.h5", release=hand / "release-1.h5",
            insecure_noise_seed=SEED,
        )  # fmt: skip
    lines = api.verify(*sorted(hand.glob("*.h5")))
    assert sum("and it builds on" in line for line in lines) == ROUNDS
    assert not any("not checked" in line for line in lines)


def test_another_copy_is_refused_and_named(tmp_path: Path, config: Config, large: None) -> None:
    api.plan(config, tmp_path / "plan.h5")
    other = build_network(config).state()
    write_weights(tmp_path / "other.safetensors", other)
    with pytest.raises(FileContentError, match=r"other\.safetensors: \S+ is another than plan .* names by SHA-256"):
        api.sketch(
            tmp_path / "plan.h5", tmp_path / "private.csv", tmp_path / "a.h5", weights=tmp_path / "other.safetensors",
            insecure_noise_seed=SEED,
        )  # fmt: skip
    assert not (tmp_path / "a.h5").exists()


def test_what_needs_no_model_is_done_without_one(
    tmp_path: Path, config: Config, large: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "named"
    run(config, out)
    plan = Plan.read(out / "plan.h5")
    assert plan.lacking
    commands = Commands(capsys)
    assert "plan" in commands.done("inspect", out / "plan.h5").out
    assert "usable" in commands.done("check", out / "plan.h5", "--data", tmp_path / "private.csv").out
    said = commands.done("verify", out).out
    assert "whose weights it names by SHA-256 and the factory here does not give (--weights PATH)" in said
    assert "not checked: the model's tensors" in said
    again = commands.done("verify", out, "--weights", tmp_path / "pretrained.safetensors").out
    assert "its tensors are those of the last release" in again


def test_the_lineage_of_a_round_is_checked(tmp_path: Path, config: Config, large: None) -> None:
    out = tmp_path / "named"
    run(config, out)
    plan = Plan.read(out / "plan.h5")
    release = Release.read(out / "release-001.h5", plan)
    changed = release.noisy_sums.copy()
    changed[0] += 1
    dataclasses.replace(release, noisy_sums=changed).write(out / "release-001.h5")
    with pytest.raises(FileContentError, match=r"next\.lineage"):
        api.verify(out, config=config)
    header = dict(release.next_header or {}) | {
        "lineage": next_lineage(release.state_header["lineage"], changed, release.halvings, release.kept)
    }
    forged = dataclasses.replace(release, noisy_sums=changed, next_state=None, next_rules=header, same=())
    forged.write(out / "release-001.h5")
    with pytest.raises(FileContentError, match=r"release of round 2: used\.lineage"):
        api.verify(out, config=config)


def test_new_heads_and_what_public_records_changed_are_in_the_plan(tmp_path: Path, config: Config, large: None) -> None:
    names = [name for name in build_network(config).state() if name.endswith("bias")]
    anew = dataclasses.replace(config, model=dataclasses.replace(config.model, new_head=tuple(names)))
    plan = api.plan(anew, tmp_path / "plan.h5")
    assert set(plan.named) == set(plan.weights) - set(names)
    assert set(names) <= {name.removeprefix("weights/") for name in read_file(tmp_path / "plan.h5").arrays}
    read = completed_plan(Plan.read(tmp_path / "plan.h5"), tmp_path / "pretrained.safetensors")
    assert set(read.weights) == set(plan.weights)
    assert all(np.array_equal(read.weights[name], array) for name, array in plan.weights.items())
    np.testing.assert_array_equal(read.state.theta, plan.state.theta)


@pytest.mark.process
@pytest.mark.slow
def test_ranks_without_the_weights_get_them_from_the_first(tmp_path: Path, config: Config, large: None) -> None:
    run(config, tmp_path / "serial")
    body = """
        import sys

        from distqexp.artefacts import named

        named.EMBEDDED = 0

        from distqexp.fit import main

        raise SystemExit(main(sys.argv[1:]))
    """
    out = tmp_path / "ranks"
    arguments = [str(tmp_path / "task.toml"), "--out", str(out), "--insecure-noise-seed", str(SEED)]
    for resumed in (False, True):
        for number in (2, 3) if resumed else ():
            (out / f"release-{number:03d}.h5").unlink()
        environ = {"DISTQEXP_LEDGER": str(tmp_path / "ranks.sqlite")}
        finished = run_ranks(2, tmp_path, body, *arguments, *(["--resume"] if resumed else []), environ=environ)
        assert finished.code == 0, finished
        for name in ("plan.h5", *(f"release-{number:03d}.h5" for number in range(ROUNDS)), "model.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "serial" / name).read_bytes(), name


@pytest.mark.process
def test_a_live_module_goes_the_same_way(tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(120, 3)), rng.integers(0, 2, 120)
    torch.manual_seed(0)
    module, found = torch.nn.Linear(3, 1), []
    for limit in (naming.EMBEDDED, 0):
        monkeypatch.setattr(naming, "EMBEDDED", limit)
        result = distqexp.fit(
            module, (inputs[:80], labels[:80]), public=(inputs[80:], labels[80:]), epsilon=1.0, delta=1e-3, units=80,
            settings={"mechanism.sampling": 0.5, "mechanism.rounds": 4}, population=f"limit {limit}", out=tmp_path / str(limit),
            insecure_noise_seed=4, callback=lambda _: None,
        )  # fmt: skip
        found.append(result)
    moved = [[entry["moved"] for entry in result.history] for result in found]
    assert None not in moved[0]
    assert moved[1] == [None] * 4
    assert found[0].predict_proba(inputs).shape == (120, 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "0").glob("release-*.h5")}
    (tmp_path / "0" / "release-003.h5").unlink()
    again = distqexp.fit(
        module, (inputs[:80], labels[:80]), public=(inputs[80:], labels[80:]), epsilon=1.0, delta=1e-3, units=80,
        settings={"mechanism.sampling": 0.5, "mechanism.rounds": 4}, population="limit 0", out=tmp_path / "0", resume=True,
        insecure_noise_seed=4, callback=lambda _: None,
    )  # fmt: skip
    assert again.certificate == found[1].certificate
    assert {path.name: path.read_bytes() for path in (tmp_path / "0").glob("release-*.h5")} == before
