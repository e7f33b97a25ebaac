"""The sections of a config file, as frozen dataclasses. Everything in a config is public.

Every key that a file may hold is a field here, with its type, its default and its meaning; the table in
docs/config.md is generated from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distqexp.kinds import PRECISIONS, SUBSPACES, PrecisionTraits, SubspaceTraits


def key(doc: str, *, one_of: Mapping[str, object] | None = None, **kwargs: Any) -> Any:
    """A dataclass field with its one-line meaning, for the generated table. one_of: the names that its text may be."""
    return field(metadata={"doc": doc, "one_of": one_of}, **kwargs)


@dataclass(frozen=True)
class PretrainConfig:
    """[model.pretrain]: fit theta_0 on the public data before anything else."""

    epochs: int = key("passes over the public records", default=10)
    optimiser: str = key("adam, sgd or lbfgs (full batch)", default="adam")
    learning_rate: float = key("step of the optimiser", default=0.001)
    batch: int = key("records a step (ignored by lbfgs)", default=128)
    weight_decay: float = key("L2 penalty, added to the mean loss as weight_decay/2 * ||theta||^2", default=0.0)
    seed: int = key("seed of the initial weights and of the order of the records", default=0)


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is fine-tuned."""

    factory: str = key('"package.module:function" that returns a torch.nn.Module')
    loss: Literal["cross-entropy", "binary-cross-entropy", "mean-squared-error"] = key("the training loss")
    args: Mapping[str, Any] = key("keyword arguments of the factory", default_factory=dict)
    weights: str | None = key("pretrained weights: .safetensors, or a torch file of tensors", default=None)
    pretrain: PretrainConfig | None = key("pretrain on data.public instead of loading weights", default=None)
    trainable: tuple[str, ...] = key("patterns (fnmatch) of the parameters that are fine-tuned", default=("*",))


@dataclass(frozen=True)
class ColumnsConfig:
    """[data.*.columns]: the roles of a table's columns or of an HDF5 file's arrays."""

    target: str | None = key("column or HDF5 dataset of the label", default=None)
    features: tuple[str, ...] | None = key(
        "feature columns or one HDF5 dataset; all the others when absent", default=None
    )
    exclude: tuple[str, ...] = key("columns that are never features", default=())
    missing_flag_above: float | None = key(
        "add a 0/1 missingness column for features missing in more than this share of the public rows", default=None
    )
    standardise: bool = key("centre and scale features by public moments", default=True)
    winsorise_above: float | None = key(
        "cut standardised features off at so many public standard deviations above and below the public mean",
        default=None,
    )
    constant: bool = key("append a column of ones", default=False)
    tokens: bool = key("hdf5: features are token numbers, whole numbers (n, L), all of one length", default=False)
    mask: str | None = key(
        "hdf5 tokens: dataset (n, L) of 1 for tokens and 0 for padding; all 1 when absent", default=None
    )


@dataclass(frozen=True)
class DataConfig:
    """[data.public], [data.private], [data.eval]: one source of records each."""

    format: Literal["digits", "idx", "csv", "parquet", "hdf5"] = key("the reader")
    path: str | None = key("file; ${NAME} is an environment variable; relative to the config file", default=None)
    labels: str | None = key("file of the labels, for idx", default=None)
    rows: tuple[tuple[int, int], ...] | None = key("half-open ranges [first, last) of rows of the file", default=None)
    where: str | None = key('filter on columns, such as "CCU == 1 and Age >= 18"', default=None)
    rotate: float = key("rotate images by so many degrees, counter-clockwise", default=0.0)
    columns: ColumnsConfig = key("roles of the columns", default_factory=ColumnsConfig)
    unit: str | None = key("column or array of the privacy unit's id; one record a unit when absent", default=None)
    shard: str | None = key("name of the shard; the plan expects each name exactly once", default=None)
    blank: str | None = key(
        ".npy file of booleans, a row of the file each: true blanks that record's slot", default=None
    )

    @property
    def unit_name(self) -> str:
        """The column of the unit's id, or "record" where each record is a unit of its own."""
        return "record" if self.unit is None else self.unit


