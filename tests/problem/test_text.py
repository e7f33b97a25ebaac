"""Raw texts and a tokenizer's folder: tokens, padding, digests, refusals."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from saved_datasets import save_dataset
from tokenizer_folders import WORDS, write_tokenizer

from distqexp import api
from distqexp.config import ColumnsConfig, Config, DataConfig, config_from_tree, load_config, without_paths
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.faults import Fault
from distqexp.problem.identity import file_facts
from distqexp.problem.schema import Schema, fit_schema, schema_from_config
from distqexp.stages.plan import make_plan

TEXTS = ["the patient is well", "ill", "the patient is very very ill today", "well"] * 5
LABELS = [0, 1, 1, 0] * 5
LENGTH = 6
RIGHT = {
    "the patient is well": [0, 4, 5, 6, 7, 1],
    "ill": [0, 8, 1, 3, 3, 3],
    "the patient is very very ill today": [0, 4, 5, 6, 9, 1],
    "well": [0, 7, 1, 3, 3, 3],
}
ROLES = ColumnsConfig(target="label", features=("note",), length=LENGTH)


def write_texts(folder: Path, kind: str, texts: list[Any] = TEXTS, labels: list[Any] = LABELS) -> Path:
    table = {"id": list(range(len(texts))), "note": texts, "label": labels}
    if kind == "arrow":
        return save_dataset(folder / "texts", table)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(table), folder / "texts.parquet")
        return folder / "texts.parquet"
    lines = [
        f'{row},"{"" if text is None else text}",{label}'
        for row, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    (folder / "texts.csv").write_text("\n".join(["id,note,label", *lines]) + "\n")
    return folder / "texts.csv"


def _data(path: Path, tokenizer: Path, **more: Any) -> DataConfig:
    return DataConfig(format="text", path=str(path), tokenizer=str(tokenizer), columns=ROLES, **more)


def _open(data: DataConfig) -> Dataset:
    return open_dataset(
        data, dataclasses.replace(fit_schema(data, loss="cross-entropy"), classes=2, vocabulary=len(WORDS))
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_texts_become_tokens_of_one_length(tmp_path: Path, kind: str) -> None:
    data = _data(write_texts(tmp_path, kind), write_tokenizer(tmp_path / "t"), unit="id", where="label == 1")
    dataset, rows = _open(data), [2, 1, 19, 0, 2]
    records = dataset.read(rows)
    assert records.inputs[:, 0].tolist() == [RIGHT[TEXTS[row]] for row in rows]
    assert records.inputs[:, 1].tolist() == [[1] * 6, [1] * 3 + [0] * 3, [1] * 3 + [0] * 3, [1] * 6, [1] * 6]
    assert records.targets.tolist() == [LABELS[row] for row in rows]
    assert pickle.loads(pickle.dumps(dataset)).read(rows).inputs.equal(records.inputs)
    assert dataset.slot_map().rows.tolist() == [row for row in range(20) if LABELS[row] == 1]
    assert dataset.opened_files() == file_facts(data).files
    assert Schema.from_tree(dataset.schema.to_tree()) == dataset.schema


def test_missing_texts_and_wrong_labels_of_private_records_are_left_out(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t")
    schema = _open(_data(write_texts(tmp_path / "public", "csv"), tokenizer)).schema
    path = write_texts(tmp_path / "private", "csv", ["ill", None, "ill", "ill", "ill"], [0, 1, 2, "", "x"])
    dataset = open_dataset(_data(path, tokenizer), schema, private=True)
    expected = [Fault.NONE, Fault.NO_TOKEN, Fault.LABEL_OUT_OF_RANGE, Fault.LABEL_MISSING, Fault.UNREADABLE]
    assert dataset.faults(range(5)).tolist() == expected
    assert dataset.read(range(5)).present.tolist() == [True, False, False, False, False]
    with pytest.raises(FileContentError, match="a label is out of range"):
        open_dataset(_data(path, tokenizer), schema).read([2])


def test_the_column_of_texts_is_never_what_is_wrong(tmp_path: Path) -> None:
    """Labels of words want classes; the texts beside them are no numbers, and shouldn't be."""
    data = _data(
        write_texts(tmp_path, "csv", labels=["no", "yes"] * 3, texts=["ill"] * 6), write_tokenizer(tmp_path / "t")
    )
    with pytest.raises(FileContentError, match=r'add to data\.public\.columns: classes = \["no", "yes"\]; ') as refusal:
        open_dataset(data, fit_schema(data, loss="binary-cross-entropy")).read([0])
    assert "note" not in str(refusal.value)


