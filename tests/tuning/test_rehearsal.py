"""What a rehearsal is: disjoint public sets of whole units, the real mechanism, the noise of the real run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from run_harness import FEATURES, table_source, table_tree, write_table, write_task

from distqexp.artefacts.plan import Plan
from distqexp.config import Config, DataConfig, TuneConfig, config_from_tree, load_config
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.geometry.precisions import precision_from_arrays
from distqexp.gradients.worker import Worker
from distqexp.privacy.calibration import calibrate
from distqexp.problem.dataset import open_dataset
from distqexp.problem.readers import open_reader
from distqexp.problem.readers.digits import DigitsReader
from distqexp.problem.schema import fit_schema
from distqexp.problem.selection import select_rows
from distqexp.report.progress import Progress
from distqexp.stages.plan import make_plan
from distqexp.stages.rounds import run as fit
from distqexp.tuning.rehearsal import Rehearsal, rehearsed_epsilon
from distqexp.tuning.roles import Roles, assign_roles
from distqexp.tuning.shift import hold

DIGITS = ("model.pretrain.epochs=5", "precision.samples=60", "mechanism.rounds=2", "tune.holdout=0.4", "tune.rotate=30")


def rows_of(sources: tuple[DataConfig, ...] | DataConfig) -> set[tuple[str | None, int]]:
    """(file, row) of all records that the sources select."""
    found: set[tuple[str | None, int]] = set()
    for data in sources if isinstance(sources, tuple) else (sources,):
        chosen = {(data.path, int(row)) for row in select_rows(data, open_reader(data))}
        assert not found & chosen
        found |= chosen
    return found


def disjoint(roles: Roles) -> set[tuple[str | None, int]]:
    """All rows of the three roles, after checking that none stands in two."""
    sets = [rows_of(roles.reference), rows_of(roles.stand_ins), rows_of(roles.test)]
    union = set().union(*sets)
    assert sum(map(len, sets)) == len(union)
    assert all(sets)
    return union


def task(folder: Path, *, epsilon: float = 1.0, **sections: Mapping[str, Any]) -> Config:
    """A quick task on tables, without private and evaluation files."""
    write_table(folder / "public.csv", 1, 80)
    tree = table_tree(**{"tune": {"holdout": 0.5, "test_share": 0.4}, **sections})
    tree["privacy"]["epsilon"] = epsilon
    return config_from_tree(tree, folder)


# --- roles -------------------------------------------------------------------------------------------------------


def test_the_three_sets_are_disjoint_and_all_of_the_public_records() -> None:
    config = load_config(None, DIGITS)
    roles = assign_roles(config)
    assert disjoint(roles) == {(None, row) for row in range(597)}
    held = round(0.4 * 597)
    assert (roles.units, roles.test_units) == (held - round(0.5 * held), round(0.5 * held))
    assert {data.rotate for data in (*roles.stand_ins, *roles.test)} == {30.0}
    assert roles.reference.rotate == 0.0
    assert assign_roles(config) == roles
    other = assign_roles(load_config(None, [*DIGITS, "tune.seed=1"]))
    assert rows_of(other.reference) != rows_of(roles.reference)


def test_at_most_the_nominal_number_of_units_are_stand_ins_and_the_others_are_tested_on(tmp_path: Path) -> None:
    roles = assign_roles(task(tmp_path, privacy={"units": 7}))
    assert (roles.units, roles.test_units) == (7, 33)
    assert len(disjoint(roles)) == 80


def test_units_are_never_cut(tmp_path: Path) -> None:
    write_table(tmp_path / "public.csv", 1, 60, records=5)
    tree = table_tree(tune={"holdout": 0.5})
    tree["data"]["public"] = table_source("public.csv", unit=True)
    roles = assign_roles(config_from_tree(tree, tmp_path))
    with (tmp_path / "public.csv").open() as file:
        patients = [row["patient"] for row in csv.DictReader(file)]
    assert len(disjoint(roles)) == len(patients)
    sets = [{patients[row] for _, row in rows_of(part)} for part in (roles.reference, roles.stand_ins, roles.test)]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 60
    assert [len(part) for part in sets] == [30, 15, 15]
    assert (roles.units, roles.test_units) == (15, 15)


def test_a_filter_chooses_the_held_out_units(tmp_path: Path) -> None:
    roles = assign_roles(task(tmp_path, tune={"where": "age > 0.5"}))
    with (tmp_path / "public.csv").open() as file:
        old = {row for row, record in enumerate(csv.DictReader(file)) if float(record["age"]) > 0.5}
    held = {row for _, row in rows_of(roles.stand_ins) | rows_of(roles.test)}
    assert held == old
    assert len(disjoint(roles)) == 80


def test_other_public_files_may_play_the_private_ones(tmp_path: Path) -> None:
    for name, seed in (("north", 5), ("south", 6), ("test", 7)):
        write_table(tmp_path / f"{name}.csv", seed, 30)
    sources = [table_source(str(tmp_path / f"{name}.csv")) for name in ("north", "south")]
    roles = assign_roles(task(tmp_path, tune={"private": sources, "eval": table_source(str(tmp_path / "test.csv"))}))
    assert (roles.units, roles.test_units) == (60, 30)
    assert len(rows_of(roles.reference)) == 80
    assert [data.shard for data in roles.stand_ins] == ["stand-ins-0", "stand-ins-1"]
    split = assign_roles(task(tmp_path, tune={"private": sources, "test_share": 0.25}))
    assert (split.units, split.test_units) == (45, 15)
    assert len(disjoint(split)) == 80 + 60


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"holdout": 0.01}, "0 public units to play"),
        ({"where": "age > 100"}, "tune.where: holds out 0 of 80 public units"),
        ({"where": "age < 100"}, "tune.where: holds out 80 of 80"),
        ({"private": table_source("PUBLIC")}, "all of data.public; expected some of it"),
        ({"eval": table_source("PUBLIC")}, "all of data.public; expected some of it"),
        (
            {name: table_source("PUBLIC", rows=[[0, 9]]) for name in ("private", "eval")},
            "the same records or units twice",
        ),
        ({"private": table_source("PRIVATE")}, "its file is that of data.private"),
        ({"eval": table_source("PRIVATE")}, "its file is that of data.private"),
        ({"private": table_source("PRIVATE", rows=[[0, 5]])}, "its file is that of data.private"),
        ({"private": table_source("LINK")}, "its file is that of data.private"),
    ],
)
def test_splits_that_are_refused(tmp_path: Path, tune: dict[str, Any], words: str) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "private.csv")
    names = {"PUBLIC": "public.csv", "PRIVATE": "private.csv", "LINK": "link.csv"}
    for source in tune.values():
        if isinstance(source, dict):
            source["path"] = str(tmp_path / names.get(source["path"], source["path"]))
    with pytest.raises(UsageError, match=words):
        assign_roles(task(tmp_path, tune=tune))


def test_a_file_that_holds_private_records_too_needs_rows_that_keep_them_apart(tmp_path: Path) -> None:
    public = table_source("public.csv", rows=[[0, 40]])

    def roles_with(private: dict[str, Any], tune: dict[str, Any]) -> Roles:
        config = task(tmp_path, tune={"holdout": 0.5, **tune})
        tree = table_tree(data={"public": public, "private": private})
        other = config_from_tree(tree, tmp_path)
        return assign_roles(replace(config, data=other.data))

    roles = roles_with(table_source("public.csv", rows=[[40, 80]]), {})
    assert {row for _, row in disjoint(roles)} == set(range(40))
    for rows in ([[39, 80]], None):
        with pytest.raises(UsageError, match=r"data\.public: its file is that of data\.private"):
            roles_with(table_source("public.csv", **({"rows": rows} if rows else {})), {})
    inside = table_source(str(tmp_path / "public.csv"), rows=[[30, 40]])
    with pytest.raises(UsageError, match=r"tune\.eval: its file .* expected rows of data\.public"):
        roles_with(
            table_source("public.csv", rows=[[60, 80]]),
            {"eval": table_source(str(tmp_path / "public.csv"), rows=[[40, 50]])},
        )
    roles = roles_with(table_source("public.csv", rows=[[60, 80]]), {"private": inside})
    assert {row for _, row in rows_of(roles.reference)} == set(range(30))
    assert {row for _, row in rows_of(roles.stand_ins) | rows_of(roles.test)} == set(range(30, 40))


def test_a_config_without_public_data_is_refused(tmp_path: Path) -> None:
    tree = table_tree(precision={"kind": "identity"})
    del tree["data"]["public"], tree["model"]["pretrain"]
    with pytest.raises(UsageError, match=r"data\.public: absent; expected public records"):
        assign_roles(config_from_tree(tree, tmp_path))


# --- shift -------------------------------------------------------------------------------------------------------


def test_a_random_angle_belongs_to_the_row(tmp_path: Path) -> None:
    config = load_config(None, DIGITS)
    public = config.data.public
    assert public is not None
    schema = fit_schema(public, loss="cross-entropy")
    tune = TuneConfig(rotate=(-40.0, 40.0), seed=3)
    some, more = (hold(replace(public, rows=((first, 60),)), schema, tune) for first in (20, 0))
    rows = np.arange(20, 60)
    assert torch.equal(some.read(rows).inputs, more.read(rows).inputs)
    plain = open_dataset(public, schema).read(rows).inputs
    assert not torch.equal(some.read(rows).inputs, plain)
    same = hold(replace(public, rows=((20, 60),)), schema, TuneConfig(rotate=(25.0, 25.0)))
    turned = open_dataset(replace(public, rotate=25.0), schema).read(rows).inputs
    assert torch.equal(same.read(rows).inputs, turned)
    with pytest.raises(KeyError):
        some.read([0])


def test_noise_has_its_standard_deviation_and_spares_flags_constant_and_absent_records(tmp_path: Path) -> None:
    write_table(tmp_path / "public.csv", 1, 4000)
    lines = (tmp_path / "public.csv").read_text().splitlines()
    blanked = [line.replace(line.split(",")[1], "", 1) if i % 3 == 1 else line for i, line in enumerate(lines)]
    (tmp_path / "public.csv").write_text("\n".join([*blanked[:-1], blanked[-1][:-1]]) + "\n")  # the last has no label
    columns = {"target": "died", "exclude": ["patient"], "missing_flag_above": 0.1, "constant": True}
    data = DataConfig("csv", path=str(tmp_path / "public.csv"))
    tree = table_tree(data={"public": {"format": "csv", "path": str(data.path), "columns": columns}})
    public = config_from_tree(tree, tmp_path).data.public
    assert public is not None
    schema = fit_schema(public, loss="binary-cross-entropy")
    assert len(schema.flags) == 1
    held = hold(public, schema, TuneConfig(noise=0.3)).records
    plain = open_dataset(public, schema).read(np.arange(4000))
    moved = (held.inputs - plain.inputs).numpy()
    assert not moved[:, len(FEATURES) :].any()
    assert not plain.present[-1]
    assert not moved[-1].any()
    noise = moved[:-1, : len(FEATURES)].ravel()
    # 12,000 draws: the standard deviation is within 6 of its own standard errors, false alarms below 1e-8
    assert abs(noise.std() / 0.3 - 1) < 6 / math.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 6 * 0.3 / math.sqrt(len(noise))


def test_shifts_that_the_records_dont_allow(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tune\.rotate: 30.0 with format csv"):
        rehearsal_of(task(tmp_path, tune={"rotate": 30.0}), tmp_path)


# --- noise against signal ----------------------------------------------------------------------------------------


def rehearsal_of(config: Config, folder: Path) -> Rehearsal:
    folder.mkdir(exist_ok=True)
    return Rehearsal(config, folder, SerialEngine())


@pytest.mark.parametrize("noise", ["discrete", "gaussian"])
@pytest.mark.parametrize(("epsilon", "ratio"), [(1.0, 6.7), (0.25, 40.0), (8.0, 0.5)])
def test_the_rehearsed_epsilon_has_the_mu_of_fewer_units(noise: str, epsilon: float, ratio: float) -> None:
    raised = rehearsed_epsilon(epsilon, 1e-5, ratio, noise)
    mus = [calibrate(epsilon=e, delta=1e-5, rounds=1, k=10, noise=noise).mu_total for e in (epsilon, raised)]
    assert mus[1] == pytest.approx(ratio * mus[0], rel=1e-6)
    assert rehearsed_epsilon(epsilon, 1e-5, 1.0, noise) == epsilon
    assert rehearsed_epsilon(epsilon, 1e-5, 1e5, noise) == math.inf


def spread(plan: Plan) -> NDArray[np.float64]:
    """(k,): standard deviation of a round's move from noise alone, by coordinate."""
    grid = plan.state.grid
    precision = precision_from_arrays(plan.config.precision.kind, plan.k, dict(plan.state.precision))
    columns = np.stack([precision.unwhiten(row) for row in np.eye(plan.k)])
    return np.asarray(grid.sigma * grid.step * np.linalg.norm(columns, axis=0))


