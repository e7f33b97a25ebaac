"""What only the model tells about a plan is held against the model: d, k, parameters, classes, blocks and factors of curvature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forgery import make_plan
from small_runs import make_config, plan_of, random_table

from distqexp import api
from distqexp.artefacts.plan import Plan
from distqexp.errors import FileContentError, UsageError
from distqexp.gradients.worker import Worker
from distqexp.mechanism.factor_grid import choose_factor_grid
from distqexp.stages.built import check_built


def check(plan: Plan) -> None:
    check_built(plan, Worker.of_plan(plan))


@pytest.fixture(scope="module")
def kronecker(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A subspace of layers on a classifier, whose k, blocks and classes only the model tells."""
    folder = tmp_path_factory.mktemp("kronecker")
    for name, seed in (("private", 1), ("public", 2)):
        random_table("mlp", [1, 2] * 10, seed).write(folder / f"{name}.h5")
    subspace = {"kind": "kronecker", "k_in": 3, "k_out": 2}
    return plan_of(make_config(folder, "mlp", subspace=subspace, precision={"kind": "kronecker"}))


def test_honest_plans_are_of_their_models(kronecker: Plan, tmp_path: Path) -> None:
    check(kronecker)
    for kind in ("discrete", "ball", "batch"):
        folder = tmp_path / kind
        folder.mkdir()
        check(make_plan(folder, kind)[1])


def test_d_k_and_classes(kronecker: Plan) -> None:
    for changed, field in (
        (replace(kronecker, d=kronecker.d + 1), "d"),
        (replace(kronecker, k=kronecker.k - 1), "k"),
        (replace(kronecker, schema=replace(kronecker.schema, classes=7)), "schema.classes"),
    ):
        with pytest.raises(FileContentError, match=rf"^{field}: "):
            check(changed)


def test_parameters_are_the_weights(kronecker: Plan) -> None:
    theta = kronecker.state.theta.copy()
    theta[2] = 1e300
    with pytest.raises(FileContentError, match=r"state\.theta\[2\]: 1e\+300"):
        check(replace(kronecker, state=replace(kronecker.state, theta=theta)))
    weights = {name: np.zeros_like(array) for name, array in kronecker.weights.items()}
    with pytest.raises(FileContentError, match=r"state\.theta\["):
        check(replace(kronecker, weights=weights))


def test_blocks_of_the_precision(kronecker: Plan) -> None:
    names = sorted(kronecker.state.precision)
    other = {name: kronecker.state.precision[names[-1 - place]] for place, name in enumerate(names)}
    with pytest.raises((FileContentError, UsageError), match=r"precision|whitening"):
        check(replace(kronecker, state=replace(kronecker.state, precision=other)))


def test_factors_are_those_of_the_models_outputs(tmp_path: Path) -> None:
    """A grid for more rows than the model has: safe, but not the plan's."""
    config, plan = make_plan(tmp_path, "ball")
    assert config.mechanism.trust_radius is not None
    coarse = choose_factor_grid(plan.state.grid, config.mechanism.trust_radius, plan.k, 64, 40, 8)
    with pytest.raises(FileContentError, match=r"state\.factors"):
        check(replace(plan, state=replace(plan.state, factors=coarse)))


def test_a_site_looks_before_it_reads(tmp_path: Path, own_ledger: Path) -> None:
    """Parameters that are not the weights', a right identity: no sketch, no charge."""
    _, plan = make_plan(tmp_path, "discrete")
    changed = replace(plan, state=replace(plan.state, theta=plan.state.theta + 1.0)).with_identity()
    changed.write(tmp_path / "plan.h5")
    with pytest.raises(FileContentError, match=r"state\.theta\[0\]"):
        api.sketch(tmp_path / "plan.h5", tmp_path / "private.h5", tmp_path / "all.h5", shard="all")
    assert api.Ledger.open(own_ledger).rows() == []
