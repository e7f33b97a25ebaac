"""A site keeps budgets under its own names: a plan that renames its population gets no new one in silence.

And where a file is charged under two names all the same, a warning names both: for a copy, a compressed one, one with its
rows in another order, and an export of the same patients.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_child import EVENT, reserve
from mpi_harness import MpiRun, mpi_command
from run_harness import Commands, Outcome, table_source, table_tree, to_toml, write_table

from distqexp import api
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import UsageError
from distqexp.privacy.expenses import Charge
from distqexp.privacy.ledger import Cap, Ledger
from distqexp.privacy.ledger.populations import PlanPopulation
from distqexp.problem import contents
from distqexp.problem.contents import content_digests

WARNING = "distqexp: warning: "


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands in a site's folder with north.csv, several rows a patient."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "public.csv", 1, 60)
    write_table(tmp_path / "north.csv", 2, 40, records=3)
    return Commands(capsys)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "rules.sqlite") as opened:
        yield opened


def config(name: str, population: str, *, path: str | None = None, unit: bool = True, **sections: Any) -> str:
    """``name``.toml for one shard, north."""
    source = table_source(path, unit=unit, shard="north")
    privacy = {"epsilon": 1.0, "delta": 1e-5, "units": 40}
    tree = table_tree(privacy=privacy, data={"population": population, "private": [source]}, **sections)
    Path(f"{name}.toml").write_text(to_toml(tree), "utf-8")
    return f"{name}.toml"


def plan(run: Commands, name: str, population: str, **sections: Any) -> str:
    run.done("plan", config(name, population, **sections), "--out", f"{name}.h5")
    return f"{name}.h5"


def sketch(run: Commands, plan_file: str, *more: str, data: str = "north.csv", out: str = "") -> Outcome:
    out = out or f"north-{len(list(Path().glob('north-*.h5')))}.h5"
    return run.distqexp("sketch", plan_file, "--data", data, "--out", out, "--shard", "north", *more)


def populations() -> list[str]:
    return [row.population for row in Ledger.open().rows()]


def warnings(outcome: Outcome) -> list[str]:
    assert outcome.code == 0, outcome
    return [line for line in outcome.err.splitlines() if line.startswith(WARNING)]


# --- names -------------------------------------------------------------------------------------------------------------


def test_a_renamed_population_gets_no_new_budget_in_silence(run: Commands) -> None:
    assert warnings(sketch(run, plan(run, "first", "stays-2024"))) == []
    renamed = plan(run, "second", "stays-2025")
    refusal = sketch(run, renamed, out="no.h5").refused(2, "'stays-2025'", "'stays-2024'", "--population")
    assert "for the same patients" in refusal
    assert "for other patients" in refusal
    # Before a record is looked for, let alone read.
    sketch(run, renamed, data="gone.csv", out="no.h5").refused(2, "'stays-2025'", "--population")
    assert not list(Path().glob("no.h5*"))
    assert populations() == ["stays-2024"]
    # The same patients: the budget is spent.
    sketch(run, renamed, "--population", "stays-2024", out="no.h5").refused(4, "budget spent", "'stays-2024'")
    run.done("ledger", "cap", "stays-2024", "--epsilon", "3", "--delta", "1e-5")
    assert warnings(sketch(run, renamed, "--population", "stays-2024")) == []
    assert populations() == ["stays-2024", "stays-2024"]
    shown = run.done("ledger", "show").out
    assert "stays-2024: plans call it 'stays-2025'" in shown


def test_a_local_name_is_remembered_and_kept(run: Commands) -> None:
    run.done("ledger", "cap", "icu", "--epsilon", "5", "--delta", "1e-5")
    first = plan(run, "first", "consortium-a")
    sketch(run, first, out="no.h5").refused(2, "'consortium-a'", "'icu'")
    assert warnings(sketch(run, first, "--population", "icu")) == []
    other = plan(run, "second", "consortium-a", mechanism={"clip": 0.4})
    sketch(run, other, "--population", "ward", out="no.h5").refused(
        2, "--population", "'ward'", "'icu'", "leave it out"
    )
    assert warnings(sketch(run, other)) == []
    assert warnings(sketch(run, plan(run, "third", "icu"))) == []  # by another way to the same name
    assert populations() == ["icu"] * 3
    assert [entry["body"].get("plan_population") for entry in Ledger.open().export()] == [
        None, "consortium-a", None, "consortium-a", None, "icu", None,
    ]  # fmt: skip
    # A cap under the plan's name would cap nobody.
    run.distqexp("ledger", "cap", "consortium-a", "--epsilon", "1", "--delta", "0").refused(2, "'icu'", "cap that")
    fourth = plan(run, "fourth", "consortium-b")
    sketch(run, fourth, "--population", "consortium-a", out="no.h5").refused(2, "another plan calls 'icu' here")


def test_a_failed_first_attempt_leaves_no_name(run: Commands) -> None:
    run.done("ledger", "cap", "icu", "--epsilon", "5", "--delta", "1e-5")
    first = plan(run, "first", "consortium-a")
    sketch(run, first, "--population", "icu-with-a-slip", data="gone.csv").refused(2, "gone.csv")
    assert warnings(sketch(run, first, "--population", "icu")) == []
    assert populations() == ["icu"]


def test_other_patients_may_have_a_budget_of_their_own(run: Commands) -> None:
    sketch(run, plan(run, "first", "a"))
    write_table(Path("north.csv"), 9, 33, records=2)
    second = plan(run, "second", "b")
    assert warnings(sketch(run, second, "--population", "b")) == []
    assert populations() == ["a", "b"]
    with pytest.raises(UsageError, match="expected a name"):
        api.sketch(plan(run, "third", "c"), "north.csv", "x.h5", shard="north", population=" ")


def test_the_rules_of_names(ledger: Ledger) -> None:
    def charge(plan_name: str, local: str, asked: str | None = None, universe: str = "private") -> None:
        number = len(ledger.rows())
        reserve(
            ledger, population=local, key=f"site-a/p{number}/0/s", unit="pid", cap=Cap(50.0, 1e-2), universe=universe,
            plan_population=PlanPopulation(plan_name, asked), event=EVENT,
        )  # fmt: skip

    assert ledger.local_population(PlanPopulation("a")) == "a"
    charge("t", "t", universe="insecure-seed-1")
    assert ledger.local_population(PlanPopulation("a")) == "a"  # test runs open no private books
    charge("a", "a")
    with pytest.raises(UsageError, match="'b' of the plan"):
        ledger.local_population(PlanPopulation("b"))
    with pytest.raises(UsageError, match="'b' of the plan"):
        charge("b", "b")  # and the charge asks again
    assert ledger.local_population(PlanPopulation("b", "a")) == "a"
    assert ledger.local_population(PlanPopulation("b", "b")) == "b"
    charge("b", "a", "a")
    with pytest.raises(UsageError, match="another process took it for 'a'"):
        charge("b", "b")
    # Test runs are not held up, follow the private names where there are some, and leave none behind.
    assert ledger.local_population(PlanPopulation("new"), "insecure-seed-1") == "new"
    assert ledger.local_population(PlanPopulation("b"), "insecure-seed-1") == "a"
    charge("new", "new", universe="insecure-seed-1")
    with pytest.raises(UsageError, match="'new' of the plan"):
        ledger.local_population(PlanPopulation("new"))
    for name in ("", "two\nlines", "\x1b[2J"):
        with pytest.raises(UsageError, match="expected a name") as caught:
            ledger.local_population(PlanPopulation("new", name))
        assert str(caught.value).isprintable()
    hostile = "x\n\x1b[2J"
    with pytest.raises(UsageError) as caught:
        ledger.local_population(PlanPopulation(hostile))
    assert "\x1b" not in str(caught.value)
    assert ledger.local_names() == {"a": "a", "b": "a"}


LOOKALIKES = [
    "ICU \u00fcber",
    "Icu \u00fcber",
    "icu  \u00fcber",
    " icu \u00fcber",
    "icu \u00fcber ",
    "icu u\u0308ber",
    "\uff49cu \u00fcber",
]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_name_that_looks_like_a_known_one_opens_no_budget(ledger: Ledger, name: str) -> None:
    known = "icu \u00fcber"
    ledger.set_cap(known, 5.0, 1e-5)
    before = ledger.export()
    with pytest.raises(UsageError, match="doesn't know it"):
        ledger.local_population(PlanPopulation(name))
    with pytest.raises(
        UsageError, match=r"--population: found .* differs from 'icu .*in case, blanks or Unicode form"
    ) as caught:
        ledger.local_population(PlanPopulation("plan", name))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="differs from"):
        ledger.local_population(PlanPopulation(name, name))
    with pytest.raises(UsageError, match=r"cap: found .* differs from"):
        ledger.set_cap(name, 5.0, 1e-5)
    assert ledger.export() == before
    assert ledger.local_population(PlanPopulation(name, known)) == known
    assert ledger.local_population(PlanPopulation("plan", "another")) == "another"
    for new in (" another", "u\u0308ber"):
        with pytest.raises(UsageError, match="Unicode form NFC"):
            ledger.local_population(PlanPopulation("plan", new))


@pytest.mark.parametrize("name", [" icu", "icu\t", "u\u0308ber"])
def test_a_config_names_its_population_in_one_way(run: Commands, name: str) -> None:
    run.distqexp("plan", config("odd", name), "--out", "odd.h5").refused(2, "data.population", "expected", "NFC")


# --- files -------------------------------------------------------------------------------------------------------------


def reordered(source: str, target: str) -> None:
    header, *lines = Path(source).read_text("utf-8").splitlines()
    np.random.default_rng(5).shuffle(lines)
    Path(target).write_text("\n".join([header, *lines]) + "\n", "utf-8")


def exported_again(source: str, target: str) -> None:
    """The same patients, their values to fewer digits: no line is what it was."""
    header, *lines = (line.split(",") for line in Path(source).read_text("utf-8").splitlines())
    shorter = [[line[0], *(f"{float(value):.2f}" for value in line[1:-1]), line[-1]] for line in lines]
    Path(target).write_text("\n".join(map(",".join, [header, *shorter])) + "\n", "utf-8")


def copied(way: str) -> str:
    """north.csv in another form, and its name."""
    target, content = Path("again.csv"), Path("north.csv").read_bytes()
    if way == "same":
        return "north.csv"
    if way == "compressed":
        target = Path("again.csv.gz")
        content = gzip.compress(content)
    elif way == "line ends":
        content = content.replace(b"\n", b"\r\n")
    target.write_bytes(content)
    if way == "reordered":
        reordered("north.csv", "again.csv")
    return str(target)


def source(path: str, *, unit: bool = True) -> DataConfig:
    roles = ColumnsConfig(target="died", exclude=("patient",))
    return DataConfig("csv", path=path, unit="patient" if unit else None, columns=roles)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("way", ["same", "copied", "compressed", "reordered", "line ends"])
def test_a_copy_has_a_digest_of_the_original(run: Commands, way: str, unit: bool) -> None:
    first = set(content_digests(source("north.csv", unit=unit)))
    assert first & set(content_digests(source(copied(way), unit=unit)))
    write_table(Path("other.csv"), 9, 40, records=3)
    assert not first & set(content_digests(source("other.csv", unit=unit)))


@pytest.mark.parametrize(("way", "unit"), [("reordered", False), ("compressed", True)])
def test_one_file_under_two_names_is_warned_about(run: Commands, way: str, unit: bool) -> None:
    target = copied(way)
    assert warnings(sketch(run, plan(run, "first", "a", unit=unit))) == []
    second = plan(run, "second", "b", unit=unit)
    [line] = warnings(sketch(run, second, "--population", "b", data=target))
    assert "shard 'north'" in line
    assert "population 'a'" in line
    assert "to 'b' now" in line
    assert populations() == ["a", "b"]  # a warning, no refusal
    assert warnings(sketch(run, second, data=target)) == [line]


def test_patients_exported_again_are_known_by_their_ids(run: Commands) -> None:
    exported_again("north.csv", "again.csv")
    sketch(run, plan(run, "first", "a"))
    [line] = warnings(sketch(run, plan(run, "second", "b"), "--population", "b", data="again.csv"))
    assert "the same unit ids" in line
    assert "'a'" in line
    # Without ids nothing tells the patients of another export.
    exported_again("again.csv", "once-more.csv")
    Path("once-more.csv").write_text(Path("once-more.csv").read_text("utf-8").replace("0.", "0.0"), "utf-8")
    assert warnings(sketch(run, plan(run, "fourth", "d", unit=False), "--population", "d", data="once-more.csv")) == []


def test_other_records_are_no_reason_to_warn(run: Commands) -> None:
    sketch(run, plan(run, "first", "a"))
    write_table(Path("south.csv"), 9, 33, records=2)
    assert warnings(sketch(run, plan(run, "second", "b"), "--population", "b", data="south.csv")) == []
    assert warnings(sketch(run, plan(run, "third", "a2"), "--population", "a2", data="south.csv"))


def test_contents_that_an_older_copy_of_the_ledger_lacks_are_noted_again(
    run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder repairs the last entry; what the files held is not in it, and comes with the next attempt."""
    first = plan(run, "first", "a")
    ledger, copies = Ledger.open().path, list[bytes]()
    reserve_as_before = Ledger.reserve

    class Killed(BaseException):
        pass

    def killed(books: Ledger, charge: Charge, **fields: Any) -> None:
        copies.append(books.path.read_bytes())
        reserve_as_before(books, charge, **fields)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "reserve", killed)
        with pytest.raises(Killed):
            sketch(run, first, out="north-0.h5")
    ledger.write_bytes(copies[0])
    assert warnings(sketch(run, first, out="north-0.h5")) == []
    assert populations() == ["a"]
    [line] = warnings(sketch(run, plan(run, "second", "b"), "--population", "b"))
    assert "population 'a'" in line