def test_another_tokenizer_than_the_plan_s_is_refused(tmp_path: Path) -> None:
    path, tokenizer = write_texts(tmp_path, "csv"), write_tokenizer(tmp_path / "t")
    schema = _open(_data(path, tokenizer)).schema
    same = write_tokenizer(tmp_path / "same")
    (same / "README.md").write_text("another")
    assert open_dataset(_data(path, same), schema, private=True).schema.tokenizer == schema.tokenizer
    swapped = (*WORDS[:-2], WORDS[-1], WORDS[-2])
    others = [write_tokenizer(tmp_path / "words", swapped), write_tokenizer(tmp_path / "pad", pad_token="[CLS]")]
    for other in others:
        with pytest.raises(
            FileContentError, match=r"data\.tokenizer: its digest is [0-9a-f]{16}; expected [0-9a-f]{16}, the plan's"
        ):
            open_dataset(_data(path, other), schema, private=True)
    with pytest.raises(FileContentError, match="expected none, the plan's"):
        open_dataset(_data(path, tokenizer), dataclasses.replace(schema, tokenizer=None), private=True)


@pytest.mark.parametrize(("pad", "number"), [({"content": "[PAD]"}, 3), (None, 0), ("[GONE]", 0)])
def test_the_padding_token_is_that_of_the_folder(tmp_path: Path, pad: Any, number: int) -> None:
    dataset = _open(_data(write_texts(tmp_path, "csv"), write_tokenizer(tmp_path / "t", pad_token=pad)))
    assert dataset.read([3]).inputs[0, 0].tolist() == [0, 7, 1, *[number] * 3]


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path: Path) -> None:
    path = write_texts(tmp_path, "csv")
    (tmp_path / "t").mkdir()
    with pytest.raises(UsageError, match=r"data\.tokenizer: .*tokenizer\.json: no such file"):
        _open(_data(path, tmp_path / "t"))
    for content in (b"", b"{}", b"\xff", b'{"model": null}'):
        (tmp_path / "t" / "tokenizer.json").write_bytes(content)
        with pytest.raises(FileContentError, match="not a tokenizer that this library reads"):
            _open(_data(path, tmp_path / "t"))
    write_tokenizer(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(FileContentError, match="not a JSON object"):
        _open(_data(path, tmp_path / "t"))
    with pytest.raises(UsageError, match="not given"):
        _open(dataclasses.replace(_data(path, tmp_path / "t"), tokenizer=None))
    short = dataclasses.replace(ROLES, length=2)
    with pytest.raises(UsageError, match="length: 2; the tokenizer adds 2 marks"):
        _open(dataclasses.replace(_data(path, write_tokenizer(tmp_path / "u")), columns=short)).read([0])


def test_without_public_data_the_tokenizer_is_still_the_plan_s(tmp_path: Path) -> None:
    data = _data(write_texts(tmp_path, "csv"), write_tokenizer(tmp_path / "t"))
    schema = schema_from_config(data, loss="cross-entropy")
    assert schema == dataclasses.replace(_open(data).schema, classes=None, vocabulary=None)


def _config(folder: Path, **sections: Any) -> Config:
    tokenizer = write_tokenizer(folder / "t")
    sources = {role: write_texts(folder / role, kind) for role, kind in (("public", "arrow"), ("private", "csv"))}
    source = {
        "format": "text",
        "tokenizer": str(tokenizer),
        "columns": {"features": ["note"], "target": "label", "length": LENGTH},
    }
    tree: dict[str, Any] = {
        "model": {"factory": "token_models:reader", "loss": "cross-entropy", "pretrain": {"epochs": 1}},
        "data": {"population": "p", **{role: {**source, "path": str(path)} for role, path in sources.items()}},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 20},
        "subspace": {"kind": "gaussian", "k": 5},
        "mechanism": {"clip": 0.05, "rounds": 1},
        "engine": {"micro_batch": 8, "kind": "serial"},
    }
    return config_from_tree({**tree, **sections})


