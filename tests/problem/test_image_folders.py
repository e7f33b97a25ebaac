"""Folders of images: rows, classes, sizes, colours, links, bad files."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import BAD, picture, write_folder

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.contents import content_digests
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.faults import Fault
from distqexp.problem.identity import content_digest, file_facts, same_file
from distqexp.problem.open_files import refuse_open_for_writing
from distqexp.problem.schema import Schema, fit_schema, schema_from_config

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 6, 5), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
NAMES = ["none", "mild", "severe"] * 4


def _data(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(format="images", path=str(folder), **more)


def _open(data: DataConfig, loss: str = "cross-entropy") -> Dataset:
    return open_dataset(data, fit_schema(data, loss=loss))


def _private(data: DataConfig, schema: Schema) -> Dataset:
    return open_dataset(data, dataclasses.replace(schema, classes=3), private=True)


def _order(labels: list[str]) -> list[int]:
    return sorted(range(len(labels)), key=lambda place: (labels[place], place))


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = _data(write_folder(tmp_path / "f", GREY, NAMES))
    dataset, order = _open(data), _order(NAMES)
    assert dataset.schema == Schema(
        "cross-entropy", True, ("pixels",), (1, 6, 5), 1 / 255, class_names=("mild", "none", "severe")
    )
    assert Schema.from_tree(dataset.schema.to_tree()) == dataset.schema
    rows = [3, 0, 11, 3]
    records = dataset.read(rows)
    np.testing.assert_array_equal(records.inputs.numpy()[:, 0], np.float32(GREY[[order[row] for row in rows]] / 255))
    assert records.targets.tolist() == [["mild", "none", "severe"].index(NAMES[order[row]]) for row in rows]
    assert pickle.loads(pickle.dumps(dataset)).read(rows).inputs.equal(records.inputs)
    assert dataset.opened_files() == file_facts(data).files
    filtered = dataclasses.replace(data, where="label != 'none'")
    assert _open(filtered).slot_map().rows.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_classes_that_are_numbers_are_themselves(tmp_path: Path) -> None:
    data = _data(write_folder(tmp_path / "f", GREY, ["0", "7", "10"] * 4))
    dataset = _open(data)
    assert dataset.schema.class_names == ()
    assert dataset.read(range(12)).targets.tolist() == [0] * 4 + [10] * 4 + [7] * 4
    assert len(_open(dataclasses.replace(data, where="label >= 7")).slot_map().rows) == 8


def test_private_folders_follow_the_public_ones(tmp_path: Path) -> None:
    """Classes, sizes and colours are the plan's, whatever is in the private folder."""
    schema = _open(_data(write_folder(tmp_path / "public", GREY, NAMES))).schema
    large = np.repeat(np.repeat(COLOUR, 2, axis=1), 2, axis=2)
    dataset = _private(_data(write_folder(tmp_path / "private", large, ["severe"] * 8 + ["other"] * 4)), schema)
    records = dataset.read(range(12))
    assert records.inputs.shape == (12, 1, 6, 5)
    assert records.present.tolist() == [False] * 4 + [True] * 8  # "other" comes first
    assert records.targets[4:].tolist() == [2] * 8
    assert set(dataset.faults(range(4)).tolist()) == {Fault.LABEL_OUT_OF_RANGE}
    with pytest.raises(FileContentError, match="none of its subfolders is called as a class of the plan"):
        _private(_data(write_folder(tmp_path / "wrong", GREY, ["a"] * 12)), schema)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_colours_come_from_public_images(tmp_path: Path, suffix: str) -> None:
    mixed = write_folder(tmp_path / "f", COLOUR, NAMES, suffix)
    (mixed / "mild" / "999.png").write_bytes(picture(GREY[0]))
    dataset = _open(_data(mixed))
    assert dataset.schema.shape == (3, 6, 5)
    last = dataset.read([4]).inputs.numpy()[0]
    np.testing.assert_array_equal(last, np.float32(np.repeat(GREY[:1], 3, axis=0) / 255))
    if suffix == ".png":
        first = dataset.read([0]).inputs.numpy()[0]
        np.testing.assert_array_equal(first, np.float32(np.moveaxis(COLOUR[1], -1, 0) / 255))


def test_images_of_16_bits_keep_their_upper_bits(tmp_path: Path) -> None:
    (tmp_path / "f" / "0").mkdir(parents=True)
    values = RANDOM.integers(0, 65536, (6, 5), dtype=np.uint16)
    (tmp_path / "f" / "0" / "a.png").write_bytes(picture(values))
    np.testing.assert_array_equal(
        _open(_data(tmp_path / "f")).read([0]).inputs.numpy()[0, 0], np.float32((values >> 8) / 255)
    )


