"""Lower triangles weigh half in public files, and come back to the last bit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from distqexp.errors import FileContentError
from distqexp.storage.hdf5 import read_file, write_file
from distqexp.storage.triangles import is_lower_triangular, packed, unpacked
from tests.storage.test_hdf5 import relabel

RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("shape", [(2, 2), (5, 5), (3, 4, 4), (2, 1, 7, 7)])
def test_triangles_come_back_to_the_last_bit(shape: tuple[int, ...]) -> None:
    array = np.tril(RANDOM.normal(size=shape))
    array[..., 1, 0] = -0.0
    assert is_lower_triangular(array)
    n = shape[-1]
    rows, columns = np.tril_indices(n)
    np.testing.assert_array_equal(packed(array), array[..., rows, columns])
    assert unpacked(packed(array), n).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "array",
    [np.ones((3, 3)), np.tril(np.ones((3, 4))), np.ones(4), np.ones((1, 1)), np.tril(np.ones((3, 3), dtype=np.int64)),
     np.array([[1.0, -0.0], [1.0, 1.0]]), np.array([[1.0, np.nan], [1.0, 1.0]])],
)  # fmt: skip
def test_what_is_no_triangle_is_stored_whole(array: np.ndarray, tmp_path: Path) -> None:
    assert not is_lower_triangular(array)
    write_file(tmp_path / "p.h5", kind="plan", plan_id="ab" * 32, header={}, arrays={"a": array}, private=False)
    assert read_file(tmp_path / "p.h5").arrays["a"].tobytes() == array.tobytes()


def test_a_public_file_has_half_of_a_triangle_and_a_private_one_all_of_it(tmp_path: Path) -> None:
    array, sizes = np.tril(RANDOM.normal(size=(200, 200))), {}
    for kind, private in (("release", False), ("sketch", True)):
        path = tmp_path / f"{kind}.h5"
        write_file(path, kind=kind, plan_id="ab" * 32, header={}, arrays={"a": array}, private=private)
        assert read_file(path).arrays["a"].tobytes() == array.tobytes()
        sizes[kind] = path.stat().st_size
    assert sizes["release"] < 0.55 * array.nbytes < array.nbytes < sizes["sketch"]


@pytest.mark.parametrize("side", [1, 199, 201, 1 << 40, -200, "200", 200.0])
def test_a_forged_side_is_refused(tmp_path: Path, side: object) -> None:
    path = tmp_path / "r.h5"
    arrays = {"a": np.tril(RANDOM.normal(size=(200, 200)))}
    write_file(path, kind="release", plan_id="ab" * 32, header={}, arrays=arrays, private=False)
    with h5py.File(path, "r+", locking=False) as h5:
        h5["a"].attrs["lower"] = side
    relabel(path)
    with pytest.raises(FileContentError, match=r"triangle of side|not readable|checksum"):
        read_file(path)
