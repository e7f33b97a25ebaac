"""What a plan says of its choices and warns of, and the last lines of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from small_runs import make_config, plan_of, random_table

from distqexp import api, fit
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import config_from_tree, config_to_tree
from distqexp.stages import advice
from distqexp.stages.plan import describe_plan


def text_of(folder: Path, model: str = "logistic", **privacy: Any) -> str:
    """What ``plan`` prints for a config that leaves all open."""
    return "\n".join(describe_plan(open_plan(folder, model, **privacy)))


def open_plan(
    folder: Path,
    model: str = "logistic",
    pretrain: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    **privacy: Any,
) -> Plan:
    """The plan of a config that leaves all open but, where they are given, pretraining and a head that moves first."""
    random_table(model, [1] * 60, seed=1).write(folder / "public.h5")
    tree = config_to_tree(make_config(folder, model, privacy=privacy))
    for name in ("mechanism", "subspace", "precision", "augment", "diagnostics", "output"):
        del tree[name]
    if pretrain is not None:
        tree["model"]["pretrain"] = pretrain
    if head is not None:
        tree["mechanism"] = head
    return plan_of(config_from_tree(tree))


def test_a_plan_says_what_it_chose_and_why(tmp_path: Path) -> None:
    text = text_of(tmp_path, units=5000)
    assert text.startswith("expect: noise is little: in a round it is about 0.0"), text
    assert "chosen: precision dense, from data.public" in text
    assert "chosen: all 7 parameters move" in text
    assert "chosen: clip_natural" in text
    assert "in 10 rounds of step 1, so that noise costs at most 25 % of the first loss, or 0.01" in text
    assert "warning" not in text


@pytest.mark.parametrize(
    ("privacy", "warning"),
    [
        ({"units": 1000, "delta": 0.01}, "privacy.delta: 0.01 is above 1 / units = 0.001"),
        ({"units": 5000, "epsilon": 50.0}, "privacy.epsilon: 50 promises next to nothing"),
        ({"units": 20, "epsilon": 0.1}, "noise will win: in 7 coordinates"),
    ],
)
def test_a_plan_warns(privacy: dict[str, Any], warning: str, tmp_path: Path) -> None:
    text = text_of(tmp_path, **privacy)
    assert f"distqexp: warning: {warning}" in text
    assert text.startswith("expect: noise wins: ") == warning.startswith("noise will win")


def test_the_last_lines_of_a_run(
    tmp_path: Path, own_ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--set", "model.pretrain.epochs=2", "--set", "mechanism.rounds=1", "--set", "precision.samples=50"]
    arguments = ["--out", str(tmp_path / "run"), "--insecure-noise-seed", "1", *quick]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").touch()
    assert fit.main(arguments) == 2
    assert "CONFIG: not given, and config.toml lies here" in capsys.readouterr().err
    assert not own_ledger.exists()
    (tmp_path / "config.toml").unlink()
    assert fit.main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("distqexp: data.eval, not covered by the guarantee: accuracy 0.") for line in lines)
    assert lines[0] == "distqexp: no config given: the embedded digits task"
    assert any("guarantee: epsilon" in line and "NOT PRIVATE" in line for line in lines)
    assert any(line == f"distqexp: model: {tmp_path / 'run' / 'model.safetensors'}" for line in lines)
    assert not any("worse" in line for line in lines)
    # A run that must end worse: the released point is replaced by a bad one.
    monkeypatch.setattr(
        "distqexp.stages.release.moved_parameters",
        lambda plan, state, *_: state.theta + 30.0 * np.sin(np.arange(plan.d)),
    )
    monkeypatch.setattr("distqexp.stages.guard.Guard.moved", lambda self, start, end: (end, 0))
    arguments[1] = str(tmp_path / "worse")
    assert fit.main(arguments) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("distqexp: the run ended worse than it began: log_loss ")


def test_a_run_that_ends_worse_names_warnings_and_pretraining_where_there_are_any(tmp_path: Path) -> None:
    plan = open_plan(tmp_path, units=5000)

    def line(before: float, after: float, head: tuple[str, ...] = (), **privacy: Any) -> str:
        model = dataclasses.replace(plan.config.model, weights="w", new_head=head)
        stated = dataclasses.replace(plan.config.privacy, **privacy)
        config = dataclasses.replace(plan.config, model=model, privacy=stated)
        metrics = {"before": {"log_loss": before}, "after": {"log_loss": after}}
        return "".join(advice.lines_on_worse(dataclasses.replace(plan, config=config), metrics))

    assert line(1.0, 2.0).endswith("2 after; use the model that you had")
    assert line(1.0, 2.0, epsilon=30.0).endswith("use the model that you had, or see the plan's warnings")
    assert "began untrained: model.pretrain" in line(1.0, 2.0, ("1.*",))
    assert line(1.0, 1.0, ("1.*",)).startswith(
        "the run ended no better than it began: log_loss 1 before, 1 after; its new"
    )
    assert line(1.0, 1.0) == line(1.0, 0.5, ("1.*",)) == ""


def test_a_plan_says_that_nothing_is_pretrained(tmp_path: Path) -> None:
    line = "chosen: no pretraining: the run begins with the weights that model.factory makes"
    plan = open_plan(tmp_path, units=5000)
    assert line in "\n".join(describe_plan(plan))
    assert line not in "\n".join(describe_plan(open_plan(tmp_path, units=5000, pretrain={"epochs": 1})))
    model, mechanism = plan.config.model, dataclasses.replace(plan.config.mechanism, clip_natural=None)
    named = dataclasses.replace(plan.config, model=dataclasses.replace(model, weights="w"), mechanism=mechanism)
    lines = advice.choices(named, plan)
    assert any("chosen: clip_natural" in note for note in lines)
    assert not any(line in note for note in lines)


def test_a_plan_says_why_a_small_model_with_a_head_works_layer_by_layer(tmp_path: Path) -> None:
    line = "not dense, as mechanism.head lets layers stand still"
    headed = open_plan(tmp_path, "mlp", units=5000, head={"head": ["3.*"], "head_rounds": 2})
    assert headed.config.precision.kind == "kronecker"
    assert line in "\n".join(describe_plan(headed))
    assert line not in text_of(tmp_path, "mlp", units=5000)


@pytest.mark.parametrize(
    ("factory", "allowed", "told"),
    [
        ("distqexp.problem.models:mlp", "", False),
        ("ours:net", "", True),
        ("ours:net", "other:*", True),
        ("ours:net", "ours:*", False),
        ("distqexp.problem.lent:borrow", "", False),
    ],
)
def test_a_run_says_what_predicting_with_own_code_takes(
    factory: str, allowed: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTQEXP_ALLOW_FACTORIES", allowed)
    plan = open_plan(tmp_path, units=5000)
    model = dataclasses.replace(plan.config.model, factory=factory)
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, model=model))
    lines = advice.lines_on_own_code(plan)
    assert [line.endswith("export DISTQEXP_ALLOW_FACTORIES='ours:net'") for line in lines] == [True] * told


def test_moves_that_were_not_made_are_counted() -> None:
    def lines(kept: int, *halvings: int) -> list[str]:
        return advice.lines_on_moves([cast("Release", SimpleNamespace(halvings=some, kept=kept)) for some in halvings])

    assert lines(8, 0, 0) == []
    moves, check = lines(0, 9, 9, 0, 3)
    assert moves.startswith("moves: of 4 rounds' moves, all paid for, 2 were not made and 1 were cut")
    assert "mechanism.guard_rise" in moves
    assert "distqexp check CONFIG" in check


def test_a_plan_file_keeps_no_notes(tmp_path: Path) -> None:
    random_table("logistic", [1] * 60, seed=1).write(tmp_path / "public.h5")
    plan = plan_of(make_config(tmp_path, "logistic"))
    plan.write(tmp_path / "plan.h5")
    again = Plan.read(tmp_path / "plan.h5")
    assert again.plan_id == dataclasses.replace(plan, notes=("other",)).with_identity().plan_id
    assert api.describe_plan(again)
