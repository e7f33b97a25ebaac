"""The benchmark scripts, each at a tiny size: figures that add up. No test depends on how long anything took."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi_harness import REPOSITORY, run_environ

pytest.importorskip("matplotlib")


def run_script(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Run scripts/NAME.py and return its JSON file; its plot must be there too."""
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), "--out", str(out), *arguments]
    done = subprocess.run(command, env=run_environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / f"{name}.png").stat().st_size > 5_000
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text("utf-8"))
    return found


@pytest.mark.process
@pytest.mark.slow
def test_projection_measures_every_kind_and_counts_the_bytes(tmp_path: Path) -> None:
    results = run_script("projection", tmp_path, "--models", "cnn", "--rows", "2", "--repeats", "2")
    cases = {case["kind"]: case for case in results["cases"]}
    kinds = {"identity", "gaussian", "rademacher", "sjlt", "srht", "kronecker", "kronecker-pca", "public-pca"}
    assert set(cases) == kinds | {"gaussian, made anew", "rademacher, made anew"}
    for case in cases.values():
        assert case["d"] == 26_010
        assert len(case["seconds"]) == len(case["dense"]["seconds"]) == 2
        assert case["entries_per_second"] == pytest.approx(2 * 26_010 / statistics.median(case["seconds"]))
        ratios = [b / a for a, b in zip(case["seconds"], case["dense"]["seconds"], strict=True)]
        assert case["times_as_fast_as_dense"] == pytest.approx(statistics.median(ratios))
        assert ("bytes" in case) == (case["kind"] in ("sjlt", "srht"))
        assert case["dense"]["k"] == (1_000 if case["kind"] == "identity" else case["k"])
    moved = cases["sjlt"]["bytes"]
    # Gradients float32, sums float64; four signs (float64) and places (int32) a row, and where each row begins.
    assert moved["least"] == 2 * 26_010 * 4 + 2 * 1_000 * 8 + 26_010 * 4 * 12 + 26_011 * 4
    assert moved["least_per_second"] == pytest.approx(moved["least"] / statistics.median(cases["sjlt"]["seconds"]))
    assert cases["srht"]["bytes"]["transform"] == 2 * 32_768 * 8 * 2 * (15 + 2)
    assert results["copy_bytes_per_second"] > 0


@pytest.mark.process
@pytest.mark.slow
def test_speed_has_ratios_of_its_own_seconds_and_peaks(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    ways = ["plain", "distqexp, kronecker-pca", "Opacus hooks"]
    results = run_script(
        "speed", tmp_path, "--models", "cnn", "--batch", "8", "--repeats", "3", "--ways", *ways
    )  # fmt: skip
    (model,) = results["models"]
    assert (model["model"], model["batch"], model["parameters"]) == ("cnn", 8, 26_010)
    assert list(model["k"]) == ["distqexp, kronecker-pca"]
    assert 1_000 < model["k"]["distqexp, kronecker-pca"] < 26_010
    seconds = model["seconds"]
    assert list(seconds) == ways
    assert all(len(values) == 3 and min(values) > 0 for values in seconds.values())
    for way in ways:
        ratios = [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)]
        assert model["plain_passes"][way] == pytest.approx(statistics.median(ratios))
        sizes = model["memory_mib"][way]
        assert sizes["peak"] >= sizes["before"] > 0
        assert model["pass_memory_mib"][way] == pytest.approx(sizes["peak"] - sizes["before"])
    faster = [a / b for a, b in zip(seconds["Opacus hooks"], seconds["distqexp, kronecker-pca"], strict=True)]
    assert model["faster_than_opacus_hooks"]["distqexp, kronecker-pca"] == pytest.approx(statistics.median(faster))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_speed_every_way_takes_a_pass_of_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opacus")
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    from benchmarks.passes import CASES, FULL, PCA, WAYS, Prepared, make_pass

    prepared = Prepared(CASES["mlp"], 3, tmp_path, 1)
    prepared.write((PCA, FULL))
    found = {way: make_pass(way, prepared)() for way in WAYS}
    for way in (PCA, FULL):
        sums = found[way]
        assert isinstance(sums, np.ndarray)
        assert (sums.dtype, sums.shape) == (np.dtype(np.int64), (prepared.plan(way).k,))
        grid = prepared.plan(way).state.grid
        # Three records, each of norm at most the clip.
        assert 0 < np.linalg.norm(sums.astype(float)) <= 3 * grid.clip_integer * 1.01 + math.sqrt(sums.size)
    clipped = found["torch.func"]
    assert isinstance(clipped, dict)
    assert 0 < math.sqrt(sum(float(part.square().sum()) for part in clipped.values())) <= 3 + 1e-3


