"""The ``distqexp`` command: help, the stages one by one, inspect, verify, the ledger, one-line errors."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_harness import Commands, Outcome, overrides, table_source, table_tree, to_toml, write_task

from distqexp import api
from distqexp.privacy.events import BoundedRelease, GaussianRelease
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Ledger
from distqexp.privacy.ledger.books import Cap
from distqexp.storage.hdf5 import read_file

STEPS = (
    "plan",
    "count",
    "sketch",
    "pool",
    "release",
    "void",
    "export",
    "inspect",
    "verify",
    "tune",
    "audit",
    "doctor",
    "cost",
)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    tree = table_tree(data={"eval": table_source("eval.csv")}, output={"keep_sketches": True})
    return write_task(tmp_path, tree)


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [*((step,) for step in STEPS), *(("ledger", s) for s in ("show", "cap", "verify", "head", "accept-void"))]
)
def test_help_shows_an_example(run: Commands, words: tuple[str, ...]) -> None:
    text = run.done(*words, "--help").out
    assert "Usage: distqexp " + " ".join(words) in text
    assert "example: distqexp " + " ".join(words) in text


def test_help_lists_every_step(run: Commands) -> None:
    text = run.done("--help").out
    for step in (*STEPS, "ledger"):
        assert f"  {step} " in text


def test_help_of_the_main_job(capsys: pytest.CaptureFixture[str], run: Commands) -> None:
    with pytest.raises(SystemExit) as ended:
        run.fit("--help")
    assert ended.value.code == 0
    assert "example: mpirun -n 2 python -m distqexp.fit" in capsys.readouterr().out


@pytest.mark.process
def test_help_loads_nothing_heavy() -> None:
    heavy = ["torch", "pandas", "sklearn", "mpi4py.MPI", "dask", "scipy.stats", "pyarrow", "matplotlib"]
    code = f"import sys; from distqexp.cli import run; run(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


# --- bad commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Missing command"),
        (["nonsense"], "nonsense"),
        (["plan"], "--out"),
        (["plan", "--out"], "--out"),
        (["plan", "--out", "x", "--bogus"], "--bogus"),
        (["pool", "plan.h5", "--out", "x"], "SKETCHES"),
        (["ledger"], "Missing command"),
        (["ledger", "cap", "p", "--epsilon", "one", "--delta", "1e-5"], "--epsilon"),
        (["release", "p.h5", "q.h5", "--out", "x", "--insecure-noise-seed", "x"], "--insecure-noise-seed"),
    ],
)
def test_bad_commands_are_one_line(run: Commands, words: list[str], expected: str) -> None:
    assert expected.lower() in run.distqexp(*words).refused(2, "See --help").lower()


def test_debug_adds_places_and_keeps_the_line_and_the_code(run: Commands, tmp_path: Path) -> None:
    for words in (["--debug", "inspect", tmp_path / "gone.h5"], ["inspect", tmp_path / "gone.h5", "--debug"]):
        outcome = run.distqexp(*words)
        assert outcome.code == 2
        assert "distqexp/cli/" in outcome.err
        assert outcome.err.splitlines()[-1].startswith("distqexp: ")
        assert "Traceback" not in outcome.err


# --- the stages --------------------------------------------------------------------------------------------------


def sketch(run: Commands, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Outcome:
    """``distqexp sketch`` at a site: with another ledger than the curator's."""
    with monkeypatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(Path("site-ledger.sqlite").absolute()))
        return run.done("sketch", "plan.h5", *arguments)