@dataclass(frozen=True)
class AllDataConfig:
    """[data]."""

    private: tuple[DataConfig, ...] = key("the sensitive records: a table, or an array of tables (one a shard)")
    population: str = key("name that budgets are kept under in the ledger")
    public: DataConfig | None = key("public records: pretraining, curvature, clip quantile", default=None)
    record_shape: tuple[int, ...] | None = key(
        "shape of a record, where no data.public shows it: [28, 28] for idx, [3, 32, 32] or tokens [128] for hdf5",
        default=None,
    )
    eval: DataConfig | None = key("records that metrics are computed on", default=None)
    eval_private: bool = key("whether data.eval is private: its metrics are then marked as not covered", default=False)


@dataclass(frozen=True)
class AugmentConfig:
    """[augment]: random views of images, whose mean gradient stands for the record's. The unit is clipped after the mean."""

    views: int = key(
        "views of each image that is sketched, new ones every round; each costs a pass of its own", default=1
    )
    rotate: float = key("each view is turned by an angle drawn from -rotate to rotate degrees", default=0.0)
    shift: float = key("and moved by -shift to shift pixels, along either axis", default=0.0)

    @property
    def active(self) -> bool:
        """Whether views differ from the images."""
        return self.rotate > 0 or self.shift > 0


@dataclass(frozen=True)
class PrivacyConfig:
    """[privacy]: the guarantee."""

    epsilon: float = key("target epsilon of the whole run, above 0")
    delta: float = key(
        "target delta of the whole run, below 1; 0: pure differential privacy, which needs mechanism.trust_radius"
    )
    units: int = key("n_bar, a public nominal number of privacy units; never taken from the data")
    adjacency: Literal["zero-out", "add-remove", "replace-one"] = key(
        "which datasets are neighbours", default="zero-out"
    )
    presence: int = key(
        "a unit may be present in so many shards (sites): declared, since it can't be detected; noise grows in proportion",
        default=1,
    )

    @property
    def counts_public(self) -> bool:
        """Whether the number of slots is public: what is a share of the work then is, too."""
        return self.adjacency != "add-remove"


@dataclass(frozen=True)
class SubspaceConfig:
    """[subspace]: P."""

    kind: str = key("kind of subspace", one_of=SUBSPACES, default="identity")
    k: int | None = key("dimension of a flat subspace; identity takes every trainable parameter", default=None)
    k_in: int | None = key("kronecker kinds: at most so many dimensions of a layer's inputs", default=None)
    k_out: int | None = key("kronecker kinds: at most so many dimensions of a layer's outputs", default=None)
    seed: int = key("seed; round r draws from (seed, r)", default=0)
    nonzeros: int = key("nonzeros a row, for sjlt", default=4)

    @property
    def traits(self) -> SubspaceTraits:
        """What is known of the kind."""
        return SUBSPACES[self.kind]


@dataclass(frozen=True)
class PrecisionConfig:
    """[precision]: A."""

    kind: str = key("form of the public precision", one_of=PRECISIONS, default="identity")
    source: Literal["public", "probes"] = key(
        "where the curvature comes from: data.public, or synthetic records (probes), which need no data",
        default="public",
    )
    damping: float = key("added to the curvature, relative to its mean eigenvalue", default=1.0)
    samples: int = key("at most so many public records, or so many probes, are used a round", default=500)
    rotate: tuple[float, float] | None = key(
        "public images are turned by angles drawn from this range (degrees) for curvature and clip, not for pretraining",
        default=None,
    )
    refresh: int = key("precision, subspace and clip are made anew every so many rounds", default=1)

    @property
    def traits(self) -> PrecisionTraits:
        """What is known of the kind."""
        return PRECISIONS[self.kind]

    def made_at(self, round: int) -> int:
        """The round that made the precision, the subspace and the clip that ``round`` uses."""
        return round - round % self.refresh