@pytest.fixture
def opacus() -> None:
    pytest.importorskip("opacus")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("opacus")
def test_frontier_compares_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    arguments = ("--smoke", "--epsilons", "1", "--set", "mechanism.rounds=2")
    first = run_script("frontier", tmp_path, *arguments, "--only", "opacus", "gd", "none", "non-private")
    row = first["epsilons"]["1"]
    assert set(first["missing"]) == {"distqexp, epsilon 1.0", "time, epsilon 1.0"}
    assert set(row["methods"]) == {
        "Opacus DP-SGD", "Opacus DP-Adam", "DP gradient descent", "distqexp, base config",
    }  # fmt: skip
    lines = (tmp_path / "runs.jsonl").read_text("utf-8").splitlines()
    assert first["runs_made_now"] == len(lines)
    assert (first["flat"]["non-private"]["complete"], row["methods"]["distqexp, base config"]["complete"]) == (
        True,
        False,
    )
    runs = [json.loads(line) for line in lines]
    for method in ("Opacus DP-SGD", "Opacus DP-Adam", "DP gradient descent"):
        entry = row["methods"][method]
        tried: dict[float, list[float]] = {}
        for run in runs:
            facts = run["parameters"]
            if facts["method"] == method:
                tried.setdefault(facts["learning_rate"], []).append(run["result"]["metrics"]["accuracy"])
        assert len(tried) == entry["tried"] >= 3
        means = {rate: statistics.fmean(values) for rate, values in tried.items()}
        assert {len(values) for values in tried.values()} == {3}, "each setting has three seeds"
        best = entry["setting"]["learning_rate"]
        assert means[best] == max(means.values()) == pytest.approx(entry["chosen_at"])
        assert min(tried) < best < max(tried)
        assert (entry["at_edge"], entry["converged"]) == ([], True)
        (values,) = entry["values"]["accuracy"]
        assert len(values) == 2
        assert entry["mean"]["accuracy"] == pytest.approx(statistics.fmean(values))
        assert entry["seconds"] > 0
    public = first["flat"]["public data alone, turned by 30 to 30 degrees"]
    assert public["mean"]["accuracy"] > first["flat"]["no fine-tuning"]["mean"]["accuracy"] + 0.2
    second = run_script("frontier", tmp_path, *arguments)
    rows = (tmp_path / "runs.jsonl").read_text("utf-8").splitlines()
    assert rows[: len(lines)] == lines
    assert second["runs_made_now"] == len(rows) - len(lines) == 2 + 3
    assert second["missing"] == {}
    ours = second["epsilons"]["1"]["methods"]["distqexp, base config"]
    assert ours["complete"]
    assert ours["mean"]["accuracy"] > second["flat"]["no fine-tuning"]["mean"]["accuracy"]
    best = second["epsilons"]["1"]["best_opacus"]
    gap = ours["mean"]["accuracy"] - second["epsilons"]["1"]["methods"][best]["mean"]["accuracy"]
    assert second["epsilons"]["1"]["differences"]["distqexp, base config"]["mean"] == pytest.approx(gap)
    gaps = second["epsilons"]["1"]["differences_to"]["distqexp, base config"]
    assert set(gaps) == {*second["flat"], "Opacus DP-SGD", "Opacus DP-Adam", "DP gradient descent"}
    for method, entry in second["flat"].items():
        assert gaps[method]["mean"] == pytest.approx(ours["mean"]["accuracy"] - entry["mean"]["accuracy"])
    timed = second["epsilons"]["1"]["time"]["distqexp, base config"]
    pairs = [pair["distqexp"] / (pair["opacus"] or pair["opacus_whole_run"]) for pair in timed["seconds"]]
    assert timed["ratio"] == pytest.approx(statistics.median(pairs))
    third = run_script("frontier", tmp_path, *arguments, "--budget-minutes", "0")
    assert third["runs_made_now"] == 0
    assert third["epsilons"] == second["epsilons"]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("opacus")
