"""The report is well-formed, self-contained and escaped, says what holds, and refuses what is no run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_files import PLAN, certificate, figures, write_audit, write_run

from distqexp.errors import FileContentError, UsageError
from distqexp.report.html import is_report, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order. Collects attributes and what can be read."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def page_of(*folders: Path) -> Page:
    out = folders[0].parent / "page.html"
    write_report(folders, out)
    assert is_report(out)
    return Page(out.read_text("utf-8"))


def test_a_run_from_its_first_sentence_to_its_hashes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_audit(folder)
    page = page_of(folder)
    for words in (
        "nominally 1,200 units", "at most 2.69-fold (epsilon 0.99, but for a chance of 1e-5)", "Not covered by the guarantee",
        "The model became better", "0.8 of 3", "ROC curve", "Calibration", "Confusion matrix", "Covered", "Not covered",
        "at least epsilon 0.4 was found", "north, south", "4 processes (MPI)", "2 min 00 s", PLAN, "Finished 2027-01-15",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.tags.count("svg") == 6
    assert page.tags.count("h1") == 1


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    page = page_of(folder)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    assert all(value.startswith("#") for value in page.values("href"))
    assert all(value.startswith("data:image/png") for value in page.values("src"))
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]
    text = (tmp_path / "page.html").read_text("utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert not re.search(r"url\(|@import|@font-face|https?:", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    anchors = {value[1:] for value in page.values("href")}
    ids = page.values("id")
    assert anchors <= set(ids)
    assert len(ids) == len(set(ids))


def test_names_and_texts_from_files_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }}"
    folder = write_run(tmp_path / 'a<b>&"c', figures(population=evil), unit=evil, versions={"distqexp": evil})
    page = page_of(folder)
    assert "script" not in page.tags
    assert evil in page.text
    assert 'a<b>&"c' in page.text


def test_private_evaluation_records_leave_no_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", figures(evaluation={"withheld": "private"}), evaluation_private=True)
    page = page_of(folder)
    assert "The evaluation records are private" in page.text
    for word in ("accuracy", "ROC", "Confusion", "Calibration"):
        assert word not in page.text
    assert page.tags.count("svg") == 4


def test_a_test_run_says_so_first_and_promises_nothing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", noise_seed=3))
    assert page.text.index("NOT PRIVATE") < page.text.index("In three sentences")
    assert "There is NO privacy" in page.text
    assert "-fold" not in page.text


def test_a_run_that_ended_worse_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", figures(strength=-1.0)))
    assert "The run ended worse than it began: accuracy changed by -" in page.text


@pytest.mark.parametrize("classes", [0, 3])
def test_regressions_and_several_classes(tmp_path: Path, classes: int) -> None:
    page = page_of(write_run(tmp_path / "run", figures(classes)))
    assert ("mean squared error" if classes == 0 else "each class against the rest") in page.text
    assert page.text.count("Confusion matrix") == (0 if classes == 0 else 1)


def test_classes_have_their_names(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", figures(3) | {"classes": ["benign", "<b>"]}))
    assert page.text.count("benign") == 4  # rows and columns, before and after
    assert page.text.count("<b>") == 4


def test_what_the_guard_held_back_is_said_in_a_sentence(tmp_path: Path) -> None:
    assert "The guard cut" not in page_of(write_run(tmp_path / "free")).text
    rounds = [{"round": number, "halvings": halvings} for number, halvings in enumerate((0, 2, 9))]
    held = write_run(tmp_path / "held", rounds=rounds)
    words = "The guard cut the move of 2 of 3 rounds, to at most 1/4 in round 2, 1/512 in round 3: beyond, the loss"
    assert words in page_of(held).text
    assert words in page_of(tmp_path / "free", held).text


def test_what_was_kept_of_the_way_is_said_in_a_sentence(tmp_path: Path) -> None:
    assert "noise alone" not in page_of(write_run(tmp_path / "whole")).text
    for share, words in ((0.0, "The model stays as it was"), (0.625, "62.5% of the way that the rounds went is kept")):
        part = write_run(tmp_path / str(share), kept=share)
        assert f"{words}: noise alone would have led about as far" in page_of(part).text
        assert f"{words}: noise alone would have led about as far" in page_of(tmp_path / "whole", part).text


def test_a_certificate_alone_is_enough(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("report.json", "progress.jsonl"):
        (folder / name).unlink()
    page = page_of(folder)
    assert "epsilon 0.99" in page.text
    assert "The curve was not stored" in page.text
    assert page.tags.count("svg") == 0


def test_an_audit_of_another_plan_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_audit(folder, holds=False, plan_id="00" * 32)
    assert "No audit lies beside this run" in page_of(folder).text


def test_a_wrong_claim_is_not_softened(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_audit(folder, holds=False)
    assert "THE CLAIM IS WRONG" in page_of(folder).text


def test_several_runs_side_by_side(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, epsilon=epsilon) for name, epsilon in (("a", 0.5), ("b", 2.0), ("c", 8.0))]
    page = page_of(*runs)
    assert "3 runs side by side" in page.text
    assert "Accuracy against epsilon" in page.text
    assert "1: a" in page.text
    assert page.tags.count("svg") == 1
    assert page.tags.count("circle") == 8  # a start and a release each, and the two of the legend
    mixed = page_of(runs[0], write_run(tmp_path / "private", figures(evaluation={"withheld": "private"})))
    assert "no metric in common" in mixed.text


def broken(folder: Path, **changes: Any) -> Path:
    write_run(folder)
    tree = {**certificate(), **changes}
    (folder / "certificate.json").write_text(json.dumps(tree), "utf-8")
    return folder


def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "empty", "no certificate.json"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(UsageError, match=words):
            write_report([folder], out)
    with pytest.raises(UsageError, match="no run"):
        write_report([], out)
    other = write_run(tmp_path / "other", figures(plan_id="00" * 32))
    torn = write_run(tmp_path / "torn")
    (torn / "report.json").write_text("{", "utf-8")
    bad = [broken(tmp_path / "rounds", rounds=3), broken(tmp_path / "noise", noise={}), broken(tmp_path / "mu", mu="x")]
    counts = write_run(tmp_path / "counts", figures(evaluation={"kind": "binary", "records": 3}))
    for folder in (other, torn, *bad, counts):
        with pytest.raises(FileContentError) as caught:
            write_report([folder], out)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
    assert not out.exists()
