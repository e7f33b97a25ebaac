"""What looks wrong in a site's records is told to their owner alone, before anything is charged; honest sites are hardly ever stopped.

Honest tables are drawn with fixed seeds. By chance alone a median of ten values lies four standard deviations off with a probability far
below 1e-12 for what is drawn here, and one class alone is told at 1e-3 by design: the seeds are such that it isn't.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_harness import Commands, table_tree, to_toml
from scipy.special import expit

from distqexp import api
from distqexp.arrays import FloatArray, IntegerArray
from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import UsageError
from distqexp.privacy.ledger import Ledger
from distqexp.problem.dataset import open_dataset
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema, fit_schema
from distqexp.stages.check import WARNING
from distqexp.stages.remarks import Study, remarks_of

SOURCE = DataConfig(format="csv", columns=ColumnsConfig(target="died"))
STUDY = Study(units=300, shards=2)


def patients(seed: int, count: int, *, older: float = 0.0) -> pd.DataFrame:
    """Stays with values as they are at bedsides: some narrow, some with long tails, some seldom measured, and flags."""
    random = np.random.default_rng(seed)
    severity = random.normal(size=count)
    frame = pd.DataFrame(
        {
            "temperature": 36.9 + 0.8 * random.standard_t(5, count) + 0.3 * severity,
            "glucose": 140 + 55 * random.gamma(1.5, 1.0, count) - 40,
            "creatinine": 1.0 * np.exp(0.6 * random.normal(size=count) + 0.3 * severity),
            "bilirubin": 0.8 * np.exp(1.1 * random.normal(size=count)),
            "cholesterol": np.where(random.random(count) < 0.9, np.nan, 160 + 45 * random.normal(size=count)),
            "age": np.clip(65 + older + 16 * random.normal(size=count), 18, 90).round(),
            "dialysis": (random.random(count) < 0.02).astype(float),
            "dose": np.where(random.random(count) < 0.9, 0.0, random.gamma(2.0, 3.0, count)),
        }
    )
    frame["died"] = (severity + 0.5 * random.normal(size=count) > 1.3).astype(int)
    return frame


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    path = tmp_path_factory.mktemp("public") / "public.csv"
    patients(0, 2000).to_csv(path, index=False)
    return fit_schema(replace(SOURCE, path=str(path)), loss="binary-cross-entropy")


Told = Callable[..., list[str]]


@pytest.fixture
def told(tmp_path: Path, schema: Schema) -> Told:
    def remarks(frame: pd.DataFrame, study: Study = STUDY, **source: object) -> list[str]:
        path = tmp_path / "north.csv"
        frame.to_csv(path, index=False)
        data = replace(SOURCE, path=str(path), **source)  # type: ignore[arg-type]
        dataset = open_dataset(data, schema, private=True)
        return remarks_of(dataset, dataset.slot_map(), study)

    return remarks


def test_public_moments_are_those_of_the_values_that_are_there(schema: Schema) -> None:
    from distqexp.stages.public_columns import columns_of

    public, frame = columns_of(schema), patients(0, 2000).drop(columns="died")
    np.testing.assert_allclose(public.absent, frame.isna().mean(), rtol=1e-12)
    np.testing.assert_allclose(public.means, frame.mean(), rtol=1e-9)
    np.testing.assert_allclose(public.deviations, frame.std(ddof=0), rtol=1e-9)
    assert Schema.from_tree(schema.to_tree()) == schema
    without = replace(schema, absent=())
    assert "absent" not in without.to_tree()  # as in the plans of versions before
    assert Schema.from_tree(without.to_tree()) == without


def test_honest_sites_are_left_in_peace(told: Told) -> None:
    """Of many sizes, of other patients than the public ones, and with mistakes in single records."""
    for seed in range(1, 25):
        frame = patients(seed, [2, 8, 15, 40, 150, 600][seed % 6], older=6.0 * (seed % 3 - 1))
        if seed % 2:
            frame.loc[::9, "temperature"] = 370.0
            frame.loc[::7, "glucose"] = np.nan
        assert told(frame, Study(units=2 * len(frame), shards=2)) == [], seed


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("temperature", lambda x: 32 + 1.8 * x),
        ("glucose", lambda x: x / 18.02),
        ("creatinine", lambda x: 88.4 * x),
        ("bilirubin", lambda x: 17.1 * x),
        ("cholesterol", lambda x: x / 38.67),
        ("age", lambda x: 12 * x),
    ],
)
@pytest.mark.parametrize("count", [200, 5000])
def test_another_unit_of_measure(told: Told, column: str, change: Callable[[pd.Series], pd.Series], count: int) -> None:
    frame = patients(3, count)
    frame[column] = change(frame[column])
    (line,) = told(frame, Study(units=2000, shards=2))
    assert line.startswith(f"column '{column}': half of the values are between ")
    assert float(re.findall(r"around ([\d.]+)", line)[0]) == pytest.approx(frame[column].median(), rel=0.1)


def test_missing_values_classes_rows_and_units(told: Told) -> None:
    frame = patients(4, 200)
    gaps = frame.copy()
    gaps.loc[gaps.index[:150], "age"] = np.nan
    gaps["cholesterol"] = np.nan  # of public values, nine in ten
    assert told(gaps) == ["column 'age': 75% of the values are missing, of public ones 0%"]
    assert told(frame.assign(age=np.nan))[0].startswith("column 'age': 100% of the values are missing")
    (one,) = told(frame.assign(died=0))
    assert one.startswith("labels: all 200 that were looked at are of class 0")
    assert told(frame[:12].assign(died=0), Study(24, 2)) == []  # by chance
    (none,) = told(frame.assign(died=np.nan))
    assert none == "none of the 200 records that were looked at can be used: label missing"
    for empty in (told(frame[:0]), told(frame, where="age > 200")):
        (line,) = empty
        assert line.startswith("there is no record")
    assert re.fullmatch(r"units: 200 here, while the study states 40 in all; .*", told(frame, Study(40, 2))[0])
    assert re.fullmatch(r"units: 200 here, while the study states 90,000 over 4 .*", told(frame, Study(90_000, 4))[0])


def test_without_public_records_no_column_is_compared(told: Told) -> None:
    study, frame = replace(STUDY, public=False), patients(4, 200)
    assert told(frame.assign(age=np.nan, glucose=frame.glucose / 18.02), study) == []
    (one,) = told(frame.assign(age=np.nan, died=0), study)
    assert one.startswith("labels: all 200 that were looked at are of class 0")
    assert told(frame[:0], study)[0].startswith("there is no record")


def test_inverted_labels_of_as_many_of_either_class_are_seen_by_their_order(told: Told) -> None:
    def shares(records: Records) -> tuple[FloatArray, IntegerArray]:
        risk = expit(1.5 * records.inputs[:, 2].double().numpy() - 0.2)  # of creatinine
        return np.stack([1 - risk, risk], axis=1), records.targets.numpy().astype(np.int64)

    for seed in range(12):
        frame = patients(seed, [10, 60, 300][seed % 3])
        study = Study(2 * len(frame), 2, shares)
        risk = np.log(frame.creatinine) + np.random.default_rng(100 + seed).normal(size=len(frame))
        assert told(frame.assign(died=(risk > 0).astype(int)), study) == [], seed
        lines = told(frame.assign(died=(risk < 0).astype(int)), study)
        assert all(re.search(r"the wrong way round \(AUROC 0\.[123]", line) for line in lines)
        assert len(lines) == (len(frame) == 300)
        # A model that knows nothing is no reason to stop, nor is a share that is another here.
        assert told(frame.assign(died=(np.arange(len(frame)) % 3 == 0).astype(int)), study) == []


def test_records_of_one_patient_count_as_one(told: Told) -> None:
    frame = pd.concat([patients(5, 4)] * 40).assign(died=0, temperature=98.6 + np.arange(160) % 4)
    assert told(frame.assign(patient=np.arange(160) % 4), Study(8, 2), unit="patient", columns=replace(
        SOURCE.columns, exclude=("patient",))) == []  # fmt: skip
    assert len(told(frame, Study(320, 2))) == 2


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, run: Commands, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with plan.h5, the plan of a public table, and with honest records in north.csv."""
    source = {"format": "csv", "columns": {"target": "died"}}
    tree = table_tree(
        model={"args": {"inputs": 8}},
        data={"public": {**source, "path": "public.csv"}, "private": {**source, "path": "north.csv"}},
        privacy={"units": 300},
    )
    monkeypatch.chdir(tmp_path)
    patients(0, 600).to_csv("public.csv", index=False)
    patients(6, 300).to_csv("north.csv", index=False)
    Path("task.toml").write_text(to_toml(tree), "utf-8")
    run.done("plan", "task.toml", "--out", "plan.h5")
    return tmp_path