def test_frontier_shuffles_a_table_into_splits_and_takes_tuned_configs(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    table = generator.standard_normal((160, 3))
    died = (generator.random(160) < 1 / (1 + np.exp(-2 * table[:, 0]))).astype(int)
    rows = [",".join([*(f"{value:.4f}" for value in row), str(label)]) for row, label in zip(table, died, strict=True)]
    public, rows = rows[:60], rows[60:]
    for name, lines in (("public", public), ("stays", rows)):
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,c,died", *lines]) + "\n", "utf-8")
    columns = 'columns = { target = "died" }'
    sources = "\n".join(
        f'[data.{role}]\nformat = "csv"\npath = "{name}.csv"\nrows = [[{first}, {last}]]\n{columns}\n'
        for role, name, first, last in (
            ("public", "public", 0, 60),
            ("private", "stays", 0, 60),
            ("eval", "stays", 60, 100),
        )
    )
    config = f"""
[model]
factory = "distqexp.problem.models:logistic"
args = {{ inputs = 3 }}
loss = "binary-cross-entropy"
[data]
population = "stays"
{sources}
[privacy]
epsilon = 1.0
delta = 1e-3
units = 60
[mechanism]
rounds = 1
clip = 0.5
"""
    (tmp_path / "base.toml").write_text(config, "utf-8")
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "tuned-eps2.toml").write_text(config.replace('path = "', f'path = "{tmp_path}/'), "utf-8")
    out = tmp_path / "out"
    arguments = ["--smoke", "--config", str(tmp_path / "base.toml"), "--tuned", f"ours={tuned}", "--splits", "2"]
    arguments += ["--epsilons", "1", "2", "--passes", "1", "--batches", "16", "0"]
    groups = ("opacus", "gd", "linear", "none", "non-private", "ours")
    results = run_script("frontier", out, *arguments, "--only", *groups)
    assert results["metric"] == "auroc"
    assert len(set(results["tasks"])) == 2
    assert results["no_config"] == {"ours": [1.0]}
    shuffled = (out / "stays-split-1.csv").read_text("utf-8").splitlines()
    assert shuffled[0] == "a,b,c,died"
    assert shuffled[1:] != rows
    assert sorted(shuffled[1:]) == sorted(rows)
    row = results["epsilons"]["2"]
    assert [len(values) for values in row["methods"]["ours"]["values"]["auroc"]] == [2, 2]
    found = row["differences"]["ours"]
    assert found["mean"] == pytest.approx(statistics.fmean(found["by_split"]))
    assert found["low"] <= found["mean"] <= found["high"]
    assert "ours" not in results["epsilons"]["1"]["methods"]
    for method in ("objective perturbation", "DP-Newton"):
        entry = row["methods"][method]
        assert entry["complete"]
        assert entry["tried"] > 20
        assert [len(values) for values in entry["values"]["auroc"]] == [2, 2]
        assert row["differences_to"]["ours"][method]["low"] <= row["differences_to"]["ours"][method]["high"]
    untouched = results["flat"]["no fine-tuning"]
    assert results["flat"]["public data alone, no shift assumed"] == {**untouched, "same_as": "no fine-tuning"}
