"""What files from elsewhere say is shown without signs that would act on a terminal or in a spreadsheet."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from run_harness import Commands, table_tree, write_task

from distqexp.api import fit, load_config
from distqexp.storage.texts import printable

ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ü", "plain, with ü"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u200bb", "a\\u200bb"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_signs_that_act_are_spelt(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_forged_folder_can_not_act_on_terminal_or_spreadsheet(
    tmp_path: Path, run: Commands, own_ledger: Path
) -> None:
    config = load_config(write_task(tmp_path, table_tree()))
    assert fit(config, tmp_path / "run", callback=lambda _: None) is not None
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    certificate["not_covered"] = [ESCAPE]
    (tmp_path / "run" / "certificate.json").write_text(json.dumps(certificate))
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    card["classes"] = ["=cmd|' /C calc'!A0", ESCAPE]
    (tmp_path / "run" / "model.json").write_text(json.dumps(card))
    for name in ("certificate.json", "model.json"):
        said = run.done("inspect", tmp_path / "run" / name).out
        assert "\x1b" not in said
        assert "\x07" not in said
    run.done("predict", tmp_path / "run", tmp_path / "public.csv", "--out", tmp_path / "out.csv")
    text = (tmp_path / "out.csv").read_text()
    assert "\x1b" not in text
    labels = {row["prediction"] for row in csv.DictReader(text.splitlines())}
    assert labels <= {"'=cmd|' /C calc'!A0", printable(ESCAPE)}
    assert np.size(list(labels)) > 0
