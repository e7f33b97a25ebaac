"""Public records in the place of private ones, to measure what reading them costs."""

from __future__ import annotations

import dataclasses

from distqexp.artefacts.plan import Plan
from distqexp.config import Config, DataConfig
from distqexp.gradients.context import RoundContext
from distqexp.gradients.worker import Worker
from distqexp.problem.sources import DataSource


def stand_in_for(config: Config) -> DataConfig | str:
    """Return the public file, to be read as the first private one is; or why that can't be, in words."""
    public, private = config.data.public, config.data.private[0]
    if public is None:
        return "reading: without data.public nothing stands in for the private records; it is not in the estimate"
    if public.format != private.format:
        return (
            f"reading: the public file is {public.format}, the private one {private.format}; it is not in the estimate"
        )
    rows = public.rows
    if rows:
        first, last = rows[0]
        rows = ((first, min(last, first + config.privacy.units)),)
    return dataclasses.replace(
        private,
        path=public.path,
        labels=public.labels,
        tokenizer=public.tokenizer,
        columns=public.columns,
        rows=rows,
        where=public.where,
        unit=public.unit,
        blank=None,
    )


class Reading:
    """One micro-batch of a source, in the views of the config."""

    def __init__(self, plan: Plan, worker: Worker, source: DataSource) -> None:
        self._context = RoundContext(worker, plan.state.theta, round=0, k=plan.k, sources=(source,))
        self._rows = source.slots.rows[: plan.config.engine.micro_batch]
        self.count = max(1, len(self._rows))

    def read(self) -> None:
        """Read it."""
        self._context.datasets[0].read(self._rows, self._context.views)
