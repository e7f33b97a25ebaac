"""The files between stages: one content, one sequence of bytes; every damaged or foreign file is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distqexp.errors import DistqexpError, FileContentError, StorageError, UsageError
from distqexp.storage import atomic
from distqexp.storage.canonical import canonical_json, plan_identity
from distqexp.storage.hdf5 import read_file, read_header, write_file
from distqexp.storage.inspect import describe
from distqexp.storage.label import LABEL_BYTES, make_label

HEADER: dict[str, Any] = {"round": 2, "shard": "cohort-é", "clip": 0.1, "nested": {"a": [1, None, True]}}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "sums": np.arange(-50, 50, dtype=np.int64),
        "weights/conv.0/bias": np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1),
        "weights/count": np.array(3, dtype=np.int64),
        "done": np.array([True, False]),
        "empty": np.zeros((0, 3)),
    }


def write(path: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "kind": "sketch",
        "plan_id": "ab" * 32,
        "header": HEADER,
        "arrays": arrays(),
        "private": True,
    }
    write_file(path, **(fields | changes))
    return path


def relabel(path: Path) -> None:
    """Give a file edited by hand a label that fits, as a forger would."""
    body = path.read_bytes()[LABEL_BYTES:]
    path.write_bytes(make_label(len(body), hashlib.sha256(body).hexdigest()) + body)


def test_round_trip(tmp_path: Path) -> None:
    stored = read_file(write(tmp_path / "s.h5"), kind="sketch", plan_id="ab" * 32)
    assert (stored.kind, stored.plan_id, stored.schema_version, stored.header) == ("sketch", "ab" * 32, 5, HEADER)
    assert stored.arrays.keys() == arrays().keys()
    for name, array in arrays().items():
        assert stored.arrays[name].dtype == array.dtype
        assert stored.arrays[name].shape == array.shape
        assert stored.arrays[name].tobytes() == array.tobytes()
    assert read_header(tmp_path / "s.h5").header == HEADER


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(
        dtype=st.sampled_from(
            [np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64, ">f8", ">i4"]
        ),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    ),
    number=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(max_size=30),
)
def test_any_array_and_any_number_come_back_bit_for_bit(tmp_path: Path, array: Any, number: float, text: str) -> None:
    path = write(tmp_path / "f.h5", arrays={"a/b": array}, header={"number": number, "text": text})
    stored = read_file(path)
    assert stored.arrays["a/b"].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert stored.arrays["a/b"].shape == array.shape
    assert stored.header == {"number": number, "text": text}


@pytest.mark.process
def test_the_bytes_are_the_same_in_another_process_and_order(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    backwards = dict(reversed(list(arrays().items())))
    write(tmp_path / "b.h5", arrays=backwards, header=dict(reversed(list(HEADER.items()))))
    code = (
        "import runpy; from pathlib import Path\n"
        f"runpy.run_path({__file__!r})['write'](Path({str(tmp_path / 'c.h5')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    first = (tmp_path / "a.h5").read_bytes()
    assert first == (tmp_path / "b.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()


def test_modes(tmp_path: Path) -> None:
    assert stat.S_IMODE(write(tmp_path / "s.h5").stat().st_mode) == 0o600
    assert stat.S_IMODE(write(tmp_path / "p.h5", kind="plan", private=False).stat().st_mode) & 0o400


def test_other_readers_see_ordinary_hdf5(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "s.h5"), "r", locking=False) as h5:
        assert h5.userblock_size == LABEL_BYTES
        assert json.loads(h5["header"][()]) == HEADER
        assert np.array_equal(h5["sums"][()], arrays()["sums"])


def test_a_long_header_fits(tmp_path: Path) -> None:
    header = {f"column {i}": float(i) for i in range(20_000)}
    assert read_header(write(tmp_path / "s.h5", header=header)).header == header


def test_a_flipped_bit_in_any_byte_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", arrays={"sums": np.arange(5)}, header={"round": 1})
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(FileContentError) as caught:
            read_file(path)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)
    path.write_bytes(good)
    assert read_file(path).header == {"round": 1}


@pytest.mark.parametrize("kept", [0, 1, 100, 511, 512, 513, 2000, -1])
def test_truncated_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "s.h5")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileContentError, match="cut short"):
        read_file(path)


def test_padded_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileContentError, match="the label says"):
        read_file(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))
    with pytest.raises(FileContentError, match="no distqexp file"):
        read_file(path)


def test_a_forged_entry_under_a_fitting_label_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5")
    with h5py.File(path, "r+", locking=False) as h5:
        h5["sums"][3] = 777
    relabel(path)
    with pytest.raises(FileContentError, match="checksum of sums") as caught:
        read_file(path)
    assert "777" not in str(caught.value)


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (
            lambda h5: h5.attrs.__setitem__("schema_version", 1),
            "schema_version 1, this distqexp reads 5; made by an older distqexp: plan again",
        ),
        (
            lambda h5: h5.attrs.__setitem__("schema_version", 6),
            "schema_version 6, this distqexp reads 5; use the version that wrote it",
        ),
        (lambda h5: h5.attrs.__setitem__("schema_version", "1"), "schema_version is str"),
        (lambda h5: h5.attrs.__delitem__("kind"), "kind is NoneType"),
        (lambda h5: h5.attrs.__setitem__("kind", "diary"), "kind 'diary', expected"),
        (lambda h5: h5.__delitem__("header"), "no readable header"),
        (lambda h5: (h5.__delitem__("header"), h5.__setitem__("header", np.bytes_(b'{"a": 1}'))), "canonical"),
        (lambda h5: (h5.__delitem__("header"), h5.__setitem__("header", np.bytes_(b'{"a":NaN}'))), "canonical"),
        (lambda h5: (h5.__delitem__("header"), h5.__setitem__("header", np.bytes_(b"[" * 100_000))), "canonical"),
        (lambda h5: h5.create_dataset("bomb", shape=(1 << 40,), dtype="f8"), "bomb is not a plain array"),
        (lambda h5: h5.create_dataset("packed", data=np.zeros(99), compression="gzip"), "packed is not a plain array"),
        (lambda h5: h5.create_dataset("outside", (4,), "u1", external="/etc/hostname"), "outside is not a plain array"),
        (lambda h5: h5.create_dataset("texts", data=["a", "b"]), "texts is not a plain array"),
        (lambda h5: h5.create_dataset("nothing", data=h5py.Empty("f8")), "nothing is not a plain array"),
        (lambda h5: h5.create_dataset("unsigned", data=np.zeros(3)), "checksum of unsigned"),
    ],
)  # fmt: skip
def test_forged_structures_under_a_fitting_label_are_refused(tmp_path: Path, forge: Any, reason: str) -> None:
    path = write(tmp_path / "s.h5")
    with h5py.File(path, "r+", locking=False) as h5:
        forge(h5)
    relabel(path)
    with pytest.raises(FileContentError, match=reason):
        read_file(path)


def test_random_damage_under_a_fitting_label_is_an_error_for_people(tmp_path: Path) -> None:
    """Bytes that a label vouches for reach the HDF5 library: what it can't parse is still one line and exit 3."""
    path = write(tmp_path / "s.h5", arrays={"sums": np.arange(5)})
    good = path.read_bytes()
    random = np.random.default_rng(2)
    errors: list[DistqexpError] = []
    for _ in range(200):
        bad = bytearray(good)
        bad[int(random.integers(LABEL_BYTES, min(len(good), LABEL_BYTES + 1500)))] ^= int(random.integers(1, 256))
        path.write_bytes(bad)
        relabel(path)
        try:
            read_file(path, own=True)  # the same code as the reading process, see test_hostile_files
        except DistqexpError as error:
            errors.append(error)
    assert {error.exit_code for error in errors} == {3}
    assert not any("\n" in str(error) for error in errors)
    assert len(errors) > 50


