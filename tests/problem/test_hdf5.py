"""HDF5 arrays: slices, units, refusals."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.readers import hdf5
from distqexp.problem.schema import fit_schema

FEATURES = np.random.default_rng(0).normal(3.0, 2.0, (30, 4))
LABELS = np.random.default_rng(1).integers(0, 3, 30)
COLUMNS = ColumnsConfig(target="labels", standardise=False)


def _save(folder: Path, **arrays: object) -> DataConfig:
    with h5py.File(folder / "t.h5", "w") as file:
        for name, values in {"x": FEATURES, "labels": LABELS, **arrays}.items():
            if values is not None:
                file[name] = values
    return DataConfig(format="hdf5", path=str(folder / "t.h5"), columns=COLUMNS)


def _open(data: DataConfig, loss: str = "cross-entropy") -> Dataset:
    return open_dataset(data, fit_schema(data, loss=loss))


def test_rows_in_any_order(tmp_path: Path) -> None:
    dataset = _open(_save(tmp_path))
    rows = [5, 4, 29, 0, 5]
    records = dataset.read(rows)
    np.testing.assert_array_equal(records.inputs.numpy(), FEATURES[rows].astype(np.float32))
    assert records.targets.tolist() == LABELS[rows].tolist()
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).read(rows).inputs, records.inputs)
    assert dataset.read([]).inputs.shape == (0, 4)


def test_arrays_are_read_by_slices_of_the_rows_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = _open(_save(tmp_path))
    taken: list[int] = []
    plain = h5py.Dataset.__getitem__

    def counted(self: h5py.Dataset, key: object) -> object:
        found = plain(self, key)
        taken.append(len(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    dataset.read([3, 4, 5, 20])
    assert taken == [3, 1, 3, 1]  # features, then labels


def test_standardisation_by_columns_is_that_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distqexp.problem import public_columns

    data = dataclasses.replace(_save(tmp_path), columns=ColumnsConfig(target="labels"))
    whole = fit_schema(data, loss="cross-entropy")
    np.testing.assert_allclose(whole.means, FEATURES.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.scales, FEATURES.std(axis=0), rtol=1e-12)
    monkeypatch.setattr(public_columns, "_VALUES_AT_ONCE", 60)  # two columns at a time
    assert fit_schema(data, loss="cross-entropy") == whole


def test_image_arrays_and_several_targets(tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 255, (30, 3, 4, 4), dtype=np.uint8)
    targets = np.random.default_rng(3).normal(size=(30, 2))
    targets[4, 1] = np.nan
    dataset = _open(_save(tmp_path, x=images, labels=targets), "mean-squared-error")
    records = dataset.read(np.arange(8))
    assert records.inputs.shape == (8, 3, 4, 4)
    np.testing.assert_array_equal(records.inputs.numpy()[0], images[0].astype(np.float32))
    assert records.targets.shape == (8, 2)
    assert records.present.tolist() == [row != 4 for row in range(8)]


@pytest.mark.parametrize("ids", [np.repeat([7, 3, 7], 10), np.array(["b"] * 10 + ["a"] * 10 + ["b"] * 10, dtype="S1")])
def test_unit_arrays(tmp_path: Path, ids: np.ndarray) -> None:
    data = dataclasses.replace(_save(tmp_path, ward=ids), unit="ward")
    slots = _open(data).slot_map()
    assert slots.rows.tolist() == [*range(10), *range(20, 30), *range(10, 20)]
    assert slots.units == 2


def test_filters_on_arrays(tmp_path: Path) -> None:
    names = np.array(["n", "s", ""] * 10, dtype=object)
    data = _save(tmp_path, age=np.arange(30.0), site=names)
    chosen = dataclasses.replace(data, where="age >= 10 and site == 's'")
    assert _open(chosen).slot_map().rows.tolist() == [10, 13, 16, 19, 22, 25, 28]


@pytest.mark.parametrize("ids", [np.array([1.0, np.nan] * 15), np.array(["a", ""] * 15, dtype="S1")])
def test_missing_unit_ids_are_refused(tmp_path: Path, ids: np.ndarray) -> None:
    with pytest.raises(FileContentError, match="'ward'"):
        _open(dataclasses.replace(_save(tmp_path, ward=ids), unit="ward")).slot_map()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"labels": LABELS[:-1]}, "as many rows"),
        ({"labels": None}, "no column 'labels'"),
        ({"other": FEATURES}, "2 datasets"),
        ({"x": None}, "0 datasets"),
        ({"x": np.array([b"text"] * 30)}, "real numbers"),
        ({"x": np.float64(3.0)}, "no dataset"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, object], reason: str) -> None:
    with pytest.raises(FileContentError, match=reason):
        _open(_save(tmp_path, **arrays))


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    data = _save(tmp_path)
    path = tmp_path / "t.h5"
    content = path.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(FileContentError):
            _open(data)
    path.unlink()
    with pytest.raises(UsageError, match="no such file"):
        _open(data)
    assert hdf5.Hdf5Reader.image is False
