"""What the plan chooses where a config leaves it open: subspace, precision, rounds and clip."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_config, plan_of, random_table

from distqexp.artefacts.derived import NOISE_COST, derived_calibration, noise_budget
from distqexp.artefacts.plan import Plan, other_rules, same_rules
from distqexp.config import Config, DataConfig, config_from_tree, config_to_tree, differences
from distqexp.config.reading import AUTOMATIC_ROUNDS
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, TooFewDirectionsError, UsageError
from distqexp.expansion.source import public_source
from distqexp.expansion.state import public_norm
from distqexp.gradients.automatic import LARGEST_DENSE, WIDE_DIRECTIONS, adopted
from distqexp.gradients.worker import Worker
from distqexp.stages.guard import Guard
from distqexp.stages.plan import CLIP_QUANTILE


def open_config(folder: Path, kind: str = "logistic", public: bool = True, **sections: Any) -> Config:
    """A config that leaves everything open that may be."""
    random_table(kind, [1] * 60, seed=1).write(folder / "public.h5")
    tree = config_to_tree(make_config(folder, kind, public=public))
    for name in ("mechanism", "subspace", "precision", "augment", "diagnostics", "output"):
        del tree[name]
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return config_from_tree(tree)


def test_a_small_model_gets_a_dense_precision_rounds_and_a_clip(tmp_path: Path) -> None:
    config = open_config(tmp_path)
    plan = plan_of(config)
    chosen = plan.config
    assert (chosen.subspace.kind, chosen.precision.kind, chosen.precision.source) == ("identity", "dense", "public")
    assert chosen.mechanism.rounds == AUTOMATIC_ROUNDS
    budget = noise_budget(chosen, derived_calibration(chosen, plan.k), plan.k)
    assert chosen.mechanism.clip_natural is not None
    assert 0 < chosen.mechanism.clip_natural <= min(1.0, budget)
    plan.write(tmp_path / "plan.h5")
    assert Plan.read(tmp_path / "plan.h5").plan_id == plan.plan_id
    assert same_rules(plan, adopted(config, chosen))
    assert not same_rules(plan, config)


def test_the_cost_of_the_noise_by_its_own_formula(tmp_path: Path) -> None:
    """R k (s c / (n mu))^2 / 2."""
    config = plan_of(open_config(tmp_path, privacy={"units": 100000})).config
    calibration = derived_calibration(config, 50)
    signal = 100000 * calibration.mu_round
    each = AUTOMATIC_ROUNDS * 50 / 2
    assert each * (noise_budget(config, calibration, 50) / signal) ** 2 == pytest.approx(NOISE_COST)
    assert each * (noise_budget(config, calibration, 50, 0.01) / signal) ** 2 == pytest.approx(0.01)
    short = dataclasses.replace(config, mechanism=dataclasses.replace(config.mechanism, step=0.1))
    assert each * 0.1**2 * (noise_budget(short, calibration, 50) / signal) ** 2 == pytest.approx(NOISE_COST)


def test_a_larger_model_gets_layers_and_fewer_directions_where_noise_wins(tmp_path: Path) -> None:
    model = {"factory": "distqexp.problem.models:mlp", "args": {"inputs": 6, "outputs": 3, "hidden": [90, 40]}}
    sizes = {}
    for units in (200, 10_000_000):
        config = open_config(tmp_path, "mlp", model=model, privacy={"units": units})
        plan = plan_of(config)
        assert plan.d > LARGEST_DENSE
        assert (plan.config.subspace.kind, plan.config.precision.kind) == ("kronecker-pca", "kronecker-joint")
        sizes[units] = plan.config.subspace.k_in
    assert sizes == {200: 8, 10_000_000: 64}


TEN_LAYERS = {"factory": "distqexp.problem.models:mlp", "args": {"inputs": 6, "outputs": 3, "hidden": [20] * 9}}


@pytest.mark.parametrize("named", [{}, {"mechanism": {"head": ["19.*"], "head_rounds": 2}}])
def test_many_layers_get_a_precision_that_knows_what_they_share(tmp_path: Path, named: dict[str, Any]) -> None:
    """Also where the config names a head that moves first."""
    plan = plan_of(open_config(tmp_path, "mlp", model=TEN_LAYERS, **named))
    assert plan.d > LARGEST_DENSE
    assert plan.config.precision.kind == "kronecker-joint"
    assert len(plan.state.precision["values"]) > 0


def test_what_layers_share_is_left_out_without_public_records_where_they_are_few_and_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kind(**sections: Any) -> str:
        return plan_of(open_config(tmp_path, "mlp", **({"model": TEN_LAYERS} | sections))).config.precision.kind

    for hidden, expected in (([400], "kronecker"), ([60, 60], "kronecker-joint")):
        model = {**TEN_LAYERS, "args": {"inputs": 6, "outputs": 3, "hidden": hidden}}
        assert kind(model=model) == expected

    assert kind(public=False, data={"record_shape": [6]}) == "kronecker"
    assert kind(subspace={"kind": "identity"}) == "kronecker"
    assert kind(precision={"source": "probes"}) == "kronecker"
    monkeypatch.setattr("distqexp.gradients.automatic.LARGEST_JOINT", 10**4)
    assert kind() == "kronecker"


def test_a_choice_that_does_not_fit_the_config_is_refused_by_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the plan would refuse it, perhaps after a charge."""
    config = open_config(tmp_path)
    fit = plan_of(config).config
    unfit = dataclasses.replace(fit, mechanism=dataclasses.replace(fit.mechanism, rounding="batch"))
    monkeypatch.setattr("distqexp.stages.plan.chosen", lambda *_: unfit)
    with pytest.raises(UsageError, match="sampling, and an adjacency"):
        plan_of(config)