@dataclass(frozen=True)
class MechanismConfig:
    """[mechanism]: the exponential mechanism on the clipped quadratic."""

    rounds: int = key("re-expansions of the quadratic; a multiple of parts", default=1)
    parts: int = key("round r uses the units of part r mod parts alone (1: every round uses every unit)", default=1)
    step: float = key("step: the prior precision is (n_bar / parts / step) (curvature + damping)", default=1.0)
    final_step: float | None = key(
        "step of the last round, geometric in between; step in every round when absent", default=None
    )
    warmup: int = key("in the first so many rounds the step grows, linearly, to what it is from there on", default=0)
    clip: float | None = key("C, in whitened units", default=None)
    clip_quantile: float | None = key("C as this quantile of the whitened norms of public units", default=None)
    clip_natural: float | None = key(
        "C as this many times sqrt(step parts / n_bar): a bound on gradients whitened by curvature and damping alone, the "
        "same in every round",
        default=None,
    )
    momentum: float = key(
        "share of the last round's move that is added to a round's own; of released points: free", default=0.0
    )
    trust_radius: float | None = key(
        "R: the released move is at most so long, in whitened units; infinite when absent; needs noise = gaussian",
        default=None,
    )
    curvature: Literal["public", "private"] = key(
        "public: that of the precision alone; private: units' own too (beta = 1), which needs a trust radius",
        default="public",
    )
    noise: Literal["discrete", "gaussian"] = key(
        "discrete: exact integers; gaussian: continuous, rounded to the grid", default="discrete"
    )
    grid: int | None = key("exponent of the grid step h = 2^grid; chosen by the plan when absent", default=None)
    rounding: Literal["auto", "unit", "batch"] = key(
        "to the grid: every unit's vector, or the sum of every micro-batch (layer by layer, noise a little larger); auto: "
        "batch where it can be",
        default="auto",
    )

    @property
    def passes(self) -> int:
        """How many rounds a unit takes part in."""
        return self.rounds // self.parts

    def part_of(self, round: int) -> int:
        """The part whose units a round uses."""
        return round % self.parts

    def step_of(self, round: int) -> float:
        """The step of a round: geometric from ``step`` at the first to ``final_step`` at the last; smaller while warming up."""
        warm = min(1.0, (round + 1) / (self.warmup + 1))
        if self.final_step is None or round == 0:
            return self.step * warm
        if round == self.rounds - 1:
            return self.final_step * warm
        share = round / (self.rounds - 1)
        return float(self.step ** (1 - share) * self.final_step**share) * warm

    def clip_of(self, round: int, units: int) -> float | None:
        """C of a round, of ``units`` nominal units; None where it is a quantile of public norms."""
        if self.clip_natural is None:
            return self.clip
        return self.clip_natural * math.sqrt(self.step_of(round) * self.parts / units)


@dataclass(frozen=True)
class DiagnosticsConfig:
    """[diagnostics]: what every round tells about the private units, with noise, from the same budget."""

    share: float = key(
        "of mu^2, released as: how many units there are, the share of them that was clipped, their mean loss; 0: nothing",
        default=0.0,
    )
    largest_loss: float = key("a unit's loss, the mean over its records, counts up to this", default=4.0)


@dataclass(frozen=True)
class EngineConfig:
    """[engine]: where the work runs. Only micro_batch, threads and device enter the plan."""

    kind: Literal["auto", "serial", "mpi", "dask"] = key("auto: mpi under a launcher, else serial", default="auto")
    micro_batch: int = key("slots a micro-batch, one fixed shape", default=64)
    device: str = key("cpu, or cuda (each rank takes the device of its local rank)", default="cpu")
    threads: int = key("threads a rank", default=1)
    scheduler: str | None = key("address of a Dask scheduler; a local cluster when absent", default=None)
    workers: int | None = key("processes of the local Dask cluster; one a core when absent", default=None)


@dataclass(frozen=True)
class OutputConfig:
    """[output]."""

    keep_sketches: bool = key("keep the private sketch and quadratic files after their release", default=False)