def test_sizes_are_public_or_declared(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", GREY, NAMES)
    (folder / "mild" / "large.png").write_bytes(picture(np.full((12, 10), 51, np.uint8)))
    data = _data(folder)
    with pytest.raises(
        UsageError, match=r"record_shape: not given, and the images of .* have 2 sizes, from \(6, 5\) to \(12, 10\)"
    ):
        _open(data)
    for declared, shape in (((6, 5), (1, 6, 5)), ((3, 4, 4), (3, 4, 4))):
        schema = fit_schema(data, loss="cross-entropy", record_shape=declared)
        assert (schema.shape, schema.record_shape) == (shape, declared)
        records = open_dataset(data, schema).read(range(13))
        assert records.inputs.shape[1:] == shape
        np.testing.assert_allclose(records.inputs[4].numpy(), np.full(shape, 0.2), rtol=1e-6)


def test_without_public_data_everything_is_declared() -> None:
    data = _data(Path("nowhere"), columns=ColumnsConfig(classes=("b", "a")))
    schema = schema_from_config(data, loss="cross-entropy", record_shape=(3, 8, 8))
    assert (schema.shape, schema.class_names, schema.image) == ((3, 8, 8), ("b", "a"), True)
    with pytest.raises(UsageError, match=r"data\.record_shape: not given; for folders of images"):
        schema_from_config(data, loss="cross-entropy")
    with pytest.raises(UsageError, match=r"columns\.classes: not given"):
        schema_from_config(_data(Path("nowhere")), loss="cross-entropy", record_shape=(8, 8))


def test_a_csv_of_names_and_labels(tmp_path: Path) -> None:
    for place, values in enumerate(GREY):
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / f"{place}.png").write_bytes(picture(values))
    table, labels = tmp_path / "labels.csv", ["well", "mild", "severe"] * 4
    lines = [f"{place}.png,{labels[place]},p{place // 2},{place / 4}" for place in range(11, -1, -1)]
    table.write_text("\n".join(["file_name,label,patient,grade", *lines]))
    data = _data(tmp_path / "f", labels=str(table), unit="patient", where="grade >= 1")
    for separator in (",", ";"):
        table.write_text(table.read_text().replace(",", separator))
        assert _open(data).schema.class_names == ("mild", "severe", "well")
    table.write_text(table.read_text().replace(";", ",").replace("label,", "verdict,"))
    with pytest.raises(FileContentError, match="0 of its columns are called label"):
        _open(data)
    columns = ColumnsConfig(target="verdict", classes=("severe", "well", "mild"))
    data = dataclasses.replace(data, columns=columns)
    dataset = _open(data)
    other = dataclasses.replace(columns, classes=("mild", "severe", "well"))
    with pytest.raises(UsageError, match="expected the plan's 'severe', 'well', 'mild'"):
        _private(dataclasses.replace(data, columns=other), dataset.schema)
    slots = dataset.slot_map()
    assert (slots.rows.tolist(), slots.units) == (list(range(8)), 4)
    records = dataset.read([1])
    np.testing.assert_array_equal(records.inputs.numpy()[0, 0], np.float32(GREY[10] / 255))
    assert records.targets.tolist() == [["severe", "well", "mild"].index(labels[10])]
    grades = dataclasses.replace(data, columns=ColumnsConfig(target="grade"))
    regression = _open(grades, "mean-squared-error")
    np.testing.assert_allclose(regression.read(range(12)).targets.numpy(), np.arange(11, -1, -1) / 4)
    assert dataset.opened_files() == file_facts(data).files


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_blank_in_private_and_refused_in_public(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "f", GREY, NAMES)
    data = _data(folder)
    schema = _open(data).schema
    (folder / "none" / "000.png").write_bytes(BAD[kind])
    dataset = _private(data, schema)
    records = dataset.read(range(12))
    assert np.flatnonzero(~records.present.numpy()).tolist() == [4]
    assert not records.inputs[4].any()
    assert dataset.faults([3, 4]).tolist() == [Fault.NONE, Fault.UNREADABLE]
    assert _private(dataclasses.replace(data, rotate=10.0), schema).read([4]).present.tolist() == [False]
    with pytest.raises(FileContentError, match="isn't a whole PNG or JPEG image"):
        open_dataset(data, schema).read(range(12))
    if kind not in ("cut", "cut jpeg"):  # whose header is whole
        with pytest.raises((FileContentError, UsageError)):
            fit_schema(data, loss="cross-entropy")


