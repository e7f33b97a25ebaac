"""Several tables by a pattern are one table: the records of one concatenated file."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from distqexp.config import ColumnsConfig, Config, DataConfig, TuneConfig, config_from_tree
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.problem.contents import content_digests
from distqexp.problem.copies import Likeness, likeness
from distqexp.problem.dataset import open_dataset
from distqexp.problem.identity import are_linked, file_facts, fingerprint, plain_digest, source_files
from distqexp.problem.readers import open_reader
from distqexp.problem.schema import fit_schema
from distqexp.stages.inputs import check_files
from distqexp.tuning.files import public_without_private

COLUMNS = ColumnsConfig(target="died", categorical=("ward",))


def wards(folder: Path, format: str = "csv") -> tuple[DataConfig, DataConfig]:
    """The pattern of three files, and one file with all of their records."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(5)
    frames = []
    for name, count in (("b", 7), ("a", 12), ("c", 5)):
        frame = pd.DataFrame({"pid": random.integers(0, 9, count), "age": random.normal(size=count).round(3)})
        frame = frame.assign(ward=name, died=random.integers(0, 2, count))
        shuffled = frame[["died", "ward", "age", "pid"]] if name == "b" else frame
        path = folder / f"ward-{name}.{format}"
        shuffled.to_csv(path, index=False) if format == "csv" else shuffled.to_parquet(path, row_group_size=4)
        frames.append(frame)
    whole = pd.concat([frames[1], frames[0], frames[2]], ignore_index=True)
    whole.to_csv(folder / "whole.csv", index=False)
    several = DataConfig(format=format, path=str(folder / f"ward-*.{format}"), columns=COLUMNS, unit="pid")  # type: ignore[arg-type]
    return several, DataConfig(format="csv", path=str(folder / "whole.csv"), columns=COLUMNS, unit="pid")


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("where", [None, "age > 0", "ward != 'b'"])
def test_several_tables_are_one(tmp_path: Path, format: str, where: str | None) -> None:
    several, one = (dataclasses.replace(data, where=where) for data in wards(tmp_path, format))
    schemas = [fit_schema(data, loss="binary-cross-entropy") for data in (several, one)]
    assert (schemas[0].means, schemas[0].codings) == (schemas[1].means, schemas[1].codings)
    datasets = [open_dataset(data, schemas[1], private=True) for data in (several, one)]
    slots = [dataset.slot_map() for dataset in datasets]
    assert np.array_equal(slots[0].rows, slots[1].rows)
    assert np.array_equal(slots[0].unit, slots[1].unit)
    for found in (datasets[0], pickle.loads(pickle.dumps(datasets[0]))):
        records, expected = found.read(slots[0].rows), datasets[1].read(slots[1].rows)
        assert np.array_equal(records.inputs.numpy(), expected.inputs.numpy())
        assert np.array_equal(records.targets.numpy(), expected.targets.numpy())
    datasets[0].check_whole()
    assert [path.name for path in datasets[0].reader.files()] == [f"ward-{name}.{format}" for name in "abc"]
    assert len(datasets[0].opened_files()) == 3


def test_a_file_that_comes_or_goes_changes_the_source(tmp_path: Path) -> None:
    data, _ = wards(tmp_path)

    def digest() -> str:
        return fingerprint(data, file_facts(data), lambda: open_reader(data, private=True), plain_digest)

    before, facts = digest(), file_facts(data)
    assert digest() == before
    (tmp_path / "ward-d.csv").write_text((tmp_path / "ward-a.csv").read_text("utf-8"), "utf-8")
    assert digest() != before
    assert not facts.agree(file_facts(data))
    for path in tmp_path.glob("ward-*.csv"):
        path.unlink()
    with pytest.raises(DistqexpError, match="changed"):
        file_facts(data)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    data, _ = wards(tmp_path)
    path = tmp_path / "ward-b.csv"
    text = path.read_text("utf-8")
    path.write_text(text.replace("age", "weight"), "utf-8")
    with pytest.raises(FileContentError, match=r"ward-b\.csv: other columns.*missing 'age'; unexpected 'weight'"):
        open_reader(data)
    path.write_text(text.replace(",", ";"), "utf-8")
    with pytest.raises(FileContentError, match=r"ward-b\.csv: not written as"):
        open_reader(data)
    with pytest.raises(UsageError, match="no file matches"):
        check_files("data.private", dataclasses.replace(data, path=str(tmp_path / "none-*.csv")))
    with pytest.raises(UsageError, match="pattern"):
        open_reader(DataConfig(format="hdf5", path=str(tmp_path / "*.h5"), columns=COLUMNS))
    literal = tmp_path / "ward-[1].csv"
    literal.write_text(text, "utf-8")
    assert source_files(dataclasses.replace(data, path=str(literal))) == [literal]


def test_files_of_a_pattern_are_known_elsewhere(tmp_path: Path) -> None:
    several, one = wards(tmp_path)
    single = dataclasses.replace(several, path=str(tmp_path / "ward-a.csv"))
    (tmp_path / "copies").mkdir()
    for path in source_files(several):
        (tmp_path / "copies" / path.name).write_bytes(path.read_bytes())
    copies = dataclasses.replace(several, path=str(tmp_path / "copies" / "ward-*.csv"))
    assert likeness(several, single) is Likeness.SAME_LINES
    assert likeness(several, copies) is Likeness.SAME_ROWS
    assert likeness(several, one) is Likeness.OTHERS
    assert are_linked(several, single)
    assert set(content_digests(several)) & set(content_digests(single))


def test_a_rehearsal_reads_no_private_file_through_a_pattern(tmp_path: Path) -> None:
    wards(tmp_path)
    source = {"format": "csv", "columns": {"target": "died"}, "unit": "pid"}

    def config(public: str, private: str) -> Config:
        data = {
            "population": "p",
            "public": source | {"path": str(tmp_path / public), "rows": [[0, 3]]},
            "private": source | {"path": str(tmp_path / private), "rows": [[3, 5]]},
        }
        tree = {
            "model": {"factory": "distqexp.problem.models:logistic", "loss": "binary-cross-entropy"},
            "data": data, "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 10}, "mechanism": {"clip": 1.0},
        }  # fmt: skip
        return dataclasses.replace(config_from_tree(tree), tune=TuneConfig())

    for public, private in (("ward-*.csv", "ward-b.csv"), ("ward-a.csv", "ward-*.csv")):
        with pytest.raises(UsageError, match="reads public records only"):
            public_without_private(config(public, private))
    public_without_private(config("ward-a.csv", "ward-b.csv"))
    public_without_private(config("ward-*.csv", "ward-*.csv"))
