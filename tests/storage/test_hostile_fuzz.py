"""Mutated files of every kind: taken as what they were, or refused in one line. Seeded: the same mutants every time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest.mock import patch

import pytest
from hostile_child import RECORDS, STAGES, labelled, parse_records, source
from hostile_files import BYTES, SECONDS, assert_refused_for_real, fuzz, tell, write_originals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_harness import Commands

from distqexp.errors import DistqexpError, FileContentError, UsageError
from distqexp.problem.readers.bytes import ByteSource
from distqexp.problem.readers.lines import index_lines

pytestmark = pytest.mark.process

MANY = {"csv": 5_000, "csv.gz": 500, "parquet": 1_000, "idx": 500, "idx.gz": 500, "npy": 250, "h5": 250}


QUICK = ("csv", "parquet", "idx.gz", "h5")
FEW = 100
"""So many mutants are met by the quick tests; the slow ones go on from there."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


def check_stages(folder: Path, kind: str, indices: range) -> None:
    found, count = fuzz(folder, kind, indices), len(indices)
    assert not found.wrong, tell(found)
    assert found.outcomes["same"] + found.outcomes["refused"] + len(found.deaths) == count
    assert found.outcomes["refused"] > count / 2
    assert found.slowest < SECONDS
    assert 0 < found.largest < BYTES
    for index, _ in found.deaths[:20]:
        assert_refused_for_real(folder, kind, index)


def check_records(folder: Path, kind: str, indices: range) -> None:
    found, count = fuzz(folder, kind, indices), len(indices)
    assert not found.wrong, tell(found)
    # Of HDF5 the process with limits may die in its look at the structure; no reader may.
    assert all(kind == "h5" and place.startswith("structure") for _, place in found.deaths), tell(found)
    assert found.outcomes["parsed"] + found.outcomes["refused"] + len(found.deaths) == count
    assert found.outcomes["refused"] > 0
    assert found.slowest < SECONDS
    assert 0 < found.largest < BYTES


@pytest.mark.parametrize("kind", STAGES)
def test_some_mutated_files_between_stages(originals: Path, kind: str) -> None:
    check_stages(originals, kind, range(FEW))


@pytest.mark.parametrize("kind", QUICK)
def test_some_mutated_files_of_records(originals: Path, kind: str) -> None:
    check_records(originals, kind, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_thousands_of_mutated_files_between_stages(originals: Path, kind: str) -> None:
    check_stages(originals, kind, range(FEW, 1_000))


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECORDS)
def test_thousands_of_mutated_files_of_records(originals: Path, kind: str) -> None:
    check_records(originals, kind, range(FEW if kind in QUICK else 0, MANY[kind]))


CELLS = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.text(max_size=8),
    st.sampled_from(["", "NA", "1_0", '"', '""', "\r"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(*[CELLS] * 4), max_size=6), head=st.sampled_from(["a,patient,ward,died", ""]))
def test_any_table_is_parsed_or_refused(tmp_path: Path, rows: list[tuple[str, ...]], head: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join([head, *map(",".join, rows)]).encode("utf-8", "replace"))
    outcome, code = "", 3
    try:
        outcome = parse_records(source("csv", path))
    except DistqexpError as error:
        outcome, code = str(error), error.exit_code
    assert outcome
    assert "\n" not in outcome
    assert code in (2, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200),
    start=st.sampled_from(
        [b"", b"\x1f\x8b\x08\0", b"\0\0\x08\x03", b"\x93NUMPY\x01\0", b"PAR1", b"a,patient,ward,died\n"]
    ),
)
def test_any_bytes_are_parsed_or_refused(originals: Path, tmp_path: Path, content: bytes, start: bytes) -> None:
    refusals: list[str] = []
    for kind in ("csv", "parquet", "idx", "npy"):
        folder = originals if kind == "npy" else tmp_path
        (tmp_path / "labels.idx").write_bytes(start + content)
        path = folder / f"any.{kind}"
        path.write_bytes(start + content)
        try:
            parse_records(source(kind, path))
        except (FileContentError, UsageError) as error:
            refusals.append(str(error))
    assert len(refusals) >= 3, "they can be one kind of file at most"
    assert not any("\n" in text for text in refusals)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(alphabet='ab,"\n\r', max_size=60), size=st.integers(1, 9))
def test_lines_are_those_of_a_slow_walk(tmp_path: Path, content: str, size: int) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode())

    found: list[bytes] | None = None
    with contextlib.suppress(FileContentError), patch("distqexp.problem.readers.bytes.BLOCK", size):
        index = index_lines(ByteSource(tmp_path / "t.csv"))
        pairs = [index.header, *zip(index.starts.tolist(), index.ends.tolist(), strict=True)]
        found = [content.encode()[first:last] for first, last in pairs]
    assert found == slow_lines(content.encode())


def slow_lines(content: bytes) -> list[bytes] | None:
    """Byte by byte; None where the table is refused."""
    records, start, inside = [], 0, False
    for at, byte in enumerate(content + b"\n"):
        if byte == ord('"') and at < len(content):
            inside = not inside
        if at == len(content) and inside:
            return None
        if byte == ord("\n") and not inside:
            records.append(content[start:at])
            start = at + 1
    if any(joined_by_a_lone_mark(record) for record in records):
        return None
    kept = [record for record in records if record not in (b"", b"\r")]
    widths = {sum(part.count(b",") for part in record.split(b'"')[::2]) for record in kept}
    return kept if len(widths) == 1 else None


def joined_by_a_lone_mark(record: bytes) -> bool:
    """Whether a pair of marks around a line end isn't around a whole field."""
    parts = record.split(b'"')  # those with odd numbers are inside marks
    for number in range(1, len(parts), 2):
        before, after = parts[number - 1], parts[number + 1]
        opens = before.endswith(b",") or before == b""
        closes = after.startswith((b",", b"\r")) or after == b""
        if b"\n" in parts[number] and not (opens and closes):
            return True
    return False


def test_a_command_on_a_file_that_the_library_loops_on_exits_3(
    originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "looping.h5", Commands(capsys)
    content = (originals / "original.quadratic").read_bytes()
    at = content.index(b"GCOL") + 16  # of the heap that holds kind and plan_id: its first entry, free space of no size
    path.write_bytes(labelled(content[:at] + bytes(16) + content[at + 16 :]))
    for words in (("inspect", path), ("verify", path, "--debug")):
        outcome = run.distqexp(*words)
        assert outcome.code == 3
        assert "more time" in outcome.err
        assert "Traceback" not in outcome.err
        assert len([line for line in outcome.err.splitlines() if line.startswith("distqexp: ")]) == 1
