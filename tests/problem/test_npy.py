"""NumPy's files: rows, roles by usual names, images of bytes, refusals."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_files import PLAIN, write_arrays

from distqexp.config import DataConfig, config_from_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.identity import file_facts
from distqexp.problem.readers import open_reader
from distqexp.problem.schema import Schema, fit_schema, schema_from_config

RANDOM = np.random.default_rng(0)
FEATURES, LABELS = RANDOM.normal(3.0, 2.0, (30, 4)), RANDOM.integers(0, 3, 30)
IMAGES = RANDOM.integers(0, 256, (30, 6, 5), dtype=np.uint8)
NUMPY = [format for format in PLAIN if format != "hdf5"]


def _open(data: DataConfig, loss: str = "cross-entropy", private: bool = False) -> Dataset:
    return open_dataset(data, fit_schema(data, loss=loss), private=private)


def _changed(data: DataConfig, **roles: Any) -> DataConfig:
    return dataclasses.replace(data, columns=dataclasses.replace(data.columns, **roles))


@pytest.mark.parametrize("format", PLAIN)
def test_rows_in_any_order_with_nothing_but_path_and_format(tmp_path: Path, format: str) -> None:
    data = _changed(write_arrays(tmp_path, format, FEATURES, LABELS), standardise=False)
    dataset, rows = _open(data), [5, 4, 29, 0, 5]
    records = dataset.read(rows)
    np.testing.assert_array_equal(records.inputs.numpy(), FEATURES[rows].astype(np.float32))
    assert records.targets.tolist() == LABELS[rows].tolist()
    assert pickle.loads(pickle.dumps(dataset)).read(rows).inputs.equal(records.inputs)
    assert dataset.read([]).inputs.shape == (0, 4)
    assert dataset.opened_files() == file_facts(data).files


@pytest.mark.parametrize("format", NUMPY)
@pytest.mark.parametrize("kind", [">f8", "<f4", ">i2", "?", "f2", ">u8"])
def test_every_kind_and_order_of_numbers(tmp_path: Path, format: str, kind: str) -> None:
    features = np.asfortranarray((RANDOM.integers(0, 2, (30, 4, 2))).astype(kind))
    data = _changed(write_arrays(tmp_path, format, features, LABELS.astype(">i4")), standardise=False)
    records = _open(data).read(range(30))
    np.testing.assert_array_equal(records.inputs.numpy(), features.astype(np.float32))
    assert records.targets.tolist() == LABELS.tolist()


def test_rows_alone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distqexp.problem.readers.npy import StoredArray

    taken: list[tuple[int, int]] = []
    plain = StoredArray._values
    monkeypatch.setattr(StoredArray, "_values", lambda self, a, b: (taken.append((a, b)), plain(self, a, b))[1])
    _open(write_arrays(tmp_path, "npz", FEATURES, LABELS)).read([3, 4, 5, 20])
    assert taken[-4:] == [(3, 6), (20, 21), (3, 6), (20, 21)]


@pytest.mark.parametrize("format", [format for format in PLAIN if format != "npy"])
def test_units_filters_and_tokens_of_named_arrays(tmp_path: Path, format: str) -> None:
    wards, ids = np.array(["n", "s", ""] * 10, dtype="S1"), np.array(["b"] * 10 + ["a"] * 10 + ["b"] * 10)
    others = {"site": wards, "ward": ids.astype("S1"), "age": np.arange(30.0), "seen": np.ones((30, 4), np.uint8)}
    data = write_arrays(tmp_path, format, RANDOM.integers(0, 9, (30, 4)), LABELS, named=True, **others)
    chosen = _open(dataclasses.replace(data, where="age >= 10 and site == 's'", unit="ward"))
    assert chosen.slot_map().rows.tolist() == [10, 13, 16, 19, 22, 25, 28]
    assert chosen.slot_map().units == 2
    tokens = _open(_changed(data, tokens=True, mask="seen")).read([3])
    assert tuple(tokens.inputs.shape) == (1, 2, 4)
    assert tokens.inputs[0, 1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize(
    ("shape", "expected", "last"),
    [((6, 5), (1, 6, 5), False), ((3, 6, 5), (3, 6, 5), False), ((6, 5, 3), (3, 6, 5), True), ((3, 6, 3), (3, 6, 3), False)],
)  # fmt: skip
def test_bytes_are_images_from_0_to_1(
    tmp_path: Path, format: str, shape: tuple[int, ...], expected: tuple[int, ...], last: bool
) -> None:
    images = RANDOM.integers(0, 256, (30, *shape), dtype=np.uint8)
    data = write_arrays(tmp_path, format, images, LABELS)
    dataset = _open(data)
    assert (dataset.schema.image, dataset.schema.shape, dataset.schema.names) == (True, expected, ("pixels",))
    right = (np.moveaxis(images, -1, 1) if last else images).reshape(30, *expected) / 255
    np.testing.assert_allclose(dataset.read(range(30)).inputs.numpy(), right, rtol=1e-6)
    record_shape = shape if expected[0] == 1 else expected
    declared = _changed(data, images=True, **({"target": "y"} if format == "hdf5" else {}))
    assert schema_from_config(declared, loss="cross-entropy", record_shape=record_shape) == dataset.schema
    assert dataset.schema.record_shape == record_shape


def test_images_of_every_format_are_one_schema(tmp_path: Path) -> None:
    schema = _open(write_arrays(tmp_path / "first", "npz", IMAGES, LABELS)).schema
    for format in PLAIN:
        data = write_arrays(tmp_path / format, format, IMAGES, LABELS)
        np.testing.assert_array_equal(
            open_dataset(data, schema, private=True).read([7]).inputs.numpy()[0, 0], np.float32(IMAGES[7] / 255)
        )
    floats = write_arrays(tmp_path / "floats", "npz", IMAGES / 255.0, LABELS)
    with pytest.raises(FileContentError, match=r"aren't images of bytes.*columns\.images = true"):
        open_dataset(floats, schema, private=True)
    with pytest.raises(FileContentError, match=r"records of shape \(1, 6, 4\); expected the plan's \(1, 6, 5\)"):
        open_dataset(write_arrays(tmp_path / "small", "npz", IMAGES[..., 1:], LABELS), schema, private=True)


def test_a_named_target_in_hdf5_keeps_bytes_as_they_were(tmp_path: Path) -> None:
    data = write_arrays(tmp_path, "hdf5", IMAGES, LABELS, named=True)
    assert not _open(data).schema.image
    assert _open(_changed(data, images=True)).schema.image
    with pytest.raises(FileContentError, match="holds float64 in 2 dimensions; expected images: uint8"):
        _open(_changed(write_arrays(tmp_path, "hdf5", FEATURES, LABELS, named=True), images=True))


def test_without_public_data_images_are_declared(tmp_path: Path) -> None:
    data = write_arrays(tmp_path, "npz", IMAGES, LABELS)
    with pytest.raises(UsageError, match=r"columns\.images: not given; without data\.public, expected true or false"):
        schema_from_config(data, loss="cross-entropy", record_shape=(6, 5))
    with pytest.raises(UsageError, match=r"record_shape: \[1, 6, 5\]; for images expected \[height, width\], or"):
        schema_from_config(_changed(data, images=True), loss="cross-entropy", record_shape=(1, 6, 5))
    plain = schema_from_config(_changed(data, images=False, features=("x",)), loss="cross-entropy", record_shape=(6, 5))
    assert plain == Schema("cross-entropy", False, ("x",), (6, 5))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"y": LABELS[:-1]}, "as many rows"),
        ({"labels": LABELS}, r"2 arrays could be the target \('y', 'labels'\); .*columns\.target"),
        ({"X": FEATURES}, "2 arrays could hold the features"),
        ({"x": np.array([None] * 30)}, "'x' holds Python objects; expected plain numbers or texts, as pickles are never loaded"),
        ({"x": np.zeros(30, dtype=[("a", "i4"), ("b", "f4")])}, "'x' (isn't in NumPy's format|holds records of several fields)"),
        ({"x": np.zeros((30, 2), dtype=np.complex64)}, "'x' holds complex64; expected plain numbers"),
        ({"x": np.zeros((30, 2), dtype="S3")}, r"'x' holds \|S3; expected real numbers"),
        ({"x": np.zeros((30, 0))}, r"shape \(30, 0\); expected \(n, \.\.\.\)"),
        ({"x": np.float64(3)}, r"shape \(\); expected"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "t.npz", **{"x": FEATURES, "y": LABELS, **arrays})
        with pytest.raises(FileContentError, match=reason):
            _open(DataConfig(format="npz", path=str(tmp_path / "t.npz")))


@pytest.mark.parametrize("format", NUMPY)
def test_truncated_files_are_refused(tmp_path: Path, format: str) -> None:
    data = write_arrays(tmp_path, format, FEATURES, LABELS)
    path = Path(str(data.path))
    content = path.read_bytes()
    for kept in (0, 5, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(FileContentError):
            _open(data).check_whole()


def test_a_packed_array_with_another_checksum_is_refused(tmp_path: Path) -> None:
    data = write_arrays(tmp_path, "packed npz", FEATURES, LABELS)
    with zipfile.ZipFile(str(data.path)) as archive:
        place = archive.getinfo("x.npy").header_offset + 60
    content = bytearray(Path(str(data.path)).read_bytes())
    content[place] ^= 0xFF
    Path(str(data.path)).write_bytes(content)
    with pytest.raises(FileContentError, match="'x' can't be unpacked"):
        _open(data)


def test_a_header_that_declares_more_than_the_file_holds_takes_no_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", LABELS)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": True, "shape": (2**40, 2**20)})
    with pytest.raises(FileContentError, match="not as long as its header says"):
        _open(DataConfig(format="npy", path=str(tmp_path / "x.npy")))


def test_a_file_that_shrinks_while_it_is_open_ends_the_read(tmp_path: Path) -> None:
    data = write_arrays(tmp_path, "npy", np.zeros((30, 4000)), LABELS)
    dataset = _open(data)
    Path(str(data.path)).write_bytes(b"\x93NUMPY")
    with pytest.raises(FileContentError, match="changed while it was read"):
        dataset.read([29])


def test_labels_of_npy_stand_beside_or_are_named(tmp_path: Path) -> None:
    for features, labels in (
        ("train-x.npy", "train-y.npy"),
        ("X_test.npy", "y_test.npy"),
        ("images.npy", "labels.npy"),
    ):
        np.save(tmp_path / features, FEATURES)
        np.save(tmp_path / labels, LABELS)
        reader = open_reader(DataConfig(format="npy", path=str(tmp_path / features)))
        assert [path.name for path in reader.files()] == [features, labels]
    np.save(tmp_path / "train-labels.npy", LABELS)
    with pytest.raises(
        UsageError, match=r"data\.labels: not given, and 'train-y\.npy', 'train-labels\.npy' beside train-x\.npy"
    ):
        open_reader(DataConfig(format="npy", path=str(tmp_path / "train-x.npy")))
    named = DataConfig(
        format="npy", path=str(tmp_path / "train-x.npy"), labels=str(tmp_path / "y_test.npy"), where="label < 1"
    )
    assert _open(named).slot_map().rows.tolist() == np.flatnonzero(LABELS < 1).tolist()
    with pytest.raises(UsageError, match="use npz"):
        _open(dataclasses.replace(named, unit="ward")).slot_map()
    np.save(tmp_path / "plain.npy", FEATURES)
    with pytest.raises(UsageError, match=r"none beside plain\.npy"):
        open_reader(DataConfig(format="npy", path=str(tmp_path / "plain.npy")))


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"format": "npy", "columns": {"target": "y"}}, r"columns\.target"),
        ({"format": "csv", "columns": {"target": "y", "images": True}}, r"columns\.images"),
        ({"format": "npz", "columns": {"tokens": True, "images": True}}, r"columns\.images"),
        ({"format": "csv", "columns": {"target": "y", "tokens": True}}, r"columns\.tokens"),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together(source: dict[str, Any], key: str) -> None:
    tree = {
        "model": {"factory": "distqexp.problem.models:cnn", "loss": "cross-entropy"},
        "data": {"population": "p", "private": source},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 30},
    }
    with pytest.raises(UsageError, match=key):
        config_from_tree(tree)


def test_private_arrays_leave_bad_records_out(tmp_path: Path) -> None:
    features, labels = FEATURES.copy(), LABELS.astype(float)
    features[3, 1], features[4, 0], labels[5], labels[6] = np.inf, 1e39, 7, np.nan
    schema = dataclasses.replace(_open(write_arrays(tmp_path / "public", "npz", FEATURES, LABELS)).schema, classes=3)
    for format in NUMPY:
        data = write_arrays(tmp_path / format, format, features, labels)
        read = open_dataset(data, dataclasses.replace(schema, names=open_reader(data).names), private=True).read(
            range(30)
        )
        assert np.flatnonzero(~read.present.numpy()).tolist() == [3, 4, 5, 6]
