"""Nothing that a run prints, logs or writes outside its private files depends on the private records.

Two runs on different private records are compared byte for byte, but for times, for released values, and for
what follows from them: the weights, their hashes, the evaluation. Private files are the sketches, the pooled
quadratics, and the ledger's own folder.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_harness import (
    FEATURES,
    Commands,
    Outcome,
    overrides,
    run_process,
    table_source,
    table_tree,
    to_toml,
    write_table,
    write_task,
)

from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file

PRIVATE_FILES = ("sketch-", "quadratic-")

LATER = re.compile(
    r"distqexp: (round \d+: the move was|the model stays as|[\d.]+% of the way|data\.eval, not covered|the run ended worse|guarantee: "
    r"|moves: |whether the private records could)"
)
"""Lines that follow from released parameters and public records."""


class Trace:
    """Everything that a run leaves, with times struck out.

    exact: what must not depend on the private records at all. follows: released values and what follows from them.
    """

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        assert outcome.code == 0, outcome
        lines = _without_durations(outcome.err).splitlines()
        self.exact: dict[str, Any] = {
            "stderr": [line for line in lines if not LATER.match(line)],
            "guarantee": [line for line in lines if line.startswith("distqexp: guarantee: ")],
        }
        self.follows: dict[str, Any] = {"stderr": [line for line in lines if LATER.match(line)]}
        *self.exact["stdout"], summary = outcome.out.splitlines() or ["{}"]
        self._tree("summary", json.loads(summary), ("seconds",), ("metrics.after",))
        for path in sorted((folder / "run").iterdir()):
            self._file(path)
        ledger = folder / "ledger.sqlite"
        self.exact["ledger"] = _of_round_0(Ledger.open(ledger).export())
        self.exact["ledger files"] = sorted(path.name for path in Path(f"{ledger}.files").iterdir())

    def _file(self, path: Path) -> None:
        self.exact[f"{path.name} mode"] = stat.filemode(path.stat().st_mode)
        if path.name == "report.html":  # the page of certificate.json, report.json and progress.jsonl
            return
        fixed = path.suffix != ".jsonl" and path.name != "report.json"
        self.exact[f"{path.name} size"] = path.stat().st_size if fixed else None
        if path.suffix == ".jsonl":
            times = ("seconds", "seconds_left", "time")
            events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            self.exact[path.name] = [{**event, **dict.fromkeys(times)} for event in events]
        elif path.name == "report.json":
            self._tree(path.name, json.loads(path.read_bytes()), (), ("evaluation", "public_loss"))
        elif path.suffix == ".json":
            tree = json.loads(path.read_bytes())
            if path.name == "certificate.json":
                self.follows["halvings"] = [tree.pop("kept"), *(entry.pop("halvings") for entry in tree["rounds"])]
            self._tree(path.name, tree, (), ("model_sha256", "ledger.hash"))
        elif path.suffix == ".h5" and path.name != "plan.h5":
            stored = read_file(path)
            if path.name.startswith(PRIVATE_FILES):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
            header = dict(stored.header)
            if "state" in header and header["round"] > 0:
                self.follows[f"{path.name} state"] = header.pop("state")
            self.follows[f"{path.name} shortened"] = [header.pop(name, None) for name in ("halvings", "kept")]
            self.exact[f"{path.name} header"] = (stored.kind, stored.plan_id, header)
            self.exact[f"{path.name} arrays"] = {n: (a.dtype, a.shape) for n, a in stored.arrays.items()}
            self.follows[path.name] = stored.arrays
        elif path.suffix in (".safetensors", ".pt"):
            self.follows[path.name] = path.read_bytes()
        else:
            self.exact[path.name] = path.read_bytes()

    def _tree(self, name: str, tree: dict[str, Any], dropped: tuple[str, ...], follows: tuple[str, ...]) -> None:
        for key in (*dropped, *follows):
            *above, last = key.split(".")
            node = tree
            for part in above:
                node = node.get(part, {})
            found = node.pop(last, None)
            if key in follows:
                self.follows[f"{name} {key}"] = found
        self.exact[name] = tree


def _of_round_0(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chain without times. From the second round on a key names the state, which follows from release 0."""
    found, exact = [], True
    for entry in entries:
        body = dict(entry["body"])
        if "key" in body:
            role, plan, round, state = body["key"].split("/")
            exact = exact and round == "0"
            body["key"] = (role, plan, round, state if exact else None)
        hashes = {"previous": entry["previous"], "hash": entry["hash"]} if exact else {}
        found.append({"number": entry["number"], "body": body, **hashes})
    return found


