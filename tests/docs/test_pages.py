"""Pages of words: their figures, their fields and their pictures are what they say; the notebook and the programs run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mpi_harness import REPOSITORY, run_environ
from pages import blocks, read, script
from run_harness import Commands
from scipy.stats import norm

from distqexp.privacy import gdp

NOTEBOOK = REPOSITORY / "docs" / "tutorials" / "notebook.ipynb"


@pytest.mark.parametrize("name", ["config", "command"])
def test_generated_pages_are_what_their_scripts_write(name: str) -> None:
    program = script(f"write_{name}_docs")
    assert program.PATH.read_text("utf-8") == program.text(), f"run python scripts/write_{name}_docs.py"


def test_the_page_of_commands_has_every_command_and_what_it_takes() -> None:
    page = read("docs/commands.md")
    sections = dict(re.findall(r"^## (distqexp [\w -]+)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert len(sections) > 20
    for command, option in {
        "fit": "--resume",
        "init": "`TABLE`",
        "ledger cap": "--records-per-unit",
        "tune": "--trials",
    }.items():
        assert option in sections[f"distqexp {command}"]
    assert all(text.count("\n| `--out`") <= 1 for text in sections.values())


def test_the_table_of_what_an_attacker_can_achieve_is_right() -> None:
    page = read("docs/guarantees.md")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert [float(row[0]) for row in rows] == [0.5, 1, 2, 4, 8]
    for epsilon, mu, right, factor in (map(float, row) for row in rows):
        exact = gdp.mu(epsilon, 1e-5)
        assert mu == round(exact, 3)
        assert right == round(100 * float(norm.cdf(exact / 2)), 1)
        assert factor == pytest.approx(2.718281828**epsilon, rel=0.02)
    two = gdp.epsilon(1e-5, 2**0.5 * gdp.mu(1.0, 1e-5))
    assert f"two runs of epsilon 1 cost about {two:.1f} together" in " ".join(page.split())


def test_the_example_of_a_guess_is_that_of_its_mu() -> None:
    page = " ".join(read("docs/certificate.md").split())
    assert f'at most {100 * norm.cdf(0.314 / 2):.0f} times": for the mu of 0.314' in page
    assert f"at most {2.718281828**0.99988:.1f} times as likely" in page


@pytest.mark.slow
def test_the_page_of_the_certificate_names_every_field(tmp_path: Path, run: Commands) -> None:
    rounds = ("--set", "mechanism.rounds=1", "--set", "privacy.epsilon=0.5")
    assert run.fit(REPOSITORY / "configs" / "digits.toml", "--out", tmp_path / "run", *rounds).code == 0
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text("utf-8"))
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", read("docs/certificate.md"), flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == set(certificate)


def test_pictures_are_small_shown_and_named_as_the_browser_test_names_them() -> None:
    pictures = sorted((REPOSITORY / "docs" / "pictures").iterdir())
    shown = re.findall(r"\]\(pictures/([\w.-]+)\)", read("docs/report.md"))
    assert sorted(shown) == [path.name for path in pictures]
    for path in pictures:
        assert re.fullmatch(r"report-(run|runs|withheld|classes)-(light|dark)(-evaluation|-privacy)?\.png", path.name)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size < 100_000


@pytest.mark.process
@pytest.mark.slow
def test_the_program_of_who_comes_from_opacus_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = blocks("docs/coming-from.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(program, "coming-from.md", "exec"), names)
    assert 1.9 < names["result"].epsilon <= 2.0  # type: ignore[attr-defined]


def test_the_stored_notebook_has_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.process
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("nbconvert", reason="needs nbconvert (the extra docs)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (the extra docs)")
    shutil.copy(NOTEBOOK, tmp_path / "notebook.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "notebook.ipynb"]
    environ = run_environ({"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython")})
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "notebook.ipynb").read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert any("<caption>distqexp fit</caption>" in page for page in pages)
    assert sum("<progress" in page for page in pages) == 1
    assert (tmp_path / "tumours" / "report.html").exists()