def test_fit_and_count_warn_before_they_charge(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings(run.fit(config("first", "a", path="north.csv"), "--out", "one")) == []
    second = config("second", "b", path="north.csv")
    run.done("ledger", "cap", "b", "--epsilon", "5", "--delta", "1e-5")
    [counted] = warnings(run.distqexp("count", second, "--epsilon", "0.1"))
    [line] = warnings(run.fit(second, "--out", "two"))
    assert counted == line
    # Before the charge: a run that ends there has warned and spent nothing.
    third, rows = config("third", "c", path="north.csv"), len(Ledger.open().rows())

    def refuse(*_: Any, **__: Any) -> None:
        raise UsageError("charged")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "reserve", refuse)
        ended = run.fit(third, "--out", "three")
    assert ended.code == 2
    assert [text for text in ended.reasons() if text.startswith(WARNING)] == [
        line.replace("'a'", "'a', 'b'").replace("to 'b'", "to 'c'")
    ]
    assert len(Ledger.open().rows()) == rows
    assert (
        warnings(run.fit(config("fourth", "a", path="north.csv"), "--out", "four", "--insecure-noise-seed", "3")) == []
    )


def test_every_source_has_its_own_line(run: Commands) -> None:
    write_table(Path("south.csv"), 9, 33)
    sources = [table_source(f"{shard}.csv", shard=shard) for shard in ("north", "south")]
    for name in ("a", "b"):
        tree = table_tree(data={"population": name, "private": sources})
        Path(f"{name}.toml").write_text(to_toml(tree), "utf-8")
    assert warnings(run.fit("a.toml", "--out", "one")) == []
    found = warnings(run.fit("b.toml", "--out", "two"))
    assert [line.split("'")[1] for line in found] == ["north", "south"]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.alone