def test_what_the_config_names_stays(tmp_path: Path) -> None:
    flat = plan_of(open_config(tmp_path, subspace={"kind": "gaussian", "k": 5})).config
    assert (flat.subspace.kind, flat.subspace.k, flat.precision.kind) == ("gaussian", 5, "dense")
    named = plan_of(open_config(tmp_path, precision={"kind": "diagonal"}, mechanism={"clip": 0.1})).config
    assert (named.subspace.kind, named.precision.kind) == ("identity", "diagonal")
    assert (named.mechanism.rounds, named.mechanism.clip, named.mechanism.clip_natural) == (1, 0.1, None)
    parts = open_config(tmp_path, mechanism={"parts": 3})
    assert parts.mechanism.rounds == 12


def test_damping_leaves_outliers_out_where_noise_is_short(tmp_path: Path) -> None:
    """Noise is sqrt(k) / (units mu) of the longest sum; so many units are taken as make it what is asked for."""

    def reference(noise: float, **sections: Any) -> str | None:
        found = plan_of(open_config(tmp_path, privacy={"units": 1000}, **sections))
        calibration = derived_calibration(found.config, found.k)
        wanted = math.sqrt(found.k) / calibration.mu_round / noise
        return plan_of(open_config(tmp_path, privacy={"units": round(wanted)}, **sections)).config.precision.reference

    assert (reference(0.39), reference(0.41)) == ("winsorized", "mean")
    assert reference(0.39, precision={"reference": "bulk"}) == "bulk"
    assert reference(0.39, mechanism={"clip": 0.1}) == "mean", (
        "a config with a clip of its own may have a damping for it"
    )


def test_a_plan_with_damping_of_another_version_stays_a_plan_of_its_config(tmp_path: Path) -> None:
    config = open_config(tmp_path, privacy={"units": 100000})
    plan = plan_of(config)
    assert plan.config.precision.reference == "winsorized"
    older = dataclasses.replace(plan.config.precision, reference="mean")
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, precision=older))
    assert same_rules(plan, adopted(config, plan.config))
    named = dataclasses.replace(config, precision=dataclasses.replace(config.precision, reference="bulk"))
    assert not same_rules(plan, adopted(named, plan.config))


def test_without_public_data_probes_serve_and_without_a_shape_nothing(tmp_path: Path) -> None:
    known = plan_of(open_config(tmp_path, public=False, data={"record_shape": [6]})).config
    assert (known.precision.kind, known.precision.source) == ("dense", "probes")
    plan = plan_of(open_config(tmp_path, public=False))
    assert (plan.config.subspace.kind, plan.config.precision.kind) == ("identity", "identity")
    assert any(note.startswith("distqexp: warning: data.record_shape: without it and without") for note in plan.notes)
    assert not any("damped" in note for note in plan.notes)


def test_the_clip_falls_until_the_noise_that_was_tried_is_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = open_config(tmp_path, privacy={"units": 100000})
    first = derived_first_clip(config)
    monkeypatch.setattr(Guard, "allowance", 0.01)
    monkeypatch.setattr(Guard, "cost_of_noise", lambda self, state, share=1.0: 0.0)
    usual = plan_of(config).config.mechanism.clip_natural
    assert usual is not None
    # Ten rounds' worth of noise, each of four tenths of what is allowed in all, at the clip that costs nothing: half of it.
    cost = 0.4 * 0.01 * (first / usual) ** 2
    monkeypatch.setattr(Guard, "cost_of_noise", lambda self, state, share=1.0: cost * share**2)
    lowered = plan_of(config).config.mechanism.clip_natural
    assert lowered is not None
    assert usual / 2.3 < lowered <= usual / 1.99


def derived_first_clip(config: Config) -> float:
    """The clip of the state that noise is tried at."""
    return min(1.0, noise_budget(config, derived_calibration(config, 7), 7))


