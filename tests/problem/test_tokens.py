"""Tokens with a mask from HDF5 arrays: reading, blanks, refusals, the vocabulary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import unit_integers, with_blank
from token_files import COLUMNS, LENGTH, VOCABULARY, random_tokens, token_config, write_tokens
from token_models import Reader
from torch import nn

from distqexp.config import ColumnsConfig, DataConfig, config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.independence import vocabulary_of
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema, fit_schema, schema_from_config
from distqexp.stages.plan import make_plan

ROLES = ColumnsConfig(features=("ids",), target="y", tokens=True, mask="seen")


def _data(path: Path, **roles: Any) -> DataConfig:
    return DataConfig(format="hdf5", path=str(path), columns=dataclasses.replace(ROLES, **roles))


def _open(data: DataConfig, vocabulary: int | None = VOCABULARY) -> Dataset:
    schema = dataclasses.replace(fit_schema(data, loss="cross-entropy"), vocabulary=vocabulary, classes=3)
    return open_dataset(data, schema)


def _config(folder: Path, **sections: Any) -> Any:
    return config_from_tree(
        token_config(folder, {"factory": "token_models:reader", "loss": "cross-entropy"}, **sections)
    )


def test_records_are_tokens_and_their_mask(tmp_path: Path) -> None:
    ids, mask, labels = random_tokens(12, 0)
    dataset = _open(_data(write_tokens(tmp_path / "t.h5", 12, 0)))
    rows = [5, 0, 11]
    records = dataset.read(rows)
    assert records.inputs.dtype == torch.int64
    np.testing.assert_array_equal(records.inputs.numpy(), np.stack([ids[rows], mask[rows]], axis=1))
    assert records.targets.tolist() == labels[rows].tolist()
    assert records.present.all()
    assert dataset.schema.input_shape == (2, LENGTH)
    assert Schema.from_tree(dataset.schema.to_tree()) == dataset.schema


def test_without_a_mask_every_token_is_seen(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "t.h5", 4, 0, seen=None)
    dataset = _open(_data(path, mask=None))
    assert bool((dataset.read([0, 3]).inputs[:, 1] == 1).all())


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_whole_numbers_of_every_kind(tmp_path: Path, kind: type) -> None:
    ids, mask, _ = random_tokens(4, 1)
    path = write_tokens(tmp_path / "t.h5", 4, 1, ids=ids.astype(kind), seen=mask.astype(np.bool_))
    np.testing.assert_array_equal(_open(_data(path)).read(range(4)).inputs.numpy(), np.stack([ids, mask], axis=1))


def test_blank_records_are_not_read_and_begin_with_a_seen_token(tmp_path: Path) -> None:
    ids, mask, _ = random_tokens(6, 2)
    ids[2] = VOCABULARY + 7  # refused, were it read
    mask[4] = 0
    path = write_tokens(tmp_path / "t.h5", 6, 2, ids=ids, seen=mask)
    np.save(tmp_path / "blank.npy", np.arange(6) == 2)
    records = _open(dataclasses.replace(_data(path), blank=str(tmp_path / "blank.npy"))).read(range(6))
    assert records.present.tolist() == [True, True, False, True, False, True]
    for row in (2, 4):
        assert records.inputs[row].tolist() == [[0] * LENGTH, [1] + [0] * (LENGTH - 1)]
        assert records.targets[row] == 0


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**62])
def test_tokens_out_of_range_are_refused_without_their_value(tmp_path: Path, token: int) -> None:
    ids, _, _ = random_tokens(4, 3)
    ids[3, 2] = token
    dataset = _open(_data(write_tokens(tmp_path / "t.h5", 4, 3, ids=ids)))
    dataset.read([0, 1, 2])
    with pytest.raises(
        FileContentError, match=r"'ids': a token is out of range; expected whole numbers from 0 to 19"
    ) as e:
        dataset.read([2, 3])
    said = str(e.value).replace(str(tmp_path), "").replace(f"0 to {VOCABULARY - 1}", "")
    assert str(token) not in said


def test_huge_unsigned_tokens_do_not_wrap(tmp_path: Path) -> None:
    ids = random_tokens(4, 3)[0].astype(np.uint64)
    ids[0, 0] = 2**64 - 1
    dataset = _open(_data(write_tokens(tmp_path / "t.h5", 4, 3, ids=ids)), vocabulary=None)
    with pytest.raises(FileContentError, match="whole numbers from 0 up"):
        dataset.read([0])


@pytest.mark.parametrize("entry", [2.0, -1.0, 0.5, np.nan])
def test_masks_are_0_or_1(tmp_path: Path, entry: float) -> None:
    mask = random_tokens(4, 3)[1].astype(np.float64)
    mask[1, 0] = entry
    dataset = _open(_data(write_tokens(tmp_path / "t.h5", 4, 3, seen=mask)))
    with pytest.raises(FileContentError, match=r"'seen': an entry of the mask is out of range; expected 0 or 1"):
        dataset.read([1])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ids": np.zeros((4, LENGTH))}, "'ids' holds float64 in 2 dimensions; expected whole numbers"),
        ({"ids": np.zeros(4, dtype=np.int64)}, "in 1 dimensions; expected whole numbers"),
        ({"seen": np.ones((4, LENGTH - 1), dtype=np.int64)}, "'seen' has another shape than 'ids'"),
        ({"seen": None}, "no dataset 'seen'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(FileContentError, match=reason):
        _open(_data(write_tokens(tmp_path / "t.h5", 4, 0, **changed)))


def test_a_length_other_than_the_plans_is_refused(tmp_path: Path) -> None:
    schema = fit_schema(_data(write_tokens(tmp_path / "t.h5", 4, 0)), loss="cross-entropy")
    shorter = np.ones((4, LENGTH - 1), dtype=np.int64)
    with pytest.raises(FileContentError, match="expected the plan's"):
        open_dataset(_data(write_tokens(tmp_path / "s.h5", 4, 0, ids=shorter, seen=shorter)), schema)


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({**COLUMNS, "tokens": False}, "columns.mask"),
        ({**COLUMNS, "constant": True}, "columns.tokens"),
        ({**COLUMNS, "missing_flag_above": 0.1}, "columns.tokens"),
    ],
)
def test_roles_that_contradict_are_refused(tmp_path: Path, columns: dict[str, Any], key: str) -> None:
    source = {"format": "hdf5", "path": "t.h5", "columns": columns}
    with pytest.raises(UsageError, match=key):
        _config(tmp_path, data={"private": source})
    with pytest.raises(UsageError, match=r"columns.tokens.*format = hdf5"):
        _config(tmp_path, data={"private": {"format": "csv", "path": "t.csv", "columns": COLUMNS}})


def test_without_public_data_the_config_gives_the_length() -> None:
    data = DataConfig(format="hdf5", columns=ROLES)
    assert schema_from_config(data, loss="cross-entropy", record_shape=(LENGTH,)).input_shape == (2, LENGTH)
    for shape in (None, (2, LENGTH)):
        with pytest.raises(UsageError, match=r"data.record_shape.*expected \[length\]"):
            schema_from_config(data, loss="cross-entropy", record_shape=shape)


@pytest.mark.parametrize(
    "subspace", [{"kind": "gaussian", "k": 5}, {"kind": "kronecker", "k_in": 2, "k_out": 2, "k": None}]
)
def test_blank_and_padded_records_move_no_other_record_s_bits(tmp_path: Path, subspace: dict[str, Any]) -> None:
    write_tokens(tmp_path / "public.h5", 10, 5)
    write_tokens(tmp_path / "private.h5", 18, 6)  # the last micro-batch is filled up: 0/0 in this model
    config = _config(tmp_path, subspace=subspace)
    plan = make_plan(config, SerialEngine())
    whole = unit_integers(config, plan)
    assert whole.any(axis=1).all()
    blank = np.zeros(18, dtype=np.bool_)
    blank[[0, 9, 17]] = True
    np.save(tmp_path / "blank.npy", blank)
    found = unit_integers(with_blank(config, tmp_path / "blank.npy"), plan)
    assert np.array_equal(found[~blank], whole[~blank])
    assert not found[blank].any()


@pytest.mark.parametrize("vocabulary", [LENGTH - 2, LENGTH, 50])
def test_the_vocabulary_is_that_of_the_embedding_that_reads_tokens(vocabulary: int) -> None:
    assert vocabulary_of(Network(Reader(vocabulary)), LENGTH) == vocabulary


def test_a_model_without_an_embedding_of_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no nn\.Embedding reads the tokens"):
        vocabulary_of(Network(OneHot()), LENGTH)


class OneHot(nn.Module):
    """Tokens as one-hot vectors: no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(VOCABULARY, 3)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(nn.functional.one_hot(records[:, 0], VOCABULARY).float().mean(dim=1))
        return found


def test_the_plan_knows_the_vocabulary_with_public_data_or_without(tmp_path: Path) -> None:
    write_tokens(tmp_path / "public.h5", 10, 5)
    write_tokens(tmp_path / "private.h5", 10, 6)
    with_public = make_plan(_config(tmp_path), SerialEngine()).schema
    assert (with_public.tokens, with_public.vocabulary, with_public.classes) == (True, VOCABULARY, 3)
    without = make_plan(_config(tmp_path, data={"public": None, "record_shape": [LENGTH]}), SerialEngine()).schema
    assert without == with_public
    with pytest.raises(UsageError, match=r"data.record_shape: \[7\]; found \[6\]"):
        make_plan(_config(tmp_path, data={"record_shape": [7]}), SerialEngine())