def test_the_stages_by_hand(run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch, own_ledger: Path) -> None:
    monkeypatch.chdir(task.parent)
    printed = run.done("plan", "task.toml", "--out", "plan.h5")
    for word in (
        "d = 4, k = 4",
        "epsilon 1, delta 0.0001",
        "zero-out",
        "forecast:",
        "a rank needs about",
        "temperature",
    ):
        assert word in printed.out
    assert printed.err == ""
    assert not own_ledger.exists()

    sketched = sketch(run, monkeypatch, "--data", "private.csv", "--out", "site.h5")
    assert not own_ledger.exists()
    assert sketched.out == ""
    assert sketched.reasons() == []
    assert sketched.err.splitlines()[-1].startswith("distqexp: sketch, round 1/1: done in")
    assert run.done("pool", "plan.h5", "site.h5", "--out", "quadratic.h5").out == ""
    for name in ("site.h5", "quadratic.h5"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
    assert run.done("release", "plan.h5", "quadratic.h5", "--out", "release.h5").out == ""
    assert not Path("quadratic.h5").exists()

    exported = run.done("export", "plan.h5", "release.h5", "--config", "task.toml", "--out", "model")
    statement, metrics = exported.out.splitlines()
    assert statement.startswith("The released parameters are (")
    assert set(json.loads(metrics)) == {"before", "after"}
    assert set(json.loads(metrics)["after"]) == {"accuracy", "auroc", "log_loss"}
    assert {path.name for path in Path("model").iterdir()} == {
        "model.safetensors", "model.pt", "model.json", "certificate.json", "report.json", "report.html",
    }  # fmt: skip
    certificate = json.loads(Path("model/certificate.json").read_bytes())
    assert certificate["private"] is True
    assert 0.9 < certificate["epsilon"] <= 1.0
    assert certificate["plan_id"] == read_file(Path("plan.h5")).plan_id
    rows = Ledger.open().rows()
    assert certificate["ledger"] == {"entry": rows[-1].id, "hash": rows[-1].hash}
    site = Ledger.open(Path("site-ledger.sqlite")).rows()
    assert [row.key.split("/")[0] for row in (*site, *rows)] == ["site-all", "release"]


def test_export_without_a_config_prints_no_metrics(run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task.parent)
    assert run.fit("task.toml", "--out", "run").code == 0
    exported = run.done("export", "run/plan.h5", "run/release-000.h5", "--out", "model")
    assert len(exported.out.splitlines()) == 1
    for name in ("model.safetensors", "model.pt", "certificate.json"):
        assert Path("model", name).read_bytes() == Path("run", name).read_bytes()


def test_set_reaches_every_command_that_takes_a_config(
    run: Commands, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task.parent)
    changed = overrides("mechanism.rounds=2", "mechanism.step=0.5")
    run.done("plan", "task.toml", *changed, "--out", "plan.h5")
    assert read_file(Path("plan.h5")).header["config"]["mechanism"]["rounds"] == 2
    sketch(run, monkeypatch, "--data", "private.csv", "--out", "site.h5")
    run.done("pool", "plan.h5", "site.h5", "--out", "quadratic.h5")
    release = ["release", "plan.h5", "quadratic.h5", "--config", "task.toml", "--out", "release.h5"]
    differ = "made from (mechanism.rounds = 1, not 2; mechanism.step = 1.0, not 0.5)"
    run.distqexp(*release).refused(3, "not the one that plan", differ)
    run.done(*release, *changed)


def test_the_main_job_prints_one_json_object_last(run: Commands, task: Path) -> None:
    outcome = run.fit(task, "--out", task.parent / "run", "--json")
    assert len(outcome.out.splitlines()) == 1
    found = json.loads(outcome.out)
    assert set(found) == {"out", "epsilon", "delta", "mu", "rounds", "metrics", "seconds"}
    assert (found["out"], found["rounds"], found["delta"]) == (str(task.parent / "run"), 1, 1e-4)
    assert set(found["metrics"]) == {"before", "after"}
    assert set(found["seconds"]) == {"plan", "sketch", "pool", "release", "export"}
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert run.fit(task, "--out", task.parent / "quiet", "--set", "data.population=b").out == ""


def test_resume_of_a_finished_run_changes_nothing(run: Commands, task: Path) -> None:
    out = task.parent / "run"
    first = run.fit(task, "--out", out, "--json")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "progress.jsonl"}
    (task.parent / "private.csv").unlink()  # nothing is left to do with it
    again = run.fit(task, "--out", out, "--json", "--resume")
    assert again.code == 0
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "progress.jsonl"}
    assert after == before
    one, two = json.loads(first.out), json.loads(again.out)
    assert {**one, "seconds": None} == {**two, "seconds": None}
    assert len(Ledger.open().rows()) == 1


def test_the_same_run_in_a_new_folder_is_the_stored_release_for_free(run: Commands, task: Path) -> None:
    for name in ("one", "two"):
        assert run.fit(task, "--out", task.parent / name).code == 0
    one, two = (read_file(task.parent / name / "release-000.h5") for name in ("one", "two"))
    assert (one.arrays["noisy_sums"] == two.arrays["noisy_sums"]).all()
    assert len(Ledger.open().rows()) == 1


# --- inspect and verify ------------------------------------------------------------------------------------------


