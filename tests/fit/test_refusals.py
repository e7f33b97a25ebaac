"""Every refusal is one line, with its exit code, before anything is spent, and leaves nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from run_harness import (
    FEATURES,
    Commands,
    charges,
    lines,
    overrides,
    rewrite,
    run_process,
    table_source,
    table_tree,
)

from distqexp.stages import rounds
from distqexp.storage.hdf5 import read_file, write_file

# --- the config --------------------------------------------------------------------------------------------------

CONFIG_REFUSALS = [
    (["privacy.epsilonn=1"], ["privacy.epsilonn: unknown", "nearest known key is privacy.epsilon"]),
    (["mechanisms.rounds=1"], ["mechanisms: unknown", "nearest known key is mechanism"]),
    (["data.private.collumns.target='died'"], ["data.private[0].collumns", "nearest known key is", "columns"]),
    (["privacy.epsilon=abc"], ["privacy.epsilon: 'abc' is a text; expected number"]),
    (["privacy.units=10.5"], ["privacy.units: 10.5 is a number; expected whole number"]),
    (["privacy.units=true"], ["privacy.units: True is a boolean; expected whole number"]),
    (["mechanism.noise='laplace'"], ["mechanism.noise: found 'laplace'; expected one of discrete, gaussian"]),
    (["model=3"], ["model: 3 is a whole number; expected a table"]),
    (["privacy.epsilon=0"], ["privacy.epsilon: found 0.0; expected a finite number above 0"]),
    (["privacy.epsilon=-1"], ["privacy.epsilon: found -1.0"]),
    (["privacy.epsilon=nan"], ["privacy.epsilon: found nan"]),
    (["privacy.epsilon=1" + 400 * "0"], ["privacy.epsilon", "expected a number"]),
    (["privacy.delta=1"], ["privacy.delta: found 1.0; expected a number from 0 to below 1"]),
    (["privacy.delta=1.5"], ["privacy.delta: found 1.5"]),
    (["privacy.delta=-0.1"], ["privacy.delta: found -0.1"]),
    (["mechanism.clip_quantile=0.5"], ["at most one of mechanism.clip, clip_quantile and clip_natural"]),
    (["data.private.path='${DISTQEXP_UNSET}/x.csv'"], ["DISTQEXP_UNSET", "export it"]),
    (["data.private.path='~no-such-user-here/x.csv'"], ["data.private.path", "unknown user"]),
    (["privacy"], ["--set privacy", "section.key=value"]),
]


@pytest.mark.parametrize(("assignments", "words"), CONFIG_REFUSALS, ids=lambda value: str(value[0])[:40])
def test_config_refusals_come_before_anything_is_written(
    run: Commands, task: Path, own_ledger: Path, assignments: list[str], words: list[str]
) -> None:
    out = task.parent / "out"
    outcome = run.fit(task, "--out", out, *overrides(*assignments))
    outcome.refused(2, *words)
    assert outcome.out == ""
    assert not out.exists()
    assert not own_ledger.exists()


BALL = ("mechanism.trust_radius=1.0", 'mechanism.noise="gaussian"')


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("mechanism.trust_radius=1.0",), ("mechanism.noise", "gaussian with mechanism.trust_radius")),
        (("mechanism.trust_radius=-1.0", BALL[1]), ("mechanism.trust_radius", "above 0")),
        (('mechanism.curvature="private"', BALL[1]), ("mechanism.trust_radius", "no Lipschitz bound")),
        (('mechanism.curvature="secret"',), ("mechanism.curvature", "private")),
        (("privacy.delta=0",), ("privacy.delta", "needs a finite one")),
        ((*BALL, 'privacy.adjacency="add-remove"'), ("mechanism.trust_radius", "none under add-remove")),
    ],
)
def test_trust_regions_that_would_promise_too_much(
    run: Commands, task: Path, assignments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    run.fit(task, "--out", task.parent / "out", *overrides(*assignments)).refused(2, *words)
    assert not (task.parent / "out").exists()


@pytest.mark.parametrize("arguments", [["--bogus"], ["--insecure-noise-seed", "x"], ["a", "b"], ["--set"]])
def test_bad_command_lines(run: Commands, arguments: list[str]) -> None:
    run.fit(*arguments).refused(2, "see --help")


def test_a_missing_config_and_one_that_is_not_toml(run: Commands, tmp_path: Path) -> None:
    run.fit(tmp_path / "none.toml").refused(2, "none.toml", "no such file")
    broken = tmp_path / "broken.toml"
    broken.write_text("[privacy\nepsilon = 1\n", "utf-8")
    run.fit(broken).refused(2, "not valid TOML")
    broken.write_bytes(b"\xff\xfe\x00")
    run.fit(broken).refused(2, "can't be read")
    broken.write_text("a = " + "[" * 100_000, "utf-8")
    run.fit(broken).refused(2, "not valid TOML")


# --- the plan: public figures alone ------------------------------------------------------------------------------

PLAN_REFUSALS = [
    (["subspace.kind=gaussian", "subspace.k=5"], ["k = 5", "d = 4"]),
    (["subspace.k=5"], ["k = 5", "d = 4"]),
    (["mechanism.grid=-80"], ["grid overflow", "2^-80"]),
    (["privacy.units=9000000000000000"], ["grid overflow", "9000000000000000000"]),
    (["mechanism.grid=20"], ["mechanism.grid: found 20"]),
    (["model.args.inputs=7"], ["model.args", "refuses a record of shape (3,)"]),
    (["model.args.wrong=7"], ["model.args", "wrong"]),
    (["model.args.outputs=2"], ["binary-cross-entropy expects", "outputs = 1"]),
    (["model.factory='nowhere:make'"], ["model.factory", "nowhere"]),
    (["model.factory='os:getpid'", "model.args={}"], ["model.factory", "expected a torch.nn.Module"]),
    (["model.trainable=['head.*']"], ["model.trainable", "head.*"]),
    (["data.public.rows=[[0,5],[4,9]]"], ["data.rows", "overlaps"]),
    (["data.public.where='age >'"], ["data.where", "expected comparisons"]),
]


@pytest.mark.parametrize(("assignments", "words"), PLAN_REFUSALS, ids=lambda value: str(value[0])[:40])
@pytest.mark.usefixtures("no_records")
def test_plan_refusals_leave_the_folder_free(
    run: Commands, task: Path, own_ledger: Path, assignments: list[str], words: list[str]
) -> None:
    out = task.parent / "out"
    run.fit(task, "--out", out, *overrides(*assignments)).refused(2, *words)
    assert {path.name for path in out.iterdir()} <= {"progress.jsonl"}
    assert charges(own_ledger) == 0


def test_a_folder_that_a_refusal_left_takes_the_corrected_run(run: Commands, task: Path) -> None:
    out = task.parent / "out"
    run.fit(task, "--out", out, "--set", "subspace.k=5").refused(2)
    assert run.fit(task, "--out", out).code == 0


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["data.public.path", "data.private.path", "data.eval.path", "data.private.blank", "model.weights"]
)
def test_missing_files_are_found_at_once(run: Commands, task: Path, source: str) -> None:
    tree = table_tree(data={"eval": table_source("eval.csv")})
    if source == "model.weights":
        del tree["model"]["pretrain"]
    rewrite(task, tree)
    outcome = run.fit(task, "--out", task.parent / "out", "--set", f"{source}=gone.file")
    outcome.refused(2, source, "gone.file", "no such file")
    assert not (task.parent / "out").exists()


@pytest.mark.usefixtures("no_records")
def test_evaluation_data_are_refused_before_anything_is_spent(run: Commands, task: Path, own_ledger: Path) -> None:
    rewrite(task, table_tree(data={"eval": table_source("eval.csv", rows=[[0, 41]])}))
    run.fit(task, "--out", task.parent / "out").refused(3, "[0, 41)")
    rewrite(task, table_tree(data={"eval": table_source("eval.csv")}))
    (task.parent / "eval.csv").write_text("\n".join([*lines(9), "p9,1,1,1,7"]), "utf-8")
    run.fit(task, "--out", task.parent / "other").refused(3, "eval.csv", "'died'")
    assert charges(own_ledger) == 0


# --- a run's own files -------------------------------------------------------------------------------------------


@pytest.fixture
def finished(run: Commands, task: Path) -> Path:
    """The folder of a finished run of two rounds, with its private files kept."""
    out = task.parent / "done"
    assert run.fit(task, "--out", out, *overrides("mechanism.rounds=2", "output.keep_sketches=true")).code == 0
    return out


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut short":
        del data[-40:]
    elif how == "almost nothing left":
        del data[100:]
    elif how == "empty":
        data.clear()
    else:
        place = {"first byte": 0, "label": 60, "middle": len(data) // 2, "last byte": len(data) - 1}[how]
        data[place] ^= 0x10
    path.write_bytes(data)


DAMAGES = ["cut short", "almost nothing left", "empty", "first byte", "label", "middle", "last byte"]


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_refused_by_every_reader(run: Commands, task: Path, finished: Path, how: str) -> None:
    kinds = ["plan.h5", "release-000.h5", "quadratic-000.h5", next(finished.glob("sketch-000-*.h5")).name]
    config = overrides("mechanism.rounds=2", "output.keep_sketches=true")
    for name in kinds:
        folder = task.parent / f"copy-{name}"
        shutil.copytree(finished, folder)
        damaged(folder / name, how)
        run.distqexp("inspect", folder / name).refused(3, name)
        run.distqexp("verify", folder).refused(3, name)
    run.fit(task, "--out", task.parent / "copy-plan.h5", "--resume", *config).refused(3, "plan.h5")
    run.fit(task, "--out", task.parent / "copy-release-000.h5", "--resume", *config).refused(3, "release-000.h5")
    plan, new = finished / "plan.h5", task.parent / "new.h5"
    bad_sketch = task.parent / f"copy-{kinds[3]}" / kinds[3]
    run.distqexp("pool", plan, bad_sketch, "--out", new).refused(3, bad_sketch.name)
    bad_quadratic = task.parent / "copy-quadratic-000.h5" / "quadratic-000.h5"
    refusal = run.distqexp("release", plan, bad_quadratic, "--config", task, *config, "--out", new)
    refusal.refused(3, "quadratic-000.h5")
    assert bad_quadratic.exists()
    assert not new.exists()


def test_resume_with_another_config(run: Commands, task: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir() if path.name != "progress.jsonl"}
    outcome = run.fit(task, "--out", finished, "--resume", *overrides("mechanism.rounds=2", "mechanism.step=0.5"))
    outcome.refused(3, "plan.h5", "another config")
    assert {path: path.read_bytes() for path in finished.iterdir() if path.name != "progress.jsonl"} == before


def test_files_of_another_plan(run: Commands, task: Path, finished: Path) -> None:
    other = task.parent / "other.h5"
    run.done("plan", task, "--set", "mechanism.step=0.5", "--set", "mechanism.rounds=2", "--out", other)
    sketch = next(finished.glob("sketch-000-*.h5"))
    new = task.parent / "new.h5"
    expected = [read_file(finished / "plan.h5").plan_id, read_file(other).plan_id]
    run.distqexp("pool", other, sketch, "--out", new).refused(3, "another plan", *expected)
    run.distqexp("release", other, finished / "quadratic-000.h5", "--out", new, "--config", task, *overrides(
        "mechanism.step=0.5", "mechanism.rounds=2")).refused(3, "another plan", *expected)  # fmt: skip
    run.distqexp("export", other, finished / "release-000.h5", "--out", task.parent / "m").refused(3, "another plan")
    private = task.parent / "private.csv"
    site = ["sketch", other, "--data", private, "--release", finished / "release-000.h5", "--out", new]
    run.distqexp(*site).refused(3, "another plan")
    assert not new.exists()


def test_a_plan_relabelled_by_hand(run: Commands, task: Path, finished: Path) -> None:
    stored = read_file(finished / "plan.h5")
    header = {**stored.header, "calibration": {**stored.header["calibration"], "mu_total": 9.0}}
    forged = task.parent / "forged.h5"
    write_file(forged, kind="plan", plan_id=stored.plan_id, header=header, arrays=stored.arrays, private=False)
    run.distqexp("verify", forged).refused(3, "plan_id", stored.plan_id[:16])
    header = {**stored.header, "config": {**stored.header["config"], "privacy": {"epsilon": -1}}}
    write_file(forged, kind="plan", plan_id=stored.plan_id, header=header, arrays=stored.arrays, private=False)
    run.distqexp("verify", forged).refused(3, "forged.h5")


@pytest.mark.usefixtures("no_records")
def test_factories_of_received_plans(
    run: Commands, task: Path, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strangers.py").write_text(
        "from distqexp.problem.models import logistic\n"
        "import pathlib\n"
        "def make(**args):\n"
        "    pathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "    return logistic(**args)\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plan, new, ran = tmp_path / "plan.h5", tmp_path / "new.h5", tmp_path / "strangers.ran"
    run.done("plan", task, "--set", "model.factory='strangers:make'", "--out", plan)
    ran.unlink()
    site = ["sketch", plan, "--data", task.parent / "private.csv", "--out", new]
    run.distqexp(*site).refused(3, "strangers:make", "DISTQEXP_ALLOW_FACTORIES")
    assert not ran.exists()
    assert not new.exists()
    assert charges(own_ledger) == 0


# --- the budget --------------------------------------------------------------------------------------------------


def test_a_second_config_on_the_same_population(
    run: Commands, task: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.fit(task, "--out", task.parent / "first").code == 0

    def refuse(*_: Any) -> Sequence[Any]:
        raise AssertionError("the private shards were opened")

    monkeypatch.setattr(rounds, "open_shards", refuse)
    second = task.parent / "second"
    outcome = run.fit(task, "--out", second, "--set", "mechanism.step=0.5")
    outcome.refused(4, "'patients'", "budget spent", "1 releases on record", "distqexp ledger cap")
    assert sorted(path.name for path in second.iterdir()) == ["plan.h5", "progress.jsonl"]
    assert charges(own_ledger) == 1


@pytest.mark.usefixtures("no_records")
def test_a_site_without_budget_reads_nothing(run: Commands, task: Path, own_ledger: Path) -> None:
    plan, new = task.parent / "plan.h5", task.parent / "new.h5"
    run.done("plan", task, "--out", plan)
    run.done("ledger", "cap", "patients", "--epsilon", "0.1", "--delta", "1e-6")
    outcome = run.distqexp("sketch", plan, "--data", task.parent / "private.csv", "--out", new)
    outcome.refused(4, "'patients'", "set in the ledger")
    assert not new.exists()
    assert not list(task.parent.glob("*.parts"))
    assert charges(own_ledger) == 0


def test_a_cap_that_a_config_cannot_raise(run: Commands, task: Path, own_ledger: Path) -> None:
    run.done("ledger", "cap", "patients", "--epsilon", "0.1", "--delta", "1e-6")
    run.fit(task, "--out", task.parent / "out", "--set", "privacy.epsilon=5").refused(4, "epsilon 0.1", "1e-06")
    assert charges(own_ledger) == 0


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty(run: Commands, task: Path, own_ledger: Path) -> None:
    out = task.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine", "utf-8")
    run.fit(task, "--out", out).refused(2, "--out", "not empty", "--resume")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    run.fit(task, "--out", out / "thesis.txt").refused(2, "a file")
    assert (out / "thesis.txt").read_text("utf-8") == "mine"
    assert not own_ledger.exists()


def test_a_folder_under_a_file_can_not_be_made(run: Commands, task: Path) -> None:
    run.fit(task, "--out", task / "deeper").refused(6, "--out")


def test_resume_with_another_source_of_noise(run: Commands, task: Path, own_ledger: Path) -> None:
    out = task.parent / "out"
    assert run.fit(task, "--out", out, "--insecure-noise-seed", "3").code == 0
    run.fit(task, "--out", out, "--resume").refused(2, "--insecure-noise-seed: found None", "released with 3")
    run.fit(task, "--out", out, "--resume", "--insecure-noise-seed", "4").refused(2, "found 4")
    assert charges(own_ledger) == 1


# --- in processes of their own -----------------------------------------------------------------------------------


@pytest.mark.process
def test_refusals_of_real_processes(task: Path) -> None:
    folder = task.parent
    unknown = run_process("distqexp.fit", task, "--set", "mechanism.step_size=1", folder=folder)
    unknown.refused(2, "mechanism.step_size", "mechanism.step")
    (folder / "private.csv").write_text("\n".join([*lines(9), "p9,1,1,1,4711,1"]), "utf-8")
    label = run_process("distqexp.fit", task, "--out", "out", "--debug", folder=folder)
    assert label.code == 3
    assert label.err.splitlines()[-1].startswith("distqexp: ")
    assert "4711" not in label.out + label.err
    damaged(folder / "out" / "plan.h5", "middle")
    run_process("distqexp.cli", "inspect", "out/plan.h5", folder=folder).refused(3, "plan.h5", "checksum")


def test_the_features_of_the_tables_are_those_of_the_model() -> None:
    assert table_tree()["model"]["args"]["inputs"] == len(FEATURES)