def test_a_plan_names_the_tokenizer_by_its_digest_and_no_path(tmp_path: Path) -> None:
    config = _config(tmp_path)
    plan = make_plan(config, SerialEngine())
    assert plan.schema.tokenizer is not None
    assert plan.schema.shape == (2, LENGTH)
    assert without_paths(config).data.private[0].tokenizer is None
    assert str(tmp_path) not in repr(plan)


def test_texts_are_fitted_and_sketched_by_hand(
    tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTQEXP_ALLOW_FACTORIES", "token_models:*")
    config, plan = _config(tmp_path), tmp_path / "plan.h5"
    api.plan(config, plan)
    site = {"data": tmp_path / "private" / "texts.csv", "tokenizer": tmp_path / "t"}
    assert any("usable: 20 records" in line for line in api.check(plan, **site))
    other = write_tokenizer(tmp_path / "other", pad_token="[SEP]")
    with pytest.raises(FileContentError, match="the plan's"):
        api.sketch(plan, site["data"], tmp_path / "s.h5", tokenizer=other)
    with pytest.raises(UsageError, match=r"data\.private\.tokenizer: not given"):
        api.sketch(plan, site["data"], tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()
    api.sketch(plan, site["data"], tmp_path / "s.h5", tokenizer=site["tokenizer"])
    assert (tmp_path / "s.h5").exists()
    api.fit(config, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_tokenizer_larger_than_the_model_is_refused_at_plan(tmp_path: Path) -> None:
    config = _config(tmp_path)
    write_tokenizer(tmp_path / "t", (*WORDS, *(f"word{number}" for number in range(100))))
    with pytest.raises(UsageError, match=r"data\.tokenizer: 110 tokens for a model of \d+"):
        make_plan(config, SerialEngine())


def test_paths_are_relative_to_the_config_and_keys_go_together(tmp_path: Path) -> None:
    columns = '{ features = ["note"], target = "label", length = 6 }'
    source = f'{{ format = "text", path = "x.csv", tokenizer = "t", columns = {columns} }}'
    model = '[model]\nfactory = "m:f"\nloss = "cross-entropy"\n'
    privacy = (
        "[privacy]\nepsilon = 1\ndelta = 1e-5\nunits = 9\n[precision]\nkind = 'identity'\n[mechanism]\nclip = 1.0\n"
    )
    text = f'{model}[data]\npopulation = "p"\nprivate = {source}\n{privacy}'
    (tmp_path / "c.toml").write_text(text)
    assert load_config(tmp_path / "c.toml").data.private[0].tokenizer == str(tmp_path / "t")
    changes = (
        (", length = 6", "", "length"),
        ('features = ["note"]', 'features = ["a", "b"]', "features"),
        ('"text"', '"csv"', "tokenizer|length"),
        ('target = "label", ', "", "target"),
    )
    for old, new, key in changes:
        (tmp_path / "c.toml").write_text(text.replace(old, new))
        with pytest.raises(UsageError, match=key):
            load_config(tmp_path / "c.toml")
    assert np.array(list(RIGHT.values())).shape == (4, LENGTH)
