"""A round's sketch on synthetic records, to measure what one costs: no private file is opened, and nothing is written."""

from __future__ import annotations

import dataclasses
import math

from distqexp.arrays import IntegerArray
from distqexp.artefacts.plan import Plan
from distqexp.gradients.batching import Batch
from distqexp.gradients.context import RoundContext
from distqexp.gradients.worker import Worker
from distqexp.problem.records import blank_inputs
from distqexp.problem.sources import ProbeSource
from distqexp.sketching.choice import sketcher_of


class SyntheticRound:
    """The first round of a plan on synthetic records, each a unit of its own, in full micro-batches.

    Records are made beforehand, and with a frozen part of the model its features are, so that ``sketch`` does what a rank does
    with records that it has read.

    Args:
        plan: The plan.
        worker: A worker on the plan.
        batches: How many micro-batches of records to make.

    Raises:
        UsageError: The shape of a record is not known without public data.
    """

    def __init__(self, plan: Plan, worker: Worker, batches: int) -> None:
        self.micro_batch = worker.config.engine.micro_batch
        self._state = plan.state
        self._context = RoundContext(
            worker=worker,
            theta=plan.state.theta,
            round=plan.state.round,
            k=plan.k,
            sources=(ProbeSource(batches * self.micro_batch, plan.config.subspace.seed),),
            precision_arrays=dict(plan.state.precision),
            subspace_arrays=dict(plan.state.subspace),
        )
        self._batches: list[list[Batch]] = [list(self._context.batches(i)) for i in range(len(self._context.pieces))]

    def start(self) -> None:
        """Forget what was built for the round, so that the next sketch builds it anew, as every round does."""
        context = self._context
        self._context = dataclasses.replace(context)  # without what a context keeps once it is built
        self._context.on(context.worker)

    def sketch(self, batches: int) -> IntegerArray:
        """Return the int64 sum (width,) over this many micro-batches, whose records are used in turn."""
        sketcher, ready = sketcher_of(self._context, self._state), self._batches
        total = sketcher.sketch(ready[0])
        for number in range(1, batches):
            total = total + sketcher.sketch(ready[number % len(ready)])
        return total

    def frozen(self, batches: int) -> int:
        """Run the frozen part of the model over this many micro-batches of blank records; return the numbers a record's features have."""
        part, worker = self._context.worker.frozen, self._context.worker
        if part is None:
            return 0
        blank = blank_inputs(worker.schema, self.micro_batch).to(worker.network.device)
        for _ in range(batches):
            self._context.frozen_features(blank)
        return math.prod(part.shape)
