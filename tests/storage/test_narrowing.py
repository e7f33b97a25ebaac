"""Numbers that fit a narrower type weigh less in public files, and come back to the last bit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from distqexp.errors import FileContentError
from distqexp.storage.hdf5 import read_file, write_file
from distqexp.storage.narrowing import LEAST, WIDE, narrowed, widened

NUMBERS = np.random.default_rng(0).normal(size=(2, LEAST))
SINGLE = NUMBERS.astype(np.float32).astype(np.float64)
HALF = NUMBERS.astype(np.float16).astype(np.float64)
SPECIAL = HALF.copy()
SPECIAL[0, :4] = [0.0, -0.0, np.inf, -np.inf]


FORMS = [
    (NUMBERS, "<f8"), (SINGLE, "<f4"), (HALF, "<f2"), (SPECIAL, "<f2"), (HALF.astype(np.float32), "<f2"), (SINGLE * 1e30, "<f8"),
    (SINGLE * 2.0**90, "<f4"), (HALF[:, :10], "<f8"), (np.where(HALF > 3, np.nan, HALF), "<f8"), (HALF.astype(np.int64), "<i4"),
    (np.full(LEAST, -(2**31)), "<i4"), (np.full(LEAST, 2**31), "<i8"), (np.arange(LEAST - 1), "<i8"), (HALF > 0, "|b1"),
]  # fmt: skip


@pytest.mark.parametrize(("array", "stored"), FORMS)
def test_numbers_come_back_to_the_last_bit(array: np.ndarray, stored: str, tmp_path: Path) -> None:
    assert narrowed(array).dtype.str == stored
    for private in (False, True):
        path = tmp_path / f"{private}.h5"
        write_file(path, kind="plan", plan_id="p", header={}, arrays={"a": array}, private=private)
        back = read_file(path).arrays["a"]
        assert (back.dtype, back.tobytes()) == (array.dtype, array.tobytes())
        with h5py.File(path) as h5:
            assert h5["a"].dtype.str == (array.dtype.str if private else stored)
            assert (WIDE in h5["a"].attrs) == (not private and stored != array.dtype.str)


def test_lower_triangles_are_narrowed_too(tmp_path: Path) -> None:
    array = np.tril(np.random.default_rng(1).normal(size=(120, 120)).astype(np.float32)).astype(np.float64)
    write_file(tmp_path / "a.h5", kind="plan", plan_id="p", header={}, arrays={"a": array}, private=False)
    assert np.array_equal(read_file(tmp_path / "a.h5").arrays["a"], array)
    with h5py.File(tmp_path / "a.h5") as h5:
        assert (h5["a"].shape, h5["a"].dtype.str) == ((120 * 121 // 2,), "<f4")


@pytest.mark.parametrize("wide", ["<i8", "", 3, "<f2", "<c16"])
def test_another_type_is_refused(wide: object) -> None:
    with pytest.raises(FileContentError, match="damaged"):
        widened(HALF.astype(np.float16), wide)