def test_only_the_first_rank_warns(run: Commands, tmp_path: Path) -> None:
    assert run.fit(config("first", "a", path="north.csv"), "--out", "one").code == 0
    second = config("second", "b", path="north.csv")
    with MpiRun(mpi_command(2, "-m", "distqexp.fit", second, "--out", "two"), tmp_path, cwd=tmp_path) as job:
        done = job.finish(300)
    assert done.code == 0, done.err
    assert len(done.lines(WARNING)) == 1


# --- digests are private -------------------------------------------------------------------------------------------------


def test_digests_stay_under_the_ledgers_key(run: Commands) -> None:
    sketch(run, plan(run, "first", "a"))
    ledger = Ledger.open()
    with sqlite3.connect(ledger.path) as connection:
        stored = {row[0] for row in connection.execute("SELECT digest FROM private_contents")}
    connection.close()
    plain = set(content_digests(source("north.csv")))
    shown = json.dumps(ledger.export()) + repr(ledger.rows())
    assert len(stored) == len(plain) == 3
    assert not stored & plain
    assert not any(digest.hex() in shown for digest in stored | plain)


def test_large_files_are_known_by_their_beginning(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "BLOCK", 100)
    monkeypatch.setattr(contents, "MOST_BYTES", 500)
    monkeypatch.setattr(contents, "MOST_LINES_BYTES", 300)
    table = source("north.csv", unit=False)
    [whole] = content_digests(table)
    with Path("north.csv").open("a", encoding="utf-8") as file:
        file.write("p999,1.0,1.0,1.0,1\n")
    assert content_digests(table) == (whole,)
    monkeypatch.setattr(contents, "MOST_BYTES", 10**6)
    assert content_digests(table) != (whole,)
