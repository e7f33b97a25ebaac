"""Synthetic records, and whole runs whose curvature comes from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_harness import to_toml
from scipy import stats
from scipy.stats import chi2
from small_runs import make_config, plan_of, random_table
from token_files import LENGTH, VOCABULARY, factory, token_config, write_tokens

from distqexp import api, fit
from distqexp.config import DataConfig, config_from_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.expansion.source import curvature_source
from distqexp.expansion.state import ProbeSource
from distqexp.gradients.context import RoundContext
from distqexp.problem.probes import Probes, synthetic_records
from distqexp.problem.schema import Schema, schema_from_config
from distqexp.stages.completing import required_public_data
from distqexp.stages.plan import make_plan

IMAGES = schema_from_config(DataConfig(format="digits"), loss="cross-entropy")
TABLE = Schema("binary-cross-entropy", False, ("a", "b", "c"), (3,), flags=(1,), constant=True)
ARRAYS = Schema("mean-squared-error", False, ("x",), (3, 16, 12))
TOKENS = Schema("cross-entropy", False, ("ids",), (2, 9), tokens=True, vocabulary=7)
SCHEMAS = [IMAGES, TABLE, ARRAYS, TOKENS]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_record_is_a_function_of_seed_round_and_number(schema: Schema) -> None:
    whole = synthetic_records(schema, 12, 3, 1, 0)
    assert whole.inputs.shape == (12, *(schema.input_shape or ()))
    assert whole.present.all()
    for first, count in ((0, 1), (5, 4), (11, 1), (4, 0)):
        part = synthetic_records(schema, count, 3, 1, first)
        assert torch.equal(part.inputs, whole.inputs[first : first + count])
    assert torch.equal(Probes(schema, 3, 1).read(np.array([7, 2])).inputs, whole.inputs[[7, 2]])
    for seed, round in ((3, 2), (4, 1)):
        assert not torch.equal(synthetic_records(schema, 12, seed, round, 0).inputs, whole.inputs)
    flat = whole.inputs.reshape(12, -1)
    assert len(torch.unique(flat, dim=0)) == 12


def test_images_are_pixels_from_black_to_white() -> None:
    pixels = synthetic_records(IMAGES, 400, 0, 0, 0).inputs
    assert pixels.dtype == torch.float32
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    assert 0.4 < float(pixels.mean()) < 0.6
    assert bool((pixels.std(dim=0) > 0.2).all())


def test_tables_are_standard_normal_with_their_extra_columns() -> None:
    inputs = synthetic_records(TABLE, 2000, 0, 0, 0).inputs.numpy()
    assert stats.kstest(inputs[:, :3].ravel(), "norm").pvalue > 1e-6  # false alarm 1e-6; the seed is fixed
    assert set(np.unique(inputs[:, 3])) == {0.0, 1.0}
    assert bool((inputs[:, 4] == 1).all())


@pytest.mark.slow
def test_arrays_have_unit_variance_and_neighbours_that_agree() -> None:
    inputs = synthetic_records(ARRAYS, 2000, 0, 0, 0).inputs.double().numpy()
    # 2,000 records: the mean square of an entry has a standard error below 0.06; five of them leave false alarms below
    # 1e-6 for the mean over all entries, which varies less.
    assert abs(np.square(inputs).mean() - 1) < 0.3
    near = (inputs[:, :, :, 1:] * inputs[:, :, :, :-1]).mean()
    far = (inputs[:, :, :, 11] * inputs[:, :, :, 0]).mean()
    assert near > far + 0.05
    assert (inputs[:, 0] * inputs[:, 1]).mean() > 0.1  # channels agree in part


def test_tokens_are_uniform_and_so_is_their_number() -> None:
    """Chi-square of 4,000 lengths and of their tokens, each beyond its bound with a probability below 1e-6 (the seed is fixed)."""
    tokens = synthetic_records(TOKENS, 4000, 0, 0, 0).inputs.numpy()
    assert tokens.dtype == np.int64
    ids, seen = tokens[:, 0], tokens[:, 1]
    lengths = seen.sum(axis=1)
    assert np.array_equal(seen, np.arange(9) < lengths[:, None])
    assert not ids[seen == 0].any()
    for counts in (np.bincount(lengths, minlength=10)[1:], np.bincount(ids[seen == 1], minlength=7)):
        expected = counts.sum() / len(counts)
        assert float(np.square(counts - expected).sum() / expected) < chi2.isf(1e-6, len(counts) - 1)


def test_an_unknown_shape_is_refused_with_the_key_that_gives_it() -> None:
    idx = DataConfig(format="idx")
    with pytest.raises(UsageError, match=r"data\.record_shape"):
        synthetic_records(schema_from_config(idx, loss="cross-entropy"), 1, 0, 0, 0)
    known = schema_from_config(idx, loss="cross-entropy", record_shape=(28, 28))
    assert synthetic_records(known, 2, 0, 0, 0).inputs.shape == (2, 1, 28, 28)
    with pytest.raises(UsageError, match=r"data.record_shape.*\[height, width\]"):
        schema_from_config(idx, loss="cross-entropy", record_shape=(3, 28, 28))


# --- runs without public data ---------------------------------------------------------------------------------------


def digits(**sections: Any) -> dict[str, Any]:
    """The tree of a config on the digits, without public data."""
    tree: dict[str, Any] = {
        "model": {
            "factory": "distqexp.problem.models:mlp",
            "args": {"inputs": 64, "outputs": 10, "hidden": [6]},
            "loss": "cross-entropy",
        },
        "data": {
            "population": "digits",
            "private": {"format": "digits", "rows": [[0, 400]]},
            "eval": {"format": "digits", "rows": [[1000, 1200]]},
        },
        "privacy": {"epsilon": 20.0, "delta": 1e-3, "units": 400},
        "precision": {"source": "probes", "kind": "diagonal", "samples": 70},
        "mechanism": {"rounds": 2, "step": 0.05, "clip_quantile": 0.8},
        "engine": {"micro_batch": 32},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return tree


GEOMETRIES = [
    {"precision": {"kind": "diagonal"}},
    {"precision": {"kind": "dense"}, "subspace": {"kind": "gaussian", "k": 12}},
    {"precision": {"kind": "kronecker"}},
    {"precision": {"kind": "kronecker"}, "subspace": {"kind": "kronecker-pca", "k_in": 4, "k_out": 4}},
    {"precision": {"kind": "identity"}},
]


def _write(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "run.toml"
    path.write_text(to_toml(tree), "utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("sections", GEOMETRIES)
def test_a_run_without_public_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any]
) -> None:
    merged = {name: {**digits().get(name, {}), **values} for name, values in sections.items()}
    config = _write(tmp_path, digits(**merged))
    arguments = [str(config), "--out", str(tmp_path / "out"), "--json", "--insecure-noise-seed", "1"]
    assert fit.main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["metrics"]
    assert metrics["after"]["log_loss"] < metrics["before"]["log_loss"]


def test_curvature_and_clip_are_those_of_the_probes_with_labels_from_the_model(tmp_path: Path) -> None:
    tree = digits()
    plan = make_plan(config_from_tree(tree), SerialEngine())
    source = curvature_source(plan.config, None, plan.schema)
    assert source == ProbeSource(70, plan.config.subspace.seed)
    context = dataclasses.replace(RoundContext.of_state(plan, plan.state, ()), sources=(source,))
    assert [piece[1:] for piece in context.pieces] == [(0, 32), (32, 64), (64, 70)]
    batches = [batch for piece in range(3) for batch in context.batches(piece)]
    inputs = torch.cat([records.inputs for records, _ in batches])
    targets = torch.cat([records.targets for records, _ in batches])
    assert torch.equal(inputs, synthetic_records(plan.schema, 70, plan.config.subspace.seed, 0, 0).inputs)
    assert len(torch.unique(targets)) > 3
    norms = []
    for number, (_, _) in enumerate(batches):
        vectors, finite = context.gradients.of_piece(context.batches(number))
        assert finite.all()
        norms += np.linalg.norm(vectors, axis=1).tolist()
    assert plan.state.clip == pytest.approx(np.quantile(norms, 0.8, method="higher"), rel=1e-12)


def test_public_data_stay_unread_by_the_curvature(tmp_path: Path) -> None:
    for name, seed in (("public", 1), ("private", 2)):
        random_table("mlp", [1] * 20, seed).write(tmp_path / f"{name}.h5")
    probes = {"source": "probes", "kind": "diagonal"}
    plan = plan_of(make_config(tmp_path, "mlp", precision=probes))
    random_table("mlp", [1] * 20, 3).write(tmp_path / "public.h5")
    again = plan_of(make_config(tmp_path, "mlp", precision=probes))
    assert all(np.array_equal(again.state.precision[name], array) for name, array in plan.state.precision.items())
    plain = plan_of(make_config(tmp_path, "mlp", precision={"kind": "diagonal"}))
    assert any(not np.array_equal(plain.state.precision[name], array) for name, array in plan.state.precision.items())


def test_tokens_without_public_data(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_tokens(tmp_path / "private.h5", 12, 4)
    tree = token_config(
        tmp_path,
        factory("BertForSequenceClassification"),
        data={"public": None, "record_shape": [LENGTH]},
        precision={"source": "probes", "kind": "kronecker", "samples": 20},
        subspace={"kind": "kronecker-pca", "k": None, "k_in": 3, "k_out": 3},
        mechanism={"clip": None, "clip_quantile": 0.5},
    )
    plan = make_plan(config_from_tree(tree), SerialEngine())
    assert plan.schema.vocabulary == VOCABULARY
    assert plan.state.clip > 0


def test_stages_by_hand_need_no_config_for_the_next_round(tmp_path: Path) -> None:
    config = config_from_tree(digits(engine={"micro_batch": 32, "kind": "serial"}))
    plan = api.plan(config, tmp_path / "plan.h5")
    assert plan.state.round == 0
    assert required_public_data(plan, plan.state, None) is None


def test_a_record_shape_that_is_not_the_data_s_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data.record_shape: \[9, 8\]; found \[8, 8\]"):
        make_plan(config_from_tree(digits(data={**digits()["data"], "record_shape": [9, 8]})), SerialEngine())
    with pytest.raises(UsageError, match=r"config key data.record_shape"):
        config_from_tree(digits(data={**digits()["data"], "record_shape": [0]}))
