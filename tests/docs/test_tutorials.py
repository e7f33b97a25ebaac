"""The tutorials run as they stand, and print what they say that they print."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_server import commands
from mpi_harness import REPOSITORY, find_mpirun
from pages import all_blocks, blocks, not_printed, run_page

from distqexp.privacy.ledger import Ledger

pytestmark = [pytest.mark.process, pytest.mark.slow]


def run_tutorial(name: str, folder: Path) -> str:
    """Run a tutorial in a folder and compare what it printed; returns that."""
    page = f"docs/tutorials/{name}.md"
    said = run_page(page, folder, commands())
    assert not_printed(page, said) == []
    return said


def certificate(folder: Path) -> dict[str, object]:
    tree: dict[str, object] = json.loads((folder / "certificate.json").read_text("utf-8"))
    return tree


def test_a_table(tmp_path: Path, own_ledger: Path) -> None:
    run_tutorial("table", tmp_path)
    assert "for all records of one unit id" in str(certificate(tmp_path / "run")["statement"])
    assert (tmp_path / "run" / "report.html").exists()
    assert len((tmp_path / "predictions.csv").read_text("utf-8").splitlines()) > 20
    assert not (tmp_path / "second" / "certificate.json").exists()
    with Ledger.open(own_ledger) as ledger:
        cap = ledger.cap("hospital-2026")
    assert cap is not None
    assert cap.epsilon == 3.0


def test_images(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs pillow (the extra images)")
    run_tutorial("images", tmp_path)
    assert "for one record" in str(certificate(tmp_path / "run")["statement"])
    assert "for all records of one unit id" in str(certificate(tmp_path / "clinic-run")["statement"])


def test_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs tokenizers (the extra text)")
    assert "urgent? [1 0]" in run_tutorial("text", tmp_path)


def test_a_consortium_of_three_folders(tmp_path: Path) -> None:
    said = run_tutorial("consortium", tmp_path)
    assert "every checksum holds" in said
    assert float(str(certificate(tmp_path / "coordinator" / "model")["epsilon"])) <= 2.0
    for site in ("north", "south", "east"):
        with Ledger.open(tmp_path / site / "ledger.sqlite") as ledger:
            assert [row.state for row in ledger.rows()] == ["committed"] * 2
    left = {path.name for path in tmp_path.glob("*/*-[01].h5")}
    assert left == {"release-0.h5", "release-1.h5"}  # no sketch and no pooled sum stays


def test_a_study_of_six_parties(tmp_path: Path) -> None:
    said = run_tutorial("study", tmp_path)
    assert "round 1 is released over north, south" in said
    tree = certificate(tmp_path / "model")
    assert float(str(tree["epsilon"])) <= 2.0
    for party, charges in (("north", 2), ("south", 2), ("east", 1), ("office", 2)):
        with Ledger.open(tmp_path / party / "ledger.sqlite") as ledger:
            assert [row.state for row in ledger.rows()] == ["committed"] * charges
    for party in ("north", "south", "east"):  # one visit to accept, and one a round
        log = (tmp_path / party / "home" / "log.jsonl").read_text("utf-8")
        assert log.count('"event":"accept"') == 1
        assert log.count('"event":"refused"') == 0


@pytest.mark.alone
def test_a_cluster(tmp_path: Path) -> None:
    find_mpirun()
    assert run_tutorial("cluster", tmp_path).count("the same bytes\n") == 1


def test_a_promise_that_is_not_kept_is_found() -> None:
    page = "docs/tutorials/cluster.md"
    assert len(not_printed(page, "")) == sum(
        line not in ("", "...") for text in blocks(page, "text") for line in text.splitlines()
    )
    assert not_printed(page, "the same bytes\n") != not_printed(page, "other bytes\n")
    assert {block.language for block in all_blocks(page)} == {"toml", "sh", "text"}


def test_every_tutorial_is_run() -> None:
    names = {path.stem for path in (REPOSITORY / "docs" / "tutorials").glob("*.md")}
    run = re.findall(r'run_tutorial\("(\w+)"', Path(__file__).read_text("utf-8"))
    assert set(run) == names