SKETCH = ("sketch", "plan.h5", "--data", "north.csv", "--out", "north.h5")


def test_the_command_stops_before_the_charge_and_goes_on_with_yes(
    site: Path, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = pd.read_csv("north.csv")
    assert "looks wrong" not in run.done("check", "plan.h5", "--data", "north.csv").out
    honest.assign(died=1 - honest.died, glucose=honest.glucose / 18.02).to_csv("north.csv", index=False)

    # Without a terminal one line says that something is wrong, and where to see it: no figure, no column, no number of remarks.
    line = run.distqexp(*SKETCH).refused(2, "nothing is charged", "distqexp check plan.h5 --data north.csv", "--yes")
    assert not re.search(r"\d", line.replace("plan.h5", ""))
    assert not any(name in line for name in honest.columns)
    assert Ledger.open().rows() == []
    assert not list(site.glob("north.h5*"))

    shown = run.done("check", "plan.h5", "--data", "north.csv").out.splitlines()
    remarks = [line for line in shown if line.startswith("  looks wrong: ")]
    assert shown[0] == WARNING
    assert [remark.split()[2] for remark in remarks] == ["column", "labels:"]
    assert re.search(r"8\d% are of class 1, while the plan's model expects 1\d%; are the labels inverted", remarks[1])

    # On a terminal they stand above the line.
    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True)
        outcome = run.distqexp(*SKETCH)
        assert outcome.code == 2
        lines = [line for line in outcome.err.splitlines() if "new ledger" not in line]
        assert lines[-len(remarks) - 2 : -1] == [WARNING, *remarks]
        assert lines[-1].startswith("distqexp: sketch: what is told above looks wrong")
        assert outcome.out == ""
    assert Ledger.open().rows() == []

    with monkeypatch.context() as patch:
        patch.setattr("distqexp.stages.by_hand.remarks_of", lambda *_: pytest.fail("nobody would see them"))
        done = run.done(*SKETCH, "--yes")
    assert done.reasons() == []
    assert len(Ledger.open().rows()) == 1


