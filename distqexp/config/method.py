"""The sections on the method: [privacy], [augment], [subspace], [precision], [mechanism] and [diagnostics]. Public."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from distqexp.config.rules import POSITIVE, SEED, Need, Rule, at_least, between, field_needs, key
from distqexp.kinds import AUTO, PRECISIONS, SUBSPACES, Adjacency, Noise, PrecisionTraits, Size, SubspaceTraits


@dataclass(frozen=True)
class PrivacyConfig:
    """[privacy]: the guarantee of the whole run."""

    epsilon: float = key(
        "target epsilon of the whole run, above 0", POSITIVE, Rule("at most 10000", lambda value: value <= 1e4)
    )
    delta: float = key(
        "target delta of the whole run, below 1; 0: pure differential privacy, which needs mechanism.trust_radius",
        Rule("a number from 0 to below 1", lambda value: 0 <= value < 1),
        Rule("1e-300 or more, or 0", lambda value: value == 0 or value >= 1e-300),
    )
    units: int = key(
        "a public nominal number of privacy units; never taken from the data",
        between(1, 2**53, "a public number of units, 1 to 2^53"),
    )
    adjacency: Adjacency = key("which datasets are neighbours", default=Adjacency.ZERO_OUT)
    presence: int = key(
        "largest number of shards (sites) that a unit may be in; it is declared, since it can't be detected, and noise grows in proportion",
        between(1, 1024, "1 to 1024 shards"),
        default=1,
    )


@dataclass(frozen=True)
class AugmentConfig:
    """[augment]: random views of images. A record's gradient is the mean over its views; its unit is clipped after the mean."""

    views: int = key(
        "views of each image that is sketched, new ones every round; each costs a pass of its own",
        between(1, 1024, "1 to 1024"),
        default=1,
    )
    rotate: float = key(
        "each view is turned by an angle drawn from -rotate to rotate degrees",
        between(0, 180, "0 to 180 degrees"),
        default=0.0,
    )
    shift: float = key(
        "each view is moved by -shift to shift pixels along each axis",
        Rule("0 or more pixels", lambda value: 0 <= value < math.inf),
        default=0.0,
    )

    @property
    def active(self) -> bool:
        """Whether the views differ from the images."""
        return self.rotate > 0 or self.shift > 0


@dataclass(frozen=True)
class SubspaceConfig:
    """[subspace]: the subspace of the parameters that a round moves in, P."""

    kind: str = key(
        "kind of subspace; auto: what fits the model, the units and the budget, where precision.kind is auto too, else identity",
        one_of=SUBSPACES,
        open_as=AUTO,
        default=AUTO,
    )
    k: int | None = key(
        "dimension of a flat subspace; identity takes every trainable parameter", at_least(1), default=None
    )
    k_in: int | None = key("kronecker kinds: at most so many dimensions of a layer's inputs", default=None)
    k_out: int | None = key("kronecker kinds: at most so many dimensions of a layer's outputs", default=None)
    seed: int = key("seed of the subspace; round r draws from (seed, r)", SEED, default=0)
    nonzeros: int = key("nonzeros in each row of P, for sjlt", at_least(1), default=4)

    @property
    def traits(self) -> SubspaceTraits:
        """The traits of the kind; those of identity until the plan has chosen one."""
        return SUBSPACES.get(self.kind, SUBSPACES["identity"])

    def needs(self) -> Iterator[Need]:
        """Yield what the keys must be, by themselves and together."""
        yield from field_needs("subspace", self)
        sides = (("subspace.k_in", self.k_in), ("subspace.k_out", self.k_out))
        if self.traits.size is Size.SIDES:
            yield Need(self.k is None, "subspace.k", self.k, f"no k for {self.kind}: set k_in and k_out")
            for where, value in sides:
                yield Need(value is not None and value >= 1, where, value, f"1 or more, for {self.kind}")
            return
        for where, value in sides:
            yield Need(value is None, where, value, f"none for {self.kind}: set subspace.k, or a kronecker kind")
        flat = self.traits.size is Size.FLAT
        yield Need(not flat or self.k is not None, "subspace.k", None, f"a dimension for {self.kind}")


