"""``distqexp init`` writes a config that plans and runs, from public files alone; ``check --public`` finds what refuses a run."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_harness import Commands, charges, forbid_records, table_source, table_tree, write_table, write_task

from distqexp.config import load_config
from distqexp.privacy.ledger import Ledger


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(Path("public.csv"), 1, 80, records=3)
    write_table(Path("patients.csv"), 2, 60, records=3, shift=0.3)
    write_table(Path("test.csv"), 3, 40)


def with_columns(path: Path, **columns: Callable[[int], str]) -> None:
    """Add columns to a table."""
    header, *rows = path.read_text("utf-8").splitlines()
    lines = [",".join([header, *columns])]
    lines += [",".join([row, *(make(number) for make in columns.values())]) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def test_from_a_table_to_a_report(run: Commands) -> None:
    words = (
        "init",
        "public.csv",
        "--target",
        "died",
        "--unit",
        "patient",
        "--private",
        "patients.csv",
        "--test",
        "test.csv",
    )
    said = run.done(*words).out
    assert "3 inputs, 80 units by patient" in said
    assert "correct privacy.units and privacy.delta: 80 is the number of the public patients" in said
    assert "next: distqexp check config.toml   (for whoever may see the private records" in said
    config = load_config(Path("config.toml"))
    assert (config.privacy.units, config.privacy.delta, config.data.population) == (80, 1e-3, "patients")
    assert {data.unit for data in (*config.data.private, config.data.public, config.data.eval) if data} == {"patient"}
    assert "# This is the number of the public table: correct it." in Path("config.toml").read_text("utf-8")
    outcome = run.distqexp("fit", "config.toml", "--out", "run")
    assert outcome.code == 0, outcome
    assert Path("run/report.html").exists()
    run.distqexp(*words).refused(2, "config.toml", "exists")


def test_what_is_no_feature_is_left_out_and_said(run: Commands) -> None:
    for name in ("public.csv", "patients.csv"):
        with_columns(
            Path(name),
            ward=lambda row: ["onco", "surgery"][row % 2],
            admitted=lambda row: f"2023-01-{row % 28 + 1:02d}",
            visit_id=lambda row: str(row // 2),
            serial=lambda row: str(9000 + row),
            remarks=lambda row: "",
            note=lambda row: f"seen in bed {row}",
            smoker=lambda row: ["yes", "no", ""][row % 3],
            height=lambda row: "" if row % 5 else "1.7",
            seen=lambda row: f"{row % 28 + 1:02d}.08.2021",
            left=lambda row: f"{row % 12 + 1}/{row % 28 + 1}/2021",
            born=lambda row: f"{row % 12 + 1:02d}/{row % 11 + 1:02d}/1950",
        )  # fmt: skip
    said = run.done("init", "public.csv", "--target", "died", "--unit", "patient", "--private", "patients.csv").out
    columns = load_config(Path("config.toml")).data.private[0].columns
    assert set(columns.exclude) == {"note", "visit_id", "serial", "remarks", "seen", "left", "born"}
    assert (columns.categorical, columns.booleans) == (("ward",), ("smoker",))
    assert columns.dates == (("admitted", "2000-01-01"),)
    assert "left out: note: free texts, such as 'seen in bed 0'" in said
    assert "left out: seen: dates as 13.08.2021: write them as 2021-08-13, in every file" in said
    assert "left out: left: dates as 1/13/2021: write them as 2021-01-13, in every file" in said
    assert "left out: born: dates as 01/01/1950: write them as YYYY-MM-DD, in every file" in said
    for dates in ("seen", "admitted"):
        run.distqexp("init", "public.csv", "--target", dates, "--out", "dates.toml").refused(2, dates, "found dates (")
    assert "categories, an input for each: ward" in said
    # age, dose, rate, height, smoker, admitted, three inputs of ward, bias
    assert run.done("plan", "config.toml", "--out", "plan.h5").out.count("d = 10,")


def test_no_private_file_is_opened(run: Commands) -> None:
    Path("patients.csv").unlink()
    run.done("init", "public.csv", "--target", "died", "--private", "patients.csv", "--test", "nowhere.csv")
    assert load_config(Path("config.toml")).data.private[0].path == str(Path("patients.csv").resolve())


@pytest.mark.parametrize(
    ("values", "loss", "outputs"),
    [
        ([0, 1], "binary-cross-entropy", 1),
        ([0, 1, 2], "cross-entropy", 3),
        ([1, 2, 3], "mean-squared-error", 1),
        ([0, 5, 40], "mean-squared-error", 1),
        ([0.5, 1.25], "mean-squared-error", 1),
        ([-1, 1], "mean-squared-error", 1),
    ],
)
def test_the_label_says_what_is_learnt(run: Commands, values: list[float], loss: str, outputs: int) -> None:
    random = np.random.default_rng(0)
    rows = [f"{random.normal():.4f},{values[row % len(values)]}" for row in range(60)]
    Path("t.csv").write_text("\n".join(["x,y", *rows]) + "\n", "utf-8")
    run.done("init", "t.csv", "--target", "y")
    model = load_config(Path("config.toml")).model
    assert (model.loss, model.args["outputs"], model.args["inputs"]) == (loss, outputs, 1)


@pytest.mark.parametrize(
    ("separator", "decimal", "encoding", "line_end"),
    [
        (";", ",", "utf-8", "\n"),
        ("\t", ",", "utf-8-sig", "\r\n"),
        ("|", ".", "utf-16", "\n"),
        (";", ",", "cp1252", "\r\n"),
        (",", ".", "utf-8", "\r"),
    ],
)
def test_tables_in_every_dialect(run: Commands, separator: str, decimal: str, encoding: str, line_end: str) -> None:
    """The config says what private records can't be asked for, and plans and checks as it stands."""
    random = np.random.default_rng(0)
    for name in ("t.csv", "p.csv"):
        rows = [(f"{x:.2f}".replace(".", decimal), "é" if x > 0 else "no", int(x > 0)) for x in random.normal(size=60)]
        lines = [separator.join(map(str, row)) for row in (("dose", "word", "y"), *rows)]
        Path(name).write_bytes(line_end.join([*lines, ""]).encode(encoding))
    named = ("--encoding", encoding) if encoding == "cp1252" else ()
    said = run.done("init", "t.csv", "--target", "y", "--private", "p.csv", *named).out
    assert "t.csv: 60 rows, 4 inputs" in said  # dose, two words and one never seen; the constant is the bias
    (private,) = load_config(Path("config.toml")).data.private
    assert (private.separator or ",", private.decimal or ".") == (separator, decimal)
    assert run.distqexp("fit", "config.toml", "--out", "runs", "--insecure-noise-seed", "1").code == 0


