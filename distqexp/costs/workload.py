"""How much work a config is: public figures alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distqexp.config import Config
from distqexp.errors import UsageError


@dataclass(frozen=True)
class Workload:
    """What a run has to do.

    Attributes:
        units: The records of all shards: the config's public figure, one record a unit, unless another one is given.
        round_units: Those of one round: a part, or the mean size of a sample.
        micro_batch: Slots in a micro-batch.
        rounds: The number of rounds.
        renewals: How many rounds after the first make their public curvature anew.
        samples: The public records or probes that it is made from; 0 where nothing is.
        epochs: Epochs of pretraining.
        evaluations: The evaluation records; each is evaluated twice.
        passes: How often the run goes over the records.
    """

    units: int
    round_units: float
    micro_batch: int
    rounds: int
    renewals: int
    samples: int
    epochs: int
    evaluations: int
    passes: float

    @property
    def pieces(self) -> int:
        """The micro-batches of one round, which ranks share."""
        return math.ceil(self.round_units / self.micro_batch)

    def share_of_pieces(self, ranks: int) -> int:
        """The micro-batches of the rank that has most."""
        return math.ceil(self.pieces / ranks)

    def share_of_samples(self, ranks: int) -> float:
        """The public records of the rank that has most."""
        pieces = math.ceil(self.samples / self.micro_batch)
        return min(self.samples, math.ceil(pieces / ranks) * self.micro_batch) if self.samples else 0.0


def workload_of(config: Config, samples: int, *, units: int | None = None, evaluations: int | None = None) -> Workload:
    """Return the work of a config.

    Args:
        config: The config.
        samples: The public records or probes that its curvature and clip are made from.
        units: The private records; ``privacy.units`` when None.
        evaluations: The evaluation records; what ``data.eval.rows`` says when None.

    Raises:
        UsageError: Fewer than one record.
    """
    mechanism = config.mechanism
    count = config.privacy.units if units is None else units
    if count < 1:
        raise UsageError(f"--units: found {count}; expected 1 or more")
    renewals = sum(config.refresh_round(round) == round for round in range(1, mechanism.rounds))
    pretrain = config.model.pretrain
    return Workload(
        units=count,
        round_units=count / mechanism.parts * mechanism.sampling,
        micro_batch=config.engine.micro_batch,
        rounds=mechanism.rounds,
        renewals=renewals,
        samples=samples,
        epochs=pretrain.epochs if pretrain else 0,
        evaluations=evaluation_records(config) or 0 if evaluations is None else evaluations,
        passes=mechanism.work,
    )


def evaluation_records(config: Config) -> int | None:
    """Return how many evaluation records the config names by their rows; 0 without any, None where it doesn't say."""
    if config.data.eval is None:
        return 0
    rows = config.data.eval.rows
    return None if rows is None else sum(last - first for first, last in rows)
