"""Models of folders that save_pretrained wrote: fitted, exported as the same kind of folder, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from run_harness import to_toml
from small_runs import plan_of
from unusual_models import BERT

from distqexp import fit
from distqexp.artefacts.plan import Plan
from distqexp.config import config_from_tree
from distqexp.errors import UsageError
from distqexp.problem.huggingface import from_config
from distqexp.problem.network import Network
from distqexp.problem.weights import load_weights

LENGTH = 6


def token_tree(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """A config on files of tokens, which are written too."""
    random = np.random.default_rng(0)
    for name, count in (("public", 24), ("private", 16)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["x"] = random.integers(0, 11, (count, LENGTH))
            file["m"] = (np.arange(LENGTH) < random.integers(1, LENGTH + 1, (count, 1))).astype("i1")
            file["y"] = random.integers(0, 3, count)
    columns = {"features": ["x"], "target": "y", "tokens": True, "mask": "m"}

    def source(name: str) -> dict[str, Any]:
        return {"format": "hdf5", "path": str(folder / f"{name}.h5"), "columns": columns}

    return {
        "model": {"loss": "cross-entropy", **model},
        "data": {"population": "people", "public": source("public"), "private": source("private")},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "units": 16},
        "precision": {"kind": "diagonal"},
        "mechanism": {"clip_quantile": 0.8},
        "engine": {"micro_batch": 8, "kind": "serial"},
    }


def saved(folder: Path, **more: Any) -> Path:
    """A folder of save_pretrained with a tokenizer's file beside the weights."""
    torch.manual_seed(3)
    from_config("BertForSequenceClassification", {**BERT, "num_labels": 3, **more}).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def run(folder: Path, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "c.toml").write_text(to_toml(token_tree(folder, model)))
    monkeypatch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
    out = folder / "out"
    assert fit.main([str(folder / "c.toml"), "--out", str(out), "--insecure-noise-seed", "1"]) == 0
    return out


def batch() -> torch.Tensor:
    tokens = torch.randint(0, 11, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    return torch.stack([tokens, torch.ones_like(tokens)], dim=1)


def test_a_folder_is_fitted_and_exported_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    source = saved(tmp_path / "bert")
    model = {
        "factory": "distqexp.problem.huggingface:from_folder",
        "weights": str(source),
        "trainable": ["classifier.*"],
    }
    out = run(tmp_path, model, monkeypatch)
    plan = Plan.read(out / "plan.h5")
    assert plan.config.model.factory == "distqexp.problem.huggingface:from_config"
    assert str(source) not in json.dumps(plan.header())
    assert (out / "tokenizer.json").exists()
    exported = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    assert type(exported).__name__ == "BertForSequenceClassification"
    again = Network(from_config("BertForSequenceClassification", {**BERT, "num_labels": 3}))
    load_weights(again, out)
    records = batch()
    with torch.no_grad():
        logits = exported.eval()(input_ids=records[:, 0], attention_mask=records[:, 1]).logits
    torch.testing.assert_close(again.outputs(records), logits)
    assert not torch.equal(again.module.classifier.weight, torch.from_numpy(plan.weights["classifier.weight"]))
    for name in ("model.safetensors", "model.pt"):
        other = Network(from_config("BertForSequenceClassification", {**BERT, "num_labels": 3}))
        load_weights(other, out / name)
        assert torch.equal(other.outputs(records), again.outputs(records))


def test_an_adapter_is_exported_for_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft
    import transformers

    source = saved(tmp_path / "bert")
    lora = {"r": 2, "target_modules": ["query"]}
    model = {
        "factory": "distqexp.problem.huggingface:from_folder", "weights": str(source), "args": {"lora": lora},
        "trainable": ["*lora_*", "*classifier*"],
    }  # fmt: skip
    out = run(tmp_path, model, monkeypatch)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(source)
    exported = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    config = {**BERT, "num_labels": 3}
    again = Network(from_config("BertForSequenceClassification", config, lora=lora))
    load_weights(again, out)
    records = batch()
    with torch.no_grad():
        logits = exported(input_ids=records[:, 0], attention_mask=records[:, 1]).logits
    torch.testing.assert_close(again.outputs(records), logits)
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] in (None, "")


def test_another_number_of_outputs_and_a_body_need_a_new_head(tmp_path: Path) -> None:
    model = {
        "factory": "distqexp.problem.huggingface:from_folder", "weights": str(saved(tmp_path / "bert", num_labels=5)),
        "args": {"outputs": 3}, "new_head": ["classifier.*"],
    }  # fmt: skip
    plan = plan_of(config_from_tree(token_tree(tmp_path, model)))
    assert plan.weights["classifier.weight"].shape == (3, 8)
    assert plan.config.model.new_head == ()


def test_folders_without_a_known_model_are_refused(tmp_path: Path) -> None:
    model = {"factory": "distqexp.problem.huggingface:from_folder", "weights": str(tmp_path)}
    with pytest.raises(UsageError, match=r"expected a folder with config.json"):
        plan_of(config_from_tree(token_tree(tmp_path, model)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "weird", "architectures": ["Weird"]}))
    with pytest.raises(UsageError, match="model_type 'weird'; expected one of albert, bert"):
        plan_of(config_from_tree(token_tree(tmp_path, model)))