def _without_durations(text: str) -> str:
    return re.sub(r"(done in|%,|new ledger at) .*", r"\1", text)


def traced(run: Commands, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Trace:
    """Run task.toml of ``folder`` there, with a ledger of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
    return Trace(folder, run.fit("task.toml", "--out", "run", "--json", *arguments))


NOISE = pytest.mark.parametrize("noise", [["--insecure-noise-seed", "11"], []], ids=["seeded", "real entropy"])


def digits_tree() -> dict[str, Any]:
    """Two rounds on digits; the clip is given, so that the second round's grid is a figure of the config."""
    digits = {"format": "digits"}
    return {
        "model": {
            "factory": "distqexp.problem.models:logistic",
            "args": {"inputs": 64, "outputs": 10},
            "loss": "cross-entropy",
            "pretrain": {"epochs": 3, "optimiser": "lbfgs", "learning_rate": 1.0},
        },
        "data": {
            "population": "digits",
            "public": digits | {"rows": [[0, 300]]},
            "private": digits | {"rows": [[597, 997]], "rotate": 30.0, "blank": "blank.npy"},
            "eval": digits | {"rows": [[1397, 1497]], "rotate": 30.0},
        },
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "units": 400},
        "subspace": {"kind": "sjlt", "k": 50},
        "precision": {"kind": "diagonal", "samples": 100},
        "mechanism": {"rounds": 2, "clip": 0.05},
        "output": {"keep_sketches": True},
    }


def write_digits(folder: Path, blanked: int) -> None:
    folder.mkdir()
    (folder / "task.toml").write_text(to_toml(digits_tree()), "utf-8")
    blank = np.zeros(1797, dtype=np.bool_)
    blank[597 + np.random.default_rng(3).permutation(400)[:blanked]] = True
    np.save(folder / "blank.npy", blank)


@pytest.mark.slow
@NOISE
def test_half_of_the_private_records_blanked(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: list[str]
) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    write_digits(whole, 0)
    write_digits(half, 200)
    first, second = traced(run, whole, monkeypatch, *noise), traced(run, half, monkeypatch, *noise)
    assert first.exact == second.exact
    assert {"plan.h5", "certificate.json", "progress.jsonl", "release-000.h5 header", "ledger"} <= set(first.exact)
    # The runs did differ: the sums, and so the releases.
    name = "quadratic-000.h5"
    assert not np.array_equal(first.follows[name]["sums"], second.follows[name]["sums"])
    assert first.follows["model.safetensors"] != second.follows["model.safetensors"]
    assert first.follows["certificate.json model_sha256"] != second.follows["certificate.json model_sha256"]


@pytest.mark.process
def test_half_of_the_private_records_blanked_in_real_processes(tmp_path: Path) -> None:
    traces = []
    for name, blanked in (("whole", 0), ("half", 200)):
        folder = tmp_path / name
        write_digits(folder, blanked)
        environ = {"DISTQEXP_LEDGER": str(folder / "ledger.sqlite")}
        outcome = run_process("distqexp.fit", "task.toml", "--out", "run", "--json", folder=folder, environ=environ)
        traces.append(Trace(folder, outcome))
    assert traces[0].exact == traces[1].exact


@pytest.mark.slow
@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one", "add-remove"])
def test_a_clip_from_public_norms_depends_on_the_private_records_by_the_release_alone(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adjacency: str
) -> None:
    """With clip_quantile the second round's clip follows from release 0; the first round's figures don't."""
    tree = table_tree(privacy={"adjacency": adjacency})
    tree["mechanism"] = {"rounds": 2, "clip_quantile": 0.7}
    traces = []
    for seed in (21, 22):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_task(folder, tree)
        write_table(folder / "private.csv", seed, 60)
        traces.append(traced(run, folder, monkeypatch))
    for trace in traces:
        # Of the second round on, what the certificate, the summary and the ledger say follows from release 0.
        certificate = trace.exact["certificate.json"]
        for tree, later in ((trace.exact["summary"], ()), (certificate, ("rho", "statement", "ledger"))):
            for name in ("epsilon", "mu", *later):
                del tree[name]
        certificate["rounds"] = certificate["rounds"][:1]
        del trace.exact["guarantee"]
        for name in ("budget", "curve"):
            del trace.exact["report.json"][name]
        trace.exact["ledger"] = trace.exact["ledger"][:3]
        for name in ("release-000.h5 header", "release-001.h5 header"):
            kind, plan_id, header = trace.exact[name]
            header = {**header, "next": None, "used": header["used"] if header["round"] == 0 else None}
            trace.exact[name] = (kind, plan_id, header)
        for name in [name for name in trace.exact if name.startswith(("release-", "certificate")) and "size" in name]:
            del trace.exact[name]  # digits of a float
    assert traces[0].exact == traces[1].exact


