"""The digits set, IDX files and rotation."""

from __future__ import annotations

import gzip
import os
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import rotate
from scipy.stats import kstest
from sklearn.datasets import load_digits

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.images import Turns, rotate_images
from distqexp.problem.readers.bytes import ByteSource
from distqexp.problem.schema import fit_schema, schema_from_config


def _open(data: DataConfig) -> Dataset:
    return open_dataset(data, fit_schema(data, loss="cross-entropy", classes=10))


def _idx(values: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()


def _write(folder: Path, images: bytes, labels: bytes, packed: bool = False) -> DataConfig:
    suffix = ".gz" if packed else ""
    for name, content in (("images", images), ("labels", labels)):
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if packed else content)
    return DataConfig(format="idx", path=str(folder / f"images{suffix}"), labels=str(folder / f"labels{suffix}"))


PIXELS = np.random.default_rng(0).integers(0, 256, (50, 5, 4), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 50, dtype=np.uint8)


def test_digits_are_scikit_learns() -> None:
    dataset = _open(DataConfig(format="digits"))
    slots = dataset.slot_map()
    assert slots.slots == slots.units == 1797
    records = dataset.read(slots.rows)
    pixels, labels = load_digits(return_X_y=True)
    assert records.inputs.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(records.inputs.numpy().reshape(-1, 64), (pixels / 16).astype(np.float32))
    np.testing.assert_array_equal(records.targets.numpy(), labels)
    assert records.present.all()
    assert dataset.schema == schema_from_config(DataConfig(format="digits"), loss="cross-entropy", classes=10)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_rows_in_any_order(tmp_path: Path, packed: bool) -> None:
    dataset = _open(_write(tmp_path, _idx(PIXELS), _idx(LABELS), packed))
    rows = [7, 3, 49, 4, 5, 3]
    records = dataset.read(rows)
    assert records.inputs.shape == (6, 1, 5, 4)
    np.testing.assert_array_equal(records.inputs.numpy()[:, 0], (PIXELS[rows] / 255.0).astype(np.float32))
    assert records.targets.tolist() == LABELS[rows].tolist()
    copy = pickle.loads(pickle.dumps(dataset))  # as a worker on another machine gets it
    assert torch.equal(copy.read(rows).inputs, records.inputs)


@pytest.mark.parametrize("cached", [0, 2**20])
def test_bytes_of_gzip_files_streamed_or_kept(tmp_path: Path, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqexp.problem.readers.bytes._CACHED", cached)
    monkeypatch.setattr("distqexp.problem.readers.bytes.BLOCK", 1000)
    content = np.random.default_rng(0).integers(0, 9, 70_000, dtype=np.uint8).tobytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(content[:30_000]) + gzip.compress(content[30_000:]))
    source = ByteSource(tmp_path / "a.gz")
    for first, length in ((60_000, 10_000), (0, 10), (29_990, 20), (10, 0)):
        assert source.read(first, length) == content[first : first + length]
    assert source.read(69_999, 5, short=True) == content[69_999:]
    assert b"".join(source.blocks()) == content
    assert source.holds_exactly(70_000)
    assert not source.holds_exactly(69_999)


def _cut(content: bytes) -> bytes:
    return content[:-3]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (_cut(_idx(PIXELS)), _idx(LABELS), "not as long"),
        (_idx(PIXELS) + b"x", _idx(LABELS), "not as long"),
        (_idx(LABELS), _idx(LABELS), "begins with"),
        (_idx(PIXELS), _idx(PIXELS), "begins with"),
        (b"\x00\x00\x0d\x03" + _idx(PIXELS)[4:], _idx(LABELS), "begins with"),
        (_idx(PIXELS)[:9], _idx(LABELS), "within its header"),
        (b"", _idx(LABELS), "begins with"),
        (_idx(PIXELS)[:4] + b"\xff" * 12, _idx(LABELS), "not as long"),
        (_idx(PIXELS[:, :0]), _idx(LABELS), "without pixels"),
        (_idx(PIXELS), _idx(LABELS[:-1]), "as many labels"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, images: bytes, labels: bytes, reason: str, packed: bool) -> None:
    with pytest.raises(FileContentError, match=reason) as caught:
        _open(_write(tmp_path, images, labels, packed))
    assert "\n" not in str(caught.value)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    data = _write(tmp_path, _idx(PIXELS), _idx(LABELS), packed=True)
    path = tmp_path / "images.gz"
    for kept in (1, 15, 200, path.stat().st_size - 4):
        path.write_bytes(gzip.compress(_idx(PIXELS))[:kept])
        with pytest.raises(FileContentError):
            _open(data)


def test_missing_paths_are_usage_errors(tmp_path: Path) -> None:
    data = _write(tmp_path, _idx(PIXELS), _idx(LABELS))
    (tmp_path / "labels").unlink()
    for broken in (data, DataConfig(format="idx", path=str(tmp_path)), DataConfig(format="idx")):
        with pytest.raises(UsageError, match=r"data\.(path|labels)"):
            _open(broken)


def test_tables_only_options_are_refused_for_images() -> None:
    for data in (DataConfig(format="digits", where="writer == 1"), DataConfig(format="digits", unit="writer")):
        with pytest.raises(UsageError, match=r"data\.(where|unit)"):
            _open(data).slot_map()