def test_a_trust_radius_is_as_large_in_the_parameters(tmp_path: Path) -> None:
    ball = {"trust_radius": 2.0, "noise": "gaussian", "clip": 0.05, "clip_quantile": None}
    config = task(tmp_path, mechanism=ball)
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    found = rehearsal.config_of(config, 1.0).mechanism
    ratio = config.privacy.units / rehearsal.roles.units
    assert ratio > 1.5
    assert found.trust_radius == pytest.approx(2.0 / math.sqrt(ratio))
    assert found.clip == pytest.approx(0.05 * math.sqrt(ratio))
    pure = replace(config, privacy=replace(config.privacy, delta=0.0))
    with pytest.raises(UsageError, match=r"privacy.delta is 0; expected one above 0"):
        rehearsal.config_of(pure, 1.0)


@pytest.mark.parametrize("clip", ["clip", "clip_quantile", "clip_natural"])
def test_fewer_stand_ins_than_units_make_the_same_noise_and_the_same_move(tmp_path: Path, clip: str) -> None:
    value = {"clip": 0.05, "clip_quantile": 0.8, "clip_natural": 1.3}[clip]
    config = task(tmp_path, privacy={"units": 240})
    mechanism: Any = replace(config.mechanism, **{"rounds": 2, "parts": 2, "clip": None, clip: value})
    config = replace(config, mechanism=mechanism)
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    assert rehearsal.roles.units == 24
    few = rehearsal.config_of(config, 1.0)
    assert few.privacy.units == 24
    many = replace(few, privacy=replace(config.privacy, epsilon=1.0), mechanism=config.mechanism)
    plans = [make_plan(each, SerialEngine()) for each in (few, many)]
    np.testing.assert_allclose(spread(plans[0]), spread(plans[1]), rtol=1e-3)
    # The mean of clipped unit vectors, which are whitened by sqrt(10) less, moves the parameters as far.
    assert plans[0].state.clip == pytest.approx(plans[1].state.clip * math.sqrt(10), rel=1e-9)
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(1, plans[0].k)))
    moves = []
    for plan, units in zip(plans, (24, 240), strict=True):
        precision = precision_from_arrays("dense", plan.k, dict(plan.state.precision))
        moves.append(units * precision.unwhiten(precision.whiten(vectors)[0].numpy()))
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-9)