@pytest.mark.parametrize(
    ("words", "loss", "outputs"),
    [(("yes", "no"), "binary-cross-entropy", 1), (("mild", "severe", "none yet", "é"), "cross-entropy", 4)],
)
def test_labels_in_words_become_classes(run: Commands, words: tuple[str, ...], loss: str, outputs: int) -> None:
    random = np.random.default_rng(0)
    rows = [f"{random.normal():.4f},{words[row % len(words)]}" for row in range(60)]
    for name in ("t.csv", "p.csv"):
        Path(name).write_text("\n".join(["x,y", *rows]) + "\n", "utf-8")
    run.done("init", "t.csv", "--target", "y", "--private", "p.csv", "--units", "2000")
    config = load_config(Path("config.toml"))
    assert (config.model.loss, config.model.args["outputs"]) == (loss, outputs)
    assert config.data.private[0].columns.classes == tuple(sorted(words))
    assert (config.privacy.units, config.privacy.delta) == (2000, 1e-5)
    assert "correct it" not in Path("config.toml").read_text("utf-8")
    assert "privacy: epsilon 1" in run.done("plan", "config.toml", "--out", "plan.h5").out


def test_there_are_units(run: Commands) -> None:
    run.distqexp("init", "public.csv", "--target", "died", "--units", "0").refused(
        2, "--units 0: expected about how many"
    )
    assert not Path("config.toml").exists()


