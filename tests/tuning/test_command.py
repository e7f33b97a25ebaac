"""``distqexp tune`` from the command line: what it writes, that it goes on, and that it never opens a private file."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mpi_harness import run_environ
from run_harness import Commands, overrides, table_source, table_tree, to_toml, write_table, write_task

from distqexp.config import config_to_tree, load_config, without_paths
from distqexp.engines.base import StoppedError
from distqexp.privacy.ledger import Ledger
from distqexp.tuning.rehearsal import Rehearsal
from distqexp.tuning.writing import to_toml as written_toml

LISTS = {
    "step": [0.3, 1.0, 1e7],
    "damping": [0.1, 0.5],
    "rounds": [1, 2],
    "holdout": 0.5,
    "trials": 5,
    "metric": "log_loss",
}


def public_task(folder: Path, **sections: Any) -> Path:
    """A task whose private and evaluation files don't exist."""
    write_table(folder / "public.csv", 1, 80)
    tree = table_tree(data={"eval": table_source("eval.csv")}, **{"tune": LISTS, **sections})
    path = folder / "task.toml"
    path.write_text(to_toml(tree), "utf-8")
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def best_by_hand(rows: list[dict[str, str]], epsilon: str, most: int = 5) -> dict[str, str]:
    """The documented rule, from the table alone: most seeds, least mean log loss plus its standard error."""
    names = list(rows[0])[2 : list(rows[0]).index("seed")]
    settings: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if row["epsilon"] == epsilon:
            settings.setdefault(tuple(row[name] for name in names), []).append(row)
    ranked = []
    for setting, runs in settings.items():
        if len(runs) < most or any(not row["score"] for row in runs):
            continue
        scores = [-float(row["score"]) for row in runs]
        error = statistics.stdev(scores) / math.sqrt(len(scores))
        ranked.append(
            (statistics.fmean(scores) - error, -statistics.fmean(float(row["loss"]) for row in runs), setting)
        )
    return dict(zip(names, max(ranked)[2], strict=True))