def test_too_few_stand_ins_are_refused_and_much_noise_is_continuous(tmp_path: Path) -> None:
    config = task(tmp_path, privacy={"units": 10**9})
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    with pytest.raises(UsageError, match="24 public units play 1000000000 private ones; too few"):
        rehearsal.raised_epsilon(config, 1.0)
    config = task(tmp_path, privacy={"units": 24 * 150})
    few = rehearsal.config_of(config, 1.0)
    assert few.privacy.epsilon > 600
    assert few.mechanism.noise == "gaussian"
    assert few.mechanism.rounding == "unit"


# --- the mechanism -----------------------------------------------------------------------------------------------

KRONECKER = (
    "precision.kind=kronecker",
    "subspace.kind=kronecker-pca",
    "subspace.k_in=20",
    "subspace.k_out=5",
    "mechanism.momentum=0.5",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["mechanism.rounds=2"],
        ["mechanism.rounds=4", "mechanism.parts=2"],
        KRONECKER,
        ["privacy.units=50"],
        ["mechanism.rounds=3", "mechanism.sampling=0.3"],
    ],
    ids=["plain", "parts", "kronecker", "as many stand-ins as units", "samples"],
)
def test_a_rehearsal_is_a_real_seeded_run_bit_for_bit(tmp_path: Path, settings: list[str]) -> None:
    config = load_config(None, [*DIGITS, *settings])
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    rehearsed = rehearsal.config_of(config, 2.0)
    if "privacy.units=50" in settings:
        assert (rehearsal.roles.units, rehearsed.privacy.epsilon) == (50, 2.0)
    (tmp_path / "sketches").mkdir()
    plan = make_plan(rehearsed, SerialEngine())
    found = [
        rehearsal.released_theta(plan, Worker.of_plan(plan), rehearsed, seed, tmp_path / "sketches") for seed in (3, 4)
    ]
    assert not np.array_equal(found[0], found[1])
    for seed, theta in zip((3, 4), found, strict=True):
        result = fit(rehearsed, tmp_path / f"run-{seed}", SerialEngine(), Progress(silent=True), noise_seed=seed)
        assert result is not None
        np.testing.assert_array_equal(result.releases[-1].theta, theta)
    # and the weights are those that the reference alone pretrains
    public = replace(config, data=replace(config.data, public=rehearsal.roles.reference))
    start = make_plan(public, SerialEngine())
    for name, array in start.weights.items():
        np.testing.assert_array_equal(plan.weights[name], array)


