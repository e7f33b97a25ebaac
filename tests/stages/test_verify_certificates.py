"""``verify`` computes a certificate again from plan, releases and ledger: no field of it can be changed by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from forgery import changed_trees
from run_harness import Commands, table_tree, write_task

from distqexp import api
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.artefacts.restoring import with_file_errors
from distqexp.errors import FileContentError
from distqexp.report.certificate import statement_of
from distqexp.stages import verify
from distqexp.storage.hdf5 import read_file, write_file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds with diagnostics; its ledger is beside it."""
    folder = tmp_path_factory.mktemp("finished")
    tree = table_tree(mechanism={"rounds": 2}, diagnostics={"share": 0.1})
    task = write_task(folder, tree)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        assert api.fit(api.load_config(task), folder / "run") is not None
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder to change, where its ledger is at hand."""
    monkeypatch.setenv("DISTQEXP_LEDGER", str(finished / "ledger.sqlite"))
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def test_every_field_of_a_certificate(finished: Path) -> None:
    folder = finished / "run"
    plan = Plan.read(folder / "plan.h5")
    releases = [Release.read(folder / f"release-{round:03d}.h5", plan) for round in range(2)]
    certificate = json.loads((folder / "certificate.json").read_text("utf-8"))
    found = Counter[str]()
    for name, changed in [("nothing", certificate), *changed_trees(certificate)]:
        try:
            with_file_errors(Path("certificate.json"), lambda changed=changed: verify._check_itself(changed))  # type: ignore[misc]
            verify._check_figures(Path("certificate.json"), changed, plan, releases)
            found["accepted"] += 1
        except FileContentError:
            found["refused"] += 1
            continue
        # What this machine cannot know, and the last bits of a figure.
        close = "." not in name.split(" = ")[0] or name.startswith(
            ("rounds.", "diagnostics.", "precision.", "kept.share")
        )
        assert name.startswith(("versions.", "ledger.", "model_sha256", "nothing")) or close, name
        assert changed["epsilon"] >= certificate["epsilon"] * (1 - 1e-11)
    assert found["refused"] > 700
    assert found["accepted"] < 200


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "epsilon": lambda tree: tree.update(epsilon=0.01),
    "delta": lambda tree: tree.update(delta=1e-9),
    "mu": lambda tree: tree.update(mu=tree["mu"] / 2),
    "rho": lambda tree: tree.update(rho=None),
    "statement": lambda tree: tree.update(
        statement="The released parameters are (0.01, 0.0001)-differentially private."
    ),
    "adjacency.kind": lambda tree: tree["adjacency"].update(kind="replace-one"),
    "unit": lambda tree: tree.update(unit="all records of one unit id"),
    "rounds": lambda tree: tree["rounds"].pop(),
    "rounds[1].sigma": lambda tree: tree["rounds"][1].update(sigma=2**50),
    "parts.count": lambda tree: tree["parts"].update(count=2),
    "noise.arithmetic": lambda tree: tree["noise"].update(arithmetic="exact"),
    "not_covered": lambda tree: tree["not_covered"].clear(),
    "diagnostics": lambda tree: tree.update(diagnostics=None),
    "subspace.k": lambda tree: tree["subspace"].update(k=1),
    "precision.damping": lambda tree: tree["precision"].update(damping=0.0),
    "units": lambda tree: tree.update(units=10**6),
    "audited": lambda tree: tree.update(audited="by nobody"),
    "ledger": lambda tree: tree["ledger"].update(hash="ab" * 32),
    "versions": lambda tree: tree["versions"].update(torch=3),
}


@pytest.mark.parametrize("field", EDITS)
def test_an_edited_certificate_is_refused_by_name(
    field: str, copy: Path, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distqexp.storage.content import read_content

    monkeypatch.setattr("distqexp.storage.hdf5.read_confined", read_content)
    path = copy / "certificate.json"
    certificate = json.loads(path.read_text("utf-8"))
    EDITS[field](certificate)
    path.write_text(json.dumps(certificate), "utf-8")
    refusal = run.distqexp("verify", copy).refused(3, "certificate.json", field)
    if field == "epsilon":
        assert "0.01" in refusal


def test_what_was_checked_is_said(copy: Path, run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = run.done("verify", copy).out.splitlines()[0]
    assert line.startswith(f"{copy / 'certificate.json'}: its model has the SHA-256")
    assert "every figure of plan and releases; its tensors are those of the last release" in line
    assert "is this machine's own" in line
    assert "not checked" not in line

    # As docs/sites.md has it: the certificate alone in its folder, plan and releases named.
    model = tmp_path / "model"
    model.mkdir()
    for name in ("certificate.json", "model.safetensors"):
        shutil.copy(copy / name, model)
    files = [copy / "plan.h5", copy / "release-000.h5", copy / "release-001.h5"]
    assert "not checked" not in run.done("verify", model, *files).out
    assert "not checked: its figures against the releases of all 2 rounds" in run.done("verify", model, *files[:2]).out
    assert "not checked: its figures against plan and releases" in run.done("verify", model).out
    for change in ({"epsilon": 0.01}, {"mu": 1e-3}, {"statement": "private"}, {"rho": 0.0}, {"delta": 1e-300}):
        certificate = json.loads((model / "certificate.json").read_text("utf-8"))
        (model / "certificate.json").write_text(json.dumps(certificate | change), "utf-8")
        run.distqexp("verify", model).refused(3, "certificate.json", *change)
        (model / "certificate.json").write_text(json.dumps(certificate), "utf-8")
    certificate = json.loads((model / "certificate.json").read_text("utf-8"))
    exact = f"({certificate['epsilon']!r}, {certificate['delta']!r})"
    assert exact not in certificate["statement"]
    fields = (certificate["unit"], certificate["adjacency"]["kind"], certificate["noise_seed"])
    older = statement_of(certificate["epsilon"], certificate["delta"], *fields, rounded=False)
    (model / "certificate.json").write_text(json.dumps(certificate | {"statement": older}), "utf-8")
    run.done("verify", model, *files)
    (model / "certificate.json").write_text(json.dumps(certificate), "utf-8")
    # The certificate alone, named by its path: what stands beside it is looked at.
    lone = run.done("verify", copy / "certificate.json").out.splitlines()
    assert len(lone) == 1
    assert "every figure of plan and releases" in lone[0]
    changed = json.loads((copy / "certificate.json").read_text("utf-8")) | {"mu": 1e-3}
    (copy / "certificate.json").write_text(json.dumps(changed), "utf-8")
    run.distqexp("verify", copy / "certificate.json").refused(3, "mu: found 0.001")
    assert "not checked: what it builds on" in run.done("verify", files[0], files[2]).out
    again = shutil.copy(files[1], tmp_path / "again.h5")
    run.distqexp("verify", *files, again).refused(3, "again.h5: round 0 again")

    missing = tmp_path / "none" / "ledger.sqlite"
    monkeypatch.setenv("DISTQEXP_LEDGER", str(missing))
    assert "as there is no ledger here" in run.done("verify", model, *files).out
    assert not missing.parent.exists()
    other = tmp_path / "other.sqlite"
    api.Ledger.open(other).close()
    monkeypatch.setenv("DISTQEXP_LEDGER", str(other))
    assert "the ledger here does not know the plan" in run.done("verify", model, *files).out


def test_another_model_with_a_right_digest_is_refused(copy: Path, run: Commands) -> None:
    model = copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(model)
    name = next(iter(tensors))
    tensors[name] = np.nextafter(tensors[name], np.float32(np.inf))
    safetensors.numpy.save_file(tensors, model)
    certificate = json.loads((copy / "certificate.json").read_text("utf-8"))
    certificate["model_sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    (copy / "certificate.json").write_text(json.dumps(certificate), "utf-8")
    run.distqexp("verify", copy).refused(3, "model.safetensors", f"tensor {name}")


def test_releases_must_build_upon_each_other(copy: Path, run: Commands) -> None:
    """Parameters that don't follow from the noisy sums, and the release of another run of the same plan."""
    path = copy / "release-000.h5"
    stored = read_file(path)
    theta = stored.arrays["theta"].copy()
    theta[0] += 0.01
    path.unlink()
    arrays = {**stored.arrays, "theta": theta}
    write_file(path, kind="release", plan_id=stored.plan_id, header=stored.header, arrays=arrays, private=False)
    run.distqexp("verify", copy).refused(3, "release of round 0: theta[0]", "its noisy sums give")
    task = copy.parent / "task"
    task.mkdir()
    config = write_task(task, table_tree(mechanism={"rounds": 2}, diagnostics={"share": 0.1}))
    resumed = run.fit(config, "--out", copy, "--resume")
    assert resumed.code == 3
    assert "release-000.h5: release of round 0: theta[0]" in resumed.err.splitlines()[-1]
