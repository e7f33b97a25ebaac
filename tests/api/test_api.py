"""The Python interface: a fit as a notebook would call it, and every step that the command line has."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from run_harness import Commands, table_source, table_tree, write_task

import distqexp
from distqexp import api
from distqexp.api import Ledger, fit, load_config
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import Config, config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import BudgetError, DistqexpError, FileContentError, StoppedError, UsageError
from distqexp.problem.models import build_model
from distqexp.report.progress import ProgressEvent
from distqexp.storage.hdf5 import read_file


def notebook_tree(rounds: int = 2) -> dict[str, Any]:
    return table_tree(mechanism={"rounds": rounds}, data={"eval": table_source("eval.csv")})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(write_task(tmp_path, notebook_tree()))


@pytest.fixture(autouse=True)
def no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events at the starts and ends of stages alone, however slow the machine is: marks are tested with a clock of their own."""
    monkeypatch.setattr("distqexp.report.progress.INTERVAL", 86400.0)


def test_a_fit_in_a_notebook(tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[ProgressEvent] = []
    result = fit(config, tmp_path / "run", callback=events.append)
    assert result is not None
    assert capsys.readouterr().out == ""

    # The releases and the certificate.
    assert [release.round for release in result.releases] == [0, 1]
    assert result.certificate["epsilon"] <= config.privacy.epsilon
    assert result.certificate == json.loads((tmp_path / "run" / "certificate.json").read_bytes())
    assert set(result.metrics["after"]) == {"accuracy", "auroc", "log_loss"}
    assert result.summary()["metrics"] == result.metrics

    # The events: every stage from its start to its end, in order, shares never falling.
    stages = [("plan", None), *((name, r) for r in (0, 1) for name in ("sketch", "pool", "release")), ("export", None)]
    assert list(dict.fromkeys((event.stage, event.round) for event in events)) == stages
    for stage in stages:
        shares = [event.share for event in events if (event.stage, event.round) == stage]
        assert (shares[0], shares[-1]) == (0.0, 1.0)
        assert shares == sorted(shares)
        assert len(shares) == 2  # and a mark for each ten seconds
    stored = (tmp_path / "run" / "progress.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in stored] == [vars(event) for event in events]


def test_the_exported_weights_are_the_released_parameters(tmp_path: Path, config: Config) -> None:
    result = fit(config, tmp_path / "run")
    assert result is not None
    model = build_model(config.model.factory, config.model.args)
    loaded = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    model.load_state_dict(loaded)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    np.testing.assert_array_equal(flat.numpy(), result.releases[-1].theta.astype(np.float32))
    state = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert set(state) == set(loaded)
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert not np.array_equal(result.releases[-1].theta, result.plan.state.theta)


def test_the_interface_and_the_main_job_are_one(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fit(config, tmp_path / "a", insecure_noise_seed=4)
    assert result is not None
    monkeypatch.setenv("DISTQEXP_LEDGER", str(tmp_path / "other.sqlite"))
    outcome = Commands(capsys).fit(
        tmp_path / "task.toml", "--out", tmp_path / "b", "--json", "--insecure-noise-seed", "4"
    )
    for path in (tmp_path / "a").iterdir():
        if path.name not in ("progress.jsonl", "report.html"):  # they tell times
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    summary = json.loads(outcome.out)
    expected = json.loads(json.dumps(result.summary()))
    assert {**summary, "out": 0, "seconds": 0} == {**expected, "out": 0, "seconds": 0}


def test_every_step_as_a_function(tmp_path: Path, config: Config) -> None:
    """plan, sketch, pool, release, export, inspect, verify and the ledger: what ``distqexp`` can do."""
    site, curator = tmp_path / "site.sqlite", tmp_path / "curator.sqlite"
    plan = api.plan(config, tmp_path / "plan.h5")
    assert isinstance(plan, Plan)
    assert any("forecast" in line for line in api.describe_plan(plan))
    assert Plan.read(tmp_path / "plan.h5").plan_id == plan.plan_id

    previous: Path | None = None
    releases: list[Path] = []
    for round in range(2):
        events: list[ProgressEvent] = []
        sketch, quadratic = tmp_path / f"sketch{round}.h5", tmp_path / f"quadratic{round}.h5"
        api.sketch(
            tmp_path / "plan.h5", tmp_path / "private.csv", sketch,
            release=previous, ledger=site, callback=events.append, insecure_noise_seed=4,
        )  # fmt: skip
        assert [event.share for event in events] == [0.0, 1.0]
        assert {event.round for event in events} == {round}
        pooled = api.pool(tmp_path / "plan.h5", [sketch], quadratic)
        assert pooled.round == round
        path = tmp_path / f"release{round}.h5"
        released = api.release(
            tmp_path / "plan.h5", quadratic, path,
            previous=previous, config=config, ledger=curator, insecure_noise_seed=4,
        )  # fmt: skip
        assert isinstance(released, Release)
        assert not quadratic.exists()
        previous = path
        releases.append(path)

    certificate, metrics = api.export(tmp_path / "plan.h5", releases, tmp_path / "model", config=config, ledger=curator)
    result = fit(config, tmp_path / "run", insecure_noise_seed=4)
    assert result is not None
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (tmp_path / "run/model.safetensors").read_bytes()
    assert metrics == result.metrics
    assert certificate == result.certificate

    assert "release" in api.inspect(releases[0])
    assert len(api.verify(tmp_path / "run")) == len(list((tmp_path / "run").iterdir()))
    with Ledger.open(curator) as ledger:
        ledger.verify()
        assert len(ledger.rows()) == 2
        ledger.set_cap("patients", 3.0, 1e-5)
        assert ledger.cap("patients") is not None
    with pytest.raises(FileContentError, match="no charge"):
        api.export(tmp_path / "plan.h5", releases, tmp_path / "again", ledger=site)


@pytest.mark.process
def test_importing_the_package_is_light() -> None:
    """``distqexp.fit`` is the module of the main job; the function is ``distqexp.api.fit``."""
    code = "import sys, distqexp; print('torch' in sys.modules, 'numpy' in sys.modules, distqexp.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "False", distqexp.__version__]
    assert set(api.__all__) >= {"fit", "plan", "sketch", "pool", "release", "export", "inspect", "verify", "Ledger"}
    assert all(hasattr(api, name) for name in api.__all__)


def test_a_given_engine_is_used_and_a_config_without_a_file(tmp_path: Path) -> None:
    write_task(tmp_path)
    config = config_from_tree(notebook_tree(rounds=1), tmp_path)
    engine = SerialEngine()
    collected: list[int] = []
    original = engine.sum

    def counted(work: Any, context: Any, items: Any) -> Any:
        collected.append(len(items))
        return original(work, context, items)

    engine.sum = counted  # type: ignore[method-assign]
    assert fit(config, tmp_path / "run", engine=engine) is not None
    assert collected == [4]  # 60 records in micro-batches of 16


def test_errors_are_exceptions_with_their_exit_code(tmp_path: Path, config: Config) -> None:
    fit(config, tmp_path / "run")
    for error, action in (
        (UsageError, lambda: fit(config, tmp_path / "run")),
        (BudgetError, lambda: fit(load_config(tmp_path / "task.toml", ["mechanism.step=0.5"]), tmp_path / "new")),
        (FileContentError, lambda: api.pool(tmp_path / "run/plan.h5", [tmp_path / "run/plan.h5"], tmp_path / "q.h5")),
        (UsageError, lambda: load_config(tmp_path / "gone.toml")),
    ):
        with pytest.raises(error) as caught:
            action()
        assert isinstance(caught.value, DistqexpError)
        assert caught.value.exit_code == error.exit_code
    assert not (tmp_path / "q.h5").exists()


@pytest.mark.parametrize("stage", ["plan", "sketch", "pool", "release", "export"])
def test_an_interrupted_cell_is_run_again_with_resume(tmp_path: Path, config: Config, stage: str) -> None:
    """A callback that raises at the end of a stage of the last round, as an impatient hand would."""
    undisturbed = fit(config, tmp_path / "undisturbed", insecure_noise_seed=8)
    assert undisturbed is not None

    def impatient(event: ProgressEvent) -> None:
        if event.stage == stage and event.share == 1.0 and event.round in (None, 1):
            raise KeyboardInterrupt

    other = tmp_path / "ledger-of-the-second-run.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(other))
        with pytest.raises(KeyboardInterrupt):
            fit(config, tmp_path / "run", insecure_noise_seed=8, callback=impatient)
        result = fit(config, tmp_path / "run", insecure_noise_seed=8, resume=True)
        assert len(Ledger.open().rows()) == 2
    assert result is not None
    names = {path.name for path in (tmp_path / "undisturbed").iterdir()} - {"progress.jsonl", "report.html"}
    assert {path.name for path in (tmp_path / "run").iterdir()} - {"progress.jsonl", "report.html"} == names
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes(), name


def test_a_stop_request_ends_with_a_checkpoint_and_goes_on(tmp_path: Path, config: Config) -> None:
    engine = SerialEngine()
    answers = iter([False, False, True])
    engine.stop_requested = lambda: next(answers, True)  # type: ignore[method-assign]
    # Public sums ask first, once an item: let them pass.
    engine.raise_if_stopped = lambda: None  # type: ignore[method-assign]
    with pytest.raises(StoppedError, match="--resume"):
        fit(config, tmp_path / "run", insecure_noise_seed=8, engine=engine)
    sketches = list((tmp_path / "run").glob("sketch-000-*.h5"))
    assert [int(read_file(path).arrays["done"].sum()) for path in sketches] == [2]
    resumed = fit(config, tmp_path / "run", insecure_noise_seed=8, resume=True)
    undisturbed = fit(config, tmp_path / "other", insecure_noise_seed=8)
    assert resumed is not None
    assert undisturbed is not None
    np.testing.assert_array_equal(resumed.releases[-1].theta, undisturbed.releases[-1].theta)


@pytest.mark.slow
def test_the_examples_of_the_interface_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, tried = doctest.testmod(api, extraglobs={"folder": tmp_path})
    assert (failed, tried > 8) == (0, True), capsys.readouterr().out
