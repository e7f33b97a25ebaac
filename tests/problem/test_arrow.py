"""Saved datasets: tables and tokens in Arrow files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from saved_datasets import save_dataset

from distqexp.config import ColumnsConfig, DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.contents import content_digests
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.faults import Fault
from distqexp.problem.identity import file_facts
from distqexp.problem.schema import fit_schema, schema_from_config

RANDOM = np.random.default_rng(0)
AGE, DOSE, LABELS = RANDOM.normal(size=30), RANDOM.integers(0, 9, 30), RANDOM.integers(0, 3, 30)
PATIENTS = [f"p{row // 3}" for row in range(30)]
TABLE = {"age": AGE, "dose": DOSE, "label": LABELS, "patient": PATIENTS}
ROLES = ColumnsConfig(target="label", standardise=False)
LISTS = [RANDOM.integers(1, 20, RANDOM.integers(1, 6)).tolist() for _ in range(30)]
MASKS = [[1] * len(row) for row in LISTS]
TOKENS = ColumnsConfig(target="label", features=("input_ids",), tokens=True, mask="attention_mask")


def _data(folder: Path, columns: ColumnsConfig = ROLES, **more: Any) -> DataConfig:
    return DataConfig(format="arrow", path=str(folder), columns=columns, **more)


def _open(data: DataConfig) -> Dataset:
    return open_dataset(data, dataclasses.replace(fit_schema(data, loss="cross-entropy"), classes=3))


def _padded(lists: list[list[int]], length: int) -> np.ndarray:
    result = np.zeros((len(lists), 2, length), dtype=np.int64)
    for place, row in enumerate(lists):
        count = min(len(row), length)
        result[place, 0, :count], result[place, 1, :count] = row[:count], 1
    return result


@pytest.mark.parametrize(("files", "batch", "options"), [(1, 7, {}), (3, 4, {}), (2, 100, {"compression": "lz4"})])
def test_tables_by_row(tmp_path: Path, files: int, batch: int, options: dict[str, Any]) -> None:
    folder = save_dataset(tmp_path / "d", TABLE, files, batch, **options)
    data = _data(folder, unit="patient", where="dose >= 2 and patient != 'p1'")
    dataset, rows = _open(data), [5, 4, 29, 0, 5]
    records = dataset.read(rows)
    np.testing.assert_array_equal(records.inputs.numpy(), np.stack([AGE, DOSE], axis=1)[rows].astype(np.float32))
    assert records.targets.tolist() == LABELS[rows].tolist()
    assert pickle.loads(pickle.dumps(dataset)).read(rows).inputs.equal(records.inputs)
    chosen = [row for row in range(30) if DOSE[row] >= 2 and PATIENTS[row] != "p1"]
    assert dataset.slot_map().rows.tolist() == chosen
    assert dataset.slot_map().units == len({PATIENTS[row] for row in chosen})
    assert dataset.opened_files() == file_facts(data).files
    assert content_digests(data) != ()
    dataset.check_whole()


@pytest.mark.parametrize("kind", [pyarrow.int8(), pyarrow.int64(), pyarrow.uint64()])
def test_lists_of_tokens_are_padded_to_the_longest_public_one(tmp_path: Path, kind: Any) -> None:
    lists = pyarrow.array(LISTS, pyarrow.list_(kind))
    public = save_dataset(tmp_path / "public", {"input_ids": lists, "attention_mask": MASKS, "label": LABELS})
    dataset = _open(_data(public, TOKENS))
    longest = max(map(len, LISTS))
    assert (dataset.schema.shape, dataset.schema.tokens) == ((2, longest), True)
    rows = [9, 0, 29, 9]
    np.testing.assert_array_equal(dataset.read(rows).inputs.numpy(), _padded([LISTS[row] for row in rows], longest))
    longer = [[*row, *range(1, 9)] for row in LISTS]
    ones = [[1] * len(row) for row in longer]
    private = save_dataset(tmp_path / "private", {"input_ids": longer, "attention_mask": ones, "label": LABELS})
    found = open_dataset(_data(private, TOKENS), dataset.schema, private=True).read(range(30))
    np.testing.assert_array_equal(found.inputs.numpy(), _padded(longer, longest))
    assert found.present.all()


def test_a_declared_length_goes_first(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "d", {"input_ids": LISTS, "label": LABELS})
    roles = dataclasses.replace(TOKENS, mask=None, length=3)
    dataset = _open(_data(folder, roles))
    np.testing.assert_array_equal(dataset.read(range(30)).inputs.numpy(), _padded(LISTS, 3))
    without = schema_from_config(_data(folder, roles), loss="cross-entropy")
    assert dataclasses.replace(without, classes=3) == dataset.schema
    with pytest.raises(UsageError, match=r"expected \[length\]"):
        schema_from_config(_data(folder, TOKENS), loss="cross-entropy")


def test_private_records_with_unfit_lists_are_left_out(tmp_path: Path) -> None:
    public = save_dataset(tmp_path / "public", {"input_ids": LISTS, "attention_mask": MASKS, "label": LABELS})
    schema = dataclasses.replace(_open(_data(public, TOKENS)).schema, vocabulary=20)
    lists: list[Any] = [[1, 2], None, [1, None], [1, 2], [], [20], [-3], [2**63 - 1], [1], [1]]
    masks: list[Any] = [[1, 0], [1], [1, 1], [1], [], [1], [1], [1], [2], None]
    table = {"input_ids": lists, "attention_mask": masks, "label": [0] * 10}
    private = _data(save_dataset(tmp_path / "private", table), TOKENS)
    dataset = open_dataset(private, schema, private=True)
    assert dataset.read(range(10)).present.tolist() == [True, *[False] * 9]
    token, mask = Fault.TOKEN_OUT_OF_RANGE, Fault.MASK_OUT_OF_RANGE
    assert dataset.faults(range(10)).tolist() == [
        0,
        token,
        token,
        token,
        Fault.NO_TOKEN,
        token,
        token,
        token,
        mask,
        token,
    ]
    with pytest.raises(FileContentError, match="out of range"):
        open_dataset(private, schema).read(range(10))


def test_private_rows_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    schema = _open(_data(save_dataset(tmp_path / "public", {"a": AGE, "label": LABELS}))).schema
    texts = ["1.5", "tall", None, "2", "3"]
    data = _data(save_dataset(tmp_path / "private", {"a": texts, "label": ["1", "2", "0", "x", "7"]}))
    dataset = open_dataset(data, schema, private=True)
    assert dataset.faults(range(5)).tolist() == [0, Fault.UNREADABLE, 0, Fault.UNREADABLE, Fault.LABEL_OUT_OF_RANGE]
    with pytest.raises(FileContentError, match="not a number"):
        open_dataset(data, schema).read(range(5))


@pytest.mark.parametrize(
    ("columns", "roles", "reason"),
    [
        ({"input_ids": LISTS, "label": LABELS}, ROLES, "'input_ids' holds lists.*columns.tokens = true"),
        ({"input_ids": [[0.5]] * 30, "label": LABELS}, dataclasses.replace(TOKENS, mask=None), "holds list.*; expected lists of whole"),
        ({"input_ids": LISTS, "label": LABELS}, TOKENS, "no column 'attention_mask'"),
        ({"a": AGE}, ROLES, "no column 'label'"),
        ({"a": pyarrow.array(PATIENTS).dictionary_encode(), "label": LABELS}, ROLES, "has columns of dictionaries"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: Any, roles: ColumnsConfig, reason: str) -> None:
    with pytest.raises(FileContentError, match=reason):
        _open(_data(save_dataset(tmp_path / "d", columns), roles)).check_whole()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "all" / "train", TABLE)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(FileContentError, match=r"holds several datasets \(train\); expected one"):
        _open(_data(tmp_path / "all"))
    for state in ("", "[]", "{}", '{"_data_files": []}', '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": "x"}',
                  json.dumps({**json.loads((folder / "state.json").read_text()), "_indices_data_files": [{"filename": "i"}]})):  # fmt: skip
        (folder / "state.json").write_text(state)
        with pytest.raises(FileContentError, match=r"state\.json doesn't name Arrow files"):
            _open(_data(folder))
    (folder / "state.json").unlink()
    with pytest.raises(FileContentError, match=r"no state\.json"):
        _open(_data(folder))
    with pytest.raises(UsageError, match="no such folder"):
        _open(_data(tmp_path / "nowhere"))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "d", TABLE, files=2)
    path = folder / "data-00001-of-00002.arrow"
    content = path.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:kept])
        with pytest.raises(FileContentError):
            _open(_data(folder)).read(range(30))
    path.write_bytes(content)
    other = save_dataset(tmp_path / "other", {"age": AGE, "label": LABELS})
    path.write_bytes((other / "data-00000-of-00001.arrow").read_bytes())
    with pytest.raises(FileContentError, match="other columns than the files before it"):
        _open(_data(folder))


def test_offsets_that_lead_elsewhere_are_refused_by_the_process_that_looks_first(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "d", {"a": ["text"] * 30, "label": LABELS}, batch=30)
    path = folder / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    offsets = (np.arange(31, dtype="<i4") * 4).tobytes()
    assert content.count(offsets) == 1
    wild = np.frombuffer(offsets, dtype="<i4").copy()
    wild[15] = 2**30
    path.write_bytes(content.replace(offsets, wild.tobytes()))
    with pytest.raises(FileContentError, match="not a whole Arrow stream"):
        _open(_data(folder))
