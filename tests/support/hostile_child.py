"""A process with limits that meets mutated files, many in a row. Run as a script: FOLDER KIND SEED FIRST LAST.

The same code as in a run: ``reader.serve`` for the files between stages, the readers for files of records. One line a file; a
parent that sees this process die knows from the last line which file it was and who was at work.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.random import Generator

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import DistqexpError, FileContentError
from distqexp.storage.confined.child import serve, set_limits
from distqexp.storage.content import Request
from distqexp.storage.label import LABEL_BYTES, check_label, make_label

STAGES = ("plan", "sketch", "quadratic", "release")
RECORDS = ("csv", "csv.gz", "parquet", "idx", "idx.gz", "h5", "npy")
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"nan",
    b"inf",
    b"-inf",
    b"1e400",
    b"1e38",
    b"1e-45",
    b"-0",
    b'"',
    b",",
    b"\n",
    b"\0",
    b"\xff",
    b"1_000",
    b"\r",
)


def mutated(content: bytes, random: Generator) -> bytes:
    """One to three changes."""
    for _ in range(int(random.integers(1, 4))):
        content = MUTATIONS[int(random.integers(len(MUTATIONS)))](content, random)
    return content


def _place(content: bytes, random: Generator, width: int = 1) -> int:
    return int(random.integers(0, max(len(content) - width, 0) + 1))


def _flip(content: bytes, random: Generator) -> bytes:
    found = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        if found:
            found[int(random.integers(len(found)))] ^= int(random.integers(1, 256))
    return bytes(found)


def _cut(content: bytes, random: Generator) -> bytes:
    return content[: _place(content, random)]


def _insert(content: bytes, random: Generator) -> bytes:
    at = _place(content, random)
    return content[:at] + random.bytes(int(random.integers(1, 64))) + content[at:]


def _repeat(content: bytes, random: Generator) -> bytes:
    at, length = _place(content, random), int(random.integers(1, 256))
    return content[:at] + content[at : at + length] + content[at:]


def _zero(content: bytes, random: Generator) -> bytes:
    at, length = _place(content, random), int(random.integers(1, 64))
    return content[:at] + bytes(len(content[at : at + length])) + content[at + length :]


def _swap(content: bytes, random: Generator) -> bytes:
    words = len(content) // 8
    if words < 2:
        return content
    found = bytearray(content)
    one, two = (8 * int(word) for word in random.choice(words, 2, replace=False))
    found[one : one + 8], found[two : two + 8] = content[two : two + 8], content[one : one + 8]
    return bytes(found)


def _huge(content: bytes, random: Generator) -> bytes:
    width = (4, 8)[int(random.integers(2))]
    at = _place(content, random, width) // width * width
    order = ("little", "big")[int(random.integers(2))]
    number = HUGE[int(random.integers(len(HUGE)))] % 2 ** (8 * width)
    return content[:at] + number.to_bytes(width, order) + content[at + width :]  # type: ignore[arg-type]


def _word(content: bytes, random: Generator) -> bytes:
    at, word = _place(content, random), WORDS[int(random.integers(len(WORDS)))]
    return content[:at] + word + content[at + int(random.integers(0, 6)) :]


MUTATIONS: tuple[Callable[[bytes, Generator], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _insert,
    _repeat,
    _zero,
    _swap,
    _huge,
    _word,
)


def labelled(content: bytes) -> bytes:
    """The content with a label that fits it, as a forger would have it."""
    body = content[LABEL_BYTES:]
    return make_label(len(body), hashlib.sha256(body).hexdigest()) + body


def mutant(original: bytes, kind: str, seed: int, index: int) -> bytes:
    """File ``index``: of the files between stages, nine in ten get a fitting label, or the HDF5 library would see none;
    of the packed ones, half are damaged before they are packed."""
    random = np.random.default_rng([seed, index])
    if kind.endswith(".gz") and random.random() < 0.5:
        return gzip.compress(mutated(gzip.decompress(original), random), 1)
    if kind not in STAGES or random.random() < 0.1:
        return mutated(original, random)
    return labelled(original[:LABEL_BYTES] + mutated(original[LABEL_BYTES:], random))


def answer_of(path: Path, kind: str, plan_id: str) -> bytes:
    """What the reading process answers; FileContentError when it refuses."""
    with path.open("rb") as file:
        request = Request(str(path), check_label(path, file), kind, plan_id)
        file.seek(0)
        answer = io.BytesIO()
        serve("content", request, file, answer)
    content = answer.getvalue()
    start = content.rindex(b'{"')
    if b'{"refused"' in content[start:]:
        raise FileContentError(json.loads(content[start:])["refused"])
    return content


def source(kind: str, path: Path) -> DataConfig:
    """How the original of a kind of record file is read."""
    if kind in ("idx", "idx.gz"):
        return DataConfig(format="idx", path=str(path), labels=str(path.with_name("labels." + kind)))
    columns = ColumnsConfig(target="died", exclude=("ward",), standardise=False)
    plain = kind.removesuffix(".gz")
    if kind == "npy":
        labels = str(path.with_name("labels.idx"))
        return DataConfig(format="idx", path=str(path.with_name("original.idx")), labels=labels, blank=str(path))
    if kind == "h5":
        columns = ColumnsConfig(target="died", features=("x",), standardise=False)
        return DataConfig(format="hdf5", path=str(path), columns=columns, unit="patient", where="ward == 'north'")
    return DataConfig(format=plain, path=str(path), columns=columns, unit="patient", where="ward == 'north'")


def parse_records(data: DataConfig) -> str:
    """Everything that a run does with a file of records."""
    from distqexp.problem.dataset import open_dataset
    from distqexp.problem.schema import fit_schema, schema_from_config

    loss = "cross-entropy" if data.format == "idx" else "binary-cross-entropy"
    if data.format == "idx":
        schema = schema_from_config(data, loss=loss, classes=10, record_shape=None)
    else:
        schema = fit_schema(replace(data, rows=None), loss=loss)
    dataset = open_dataset(data, schema)
    rows = dataset.slot_map().rows
    return f"parsed {len(dataset.read(rows))}"


def private_texts(original: bytes, kind: str) -> list[str]:
    """What no message may hold: the entries of the original table."""
    if kind != "csv":
        return []
    fields = [field for line in original.decode().splitlines()[1:] for field in line.split(",")]
    return sorted({field for field in fields if len(field) >= 5 and field != "north" and field != "south"})


def outcome_of(folder: Path, kind: str, original: bytes, content: bytes, expected: bytes) -> str:
    """ "same", "parsed", "refused", or what went wrong."""
    path = folder / f"mutant.{kind}"
    path.write_bytes(content)
    try:
        if kind in STAGES:
            plan_id = (folder / "plan_id").read_text()
            return "same" if answer_of(path, kind, plan_id) == expected else "wrong: accepted and changed"
        return parse_records(source(kind, path))
    except DistqexpError as error:
        text = str(error)
        leaked = [value for value in private_texts(original, kind) if value in text.replace(str(folder), "")]
        if "\n" in text or leaked:
            return f"wrong: {text!r}"
        return "refused" if error.exit_code in (2, 3) else f"wrong: exit code {error.exit_code}"
    except Exception as error:  # noqa: BLE001 - what else comes is what the test is after
        places = error.__traceback__
        while places is not None and places.tb_next is not None:
            places = places.tb_next
        line = f"{places.tb_frame.f_code.co_filename}:{places.tb_lineno}" if places else ""
        return f"wrong: {type(error).__name__} {str(error)[:200]!r} at {line}"


def watch_structure_checks() -> None:
    """Files of records: the child's check in this process, which has its limits; the parent is told who is at work."""
    from distqexp.problem.readers import base
    from distqexp.storage.confined.hdf5 import check_structure
    from distqexp.storage.confined.parquet import check_texts

    def check(file: BinaryIO, request: Request, task: str) -> None:
        print("structure", flush=True)
        {"structure": check_structure, "texts": check_texts}[task](file, request)
        print("reader", flush=True)

    base.check_confined = check


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    seed, first, last = map(int, sys.argv[3:])
    original_path = folder / f"original.{kind}"
    original = original_path.read_bytes()
    if kind in RECORDS:
        import pyarrow.parquet  # noqa: F401 - what takes seconds to load is not counted to the first file
        import torch  # noqa: F401

        parse_records(source(kind, original_path))
    set_limits(len(original))
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # it is for one file
    watch_structure_checks()
    expected = answer_of(original_path, kind, (folder / "plan_id").read_text()) if kind in STAGES else b""
    longest = 0.0
    for index in range(first, last):
        content = mutant(original, kind, seed, index)
        print(f"file {index}", flush=True)
        began = time.monotonic()
        outcome = outcome_of(folder, kind, original, content, expected)
        longest = max(longest, time.monotonic() - began)
        print(f"outcome {outcome}", flush=True)
    print(f"end {longest} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}", flush=True)


if __name__ == "__main__":
    main()