def test_the_clip_is_no_larger_than_public_units_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With units enough, the clip is the quantile of public norms in coordinates whitened by curvature and damping alone."""
    monkeypatch.setattr(Guard, "allowance", 1e9)
    plan = plan_of(open_config(tmp_path, privacy={"units": 10**9}))
    worker = Worker.of_plan(plan)
    source = public_source(plan.config, table_of(tmp_path), plan.schema, readers=worker.readers)
    norms = [public_norm(worker, plan.state, source, SerialEngine(), quantile) for quantile in (0.5, CLIP_QUANTILE, 1)]
    assert norms[0] < norms[1] < norms[2]
    assert plan.state.clip == pytest.approx(norms[1], rel=1e-2)
    assert plan.config.mechanism.clip_natural is not None
    assert plan.config.mechanism.clip_natural > 1.0


def table_of(folder: Path) -> DataConfig:
    """The public table of open_config."""
    public = open_config(folder).data.public
    assert public is not None
    return public


def test_a_layer_too_wide_for_moments_gets_leading_directions_of_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distqexp.geometry.packing.LARGEST_SIDE", 50)
    model = {"factory": "distqexp.problem.models:mlp", "args": {"inputs": 6, "outputs": 3, "hidden": [90, 40]}}
    plan = plan_of(open_config(tmp_path, "mlp", model=model))
    assert (plan.config.subspace.kind, plan.config.precision.kind, plan.k) == ("public-pca", "dense", WIDE_DIRECTIONS)


def test_few_public_records_give_fewer_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subspace that the config names itself is refused, where a chosen one is halved until public gradients span it."""
    monkeypatch.setattr("distqexp.geometry.packing.LARGEST_SIDE", 50)
    model = {"factory": "distqexp.problem.models:mlp", "args": {"inputs": 6, "outputs": 3, "hidden": [90, 40]}}
    config = open_config(tmp_path, "mlp", model=model)
    assert config.data.public is not None
    few = dataclasses.replace(config.data, public=dataclasses.replace(config.data.public, rows=((0, 11),)))
    config = dataclasses.replace(config, data=few)
    plan = plan_of(config)
    assert (plan.config.subspace.kind, plan.k, plan.config.subspace.k) == ("public-pca", 8, 8)
    named = dataclasses.replace(plan.config.subspace, k=WIDE_DIRECTIONS)
    with pytest.raises(TooFewDirectionsError, match="expected at least k"):
        plan_of(dataclasses.replace(config, subspace=named))


def test_a_start_that_is_of_no_use_is_refused(tmp_path: Path) -> None:
    pretrain = {"optimiser": "sgd", "learning_rate": 1e30, "epochs": 3}
    with pytest.raises(UsageError, match="finite"):
        plan_of(open_config(tmp_path, model={"pretrain": pretrain}))


def test_a_plan_that_leaves_something_open_is_refused(tmp_path: Path) -> None:
    plan = plan_of(open_config(tmp_path))
    config = dataclasses.replace(plan.config, mechanism=dataclasses.replace(plan.config.mechanism, clip_natural=None))
    dataclasses.replace(plan, config=config).with_identity().write(tmp_path / "plan.h5")
    with pytest.raises(FileContentError):
        Plan.read(tmp_path / "plan.h5")


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({}, {"a": None}, "model.args.a = absent, not null"),
        ({"a": {}}, {}, "model.args.a = {}, not absent"),
        ({"a": 1}, {"a": 1.0}, "model.args.a = 1, not 1.0"),
        ({"a": True}, {"a": 1}, "model.args.a = true, not 1"),
        ({"a.b": 1}, {"a": {"b": 1}}, 'model.args.a = absent, not {"b": 1}; model.args.a.b = 1, not absent'),
        ({"a": {"b": [1, 2], "c": 3}}, {"a": {"b": [2, 1], "c": 3}}, "model.args.a.b = [1, 2], not [2, 1]"),
        ({"a": "x" * 80}, {"a": "y"}, f'model.args.a = "{"x" * 56}..., not "y"'),
    ],
)
def test_whatever_differs_in_writing_is_another_config(
    one: dict[str, Any], other: dict[str, Any], told: str, tmp_path: Path
) -> None:
    plan = plan_of(open_config(tmp_path))

    def with_args(args: dict[str, Any]) -> Config:
        return dataclasses.replace(plan.config, model=dataclasses.replace(plan.config.model, args=args))

    assert "; ".join(differences(with_args(one), with_args(other))) == told
    named = dataclasses.replace(plan, config=with_args(other))
    assert other_rules(named, with_args(one)) == told
    assert same_rules(named, with_args(other))
    assert not same_rules(named, with_args(one))