def poisoned(path: Path, units: int) -> None:
    """Records that overflow, underflow and are absent, beside ordinary ones."""
    write_table(path, 7, units - 6)
    rows = ["1e300,0,0", "-1e300,1e300,1e-300", "nan,nan,nan", "inf,0,1", "3e38,3e38,-3e38", "-1e-45,1e39,0"]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"x{number},{row},{number % 2}\n" for number, row in enumerate(rows))


@pytest.mark.slow
@NOISE
@pytest.mark.parametrize("noise_kind", ["discrete", "gaussian"])
def test_other_records_and_extreme_ones(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: list[str], noise_kind: str
) -> None:
    """Not only blanked: other values, values that overflow, absent values. No warning tells them apart."""
    tree = table_tree(
        mechanism={"rounds": 2, "noise": noise_kind}, output={"keep_sketches": True},
        data={"eval": table_source("eval.csv")},
    )  # fmt: skip
    makers: list[Callable[[Path], Any]] = [
        lambda path: write_table(path, 7, 60),
        lambda path: write_table(path, 8, 60, shift=3.0),
        lambda path: poisoned(path, 60),
    ]
    traces = []
    for number, make in enumerate(makers):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_task(folder, tree)
        make(folder / "private.csv")
        traces.append(traced(run, folder, monkeypatch, *noise))
    assert traces[0].exact == traces[1].exact == traces[2].exact
    sums = [trace.follows["quadratic-000.h5"]["sums"] for trace in traces]
    assert len({tuple(vector.tolist()) for vector in sums}) == 3


@pytest.mark.slow
def test_under_add_remove_the_number_of_records_is_private(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other numbers of patients, of records and of micro-batches, down to an empty table."""
    tree = table_tree(mechanism={"rounds": 2}, privacy={"adjacency": "add-remove"})
    tree["data"]["private"] = table_source("private.csv", unit=True)
    traces = []
    for units in (60, 7, 200, 0):
        folder = tmp_path / str(units)
        folder.mkdir()
        write_task(folder, tree)
        write_table(folder / "private.csv", 7, units, records=4)
        traces.append(traced(run, folder, monkeypatch))
    for other in traces[1:]:
        assert other.exact == traces[0].exact


def test_private_files_are_gone_after_their_release(run: Commands, tmp_path: Path, own_ledger: Path) -> None:
    task = write_task(tmp_path)
    assert run.fit(task, "--out", tmp_path / "run", *overrides("mechanism.rounds=2")).code == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"plan.h5", "release-000.h5", "release-001.h5", "progress.jsonl", "certificate.json"}
    assert names == expected | {"model.safetensors", "model.pt", "model.json", "report.json", "report.html"}
    kept = sorted(path.name for path in Path(f"{own_ledger}.files").iterdir())
    assert [name for name in kept if name.startswith("released-")]
    assert not [name for name in kept if name.startswith("noise-")]


def test_an_insecure_seed_is_named_everywhere(run: Commands, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    assert run.fit(task, "--out", tmp_path / "run", "--insecure-noise-seed", "9").code == 0
    assert "NOT PRIVATE" in (tmp_path / "run" / "certificate.json").read_text("utf-8")
    assert "NOT PRIVATE" in read_file(tmp_path / "run" / "release-000.h5").header["privacy"]
    assert "NOT PRIVATE" in run.done("inspect", tmp_path / "run" / "release-000.h5").out
    assert "NOT PRIVATE" in run.done("ledger", "show").out


def test_the_features_are_named_in_the_plan_and_that_is_all(run: Commands, tmp_path: Path) -> None:
    """Column names come from the public file and are public: the comparison above must not rest on hiding them."""
    task = write_task(tmp_path)
    run.done("plan", task, "--out", tmp_path / "plan.h5")
    assert read_file(tmp_path / "plan.h5").header["schema"]["names"] == list(FEATURES)
