"""The cost model: a fixed calibration gives a fixed table, and more work, ranks or bytes move it the way they should."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
from run_harness import Commands

from distqexp.config import load_config
from distqexp.costs import Calibration, Network, Question, costs_of
from distqexp.costs.forecast import MOST_RANKS, fastest, forecast, table, worthwhile
from distqexp.costs.meter import Meter, forget_peak, peak_bytes
from distqexp.costs.ranks import measured_network
from distqexp.costs.workload import Workload, workload_of
from distqexp.engines.serial import SerialEngine
from distqexp.errors import FileContentError, UsageError

CALIBRATION = Calibration(
    model="distqexp.problem.models:logistic", clock="processor", d=650, k=650, width=650, micro_batch=64,
    samples=640, samples_whole=640, evaluations=400, epochs=1, plan_bytes=10**6, imports=2.0, plan=10.0,
    pretrain_epoch=0.5, curvature_record=0.01, curvature_fixed=0.25, batch_fixed=0.002, batch_record=0.001,
    sketch_first=0.1, round_fixed=0.01, feature_record=0.0, feature_numbers=0, read_record=0.001, open=0.5, check=0.05,
    files=0.02, evaluate_first=0.125, evaluate_record=0.0001, draw_first=1.0, draw=2e-5, release_first=0.1, release=0.2,
    export=0.3, export_round=0.01, operations_record=1e6, bytes_imports=300 * 2**20, bytes_plan=400 * 2**20,
    bytes_fixed=350.0 * 2**20, bytes_record=2.0**20, bytes_release=420 * 2**20, notes=("nothing",),
)  # fmt: skip
WORK = Workload(
    units=6400,
    round_units=6400.0,
    micro_batch=64,
    rounds=4,
    renewals=3,
    samples=640,
    epochs=3,
    evaluations=400,
    passes=4,
)
NETWORK = Network(latency=1e-3, bandwidth=1e9, start=0.5, memory=2.0**20)


def test_one_rank_by_hand() -> None:
    row = forecast(CALIBRATION, WORK, 1, NETWORK)
    assert row.stages == pytest.approx(
        {
            "start": 2.0,
            "plan": 10.0 + 2 * 0.5,
            "evaluate": 0.125 + 2 * 400 * 0.0001,
            "open": 0.5,
            "sketch": 0.1 + 4 * (0.01 + 100 * (0.002 + 64 * 0.002) + 2 * 0.05),
            "sum": 0.0,
            "files": 0.08,
            "draw": 1.0 + 4 * 650 * 2e-5,
            "release": 0.1 + 4 * 0.2 + 3 * (0.25 + 640 * 0.01),
            "export": 0.33,
        }
    )
    assert (row.efficiency, row.moved, row.passes) == (1.0, 0.0, 4)
    assert row.memory == 420 * 2**20
    assert row.operations == 4 * 6400 * 1e6


def test_four_ranks_by_hand() -> None:
    row = forecast(CALIBRATION, WORK, 4, NETWORK)
    sums = 4 * (2 * 2 * 1e-3 + 2 * 8 * 650 * 0.75 / 1e9)
    plan = 11.0 - 0.01 * (640 - 192) + 4e-3 + 2 * 1e6 * 0.75 / 1e9  # three of ten micro-batches of probes
    assert row.stages["start"] == 2.5
    assert row.stages["plan"] == pytest.approx(plan)
    assert row.stages["sum"] == pytest.approx(sums)
    assert row.stages["sketch"] == pytest.approx(0.1 + 4 * (0.01 + 25 * 0.13 + 0.1))
    assert row.memory == 421 * 2**20
    assert row.efficiency == pytest.approx(forecast(CALIBRATION, WORK, 1, NETWORK).seconds / (4 * row.seconds))


def test_features_of_a_frozen_part_are_made_once_for_all_rounds() -> None:
    frozen = dataclasses.replace(CALIBRATION, feature_numbers=100, feature_record=0.01)
    stage = forecast(frozen, WORK, 4, NETWORK).stages["open"]
    assert stage == pytest.approx(0.5 + 1600 * 0.011)
    assert (
        forecast(frozen, WORK, 4, NETWORK).written - forecast(CALIBRATION, WORK, 4, NETWORK).written == 4 * 100 * 6400
    )


def test_more_work_takes_longer_and_more_ranks_do_less_each() -> None:
    rows = table(CALIBRATION, WORK, NETWORK)
    assert [row.ranks for row in rows] == [2**power for power in range(13)]
    assert rows[-1].ranks == MOST_RANKS
    for less, more in itertools.pairwise(rows):
        assert more.stages["sketch"] <= less.stages["sketch"]
        assert more.operations <= less.operations
        assert more.stages["sum"] > less.stages["sum"]
        assert more.efficiency < less.efficiency
        assert more.written > less.written
    for name in ("units", "round_units", "rounds", "epochs", "evaluations", "renewals"):
        doubled = dataclasses.replace(WORK, **{name: 2 * getattr(WORK, name)})
        assert forecast(CALIBRATION, doubled, 2, NETWORK).seconds >= forecast(CALIBRATION, WORK, 2, NETWORK).seconds, (
            name
        )
    large = dataclasses.replace(WORK, micro_batch=128)
    assert forecast(CALIBRATION, large, 1, NETWORK).memory > forecast(CALIBRATION, WORK, 1, NETWORK).memory
    slow = dataclasses.replace(NETWORK, latency=1.0)
    assert forecast(CALIBRATION, WORK, 2, slow).seconds > forecast(CALIBRATION, WORK, 2, NETWORK).seconds + 8


def test_which_number_of_ranks_pays() -> None:
    rows = table(CALIBRATION, WORK, NETWORK)
    best, pays = fastest(rows), worthwhile(rows)
    assert best.seconds <= 1.001 * min(row.seconds for row in rows)
    assert 1 <= pays.ranks < best.ranks <= 128  # no more ranks than micro-batches are of use
    assert pays.efficiency >= 0.5
    assert all(row.efficiency < 0.5 for row in rows if row.ranks > pays.ranks)
    assert worthwhile(table(CALIBRATION, WORK, NETWORK, [512, 256])).ranks == 256


def test_a_fixed_calibration_gives_one_table_and_goes_through_json() -> None:
    question = Question(load_config(None, []), ranks=(8, 1, 1))
    costs = costs_of(question, CALIBRATION, Network())
    again = Calibration.from_tree(json.loads(json.dumps(CALIBRATION.tree())))
    assert again == CALIBRATION
    assert costs_of(question, again, Network()).lines() == costs.lines()
    assert [row.ranks for row in costs.forecasts] == [1, 8]
    assert "not in it: nothing" in costs.lines()
    assert costs.tree()["worthwhile"] in (1, 8)
    with pytest.raises(FileContentError, match="unknown more"):
        Calibration.from_tree(CALIBRATION.tree() | {"more": 1})


def test_the_network_is_as_stated_unless_ranks_measure_it() -> None:
    with SerialEngine() as engine:
        assert measured_network(engine, NETWORK) == NETWORK
    question = Question(load_config(None, []), ranks=(2,), latency=0.5, bandwidth=1e6)
    costs = costs_of(question, CALIBRATION, Network())
    assert (costs.network.latency, costs.network.bandwidth) == (0.5, 1e6)
    assert costs.forecasts[0].stages["sum"] == pytest.approx(8 * (2 * 0.5 + 2 * 8 * 650 * 0.5 / 1e6))


def test_the_work_of_a_config() -> None:
    config = load_config(None, ["mechanism.rounds=8", "mechanism.parts=4", "precision.refresh=3"])
    work = workload_of(config, 597)
    assert (work.units, work.round_units, work.rounds, work.renewals) == (800, 200.0, 8, 2)
    assert (work.evaluations, work.epochs, work.passes, work.samples) == (400, 100, 2, 597)
    assert workload_of(config, 0, units=1000, evaluations=7).round_units == 250
    assert work.share_of_pieces(1) == 4
    assert [work.share_of_samples(ranks) for ranks in (1, 3, 100)] == [597, 256, 64]
    with pytest.raises(UsageError, match="--units: found 0"):
        workload_of(config, 0, units=0)
    with pytest.raises(UsageError, match="--ranks: found 0"):
        forecast(CALIBRATION, WORK, 0, NETWORK)


@pytest.mark.parametrize("ranks", ["0", "1,", "two", "1,-2", ""])
def test_numbers_of_ranks(run: Commands, ranks: str) -> None:
    run.distqexp("cost", "--ranks", ranks).refused(2, "--ranks: found", "expected whole numbers above 0")


def test_a_calibration_from_a_file(run: Commands, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    run.distqexp("cost", "--calibration", path).refused(2, "no such file")
    path.write_text("{}")
    run.distqexp("cost", "--calibration", path).refused(3, "can't be read")
    path.write_text("lines for people\n" + json.dumps({"calibration": CALIBRATION.tree()}))
    outcome = run.done("cost", "--calibration", path, "--ranks", "1,4", "--json", "--set", "engine.micro_batch=32")
    tree = json.loads(outcome.out.splitlines()[-1])
    assert [row["ranks"] for row in tree["forecasts"]] == [1, 4]
    assert tree["workload"]["micro_batch"] == 32
    assert "rank(s) pay" in outcome.out
    run.distqexp("cost", "--calibration", path, "--set", "subspace.k=10").refused(2, "probe anew")


def test_a_meter_counts_seconds_and_memory() -> None:
    meter = Meter(processor=True)
    seconds, total = meter.timed(lambda: sum(range(300_000)))
    assert total == 300_000 * 299_999 // 2
    assert 0 < meter.least(lambda: sum(range(300_000))) < 60
    assert seconds <= meter.since_start()
    assert Meter(processor=False).since_start() > 0
    if forget_peak():
        before = peak_bytes()
        block = bytearray(64 * 2**20)
        assert peak_bytes() - before > 60 * 2**20
        del block
    assert math.isfinite(peak_bytes())