def test_it_writes_a_config_a_table_and_a_plot_for_every_epsilon(run: Commands, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    task, out = public_task(tmp_path), tmp_path / "deep" / "tuned"
    said = run.done("tune", task, "--out", out, "--epsilon", "0.5", "--epsilon", "2", "--json")
    assert {path.name for path in out.iterdir()} == {"tuned-eps0.5.toml", "tuned-eps2.toml", "trials.csv", "tune.png"}
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads(said.out.splitlines()[-1])
    rows = rows_of(out)
    for epsilon in ("0.5", "2.0"):
        name = f"{float(epsilon):g}"
        config = load_config(out / f"tuned-eps{name}.toml")
        best = best_by_hand(rows, epsilon)
        assert config.privacy.epsilon == float(epsilon)
        assert config.mechanism.step == float(best["step"]) < 1e7
        assert config.precision.damping == float(best["damping"])
        assert config.mechanism.rounds == int(best["rounds"])
        found = summary["epsilons"][name]
        assert found["values"]["step"] == config.mechanism.step
        assert found["metric"] == "log_loss"
        assert found["score"] < 0.7
        assert found["settings"] <= 5
        assert found["standard_error"] >= 0
        assert f"epsilon {name}: log_loss {found['score']:.4f} on public records" in said.out
    diverged = [row for row in rows if row["step"] == "10000000.0"]
    assert diverged, "the order of the settings no longer has the bad one: choose another tune.seed"
    assert len({row["task"] for row in rows}) == 1


def test_the_chosen_config_is_the_users_but_for_what_was_chosen(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    task = public_task(tmp_path / "task", tune={**LISTS, "rounds": [2], "step": [0.3]})
    run.done(
        "tune", task, "--out", tmp_path / "out", "--epsilon", "2", *overrides("privacy.units=90", "engine.threads=1")
    )
    before = load_config(task, ["privacy.units=90", "privacy.epsilon=2", "mechanism.rounds=2", "mechanism.step=0.3"])
    after = load_config(tmp_path / "out" / "tuned-eps2.toml")
    trees = [config_to_tree(config) for config in (before, after)]
    trees[0]["precision"]["damping"] = trees[1]["precision"]["damping"]
    trees[0]["tune"] = None
    assert trees[0] == trees[1]
    assert after.data.private[0].path == str(tmp_path / "task" / "private.csv")
    assert without_paths(before).tune is None


def test_a_rerun_goes_on_and_repeats_nothing(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, out, whole = public_task(tmp_path), tmp_path / "out", tmp_path / "whole"
    run.done("tune", task, "--out", whole, "--json")
    original, seeds = Rehearsal.released_theta, []

    def released_theta(self: Rehearsal, plan: Any, worker: Any, config: Any, noise_seed: int, folder: Path) -> Any:
        seeds.append(noise_seed)
        if len(seeds) == 6:
            raise StoppedError("stopped on request")
        return original(self, plan, worker, config, noise_seed, folder)

    monkeypatch.setattr(Rehearsal, "released_theta", released_theta)
    stopped = run.distqexp("tune", task, "--out", out, "--json")
    assert stopped.code == 75
    assert f"run the same command again: it goes on from {out / 'trials.csv'}" in stopped.err
    kept = rows_of(out)
    assert len(kept) == 5
    said = run.done("tune", task, "--out", out, "--json")
    rows, expected = rows_of(out), rows_of(whole)
    assert rows[:5] == kept
    assert len(seeds) == 6 + len(rows) - 5
    unclocked = [[{**row, "seconds": ""} for row in table] for table in (rows, expected)]
    assert unclocked[0] == unclocked[1]
    assert (out / "tuned-eps1.toml").read_bytes() == (whole / "tuned-eps1.toml").read_bytes()
    again = run.done("tune", task, "--out", out, "--json")
    assert len(seeds) == 6 + len(rows) - 5
    assert again.out == said.out
    more = run.done("tune", task, "--out", out, "--trials", "8", "--json")
    assert rows_of(out)[: len(rows)] == rows
    assert json.loads(more.out.splitlines()[-1])["epsilons"]["1"]["settings"] > 5


def test_folders_and_commands_that_are_refused(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, out = public_task(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run.distqexp("tune", task, "--out", out).refused(2, f"--out {out}: holds files, and no trials.csv")
    run.distqexp("tune", task, "--out", out / "notes.txt").refused(2, "not a folder")
    run.distqexp("tune", task).refused(2, "--out")
    run.distqexp("tune", task, "--out", tmp_path / "new", "--epsilon", "-1").refused(2, "privacy.epsilon: found -1.0")
    run.distqexp("tune", task, "--out", tmp_path / "new", "--trials", "0").refused(2, "tune.trials: found 0")
    assert not (tmp_path / "new").exists()
    run.done("tune", task, "--out", tmp_path / "old", "--trials", "1")
    other = overrides("model.pretrain.weight_decay=0.5")
    run.distqexp("tune", task, "--out", tmp_path / "old", *other).refused(2, "runs of another config")
    write_table(tmp_path / "public.csv", 9, 80)
    run.distqexp("tune", task, "--out", tmp_path / "old").refused(2, "or of other public records")
    run.distqexp("tune", task, "--out", tmp_path / "new", *overrides("tune.metric=mean_squared_error")).refused(
        2, "tune.metric: mean_squared_error; the test records give auroc, accuracy, log_loss"
    )
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    run.distqexp("tune", task, "--out", tmp_path / "newer").refused(2, "run it without a launcher")


def test_nothing_is_charged(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    run.done("tune", public_task(tmp_path), "--out", tmp_path / "out", "--trials", "1")
    assert not own_ledger.exists()
    assert Ledger.open().rows(None) == []


AUDITED = """
import sys
opened = []
def hook(event, arguments):
    if event == "open":
        opened.append(str(arguments[0]))
sys.addaudithook(hook)
from distqexp.cli import run
code = run(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(opened))
sys.exit(code)
"""


@pytest.mark.process
@pytest.mark.parametrize("there", [True, False], ids=["private file there", "private file absent"])
def test_no_private_or_evaluation_file_is_opened(tmp_path: Path, there: bool) -> None:
    """Every file that the interpreter opens is recorded; absent files would end the run if anything looked for them."""
    lists = {**LISTS, "trials": 2}
    if there:
        tree = table_tree(data={"eval": table_source("eval.csv")}, tune=lists)
        task = write_task(tmp_path, tree)
        # a named pipe has no end: whoever opens it without this interpreter waits for ever
        (tmp_path / "private.csv").unlink()
        os.mkfifo(tmp_path / "private.csv")
    else:
        task = public_task(tmp_path, tune=lists)
    command = [
        sys.executable,
        "-c",
        AUDITED,
        str(tmp_path / "opened"),
        "tune",
        str(task),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, env=run_environ({}), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    opened = (tmp_path / "opened").read_text().splitlines()
    assert str(tmp_path / "public.csv") in opened
    assert not [name for name in opened if re.search(r"private\.csv|eval\.csv", name)]


def test_the_digits_task_is_tuned_for_better_than_before(run: Commands, tmp_path: Path) -> None:
    quick = overrides("model.pretrain.epochs=5", "precision.samples=60", "tune.rounds=[1, 2]")
    said = run.done("tune", "--out", tmp_path / "out", "--trials", "3", "--json", *quick)
    found = json.loads(said.out.splitlines()[-1])["epsilons"]["1"]
    assert found["score"] > found["before"]
    assert "149 public units play 800 private ones, 149 are tested on" in said.err


def test_toml_is_read_back_as_it_was() -> None:
    import tomllib

    tree = {
        "a": {"x": 1e-05, "y": [1, 2.5], "z": 'é"\\\n\x7f😀', "on": True, "b c": {"d": [[0, 1]], "e": {}}},
        "list": {"of": [{"p": 1, "q": {"r": "s"}}, {"p": 2}], "mixed": [{"p": 1}, 3], "none": []},
    }
    assert tomllib.loads(written_toml(tree)) == tree