def test_bad_rows_of_a_private_csv_are_blank(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", GREY, ["x"] * 12)
    (tmp_path / "outside.png").write_bytes(picture(GREY[0]))
    bad = [
        "x/none.png,0",
        "../outside.png,0",
        f"{tmp_path}/outside.png,0",
        ",0",
        "x/001.png,wrong",
        "x/001.png,",
        "x/001.png,9",
    ]
    (tmp_path / "l.csv").write_text("\n".join(["file,label", "x/000.png,0", "x/../x/./001.png,1", *bad]))
    data = _data(folder, labels=str(tmp_path / "l.csv"))
    schema = Schema("cross-entropy", True, ("pixels",), (1, 6, 5), 1 / 255, 3)
    dataset = _private(data, schema)
    assert [Fault(fault) for fault in dataset.faults(range(9))] == [
        *[Fault.NONE] * 2, *[Fault.UNREADABLE] * 5, Fault.LABEL_MISSING, Fault.LABEL_OUT_OF_RANGE
    ]  # fmt: skip
    assert dataset.read(range(9)).present.tolist() == [True] * 2 + [False] * 7
    for row in (2, 3, 4, 5, 6, 8):  # public records without a label are left out, too
        with pytest.raises(FileContentError, match="expected"):
            open_dataset(data, schema).read([row])


def test_links_stay_inside(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", GREY, NAMES)
    (folder / "mild" / "link.png").symlink_to(folder / "none" / "000.png")
    np.testing.assert_array_equal(_open(_data(folder)).read([4]).inputs.numpy()[0, 0], np.float32(GREY[0] / 255))
    (tmp_path / "secret.png").write_bytes(picture(GREY[0]))
    targets: list[tuple[str, Path]] = [
        ("out.png", tmp_path / "secret.png"), ("gone.png", tmp_path / "gone"), ("folder", tmp_path), ("loop", folder)
    ]  # fmt: skip
    for name, target in targets:
        (folder / "mild" / name).symlink_to(target)
        with pytest.raises(FileContentError, match="a link in it leads to a folder, out of it or nowhere"):
            _open(_data(folder))
        (folder / "mild" / name).unlink()
    (tmp_path / "f-link").symlink_to(folder)
    assert _open(_data(tmp_path / "f-link")).slot_map().slots == 13


def test_other_files_and_hidden_ones_do_not_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", GREY, NAMES)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.png").write_bytes(b"x")
    (folder / "mild" / "notes.txt").write_bytes(b"x")
    assert _open(_data(folder)).slot_map().slots == 12
    (folder / "stray.JPG").write_bytes(b"x")
    with pytest.raises(FileContentError, match="beside its subfolders"):
        _open(_data(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileContentError, match="no image in it"):
        _open(_data(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no such folder"):
        _open(_data(tmp_path / "nowhere"))


def test_a_file_that_changes_after_the_folder_was_opened_ends_the_read(tmp_path: Path) -> None:
    data = _data(write_folder(tmp_path / "f", GREY, NAMES))
    dataset, before, mark = _open(data), file_facts(data), _open(data).fingerprint()
    assert (file_facts(data), _open(data).fingerprint()) == (before, mark)
    path = tmp_path / "f" / "none" / "000.png"
    stat = path.stat()
    path.write_bytes(picture(GREY[0][::-1].copy()))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not before.agree(file_facts(data))
    with pytest.raises(FileContentError, match="changed while it was read"):
        dataset.read([4])
    (tmp_path / "f" / "none" / "new.png").write_bytes(picture(GREY[0]))
    assert _open(data).fingerprint() != mark


def test_copies_of_a_folder_are_known(tmp_path: Path) -> None:
    one, other = (_data(write_folder(tmp_path / name, GREY, NAMES)) for name in ("a", "b"))
    assert same_file(one, other)
    assert content_digest(one) == content_digest(other)
    assert content_digests(one) == content_digests(other) != ()
    (tmp_path / "b" / "none" / "000.png").write_bytes(picture(GREY[0][::-1].copy()))
    assert not same_file(one, other)
    assert content_digests(one) != content_digests(other)


def test_an_image_that_is_still_written_is_noticed_and_not_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", GREY, NAMES)
    refuse_open_for_writing(folder)
    with (folder / "none" / "000.png").open("ab"), pytest.raises(FileContentError, match="open for writing") as caught:
        refuse_open_for_writing(folder)
    assert "000" not in str(caught.value)
    refuse_open_for_writing(folder)