@dataclass(frozen=True)
class PrecisionConfig:
    """[precision]: the public precision A."""

    kind: str = key(
        "form of the public precision; auto: dense for a few thousand parameters, else kronecker, or kronecker-joint for three "
        "layers or more with public data and subspace.kind = auto; from public data or else probes",
        one_of=PRECISIONS,
        open_as=AUTO,
        default=AUTO,
    )
    source: Literal["public", "probes"] = key(
        "where the curvature comes from: data.public, or synthetic records (probes), which need no data",
        default="public",
    )
    damping: float = key("added to the curvature, relative to the size of its spectrum", at_least(0), default=1.0)
    reference: Literal["bulk", "mean", "winsorized"] | None = key(
        "the size of a spectrum: its mean eigenvalue (mean), that without the largest one (bulk), or that without outliers (winsorized), "
        "for pretrained features; absent: winsorized where the config sets no clip and noise is below 0.4 of the largest sum, else mean",
        default=None,
    )
    floor: float = key(
        "kronecker: the size that a layer's curvature is damped by at least, relative to the mean over the whole network",
        at_least(0),
        default=0.1,
    )
    directions: int = key(
        "kronecker-joint: so many leading directions of the whole network's public curvature are whitened, across layers",
        at_least(1),
        default=64,
    )
    samples: int = key(
        "the number of probes that a round uses, or the largest number of public records", at_least(1), default=500
    )
    rotate: tuple[float, float] | None = key(
        "public images are turned by angles drawn from this range (degrees) for curvature and clip, not for pretraining",
        Rule(
            "two angles in degrees, the smaller one first",
            lambda value: all(map(math.isfinite, value)) and value[0] <= value[1],
        ),
        default=None,
    )
    refresh: int = key("precision, subspace and clip are made anew every so many rounds", at_least(1), default=1)

    @property
    def traits(self) -> PrecisionTraits:
        """The traits of the kind; those of identity until the plan has chosen one."""
        return PRECISIONS.get(self.kind, PRECISIONS["identity"])


