"""The sections of a config file, as frozen dataclasses. Everything in a config is public.

Every key that a file may have is a field, with its type, default, meaning and rules. The table in docs/config.md is
generated from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass

from distqexp.config.data import AllDataConfig, ColumnsConfig, DataConfig
from distqexp.config.method import (
    AugmentConfig,
    DiagnosticsConfig,
    MechanismConfig,
    PrecisionConfig,
    PrivacyConfig,
    SubspaceConfig,
)
from distqexp.config.model import ModelConfig, PretrainConfig
from distqexp.config.rules import key
from distqexp.config.running import EngineConfig, OutputConfig, TuneConfig
from distqexp.kinds import AUTO

__all__ = [
    "AllDataConfig",
    "AugmentConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "DiagnosticsConfig",
    "EngineConfig",
    "MechanismConfig",
    "ModelConfig",
    "OutputConfig",
    "PrecisionConfig",
    "PretrainConfig",
    "PrivacyConfig",
    "SubspaceConfig",
    "TuneConfig",
]


@dataclass(frozen=True)
class Config:
    """A whole configuration file."""

    model: ModelConfig = key("what is fine-tuned")
    data: AllDataConfig = key("records")
    privacy: PrivacyConfig = key("the guarantee")
    subspace: SubspaceConfig = key("the subspace", default_factory=SubspaceConfig)
    precision: PrecisionConfig = key("the public precision", default_factory=PrecisionConfig)
    augment: AugmentConfig = key("views of images", default_factory=AugmentConfig)
    mechanism: MechanismConfig = key("the mechanism", default_factory=MechanismConfig)
    diagnostics: DiagnosticsConfig = key("noisy figures on the private units", default_factory=DiagnosticsConfig)
    engine: EngineConfig = key("where the work runs", default_factory=EngineConfig)
    output: OutputConfig = key("which files are kept", default_factory=OutputConfig)
    tune: TuneConfig | None = key("how the other keys are chosen on public records", default=None)

    @property
    def automatic(self) -> bool:
        """Whether the plan still has to choose the subspace or the precision."""
        return AUTO in (self.subspace.kind, self.precision.kind)

    @property
    def by_blocks(self) -> bool:
        """Whether the subspace or the precision works on the parameters layer by layer."""
        return self.precision.traits.by_blocks or self.subspace.traits.by_blocks

    @property
    def records_together(self) -> int:
        """How many records, each view one of its own, go through the model together in a round."""
        return self.engine.micro_batch * (self.augment.views if self.augment.active else 1)

    @property
    def units_in_a_round(self) -> float:
        """The nominal number of units whose gradients one round sums: those of one part, or the mean size of a sample."""
        return self.privacy.units / self.mechanism.parts * self.mechanism.sampling

    @property
    def noise_shares(self) -> int:
        """How many sites' shares are the whole noise together; 1 where whoever holds the sums draws it."""
        tolerated = self.mechanism.tolerated_sites
        return len(self.shards) - tolerated if tolerated else 1

    @property
    def noise_excess(self) -> float:
        """How many times the planned variance the noise has where no site is missing; 1 without noise in shares."""
        return len(self.shards) / self.noise_shares if self.mechanism.tolerated_sites else 1.0

    def refresh_round(self, round: int) -> int:
        """Return the round that made the precision, the subspace and the clip that ``round`` uses."""
        last, body = round - round % self.precision.refresh, self.mechanism.head_rounds
        return max(last, body) if round >= body else last

    @property
    def private_curvature(self) -> bool:
        """Whether units add their own curvature (beta = 1)."""
        return self.mechanism.curvature == "private"

    @property
    def _has_fast_layers(self) -> bool:
        """Whether gradients are taken layer by layer, without forming that of each record."""
        return self.by_blocks and self.precision.traits.splits and not self.private_curvature

    @property
    def by_batch(self) -> bool:
        """Whether the sums of micro-batches are rounded to the grid, not the vectors of units (docs/proofs/batches.md)."""
        return self.mechanism.rounding == "batch" or (self.mechanism.rounding == "auto" and self.batches_can_be_rounded)

    @property
    def batches_can_be_rounded(self) -> bool:
        """Whether sums of micro-batches may be rounded in place of the vectors of units.

        For that, units must be single records whose micro-batch does not depend on which other units are present or drawn, and
        layers must give sums of gradients.
        """
        single = all(data.unit is None for data in self.data.private)
        fixed = self.privacy.adjacency.counts_public and not self.mechanism.sampled
        return self._has_fast_layers and single and fixed

    @property
    def unit(self) -> str:
        """The unit that the run protects, as the ledger names it: the column of the unit ids, or "record".

        Where shards have their ids in columns of different names, all the names are joined by "+".
        """
        return "+".join(sorted({data.unit_name for data in self.data.private}))

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the expected shards, in order."""
        return self.data.shards