@pytest.mark.parametrize("packed", [False, True])
def test_images_are_filtered_by_their_label(tmp_path: Path, packed: bool) -> None:
    data = replace(_write(tmp_path, _idx(PIXELS), _idx(LABELS), packed), where="label >= 1 and label != 2")
    assert _open(data).slot_map().rows.tolist() == np.flatnonzero((LABELS >= 1) & (LABELS != 2)).tolist()
    digits = _open(DataConfig(format="digits", where="label == 3"))
    rows = digits.slot_map().rows
    assert len(rows) == 183
    assert (digits.read(rows).targets == 3).all()


def test_rotation_is_counter_clockwise_per_image_and_by_linear_interpolation() -> None:
    image = np.zeros((1, 1, 5, 5))
    image[0, 0, 2, 4] = 1.0
    assert rotate_images(image, 90.0)[0, 0, 0, 2] == pytest.approx(1.0)
    images = np.random.default_rng(2).random((3, 1, 7, 7))
    expected = np.stack([rotate(plane[0], 33.0, reshape=False, order=1) for plane in images])
    np.testing.assert_array_equal(rotate_images(images, 33.0)[:, 0], expected)


def test_a_rotated_record_has_the_same_bits_in_every_batch() -> None:
    upright = _open(DataConfig(format="digits"))
    turned = _open(DataConfig(format="digits", rotate=30.0))
    whole = turned.read(np.arange(40))
    assert torch.equal(turned.read([17]).inputs[0], whole.inputs[17])
    assert not torch.equal(upright.read([17]).inputs, turned.read([17]).inputs)
    assert float(whole.inputs.max()) <= 1.0


@pytest.fixture
def mnist() -> DataConfig:
    folder = os.environ.get("DISTQEXP_DATA")
    if not folder:
        pytest.skip("DISTQEXP_DATA is unset: no MNIST files")
    path = Path(folder) / "mnist"
    return DataConfig(
        format="idx",
        path=str(path / "train-images-idx3-ubyte.gz"),
        labels=str(path / "train-labels-idx1-ubyte.gz"),
        rows=((50_000, 55_000),),
        rotate=45.0,
    )


def test_mnist_rows_cost_memory_for_those_rows_only(mnist: DataConfig) -> None:
    dataset = _open(mnist)
    slots = dataset.slot_map()
    assert slots.slots == 5000
    tracemalloc.start()
    try:
        records = dataset.read(slots.rows[:64])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20  # 60,000 images are 47 MB as bytes and 188 MB as float32
    assert records.inputs.shape == (64, 1, 28, 28)
    assert torch.equal(dataset.read(slots.rows[60:64]).inputs, records.inputs[60:])


def test_rows_beyond_the_file_and_overlapping_ranges_are_refused() -> None:
    for rows, kind in ((((1790, 1798),), FileContentError), (((0, 10), (9, 12)), UsageError)):
        with pytest.raises(kind, match=r"data\.rows"):
            _open(DataConfig(format="digits", rows=rows))
    assert _open(DataConfig(format="digits", rows=((9, 12), (0, 2)))).slot_map().rows.tolist() == [0, 1, 9, 10, 11]
    with pytest.raises(DistqexpError, match="rows"):
        _open(DataConfig(format="digits")).read([1797])


def test_a_small_gzip_file_is_unpacked_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / "a.gz", []
    plain = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: opened.append(size) or plain(self, size))
    path.write_bytes(gzip.compress(b"0123456789"))
    assert [ByteSource(path).read(at, 3) for at in (4, 0)] == [b"456", b"012"]
    assert len(opened) == 1
    path.write_bytes(gzip.compress(b"abcdefghijk"))
    assert ByteSource(path).read(4, 3) == b"efg"
    assert len(opened) == 2


def test_turns_are_uniform_and_a_rows_own() -> None:
    """2,000 angles against the uniform law: Kolmogorov-Smirnov, false-alarm rate 1e-6 (fixed seed)."""
    turns, rows = Turns(-20.0, 70.0, 3, 1), np.arange(2000)
    angles = turns.of_rows(rows)
    assert kstest(angles, "uniform", args=(-20.0, 90.0)).pvalue > 1e-6
    assert kstest(angles, "uniform", args=(-20.0, 80.0)).pvalue < 1e-6
    np.testing.assert_array_equal(turns.of_rows(rows[::-7]), angles[::-7])
    others = (Turns(-20.0, 70.0, 4, 1), Turns(-20.0, 70.0, 3, 2))
    assert all((other.of_rows(rows) != angles).mean() > 0.99 for other in others)
    np.testing.assert_array_equal(Turns(45.0, 45.0, 0, 0).of_rows(rows), np.full(2000, 45.0))


def test_a_dataset_turns_each_image_by_its_own_angle_besides_the_configs() -> None:
    data = DataConfig(format="digits", rotate=10.0)
    schema, turns, rows = (
        fit_schema(DataConfig(format="digits"), loss="cross-entropy", classes=10),
        Turns(0, 90, 5, 2),
        [7, 3, 900],
    )
    found = open_dataset(data, schema, turns).read(rows).inputs.numpy()
    plain = open_dataset(DataConfig(format="digits"), schema).read(rows).inputs.numpy()
    angles = turns.of_rows(np.array(rows))
    for image, turned, angle in zip(plain, found, angles, strict=True):
        np.testing.assert_allclose(turned[0], rotate(image[0], 10 + angle, reshape=False, order=1), atol=1e-6)


def test_only_images_turn(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n1,0\n2,1\n")
    data = DataConfig(format="csv", path=str(tmp_path / "t.csv"), columns=ColumnsConfig(features=("a",), target="y"))
    with pytest.raises(UsageError, match=r"precision.rotate: found with format csv; expected images"):
        open_dataset(data, fit_schema(data, loss="binary-cross-entropy"), Turns(0, 90, 0, 0))