def test_inspect_of_private_files_shows_the_header_only(run: Commands, task: Path) -> None:
    out = task.parent / "run"
    assert run.fit(task, "--out", out).code == 0
    plan_id = read_file(out / "plan.h5").plan_id
    kinds = {"plan.h5": "plan", "release-000.h5": "release", "quadratic-000.h5": "quadratic"}
    kinds |= {path.name: "sketch" for path in out.glob("sketch-*.h5")}
    assert len(kinds) == 4
    for name, kind in kinds.items():
        text = run.done("inspect", out / name).out
        assert f"kind            {kind}:" in text
        assert plan_id in text
        private = kind in ("sketch", "quadratic")
        assert ("PRIVATE: as sensitive as the records" in text) == private
        assert ("  arrays" in text) != private
        if private:
            stored = read_file(out / name)
            assert "sums" not in text
            shown = set(re.findall(r"(?<![0-9a-f])-?[0-9]+(?![0-9a-f])", text))  # not the digits of an identity
            assert not shown & {str(number) for number in stored.arrays["sums"].tolist()}
    run.distqexp("inspect", task).refused(3, "no distqexp file")
    run.distqexp("inspect", task.parent).refused(2, "no file of distqexp in it")
    run.distqexp("inspect", out / "gone.h5").refused(2, "no such file")


def test_verify(run: Commands, task: Path) -> None:
    out = task.parent / "run"
    assert run.fit(task, "--out", out).code == 0
    lines = run.done("verify", out).out.splitlines()
    assert len([line for line in lines if ".h5: " in line or "certificate.json: " in line]) == 5
    assert len(lines) == 11  # and the model in two forms with its description, progress, and the report in two
    assert run.done("verify", out / "plan.h5", out / "certificate.json").out.count("\n") == 2

    model = out / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    run.distqexp("verify", out).refused(3, "model.safetensors", "the certificate says")
    model.unlink()
    run.distqexp("verify", out).refused(3, "model.safetensors", "missing")

    (out / "certificate.json").write_text("{}", "utf-8")
    run.distqexp("verify", out).refused(3, "not a certificate")
    empty = task.parent / "empty"
    empty.mkdir()
    run.distqexp("verify", empty).refused(2, "no file of distqexp")
    run.distqexp("verify", empty / "gone").refused(2, "no such file")


def test_verify_tells_files_of_two_plans_apart(run: Commands, task: Path) -> None:
    one, two = task.parent / "one", task.parent / "two"
    assert run.fit(task, "--out", one).code == 0
    assert run.fit(task, "--out", two, *overrides("mechanism.step=0.5", "data.population=other")).code == 0
    shutil.copy(two / "release-000.h5", one)
    run.distqexp("verify", one).refused(3, "release-000.h5", "another plan")
    shutil.copy(two / "certificate.json", one)
    shutil.copy(two / "model.safetensors", one)
    (one / "release-000.h5").unlink()
    run.distqexp("verify", one).refused(3, "certificate.json", "the plan beside it")


# --- the ledger --------------------------------------------------------------------------------------------------


def test_the_ledger_commands(run: Commands, task: Path, own_ledger: Path) -> None:
    for words in (["ledger", "show"], ["ledger", "verify"]):
        run.distqexp(*words).refused(2, str(own_ledger), "no ledger there")
    assert not own_ledger.exists()
    assert run.fit(task, "--out", task.parent / "run").code == 0
    seeded = run.fit(task, "--out", task.parent / "test", "--insecure-noise-seed", "1")
    assert seeded.code == 0
    shown = run.done("ledger", "show").out.splitlines()
    assert len(shown) == 4
    assert "patients, release/" in shown[2]
    assert re.search(r"/[0-9a-f]{16}/0/[0-9a-f]{16}: mu", shown[2]), shown[2]
    assert "zero-out, committed, unit record" in shown[2]
    assert "NOT PRIVATE" not in shown[2]
    assert "NOT PRIVATE (insecure-seed-1)" in shown[3]
    assert shown[0] == "patients: no cap set: a config has its own budget as the cap"
    guarantee = Ledger.open(own_ledger).spent("patients")
    assert guarantee.epsilon(1e-5) > 0
    assert shown[1] == (
        f"patients: spent in all: mu {guarantee.mu:.6g}, epsilon {guarantee.epsilon(1e-5):.6g} at delta 1e-05, "
        f"epsilon {guarantee.epsilon(1e-6):.6g} at delta 1e-06"
    )

    at_more = run.done("ledger", "show", "patients", "--delta", "1e-4").out.splitlines()[1]
    assert at_more == f"{shown[1]}, epsilon {guarantee.epsilon(1e-4):.6g} at delta 0.0001"
    run.distqexp("ledger", "show", "patients", "--population", "staff").refused(2, "expected one population")
    new = run.done("ledger", "cap", "patient", "--epsilon", "2", "--delta", "1e-5").out
    assert new.endswith(" (new: not on record here so far; known are patients)\n")
    assert run.done("ledger", "show").out.startswith("patient: capped at epsilon 2")

    capped = run.done("ledger", "cap", "patients", "--epsilon", "2", "--delta", "1e-5").out
    assert capped.startswith("patients: capped")
    assert "new" not in capped
    assert "patients: capped at epsilon 2, delta 1e-05" in run.done("ledger", "show", "--population", "patients").out
    capped = run.done("ledger", "show", "--population", "patients").out.splitlines()[2]
    assert capped.endswith(f"mu {guarantee.mu:.6g}, epsilon {guarantee.epsilon(1e-5):.6g} at delta 1e-05")
    elsewhere = run.done("ledger", "show", "--population", "elsewhere").out
    assert "release/" not in elsewhere
    assert "elsewhere: not on record here; known are patient, patients" in elsewhere
    assert "spent in all: mu 0, epsilon 0 at" in elsewhere
    run.distqexp("ledger", "cap", "patients", "--epsilon", "0", "--delta", "1e-5").refused(2, "epsilon")
    run.distqexp("ledger", "cap", "patients", "--epsilon", "1", "--delta", "1").refused(2, "delta")
    assert run.done("ledger", "verify").out == "ledger: the hash chain holds\n"


