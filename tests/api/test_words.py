"""What the command says in words: version, completion, every file of a run, and what is left of a budget."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_server import commands
from run_harness import Commands, table_source, table_tree, write_task

import distqexp
from distqexp import api
from distqexp.errors import FileContentError
from distqexp.privacy import gdp
from distqexp.privacy.events import BoundedRelease, GaussianRelease, cost
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.books import Cap
from distqexp.privacy.ledger.left import Left, amount_left
from distqexp.privacy.units import UnitDeclaration


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the module; tests don't change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        config = api.load_config(write_task(folder, table_tree(data={"eval": table_source("eval.csv")})))
        assert api.fit(config, folder / "run") is not None
    return folder / "run"


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_the_version(run: Commands) -> None:
    assert run.done("--version").out == f"distqexp {distqexp.__version__}\n"


@pytest.mark.process
def test_a_shell_completes_commands() -> None:
    environ = {**os.environ, "_DISTQEXP_COMPLETE": "complete_bash", "COMP_WORDS": "distqexp rep", "COMP_CWORD": "1"}
    command = [str(commands() / "distqexp")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["report"], done


def test_fit_is_a_command_of_its_own(run: Commands, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    outcome = run.done("fit", task, "--out", tmp_path / "run", "--json", "--insecure-noise-seed", "1")
    assert json.loads(outcome.out)["epsilon"] <= 1
    run.distqexp("fit", tmp_path / "gone.toml").refused(2, "no such file")
    run.distqexp("fit", "--nonsense").refused(2, "--nonsense")
    assert run.done("fit", "--help").out.startswith("usage: distqexp fit [-h]")
    assert "  fit " in run.done("--help").out


def test_inspect_says_something_about_every_file_of_a_run(run: Commands, finished: Path) -> None:
    certificate = json.loads((finished / "certificate.json").read_bytes())
    words = {
        "certificate.json": certificate["statement"],
        "model.safetensors": "2 tensors, 4 numbers",
        "model.pt": "weights_only=True",
        "model.json": "distqexp predict",
        "plan.h5": "every rule of a run",
        "release-000.h5": "a released round",
        "progress.jsonl": "sketch: ",
        "report.json": "40 records, not covered",
        "report.html": "open it in a browser",
    }
    assert set(words) == {path.name for path in finished.iterdir()}
    whole = run.done("inspect", finished).out
    for name, text in words.items():
        single = run.done("inspect", finished / name).out
        assert text in single
        assert single.strip() in whole


def test_verify_says_something_about_every_file_of_a_run(run: Commands, finished: Path) -> None:
    lines = run.done("verify", finished).out.splitlines()
    assert {Path(line.partition(": ")[0]).name for line in lines} == {path.name for path in finished.iterdir()}
    (weights,) = [line for line in lines if "model.pt" in line]
    assert weights.endswith("the 2 tensors of model.safetensors")
    assert run.done("verify", finished / "model.pt").out == f"{weights}\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.pt", b"PK\x03\x04 nothing", "not readable as weights of torch"),
        ("report.json", b'{"plan_id": "00"}', "the certificate beside it has"),
        ("report.json", b"[1]", "expected an object"),
        ("report.json", b"[" * 100_000, "not readable as JSON"),
        ("model.safetensors", b"\xff" * 9, "model.safetensors"),
    ],
)
def test_a_changed_file_is_refused_in_one_line(
    run: Commands, finished: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = copy_of(finished, tmp_path / "copy")
    (folder / name).write_bytes(content)
    run.distqexp("verify", folder).refused(3, name, words)


def test_torch_weights_of_another_run_are_found_out(finished: Path, tmp_path: Path) -> None:
    import torch

    folder = copy_of(finished, tmp_path / "copy")
    state = torch.load(folder / "model.pt", weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: state[name] + 1}, folder / "model.pt")
    with pytest.raises(FileContentError, match=r"not the tensors of model\.safetensors"):
        api.verify(folder)


def test_inspect_refuses_what_only_has_the_name(run: Commands, tmp_path: Path) -> None:
    for name, content in (
        ("certificate.json", b"{}"),
        ("certificate.json", b'{"subspace": 3, "ledger": {}}'),
        ("model.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00[]"),
        ("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("report.json", b"nan,"),
    ):
        (tmp_path / name).write_bytes(content)
        run.distqexp("inspect", tmp_path / name).refused(3, name)


def test_inspect_shows_nothing_of_another_file_s_content(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "patients.h5").write_text("patient_id,age\n" + "7,81\n" * 200)
    assert "patient_id" not in run.distqexp("inspect", tmp_path / "patients.h5").refused(3, "no distqexp file")


def test_an_interrupt_is_one_line(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distqexp.storage.inspect.describe", interrupted)
    outcome = run.distqexp("inspect", "plan.h5")
    assert (outcome.code, outcome.err) == (130, "distqexp: interrupted from the keyboard\n")


# --- what is left of a budget ----------------------------------------------------------------------------------


def test_a_budget_in_words(run: Commands, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTQEXP_LEDGER", str(finished.parent / "ledger.sqlite"))
    with Ledger.open() as ledger:
        spent = ledger.spent("patients").epsilon(1e-5)
    run.done("ledger", "cap", "patients", "--epsilon", "3", "--delta", "1e-5")
    shown = run.done("ledger", "show").out
    line = re.search(
        r"patients: (\S+) of 3 left for each record at delta 1e-05; one more run may take about epsilon (\S+)", shown
    )
    assert line is not None, shown
    left, further = float(line[1]), float(line[2])
    assert 3 - spent - 0.1 < left <= 3 - spent
    assert left < further < 3


def test_what_one_more_run_may_take_fits_the_cap_and_hardly_more_would() -> None:
    cap = Cap(3.0, 1e-5)
    spent = cost([GaussianRelease(0.5, 10)]).guarantee()
    left = Left.of(cap, spent, "pid")
    assert left.line().startswith("1 of 3 left for each pid at delta 1e-05; one more run")
    for share, fits in ((1.0, True), (1.03, False)):
        run = gdp.mu(left.run * share, 1e-5)
        both = cost([GaussianRelease(0.5, 10), GaussianRelease(run, 10)]).guarantee()
        assert (both.epsilon(1e-5) <= 3.0) == fits


def test_pure_budgets_declared_units_and_empty_ones() -> None:
    pure = Left.of(Cap(1.0, 0.0), cost([BoundedRelease(0.5, 0.7, 3)]).guarantee(), None)
    assert pure.line() == "0.3 of 1 left for each unit at delta 0; one more run may take about epsilon 0.3"
    declared = Cap(1.0, 1e-5, UnitDeclaration("pid", 5))
    over = Left.of(declared, cost([GaussianRelease(5.0, 10)]).guarantee(), "pid")
    assert over.line() == "nothing of 1 left for each pid at delta 1e-05"
    assert Left.of(declared, cost([]).guarantee(), "pid").line().startswith("1 of 1 left")


def test_amounts_are_never_rounded_upwards() -> None:
    for left in np.random.default_rng(0).uniform(0.02, 3, 500):
        assert left * 0.9 < float(amount_left(left, 3.0)) <= left + 1e-9
    assert [amount_left(left, 3.0) for left in (0.8, -1.0, 0.0, 0.001, float("nan"), 12.0)] == [
        "0.8", "nothing", "nothing", "almost nothing", "nothing", "12",
    ]  # fmt: skip