def test_packed_tables_and_strange_names(run: Commands) -> None:
    Path('a "folder"').mkdir()
    text = Path("public.csv").read_bytes().replace(b"patient", b'"p ""q"""', 1)
    Path('a "folder"/t.csv.gz').write_bytes(gzip.compress(text))
    run.done("init", 'a "folder"/t.csv.gz', "--target", "died", "--unit", 'p "q"')
    assert load_config(Path("config.toml")).data.public.unit == 'p "q"'  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,y\n", "a header and no row"),
        (b"x,y\n1,0\n1\n", "has not as many fields as the header"),
        (b"x,x,y\n1,2,0\n", "columns 'x' stand twice"),
        (b"x,,y\n1,2,0\n", "a header with an empty name"),
        ("x,y\né,0\nè,1\n".encode("latin-1"), "letters that are not UTF-8"),
        (b"PK\x03\x04", "an Excel workbook"),
        (b"x,y\n1,late\n2,early\n", "found free texts (early, late)"),
        (b"x,y\n1,yes\n2,yes\n", "one value only"),
        (b"x,y\n1,1\n2,1\n", "one value only"),
        (b"x,y\n1,\n2,\n", "empty; expected labels"),
        (b"x,z\n1,0\n", "the nearest is z"),
    ],
)
def test_tables_that_can_not_serve_are_refused_and_nothing_is_written(
    run: Commands, content: bytes, words: str
) -> None:
    Path("t.csv").write_bytes(content)
    outcome = run.distqexp("init", "t.csv", "--target", "y")
    assert outcome.refused(outcome.code, words)
    assert outcome.code in (2, 3)
    assert not Path("config.toml").exists()


@pytest.mark.parametrize(
    ("name", "pack"), [("t.csv.gz", gzip.compress), ("t.csv.bz2", bz2.compress), ("t.csv.xz", lzma.compress)]
)
def test_a_damaged_packed_table_is_one_line(run: Commands, name: str, pack: Callable[[bytes], bytes]) -> None:
    Path(name).write_bytes(pack(Path("public.csv").read_bytes())[:100])
    outcome = run.distqexp("init", name, "--target", "died")
    outcome.refused(outcome.code, name)
    assert outcome.code in (3, 6)


def test_the_written_config_is_toml_that_says_why(run: Commands) -> None:
    run.done("init", "public.csv", "--target", "died", "--unit", "patient")
    text = Path("config.toml").read_text("utf-8")
    assert tomllib.loads(text)["privacy"]["epsilon"] == 1.0
    assert sum(line.startswith("#") for line in text.splitlines()) >= 10
    assert (
        "[data.eval]"
        in text.splitlines()[[line.startswith("# For accuracy") for line in text.splitlines()].index(True)]
    )


# --- check --public ----------------------------------------------------------------------------------------------


def task(**sections: Any) -> Path:
    folder = Path("task")
    folder.mkdir()
    return write_task(folder, table_tree(**{"data": {"eval": table_source("eval.csv")}, **sections}))


def test_check_ahead_opens_no_private_file_and_charges_nothing(
    run: Commands, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = task()
    before = sorted(path.name for path in config.parent.iterdir())
    forbid_records(monkeypatch)
    (config.parent / "private.csv").write_text("torn", "utf-8")
    said = run.done("check", config, "--public").out
    assert "40 records can be used" in said
    assert "no ledger yet" in said
    assert "PRIVATE:" not in said
    assert not own_ledger.exists()
    assert sorted(path.name for path in config.parent.iterdir()) == before
    with Ledger.open() as ledger:
        ledger.set_cap("patients", 2.0, 1e-4)
    assert "fit what patients has left" in run.done("check", config, "--public").out
    assert charges(own_ledger) == 0


def test_check_ahead_says_what_the_run_would_say(run: Commands, own_ledger: Path) -> None:
    config = task()
    with Ledger.open() as ledger:
        ledger.set_cap("patients", 0.5, 1e-4)
    refused = run.distqexp("check", config, "--public")
    run.fit(config, "--out", "run").refused(4, refused.refused(4, "budget spent"))
    run.distqexp("check", config, "--public", "--set", "model.args={ inputs = 7 }").refused(2, "model.args")
    run.distqexp("check", config, "--public", "--set", "data.eval.path='gone.csv'").refused(2, "gone.csv")
    (config.parent / "private.csv").unlink()
    run.distqexp("check", config, "--public").refused(2, "private.csv", "no such file")
    run.distqexp("check", config, "--public", "--shard", "all").refused(2, "--public")