def test_a_run_that_diverges_has_no_score_and_doesnt_crash(tmp_path: Path) -> None:
    wild = ["mechanism.rounds=6", "mechanism.step=1e6", "precision.damping=1e-9", "mechanism.guard=false"]
    config = load_config(None, [*DIGITS, *wild])
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    (run,) = rehearsal.runs(config, 1.0, [0])
    assert (run.score is None and run.value == -math.inf and run.note) or run.value < rehearsal.before["accuracy"]
    refused = replace(config, mechanism=replace(config.mechanism, grid=400))
    (run,) = rehearsal.runs(refused, 1.0, [0])
    assert run.score is None
    assert "mechanism.grid" in run.note


def test_only_public_rows_of_a_shared_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public, private and evaluation digits are rows of one table."""
    opened: set[int] = set()
    original = DigitsReader.read

    def read(self: DigitsReader, rows: NDArray[np.int64], names: Any) -> Any:
        opened.update(int(row) for row in rows)
        return original(self, rows, names)

    monkeypatch.setattr(DigitsReader, "read", read)
    config = load_config(None, DIGITS)
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    assert [run.score for run in rehearsal.runs(config, 1.0, [0])] != [None]
    assert opened == set(range(597))


def test_a_task_on_tables_never_names_its_private_file(tmp_path: Path) -> None:
    """The rehearsed config holds no trace of it, so that no stage could open it."""
    path = write_task(tmp_path, table_tree(tune={"holdout": 0.5}))
    config = load_config(path)
    rehearsal = rehearsal_of(config, tmp_path / "scratch")
    assert "private.csv" not in repr(rehearsal.config_of(config, 1.0))
    assert "private.csv" in repr(config)
