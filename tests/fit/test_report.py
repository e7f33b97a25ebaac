"""A run leaves its report: what is in it, what never is, and that it costs a finished run nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_harness import Commands, overrides, table_source, table_tree, write_table, write_task

from distqexp.api import Ledger, fit, load_config
from distqexp.privacy import gdp
from distqexp.problem.losses import get_loss
from distqexp.stages import reporting


def tree(**data: Any) -> dict[str, Any]:
    return table_tree(mechanism={"rounds": 3}, data={"eval": table_source("eval.csv"), **data})


def figures(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_bytes())


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    result = fit(load_config(write_task(tmp_path, tree())), tmp_path / "run")
    assert result is not None
    stored, page = figures(tmp_path / "run"), (tmp_path / "run" / "report.html").read_text("utf-8")
    assert result.certificate["statement"] in page.replace("&#39;", "'")
    for when in ("before", "after"):
        side, metrics = stored["evaluation"][when], result.metrics[when]
        assert side["correct"] / stored["evaluation"]["records"] == metrics["accuracy"]
        assert side["roc"]["area"] == pytest.approx(metrics["auroc"], abs=1e-12)
        assert side["loss"]["mean"] == pytest.approx(metrics["log_loss"])
    assert [point["rounds"] for point in stored["public_loss"]] == [0, 1, 2, 3]
    assert len({point["loss"] for point in stored["public_loss"]}) == 4
    middle = stored["curve"][(len(stored["curve"]) - 1) // 2]
    assert middle == pytest.approx([result.certificate["epsilon"], np.log10(result.certificate["delta"])])
    assert stored["budget"]["after"] == pytest.approx(result.certificate["epsilon"])
    assert (stored["budget"]["before"], stored["budget"]["epsilon"]) == (0.0, 1.0)


def test_the_public_loss_is_the_mean_loss_of_the_public_records(tmp_path: Path) -> None:
    config = load_config(write_task(tmp_path, tree(eval=table_source("public.csv"))))
    result = fit(config, tmp_path / "run", insecure_noise_seed=1)
    assert result is not None
    losses = [point["loss"] for point in figures(tmp_path / "run")["public_loss"]]
    assert [losses[0], losses[-1]] == pytest.approx([result.metrics[when]["log_loss"] for when in ("before", "after")])


def test_the_budget_bar_knows_earlier_runs_and_not_later_ones(tmp_path: Path) -> None:
    task = write_task(tmp_path, tree())
    with Ledger.open() as ledger:
        ledger.set_cap("patients", 3.0, 1e-4)
    first = fit(load_config(task), tmp_path / "first")
    again = fit(load_config(task, ["subspace.seed=5"]), tmp_path / "second")
    assert first is not None
    assert again is not None
    one, two = figures(tmp_path / "first")["budget"], figures(tmp_path / "second")["budget"]
    assert two["before"] == one["after"] == pytest.approx(gdp.epsilon(1e-4, first.certificate["mu"]), rel=1e-3)
    assert one["after"] < two["after"] < 2 * one["after"]
    stored = (tmp_path / "first" / "report.json").read_bytes()
    assert fit(load_config(task), tmp_path / "first", resume=True) is not None
    assert (tmp_path / "first" / "report.json").read_bytes() == stored


@pytest.mark.parametrize("loss", ["binary-cross-entropy", "mean-squared-error"])
def test_private_evaluation_records_are_never_in_it(tmp_path: Path, loss: str) -> None:
    """With the noise of a seed, two private tables of evaluation records give the same page, but for times."""
    task = tree(eval_private=True)
    task["model"] = {**task["model"], "loss": loss}
    pages, metrics = [], []
    for units in (40, 25):
        folder = tmp_path / str(units)
        folder.mkdir()
        path = write_task(folder, task)
        write_table(folder / "eval.csv", units, units, shift=0.9)
        result = fit(load_config(path), folder / "run", insecure_noise_seed=1)
        assert result is not None
        metrics.append(result.metrics["after"])
        assert figures(folder / "run")["evaluation"] == {"withheld": "private"}
        pages.append({name: value for name, value in figures(folder / "run").items() if name != "seconds"})
    assert metrics[0] != metrics[1]
    assert pages[0] == pages[1]


def test_two_private_tables_give_the_same_page_but_for_what_was_released(tmp_path: Path) -> None:
    """With the noise of a seed and a step of hardly anything, no word of the page depends on the private records."""
    pages = []
    for units in (60, 45):
        folder = tmp_path / str(units)
        folder.mkdir()
        config = load_config(write_task(folder, tree(), private_units=units), ["mechanism.step=1e-9"])
        assert fit(config, folder / "run", insecure_noise_seed=1) is not None
        pages.append(figures(folder / "run"))
    for one in pages:
        one["public_loss"] = one["evaluation"] = None
    assert pages[0] == pages[1]


def test_a_report_that_fails_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Commands) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(reporting, "write_report", refuse)
    outcome = run.fit(write_task(tmp_path, tree()), "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "the report was left out (unexpected RuntimeError); make it: distqexp report" in outcome.err
    monkeypatch.undo()
    assert (tmp_path / "run" / "certificate.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    assert "report.html" in run.done("report", tmp_path / "run").out
    assert (tmp_path / "run" / "report.html").exists()


def test_the_command_writes_over_reports_alone(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    task = write_task(tmp_path, tree())
    for name, epsilon in (("a", 0.5), ("b", 0.8)):
        outcome = run.fit(
            task, "--out", tmp_path / name, *overrides(f"privacy.epsilon={epsilon}", f"data.population='{name}'")
        )
        assert outcome.code == 0, outcome
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run.done("report", "a", "b")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "2 runs side by side" in text
    assert "2: b" in text
    run.distqexp("report", "a", "--out", task).refused(2, "exists and is no report")
    run.distqexp("report", tmp_path).refused(2, "no certificate.json", "--resume")


def test_a_run_by_hand_has_one_too(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, table_tree(data={"eval": table_source("eval.csv")}))
    monkeypatch.chdir(tmp_path)
    run.done("plan", "task.toml", "--out", "plan.h5")
    run.done("sketch", "plan.h5", "--data", "private.csv", "--out", "sketch.h5")
    run.done("pool", "plan.h5", "sketch.h5", "--out", "quadratic.h5")
    run.done("release", "plan.h5", "quadratic.h5", "--out", "release-000.h5")
    run.done("export", "plan.h5", "release-000.h5", "--config", "task.toml", "--out", "model")
    stored = figures(tmp_path / "model")
    assert stored["evaluation"]["records"] == 40
    assert stored["took_part"]["engine"] is None
    assert "by its own commands" in (tmp_path / "model" / "report.html").read_text("utf-8")


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_task(tmp_path, tree()))
    kind = type(get_loss(config.model.loss))
    result = fit(config, tmp_path / "run")
    assert result is not None
    from distqexp.gradients.worker import Worker

    value = kind.value
    monkeypatch.setattr(kind, "value", lambda *arguments: value(*arguments) * float("nan"))
    losses = reporting.public_losses(result.plan, result.releases, config.data.public, Worker.of_plan(result.plan))
    assert [point["loss"] for point in losses] == [None] * 4