@dataclass(frozen=True)
class MechanismConfig:
    """[mechanism]: the exponential mechanism on the clipped quadratic expansion of the loss."""

    rounds: int = key(
        "expansions of the quadratic, one after the other; a multiple of parts; without any clip in the config about 10, else 1",
        at_least(1),
        default=1,
    )
    parts: int = key("round r uses the units of part r mod parts alone (1: every round uses every unit)", default=1)
    sampling: float = key(
        "probability with which a unit takes part in a round, by a secret coin; a round costs this share of a pass, and the guarantee "
        "counts that nobody knows who took part (1: every unit does)",
        Rule("a probability, 0.0001 to 1", lambda value: 1e-4 <= value <= 1),
        default=1.0,
    )
    step: float = key(
        "the prior precision is (units in a round / step) (curvature + damping); with units / parts * sampling",
        POSITIVE,
        default=1.0,
    )
    final_step: float | None = key(
        "step of the last round, with geometric steps in between; when absent, every round has the same step",
        POSITIVE,
        default=None,
    )
    warmup: int = key("number of rounds at the start in which the step grows linearly to its full size", default=0)
    shrink: bool = key(
        "shrink every step, and clip_natural with it, by 1 / (1 + k / (units in a round * mu of a round)^2), the most that a step can "
        "be worth under that noise (with a fixed clip, moves shrink by its root); without a trust radius",
        default=True,
    )
    discount: bool | None = key(
        "take the way of the whole run back as far as it is no longer than noise alone would make it; absent: where the config sets no "
        "clip",
        default=None,
    )
    clip: float | None = key(
        "C, in whitened units; without any clip it is as large as keeps the forecast cost of the noise small (docs/method.md)",
        POSITIVE,
        default=None,
    )
    clip_quantile: float | None = key(
        "C as this quantile of the whitened norms of public units",
        between(math.nextafter(0.0, 1.0), 1, "above 0, at most 1"),
        default=None,
    )
    clip_natural: float | None = key(
        "C as this many times sqrt(step / units in a round): a bound on gradients whitened by curvature and damping alone, the "
        "same in every round",
        POSITIVE,
        default=None,
    )
    momentum: float = key(
        "share of the previous round's move that is added to a round's own; it is taken from released points, so it costs no privacy",
        Rule("0 or more, below 1", lambda value: 0 <= value < 1),
        default=0.0,
    )
    head: tuple[str, ...] = key(
        "patterns of the parameters that alone move in the first head_rounds rounds, such as ['classifier.*']: head first, body later; "
        "needs precision.kind = kronecker or kronecker-joint",
        default=(),
    )
    head_rounds: int = key(
        "number of rounds at the start in which the head alone moves, and the rest stands still", default=0
    )
    trust_radius: float | None = key(
        "R, the largest length of a released move, in whitened units; infinite when absent; needs noise = gaussian",
        POSITIVE,
        default=None,
    )
    curvature: Literal["public", "private"] = key(
        "public: only that of the precision; private: also the units' own (beta = 1), which needs a trust radius",
        default="public",
    )
    guard: bool = key(
        "try every released point on public records, or on probes, and halve the move until its loss there is finite and hardly above "
        "the start's (docs/method.md); costs no privacy",
        default=True,
    )
    guard_rise: float = key(
        "by how much the guard lets the loss rise above the start's (for squared errors in units of the variance of the targets), or by "
        "this share of the way to the best constant prediction, whichever is more",
        at_least(0),
        default=0.05,
    )
    noise: Noise = key("discrete: exact integers; gaussian: continuous, rounded to the grid", default=Noise.DISCRETE)
    grid: int | None = key(
        "exponent of the grid step h = 2^grid; chosen by the plan when absent",
        between(-500, 450, "-500 to 450"),
        default=None,
    )
    tolerated_sites: int = key(
        "with noise in shares: how many of the sites may be missing or collude, together; 0: whoever holds the sums draws the noise",
        at_least(0),
        default=0,
        unsaid=True,
    )
    rounding: Literal["auto", "unit", "batch"] = key(
        "what is rounded to the grid: the vector of each unit, or the sum of each micro-batch (layer by layer, with a little more "
        "noise); auto: batch where it is possible",
        default="auto",
    )

    @property
    def clips_by_itself(self) -> bool:
        """Whether the clip follows from the forecast of the noise, because the config has none."""
        return self.clip is None and self.clip_quantile is None and self.clip_natural is None

    @property
    def passes(self) -> int:
        """The number of rounds that a unit may take part in."""
        return self.rounds // self.parts

    @property
    def work(self) -> float:
        """How many passes over the records all rounds cost together, on average."""
        return self.passes * self.sampling

    @property
    def sampled(self) -> bool:
        """Whether the units of a round are a secret sample."""
        return self.sampling < 1

    def part_of(self, round: int) -> int:
        """Return the part whose units a round uses."""
        return round % self.parts

    def step_of(self, round: int) -> float:
        """Return the step of a round before it shrinks: geometric from ``step`` to ``final_step``, smaller during the warm-up."""
        warmup_share = min(1.0, (round + 1) / (self.warmup + 1))
        if self.final_step is None or round == 0:
            return self.step * warmup_share
        if round == self.rounds - 1:
            return self.final_step * warmup_share
        share = round / (self.rounds - 1)
        return float(self.step ** (1 - share) * self.final_step**share) * warmup_share

    def clip_of(self, round: int, units: int) -> float | None:
        """Return the clip C of a round, before it shrinks, with ``units`` nominal units; None when it is a quantile of public norms."""
        if self.clip_natural is None:
            return self.clip
        return self.clip_natural * math.sqrt(self.step_of(round) * self.parts / (units * self.sampling))

    def needs(self) -> Iterator[Need]:
        """Yield what the keys must be, by themselves and together."""
        yield from field_needs("mechanism", self)
        yield Need(
            self.parts < 1 or self.rounds % self.parts == 0,  # the config as a whole says which parts there may be
            "mechanism.rounds", self.rounds, f"a multiple of mechanism.parts = {self.parts}, so that every unit takes part in equally "
            "many rounds",
        )  # fmt: skip
        yield Need(
            not self.sampled or self.parts <= 1,
            "mechanism.sampling", self.sampling, "1 with mechanism.parts above 1: who is in a part is known",
        )  # fmt: skip
        yield Need(
            not self.sampled or self.trust_radius is None,
            "mechanism.sampling", self.sampling, "1 with mechanism.trust_radius: its accounting has no samples",
        )  # fmt: skip
        yield Need(
            self.trust_radius is None or self.noise == Noise.GAUSSIAN,
            "mechanism.noise", str(self.noise), "gaussian with mechanism.trust_radius: a truncated draw is float64",
        )  # fmt: skip
        yield Need(
            self.curvature != "private" or self.trust_radius is not None,
            "mechanism.trust_radius", None, 'a radius with mechanism.curvature = "private": without one a utility has no Lipschitz bound',
        )  # fmt: skip
        yield Need(
            self.final_step is None or self.rounds > 1,
            "mechanism.final_step", self.final_step, "mechanism.rounds of 2 or more, or mechanism.step alone",
        )  # fmt: skip
        yield Need(
            0 <= self.head_rounds < self.rounds,
            "mechanism.head_rounds", self.head_rounds, "0 or more, below mechanism.rounds; freeze the body by model.trainable "
            "where it is never to move",
        )  # fmt: skip
        yield Need(
            (self.head_rounds > 0) == bool(self.head),
            "mechanism.head", list(self.head), "patterns of parameter names together with mechanism.head_rounds above 0, or neither",
        )  # fmt: skip
        yield Need(0 <= self.warmup < self.rounds, "mechanism.warmup", self.warmup, "0 or more, below mechanism.rounds")
        clips = [self.clip, self.clip_quantile, self.clip_natural]
        yield Need(
            sum(clip is not None for clip in clips) <= 1,
            "mechanism.clip", self.clip, "at most one of mechanism.clip, clip_quantile and clip_natural",
        )  # fmt: skip


@dataclass(frozen=True)
class DiagnosticsConfig:
    """[diagnostics]: the noisy figures on the private units that every round releases from the same budget."""

    share: float = key(
        "share of mu^2 that pays for noisy figures: how many units there are, the share of them that was clipped, their mean loss; 0: none",
        Rule("0, or 0.001 to 0.5", lambda value: value == 0 or 0.001 <= value <= 0.5),
        default=0.0,
    )
    largest_loss: float = key(
        "cap on the loss that a unit counts with, which is the mean over its records", POSITIVE, default=4.0
    )