def test_the_ledger_shows_pure_privacy_where_there_is_any(run: Commands, own_ledger: Path) -> None:
    for number, event in enumerate((BoundedRelease(0.5, 0.7, 3), GaussianRelease(0.1, 3))):
        Ledger.open(own_ledger).reserve(
            Charge(f"release/plan/{number}", "zero-out", event),
            population="patients",
            cap=Cap(5.0, 1e-5),
            sums=np.zeros(3, dtype=np.int64),
        )
        shown = run.done("ledger", "show").out.splitlines()[1]
        assert shown.endswith(", epsilon 0.7 at delta 0") == (number == 0)


def test_a_ledger_that_was_altered(run: Commands, task: Path, own_ledger: Path) -> None:
    assert run.fit(task, "--out", task.parent / "run").code == 0
    with sqlite3.connect(own_ledger) as connection:
        connection.execute("UPDATE entries SET body = replace(body, 'patients', 'nobody')")
    connection.close()
    for words in (["verify"], ["show"], ["cap", "patients", "--epsilon", "1", "--delta", "1e-5"]):
        run.distqexp("ledger", *words).refused(3, "the ledger was altered")
    run.fit(task, "--out", task.parent / "again").refused(3, "the ledger was altered")


def test_a_ledger_that_is_another_file(run: Commands, task: Path, own_ledger: Path) -> None:
    own_ledger.write_text("dear diary", "utf-8")
    run.distqexp("ledger", "show").refused(3, str(own_ledger))
    run.fit(task, "--out", task.parent / "run").refused(3, str(own_ledger))


def test_digits_needs_no_file_by_hand_either(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {
        "model": {"factory": "distqexp.problem.models:logistic", "args": {"inputs": 64, "outputs": 10},
                  "loss": "cross-entropy"},
        "data": {"population": "digits", "private": {"format": "digits", "rows": [[0, 100]]}},
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "units": 100},
        "mechanism": {"rounds": 2, "clip": 1.0},
        "subspace": {"kind": "srht", "k": 16},
    }  # fmt: skip
    Path("t.toml").write_text(to_toml(tree), "utf-8")
    run.done("plan", "t.toml", "--out", "plan.h5")
    sketch(run, monkeypatch, "--out", "s0.h5")
    run.done("pool", "plan.h5", "s0.h5", "--out", "q0.h5")
    run.done("release", "plan.h5", "q0.h5", "--out", "r0.h5")
    sketch(run, monkeypatch, "--release", "r0.h5", "--out", "s1.h5")
    run.done("pool", "plan.h5", "s1.h5", "--out", "q1.h5")
    run.done("release", "plan.h5", "q1.h5", "--previous", "r0.h5", "--out", "r1.h5")
    run.done("export", "plan.h5", "r1.h5", "r0.h5", "--out", "model")
    assert Path("model/certificate.json").is_file()


def test_a_factory_may_lie_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Path) -> None:
    """As with ``python -m distqexp.fit``; but nothing there takes the place of an installed package."""
    from distqexp.cli.options import own_config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    own_config(None, None)
    assert str(tmp_path) not in sys.path
    assert own_config(task, ["privacy.epsilon=0.5"]).privacy.epsilon == 0.5
    assert sys.path[-1] == str(tmp_path)
    own_config(task, None)
    assert sys.path.count(str(tmp_path)) == 1
    assert api.load_config(str(task)) == api.load_config(task)
