"""The documents: commands that run, links that lead somewhere, keys that exist."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cohorts import write_cohorts
from command_server import commands
from mpi_harness import REPOSITORY, find_mpirun
from pages import ENVIRONMENT, blocks, read, run_shell

from distqexp.config import Config
from distqexp.privacy.expenses import expenses
from distqexp.privacy.ledger import Ledger
from distqexp.stages.verify import verify_paths

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("scripts/*.md")])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository after its set-up, and that runs may be written to."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("configs", "jobs", "scripts", "distqexp"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for part in [path for path in ENVIRONMENT.iterdir() if path.name != "bin"] + [*(ENVIRONMENT / "bin").iterdir()]:
        (folder / ".venv" / part.relative_to(ENVIRONMENT)).symlink_to(part)
    (folder / ".venv" / "bin" / "distqexp").unlink()
    (folder / ".venv" / "bin" / "distqexp").symlink_to(commands() / "distqexp")
    return folder


# --- the README ----------------------------------------------------------------------------------------------


def test_the_readme_says_what_it_is_in_three_sentences_and_how_to_go_in_two_commands() -> None:
    title, description, heading, *_ = re.split(r"\n{2,}", read("README.md"))
    assert title == "# distqexp"
    assert len(re.findall(r"\.(?=\s|$)", description)) == 3
    assert heading == "## Set up and go"
    go = read("README.md").split("\n## ")[1]
    assert len(re.findall(r"^```sh$", go, flags=re.MULTILINE)) == 2
    run, test = (block.splitlines() for block in blocks("README.md", "sh")[:2])
    assert (len(run), len(test)) == (1, 1)
    assert all(line.startswith("python3 -m venv .venv && .venv/bin/pip install -e ") for line in run + test)
    assert "mpirun" in run[0]
    assert run[0].endswith("distqexp.fit configs/digits.toml --json")
    assert test[0].endswith("&& .venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder")


def test_ci_runs_exactly_the_commands_of_the_readme() -> None:
    lines = [line.strip() for line in read(".ci/run").splitlines()]
    for block in blocks("README.md", "sh")[:2]:
        assert lines.count(block.strip()) == 1
    assert blocks("CONTRIBUTING.md", "sh")[0] == blocks("README.md", "sh")[1]
    assert "set -euo pipefail" in lines
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert not re.search(r"\|\| *(true|:)|set \+e", read(".ci/run"))


@pytest.mark.process
@pytest.mark.slow
def test_every_other_command_of_the_readme_runs(checkout: Path) -> None:
    find_mpirun()
    main, _, *others = blocks("README.md", "sh")
    installed = re.fullmatch(r"python3 -m venv \S+ && \S+ install -e '\S+' && (.*)\n", main)
    assert installed is not None
    summary = json.loads(run_shell(installed[1], checkout).splitlines()[-1])
    assert summary["out"] == "runs/digits"
    assert summary["metrics"]["after"]["accuracy"] > summary["metrics"]["before"]["accuracy"]
    write_cohorts(checkout, 600)
    for block in others:
        if "icu" not in block:
            run_shell(block, checkout)
    assert len((checkout / "predictions.csv").read_text("utf-8").splitlines()) == 21
    assert (checkout / "model" / "certificate.json").exists()
    (code,) = blocks("README.md", "python")
    (checkout / "notebook.py").write_text(code, "utf-8")
    assert "differentially private" in run_shell(".venv/bin/python notebook.py", checkout)


@pytest.mark.process
@pytest.mark.slow
def test_the_command_of_the_readme_that_needs_data_runs(checkout: Path, data_folder: Path) -> None:
    (block,) = [block for block in blocks("README.md", "sh") if "icu" in block]
    run_shell(block, checkout, {"DISTQEXP_DATA": str(data_folder.resolve())})
    assert (checkout / "runs" / "icu" / "certificate.json").exists()


@pytest.mark.process
@pytest.mark.slow
def test_the_first_command_of_the_site_runs(checkout: Path) -> None:
    (command,) = blocks("docs/index.md", "sh")
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e . && ")
    run_shell(command.rpartition(" && ")[2], checkout)
    made = {path.name for path in (checkout / "runs" / "digits").iterdir()}
    assert {"model.safetensors", "certificate.json", "report.html"} <= made


# --- other pages ---------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.slow
def test_the_walk_through_for_sites_runs_as_it_stands(tmp_path: Path) -> None:
    for name, patients in (("coordinator/public", 200), ("north/north", 150), ("south/south", 180)):
        (tmp_path / name).parent.mkdir()
        _write_stays((tmp_path / name).with_suffix(".csv"), patients)
    (config,) = blocks("docs/sites.md", "toml")
    (tmp_path / "coordinator" / "consortium.toml").write_text(config, "utf-8")
    said = run_shell("".join(blocks("docs/sites.md", "sh")), tmp_path, first=commands())
    assert "every checksum holds" in said
    certificate = json.loads((tmp_path / "coordinator" / "model" / "certificate.json").read_text("utf-8"))
    assert certificate["epsilon"] <= 2.0
    assert len(certificate["rounds"]) == 2
    assert not list((tmp_path / "coordinator").glob("quadratic-*"))
    # Section 7: a site that dropped out. Without the void its round would have kept the second study from its budget.
    second = json.loads((tmp_path / "coordinator" / "second-model" / "certificate.json").read_text("utf-8"))
    assert second["epsilon"] <= 2.0
    assert len(second["rounds"]) == 2
    assert not list((tmp_path / "coordinator").glob("second-quadratic-*"))
    for site in ("north", "south"):
        with Ledger.open(tmp_path / site / "ledger.sqlite") as ledger:
            rows, cap = ledger.rows(), ledger.cap("stays-2024")
            spent = ledger.spent("stays-2024").epsilon(1e-5)
        assert cap is not None
        assert [row.state for row in rows] == ["committed"] * 2 + ["voided"] + ["committed"] * 2
        assert spent <= cap.epsilon < expenses([row.charge for row in rows]).guarantee().epsilon(1e-5)
    with Ledger.open(tmp_path / "coordinator" / "ledger.sqlite") as ledger:
        noted = str(ledger.head())
    assert (tmp_path / "coordinator" / "head.txt").read_text("utf-8") == f"{noted}\n"
    assert f"holds the noted head {noted}" in said


@pytest.mark.process
@pytest.mark.slow
def test_the_rehearsal_runs_and_says_that_it_is_not_private(checkout: Path) -> None:
    (command,) = blocks("docs/choosing.md", "sh")
    run_shell(command, checkout)
    certificate = json.loads((checkout / "runs" / "rehearsal" / "certificate.json").read_text("utf-8"))
    assert certificate["statement"].startswith("NOT PRIVATE")
    assert verify_paths([checkout / "runs" / "rehearsal"])


@pytest.mark.process
@pytest.mark.slow
def test_the_rehearsal_of_the_icu_task_gives_the_figure_that_the_page_states(checkout: Path, data_folder: Path) -> None:
    [command] = [block for block in blocks("scripts/README.md", "sh") if "rehearse_icu.py" in block]
    said = run_shell(command, checkout, {"DISTQEXP_DATA": str(data_folder.resolve())})
    found = re.search(r"AUROC (0\.\d{4})", said)
    assert found is not None
    stated = re.search(r"AUROC was (0\.\d{3}),", " ".join(read("docs/choosing.md").split()))
    assert stated is not None
    assert abs(float(found[1]) - float(stated[1])) < 0.00051  # rounded, either way where it ends in 5


@pytest.mark.process
@pytest.mark.slow
def test_the_scaling_benchmark_runs_small(checkout: Path) -> None:
    find_mpirun()
    pytest.importorskip("matplotlib")
    [command] = [block for block in blocks("scripts/README.md", "sh") if "scaling.py" in block]
    run_shell(command, checkout, {"PYTHONPATH": str(REPOSITORY)})
    results = json.loads((checkout / "runs" / "scaling" / "scaling.json").read_text("utf-8"))
    assert {case["series"] for case in results["cases"]} == {"fixed work", "growing work", "k"}
    for case in results["cases"]:
        assert set(case["split"]) == {"compute", "sum", "files"}
        assert set(case["stages"]) == {"plan", "sketch", "pool", "release", "export"}
        assert all(seconds >= 0 for seconds in case["split"].values())
    assert {(part["ranks"], part["k"]) for part in results["parts"]} == {(2, 100), (2, 1000), (2, 10000)}
    assert (checkout / "runs" / "scaling" / "scaling.png").stat().st_size > 10_000
    assert sorted(path.name for path in (checkout / "runs" / "scaling").iterdir()) == ["scaling.json", "scaling.png"]


@pytest.mark.process
@pytest.mark.slow
def test_the_benchmark_of_large_sketches_runs_small(checkout: Path) -> None:
    find_mpirun()
    [command] = [block for block in blocks("scripts/README.md", "sh") if "large_sketches.py" in block]
    run_shell(command, checkout, {"PYTHONPATH": str(REPOSITORY)})
    found = json.loads((checkout / "runs" / "large" / "large-sketches.json").read_text("utf-8"))
    assert found["equal to serial"] is True
    assert len(found["baseline"]) == len(found["above"]) == found["ranks"] == 2
    assert min(found["baseline"]) > 100  # torch alone
    assert all(0 < above < 200 for above in found["above"])
    assert found["files"]["sketch"] > 2 * 8 * found["k"] / 2**20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere_and_named_files_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in headings}, target
    for name in re.findall(r"(?<![\w./-])((?:configs|jobs|scripts|docs|tests|distqexp)/[\w./-]*\w)", text):
        if not name.startswith("distqexp/ledger"):
            assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_config_keys_that_a_page_names_exist(page: Path) -> None:
    sections = "|".join(field.name for field in dataclasses.fields(Config))
    named = re.findall(rf"[`'= ]((?:{sections})\.[a-z_.]+[a-z])(?=[`=])", page.read_text("utf-8"))
    for name in set(named) - {"model.safetensors", "model.pt", "model.json", "tune.png"}:
        assert _known(Config, name.split(".")), name


def imports_by_room() -> dict[str, dict[Path, set[str]]]:
    """Of every file of a room: the other rooms that it imports, anywhere in it."""
    package, found = REPOSITORY / "distqexp", {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room != "__init__":
            names = re.findall(r"^\s*from distqexp(?:\.| import )(\w+)", path.read_text("utf-8"), flags=re.MULTILINE)
            found.setdefault(room, {})[path] = set(names) - {room}
    return found


def test_the_rooms_import_what_the_architecture_allows() -> None:
    rows = re.findall(r"^\| ([a-z, ]+) \| ([a-z, ]*)\|$", read("docs/architecture.md"), flags=re.MULTILINE)
    allowed = {
        room: {name.strip() for name in names.split(",")} | {"errors", "arrays", "kinds"}
        for rooms, names in rows
        for room in rooms.split(", ")
    }
    for room, files in imports_by_room().items():
        for path, imported in files.items():
            assert imported <= allowed.get(room, set()), path


def test_imports_go_downstairs_and_public_rooms_know_no_private_ones() -> None:
    (block,) = re.findall(r"^```floors\n(.*?)```", read("docs/architecture.md"), flags=re.MULTILINE | re.DOTALL)
    floor = {room: number for number, line in enumerate(block.splitlines()) for room in line.split()}
    rooms = imports_by_room()
    assert set(rooms) == set(floor)
    for room, files in rooms.items():
        for path, imported in files.items():
            assert all(floor[other] > floor[room] for other in imported), path
            assert "sketching" not in imported or room in ("stages", "audit"), path


def _known(cls: Any, parts: list[str]) -> bool:
    if not parts or cls is None:
        return not parts
    if not dataclasses.is_dataclass(cls):
        return typing.get_origin(cls) is not None  # free-form, such as model.args
    hints = typing.get_type_hints(cls)
    if parts[0] not in hints:
        return False
    hint = hints[parts[0]]
    inner = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    return len(parts) == 1 or _known(inner[0] if inner else hint, parts[1:])


def _write_stays(path: Path, patients: int) -> None:
    """A table of stays: patient, four measurements with gaps, and whether the patient died."""
    generator = np.random.default_rng(patients)
    lines = ["patient,age,heart_rate,lactate,pressure,died"]
    for patient in range(patients):
        for _ in range(int(generator.integers(1, 4))):
            age, rate, lactate, pressure = generator.normal([62, 88, 2.0, 71], [15, 17, 1.0, 12])
            risk = 1 / (1 + np.exp(-(-1.5 + 0.04 * (age - 62) + 0.8 * (lactate - 2) - 0.03 * (pressure - 71))))
            measured = "" if generator.random() < 0.2 else f"{lactate:.2f}"
            lines.append(f"{patient},{age:.1f},{rate:.1f},{measured},{pressure:.1f},{int(generator.random() < risk)}")
    path.write_text("\n".join(lines) + "\n", "utf-8")
