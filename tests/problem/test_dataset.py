"""Blank, incomplete and mislabelled records; fingerprints."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.schema import fit_schema

COLUMNS = ColumnsConfig(target="y", standardise=False)


def _frame() -> pd.DataFrame:
    random = np.random.default_rng(9)
    return pd.DataFrame({"a": random.normal(size=12), "b": random.normal(size=12), "y": random.integers(0, 2, 12)})


def _open(frame: pd.DataFrame, folder: Path, loss: str, classes: int | None = None, blank: object = None) -> Dataset:
    _frame().to_csv(folder / "public.csv", index=False)
    frame.to_csv(folder / "private.csv", index=False)
    public = DataConfig(format="csv", path=str(folder / "public.csv"), columns=COLUMNS)
    data = dataclasses.replace(public, path=str(folder / "private.csv"))
    if blank is not None:
        np.save(folder / "blank.npy", np.asarray(blank))
        data = dataclasses.replace(data, blank=str(folder / "blank.npy"))
    return open_dataset(data, fit_schema(public, loss=loss, classes=classes))


def test_blank_records_are_zeros_and_leave_the_slots_alone(tmp_path: Path) -> None:
    blank = np.zeros(12, dtype=np.bool_)
    blank[[0, 5, 11]] = True
    plain = _open(_frame(), tmp_path, "cross-entropy", 2)
    whole = plain.read(np.arange(12))
    slots = plain.slot_map()
    masked = _open(_frame(), tmp_path, "cross-entropy", 2, blank)
    records = masked.read(np.arange(12))
    assert records.present.tolist() == (~blank).tolist()
    assert not records.inputs[blank].any()
    assert not records.targets[blank].any()
    assert torch.equal(records.inputs[~blank], whole.inputs[~blank])
    assert torch.equal(records.targets[~blank], whole.targets[~blank])
    assert np.array_equal(masked.slot_map().rows, slots.rows)
    assert np.array_equal(masked.slot_map().unit, slots.unit)


def test_all_blank_batches_keep_their_shapes_and_types(tmp_path: Path) -> None:
    dataset = _open(_frame(), tmp_path, "cross-entropy", 2, np.ones(12, dtype=np.bool_))
    records = dataset.read([3, 4])
    assert records.inputs.shape == (2, 2)
    assert records.inputs.dtype == torch.float32
    assert records.targets.dtype == torch.int64
    assert not records.present.any()


def test_what_a_blank_record_holds_is_never_looked_at(tmp_path: Path) -> None:
    frame = _frame().astype(object)
    frame.loc[4, ["a", "y"]] = ["not a number", 77]
    blank = np.arange(12) == 4
    assert int(_open(frame, tmp_path, "cross-entropy", 2, blank).read(np.arange(12)).present.sum()) == 11


@pytest.mark.parametrize(
    "blank", [np.zeros(11, dtype=np.bool_), np.zeros(12, dtype=np.int64), np.zeros((12, 1), dtype=np.bool_)]
)
def test_a_blank_array_of_another_shape_or_type_is_refused(tmp_path: Path, blank: np.ndarray) -> None:
    with pytest.raises(FileContentError, match="booleans"):
        _open(_frame(), tmp_path, "cross-entropy", 2, blank)


def test_damaged_and_missing_blank_files_are_refused(tmp_path: Path) -> None:
    dataset = _open(_frame(), tmp_path, "cross-entropy", 2, np.zeros(12, dtype=np.bool_))
    path = tmp_path / "blank.npy"
    for content in (b"", path.read_bytes()[:-2], b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(FileContentError, match=r"\.npy"):
            open_dataset(dataset.data, dataset.schema)
    path.unlink()
    with pytest.raises(UsageError, match=r"data\.blank"):
        open_dataset(dataset.data, dataset.schema)


@pytest.mark.parametrize("loss", ["cross-entropy", "binary-cross-entropy", "mean-squared-error"])
def test_incomplete_records_are_not_present_and_harmless(tmp_path: Path, loss: str) -> None:
    frame = _frame().astype(float)
    frame.loc[2, "a"] = np.inf
    frame.loc[3, "b"] = -1e300  # finite as a double, infinite as a float
    frame.loc[4, "y"] = np.nan
    frame.loc[5, "a"] = np.nan  # imputed
    records = _open(frame, tmp_path, loss, 2 if loss == "cross-entropy" else None).read(np.arange(12))
    assert np.flatnonzero(~records.present.numpy()).tolist() == [2, 3, 4]
    assert not records.inputs[[2, 3, 4]].any()
    assert not records.targets[[2, 3, 4]].any()
    assert torch.isfinite(records.inputs).all()


@pytest.mark.parametrize(
    ("loss", "classes", "label"),
    [
        ("cross-entropy", 2, 2),
        ("cross-entropy", 2, -1),
        ("cross-entropy", 2, 0.5),
        ("cross-entropy", None, -3),
        ("cross-entropy", 2, np.inf),
        ("binary-cross-entropy", None, 2),
        ("binary-cross-entropy", None, 0.25),
    ],
)
def test_labels_out_of_range_name_column_and_rule_never_the_value(
    tmp_path: Path, loss: str, classes: int | None, label: float
) -> None:
    frame = _frame().astype(float)
    frame.loc[7, "y"] = 1234567 if label == 2 else label
    dataset = _open(frame, tmp_path, loss, classes)
    assert dataset.read([6, 8]).present.all()
    with pytest.raises(FileContentError, match=r"'y'.*expected") as caught:
        dataset.read([6, 7])
    assert "1234567" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_number_is_a_target_of_regression(tmp_path: Path) -> None:
    frame = _frame().astype(float)
    frame.loc[7, "y"] = -3.5
    assert _open(frame, tmp_path, "mean-squared-error").read([7]).targets.tolist() == [-3.5]


def test_records_do_not_print_their_values(tmp_path: Path) -> None:
    records = _open(_frame(), tmp_path, "cross-entropy", 2).read([0, 1])
    assert repr(records) == "Records(n=2, inputs=(2,))"


def test_the_fingerprint_follows_size_and_time_of_every_file(tmp_path: Path) -> None:
    dataset = _open(_frame(), tmp_path, "cross-entropy", 2, np.zeros(12, dtype=np.bool_))
    seen = {dataset.fingerprint()}
    assert dataset.fingerprint() in seen
    for number, path in enumerate((tmp_path / "private.csv", tmp_path / "blank.npy")):
        os.utime(path, ns=(0, 10**9 * (number + 1)))
        assert dataset.fingerprint() not in seen
        seen.add(dataset.fingerprint())
