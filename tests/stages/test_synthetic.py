"""A round on synthetic records is the round of a plan: its sums are those of the sketcher, and its frozen part is found."""

from __future__ import annotations

import numpy as np

from distqexp.config import load_config
from distqexp.engines.serial import SerialEngine
from distqexp.gradients.context import RoundContext
from distqexp.problem.sources import ProbeSource
from distqexp.sketching.choice import sketcher_of
from distqexp.stages.plan import plan_and_worker
from distqexp.stages.synthetic import SyntheticRound


def test_the_sums_are_those_of_the_sketcher_on_the_same_records() -> None:
    config = load_config(None, ["model.pretrain.epochs=2", "precision.samples=64", "engine.micro_batch=8"])
    with SerialEngine() as engine:
        plan, worker = plan_and_worker(config, engine)
    source = ProbeSource(16, plan.config.subspace.seed)
    context = RoundContext(worker, plan.state.theta, 0, plan.k, (source,), plan.state.precision, plan.state.subspace)
    sketcher = sketcher_of(context, plan.state)
    first, second = (sketcher.sketch(context.batches(piece)) for piece in range(2))
    assert first.any()
    assert (first != second).any()
    round = SyntheticRound(plan, worker, 2)
    np.testing.assert_array_equal(round.sketch(1), first)
    np.testing.assert_array_equal(round.sketch(3), 2 * first + second)
    round.start()
    np.testing.assert_array_equal(round.sketch(2), first + second)
    assert round.frozen(1) == 0
