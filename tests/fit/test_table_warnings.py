"""Tables as a newcomer brings them: what most likely is a mistake is said or refused before anything is charged."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from run_harness import Commands, charges, lines, rewrite, table_source, table_tree, write_table, write_task

from distqexp.problem.id_columns import looks_like_id


def warnings(run: Commands, task: Path, *more: str) -> list[str]:
    """The warnings of a run that ends well."""
    outcome = run.fit(task, "--out", task.parent / "out", "--insecure-noise-seed", "1", *more)
    assert outcome.code == 0, outcome.err
    assert all(reason.startswith("distqexp: warning: ") for reason in outcome.reasons())
    last = outcome.err.splitlines()[-1]
    units = [reason for reason in outcome.reasons() if "privacy.units" in reason]
    assert units in ([], [last] * 2)  # that one is said again at the end
    return list(dict.fromkeys(outcome.reasons()))


def numbered(path: Path, name: str) -> None:
    """Make the column of the patients one of numbers, by another name."""
    header, *rows = path.read_text("utf-8").splitlines()
    rows = [f"{row},{line.split(',', 1)[1]}" for row, line in enumerate(rows)]
    path.write_text("\n".join([header.replace("patient", name), *rows]) + "\n", "utf-8")


def test_a_numeric_id_without_unit_is_named(run: Commands, tmp_path: Path) -> None:
    tree = table_tree(model={"args": {"inputs": 4}})
    for name in ("public", "private"):
        tree["data"][name]["columns"] = {"target": "died"}
    task = write_task(tmp_path, tree)
    for name in ("public.csv", "private.csv"):
        numbered(tmp_path / name, "patient_id")
    (warning,) = warnings(run, task)
    assert "'patient_id' looks like an id" in warning
    assert 'set unit = "patient_id"' in warning


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("patient_id", np.arange(60) // 2, True),
        ("patientID", np.arange(60) * 1000.0, True),
        ("MRN", np.arange(60) + 5e6, True),
        ("age", np.arange(60) % 40, False),
        ("x", np.arange(60), True),  # the number of the row
        ("income", np.arange(60) ** 2.0, False),
        ("visit_no", np.arange(60) % 4, False),
        ("id", np.arange(60) + 0.5, False),
        ("id", np.arange(10), False),
    ],
)
def test_what_looks_like_an_id(name: str, column: np.ndarray, expected: bool) -> None:
    assert looks_like_id(name, np.asarray(column, dtype=np.float64)) is expected


def test_an_empty_private_table_and_units_far_from_the_slots(run: Commands, task: Path) -> None:
    assert warnings(run, task) == []
    (task.parent / "private.csv").write_text(lines(0)[0] + "\n", "utf-8")
    (warning,) = warnings(run, task, "--out", str(task.parent / "empty"), "--set", "data.population=empty")
    assert "data.private: no record is selected" in warning
    write_table(task.parent / "private.csv", 2, 20)
    (warning,) = warnings(run, task, "--out", str(task.parent / "few"), "--set", "data.population=few")
    assert "privacy.units: 100" in warning
    assert "20 units" in warning
    write_table(task.parent / "private.csv", 2, 401)
    (warning,) = warnings(run, task, "--out", str(task.parent / "many"), "--set", "data.population=many")
    assert "401 units" in warning


def test_under_add_remove_the_number_of_slots_stays_private(run: Commands, task: Path) -> None:
    rewrite(task, table_tree(privacy={"adjacency": "add-remove"}))
    for count in (0, 5):
        (task.parent / "private.csv").write_text("\n".join(lines(count)) + "\n", "utf-8")
        more = ["--out", str(task.parent / f"run-{count}"), "--set", f"data.population=of-{count}"]
        assert warnings(run, task, *more) == []


def test_missing_public_labels_are_stated(run: Commands, task: Path) -> None:
    path = task.parent / "public.csv"
    header, *rows = path.read_text("utf-8").splitlines()
    rows[3:8] = [row.rsplit(",", 1)[0] + ",NA" for row in rows[3:8]]
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    (warning,) = warnings(run, task)
    assert "data.public: 5 records have no label" in warning


def test_a_private_file_that_is_open_for_writing_is_refused(run: Commands, task: Path, own_ledger: Path) -> None:
    before = charges(own_ledger)
    with (task.parent / "private.csv").open("a"):
        run.fit(task, "--out", task.parent / "out").refused(3, "private.csv", "open for writing", "wait")
    assert charges(own_ledger) == before
    assert run.fit(task, "--out", task.parent / "again").code == 0


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_private_table_of_another_dialect_is_refused_before_a_charge(
    run: Commands, task: Path, own_ledger: Path, separator: str
) -> None:
    path = task.parent / "private.csv"
    path.write_text(path.read_text("utf-8").replace(",", separator).replace(".", ","), "utf-8")
    before = charges(own_ledger)
    run.fit(task, "--out", task.parent / "out").refused(3, "private.csv", 'decimal = ","')
    assert charges(own_ledger) == before
    assert warnings(run, task, "--set", "data.private.decimal=','", "--out", str(task.parent / "again")) == []


def test_a_table_in_another_form_gives_the_same_release(run: Commands, task: Path) -> None:
    """Categories and days, too, whatever the form: the integers are those of the plain table."""
    folder = task.parent
    columns = {"target": "died", "exclude": ["patient"]}
    for name in ("public", "private"):
        header, *rows = (folder / f"{name}.csv").read_text("utf-8").splitlines()
        rows = [f"{row},{'abc'[at % 3 - (name == 'public')]},2024-01-{1 + at % 28:02d}" for at, row in enumerate(rows)]
        (folder / f"{name}.csv").write_text("\n".join([f"{header},ward,day", *rows]) + "\n", "utf-8")
    public = {"columns": columns | {"categorical": ["ward"], "dates": {"day": "2024-01-01"}}}
    data = {"public": table_source("public.csv", **public), "private": table_source("private.csv", columns=columns)}
    rewrite(task, table_tree(model={"args": {"inputs": 8}}, data=data))
    assert warnings(run, task) == []
    text = (folder / "private.csv").read_text("utf-8")
    (folder / "private.csv").write_bytes(text.replace("\n", "\r").encode("utf-16"))
    assert warnings(run, task, "--out", str(folder / "other")) == []
    one, other = ((folder / name / "release-000.h5").read_bytes() for name in ("out", "other"))
    assert one == other


def test_labels_of_one_column_are_one_label_a_record(run: Commands, task: Path) -> None:
    releases = []
    for shape in ((), (1,)):
        folder = task.parent / f"arrays-{len(shape)}"
        folder.mkdir()
        for name, count in (("public", 50), ("private", 30)):
            random = np.random.default_rng(count)
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["x"] = random.normal(size=(count, 3))
                file["y"] = random.integers(0, 2, (count, *shape))
        source = {"format": "hdf5", "columns": {"target": "y", "features": ["x"]}}
        data = {name: source | {"path": f"{name}.h5"} for name in ("public", "private")}
        path = write_task(folder, table_tree(data=data))
        assert warnings(run, path) == []
        releases.append((folder / "out" / "release-000.h5").read_bytes())
    assert releases[0] == releases[1]