def test_columns_beyond_the_plans_are_named_and_ignored(site: Path, run: Commands) -> None:
    assert run.done(*SKETCH).reasons() == []
    plain = Path("north.h5").read_bytes()
    Path("north.h5").unlink()
    frame = pd.read_csv("north.csv")
    frame.insert(1, "ward", "A4")
    frame.assign(note="text").to_csv("north.csv", index=False)
    line = "distqexp: {}: not the plan's columns, ignored: 'ward', 'note'"
    (told,) = run.done(*SKETCH).reasons()
    assert told == line.format(site / "north.csv")
    assert Path("north.h5").read_bytes() == plain
    assert run.done("check", "plan.h5", "--data", "north.csv").out.splitlines()[-1] == told
    frame.drop(columns="age").to_csv("north.csv", index=False)
    new = [*SKETCH[:-1], "new.h5"]
    run.distqexp(*new).refused(3, "missing 'age'", "unexpected 'ward'")


def test_the_function_tells_whoever_asks(site: Path) -> None:
    frame = pd.read_csv("north.csv")
    frame.assign(died=0).to_csv("north.csv", index=False)
    heard: list[Sequence[str]] = []

    def stop(remarks: Sequence[str]) -> None:
        heard.append(remarks)
        raise UsageError("stopped")

    with pytest.raises(UsageError, match="stopped"):
        api.sketch("plan.h5", "north.csv", "north.h5", on_remarks=stop)
    assert [[line.split(":")[0] for line in lines] for lines in heard] == [["labels"]]
    assert Ledger.open().rows() == []
    api.sketch("plan.h5", "north.csv", "north.h5")
    assert len(Ledger.open().rows()) == 1