@dataclass(frozen=True)
class TuneConfig:
    """[tune]: how ``distqexp tune`` rehearses on public records, and what it tries. No part of a plan."""

    holdout: float = key("share of the public units that is held out", default=0.2)
    where: str | None = key(
        "filter: the held-out units are those with a record that passes, not random ones", default=None
    )
    test_share: float = key(
        "share of the held-out units that is tested on; the others play the private ones", default=0.5
    )
    private: tuple[DataConfig, ...] = key(
        "public records that play the private ones, in the place of held-out ones", default=()
    )
    eval: DataConfig | None = key("public records to test on, in the place of held-out ones", default=None)
    rotate: float | tuple[float, float] | None = key(
        "images that are held out are turned by so many degrees, or by random angles from a range", default=None
    )
    noise: float = key(
        "normal noise of this standard deviation is added to the features of records held out", default=0.0
    )
    trials: int = key("settings to try, at every epsilon", default=24)
    seeds: int = key("noise seeds of a setting at first; 3 and 5 times as many for the leaders", default=1)
    seed: int = key("seed of the split, the shift and the order of the settings", default=0)
    metric: Literal["accuracy", "auroc", "log_loss", "mean_squared_error"] | None = key(
        "what is compared; accuracy, auroc or mean_squared_error, by the loss, when absent", default=None
    )
    rounds: tuple[int, ...] | None = key(
        "values of mechanism.rounds to try; the config's own when absent", default=None
    )
    parts: tuple[int, ...] | None = key("values of mechanism.parts", default=None)
    max_passes: int | None = key("try no setting with more rounds a unit than this", default=None)
    step: tuple[float, ...] | None = key("values of mechanism.step", default=None)
    final_step: tuple[float, ...] | None = key("values of mechanism.final_step", default=None)
    warmup: tuple[int, ...] | None = key("values of mechanism.warmup", default=None)
    momentum: tuple[float, ...] | None = key("values of mechanism.momentum", default=None)
    damping: tuple[float, ...] | None = key("values of precision.damping", default=None)
    clip: tuple[float, ...] | None = key(
        "values of mechanism.clip; each of the three clips takes the place of the others", default=None
    )
    clip_quantile: tuple[float, ...] | None = key("values of mechanism.clip_quantile", default=None)
    clip_natural: tuple[float, ...] | None = key("values of mechanism.clip_natural", default=None)
    trust_radius: tuple[float, ...] | None = key("values of mechanism.trust_radius", default=None)
    k: tuple[int, ...] | None = key("values of subspace.k", default=None)
    k_in: tuple[int, ...] | None = key("values of subspace.k_in", default=None)
    k_out: tuple[int, ...] | None = key("values of subspace.k_out", default=None)


@dataclass(frozen=True)
class Config:
    """A whole configuration file, checked."""

    model: ModelConfig = key("what is fine-tuned")
    data: AllDataConfig = key("records")
    privacy: PrivacyConfig = key("the guarantee")
    subspace: SubspaceConfig = key("the subspace", default_factory=SubspaceConfig)
    precision: PrecisionConfig = key("the public precision", default_factory=PrecisionConfig)
    augment: AugmentConfig = key("views of images", default_factory=AugmentConfig)
    mechanism: MechanismConfig = key("the mechanism", default_factory=MechanismConfig)
    diagnostics: DiagnosticsConfig = key("what is told about the private units", default_factory=DiagnosticsConfig)
    engine: EngineConfig = key("where the work runs", default_factory=EngineConfig)
    output: OutputConfig = key("what is kept", default_factory=OutputConfig)
    tune: TuneConfig | None = key("how the other keys are chosen on public records", default=None)

    @property
    def by_blocks(self) -> bool:
        """Whether the subspace or the precision works on the parameters layer by layer."""
        return self.precision.traits.by_blocks or self.subspace.traits.by_blocks

    @property
    def private_curvature(self) -> bool:
        """Whether units bring their own curvature (beta = 1)."""
        return self.mechanism.curvature == "private"

    @property
    def fast_layers(self) -> bool:
        """Whether gradients are taken layer by layer, without one for each example."""
        return self.by_blocks and self.precision.traits.splits and not self.private_curvature

    @property
    def by_batch(self) -> bool:
        """Whether sums of micro-batches are rounded to the grid, not vectors of units (docs/proofs/batches.md)."""
        return self.mechanism.rounding == "batch" or (self.mechanism.rounding == "auto" and self.batches_can_be_rounded)

    @property
    def batches_can_be_rounded(self) -> bool:
        """Units are single records that keep their micro-batches whoever else is there, and layers give sums."""
        single = all(data.unit is None for data in self.data.private)
        return self.fast_layers and single and self.privacy.adjacency != "add-remove"

    @property
    def unit(self) -> str:
        """Whom the run protects, in the ledger's words: the column of the unit ids, or "record"; of shards with ids in
        columns of several names all the names."""
        return "+".join(sorted({data.unit_name for data in self.data.private}))

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the expected shards, in order."""
        return tuple(data.shard or "all" for data in self.data.private)