def test_soft_and_external_links_are_not_followed(tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5")
    path = write(tmp_path / "s.h5")
    with h5py.File(path, "r+", locking=False) as h5:
        h5["link"] = h5py.ExternalLink(str(other), "sums")
        h5["soft"] = h5py.SoftLink("/sums")
    relabel(path)
    assert read_file(path).arrays.keys() == arrays().keys()


def test_wrong_kind_and_plan_show_both_values(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5")
    for read in (read_file, read_header):
        with pytest.raises(FileContentError, match="kind 'sketch', expected 'quadratic'"):
            read(path, kind="quadratic")
        with pytest.raises(FileContentError, match=f"plan_id {'ab' * 32}, expected {'cd' * 32}"):
            read(path, plan_id="cd" * 32)


def test_missing_paths_and_folders_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_file(tmp_path / "none.h5")
    with pytest.raises(UsageError, match="a folder"):
        read_file(tmp_path)


def test_misuse_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with pytest.raises(ValueError, match="kind 'diary'"):
        write(path, kind="diary")
    with pytest.raises(ValueError, match="header"):
        write(path, arrays={"header/x": np.zeros(1)})
    with pytest.raises(ValueError, match="JSON"):
        write(path, header={"x": float("nan")})
    with pytest.raises(TypeError, match="not stored"):
        write(path, arrays={"x": np.array(["text"])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 512, 3_000, 50_000])
def test_a_disk_that_fills_up_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = write(tmp_path / "s.h5")
    before = path.read_bytes()

    class Full:
        def __init__(self, file: Any) -> None:
            self._file, self._room = file, room

        def write(self, data: Any) -> int:
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    original = atomic._fill
    monkeypatch.setattr(
        atomic,
        "_fill",
        lambda temporary, content, private: original(temporary, lambda file: content(Full(file)), private),
    )
    with pytest.raises(StorageError, match="No space left") as caught:
        write(path, arrays={"sums": np.zeros(10_000)})
    assert caught.value.exit_code == 6
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.process
def test_a_real_full_file_system(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs of 64 KiB needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"can't mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        path = write(tmp_path / "s.h5")
        before = path.read_bytes()
        with pytest.raises(StorageError, match="No space left"):
            write(path, arrays={"sums": np.zeros(100_000)})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": 1, "a": [0.1, "é", None]}) == b'{"a":[0.1,"\\u00e9",null],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("inf")})
    with pytest.raises(TypeError, match="not a text"):
        canonical_json([{1: 2}])
    with pytest.raises(TypeError):
        canonical_json({"a": np.float64(1) * np.ones(1)})


def test_plan_identity_sees_every_part() -> None:
    base = plan_identity({"a": 1}, {"x": np.zeros(4)})
    assert len(base) == 64
    assert base == plan_identity({"a": 1}, {"x": np.zeros(4, dtype=">f8")})
    others = [
        plan_identity({"a": 1.0}, {"x": np.zeros(4)}),
        plan_identity({"a": 1}, {"y": np.zeros(4)}),
        plan_identity({"a": 1}, {"x": np.zeros((2, 2))}),
        plan_identity({"a": 1}, {"x": np.zeros(4, dtype=np.int64)}),
        plan_identity({"a": 1}, {"x": np.array([0.0, 0.0, 0.0, -0.0])}),
        plan_identity({"a": 1}, {}),
    ]
    assert len({base, *others}) == 7


def test_describe_shows_headers_and_never_private_arrays(tmp_path: Path) -> None:
    sums = np.array([987654321, 5], dtype=np.int64)
    for kind in ("sketch", "quadratic"):
        text = describe(write(tmp_path / "s.h5", kind=kind, arrays={"sums": sums}))
        assert "PRIVATE" in text
        assert "round = 2" in text
        assert "plan_id" in text
        assert "987654321" not in text
        assert "arrays" not in text
        assert "sums" not in text
        label = (tmp_path / "s.h5").read_bytes()[:LABEL_BYTES]
        digest = label.split(b"sha256 ")[1][:64].decode()
        assert digest not in text
    text = describe(write(tmp_path / "p.h5", kind="plan", arrays={"theta": np.zeros(12)}, private=False))
    assert "theta: float64 (12,)" in text
    assert "public" in text
