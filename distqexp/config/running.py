"""[engine], [output] and [tune]: where the work runs, which files are kept, and how other keys are chosen. Public."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from distqexp.config.data import DataConfig
from distqexp.config.rules import SEED, SHARE, Need, Rule, at_least, between, field_needs, key

LISTS: dict[str, str] = {
    "rounds": "mechanism",
    "parts": "mechanism",
    "sampling": "mechanism",
    "step": "mechanism",
    "final_step": "mechanism",
    "warmup": "mechanism",
    "momentum": "mechanism",
    "damping": "precision",
    "clip": "mechanism",
    "clip_quantile": "mechanism",
    "clip_natural": "mechanism",
    "trust_radius": "mechanism",
    "k": "subspace",
    "k_in": "subspace",
    "k_out": "subspace",
}
"""The keys of [tune] that are lists of values to try, and the section whose key of the same name each list is for."""


_ADDRESS = re.compile(r"([a-z]+://)?(\[[^\s\[\]]+\]|[^\s:/\[\]]+):[0-9]{1,5}(/\S*)?")
"""A scheduler's address: a protocol, a host (in brackets where it has colons), and a port, without which Dask waits in vain."""


def _each(expected: str, holds: Any) -> tuple[Rule, Rule]:
    """Return the rules of a list of [tune]: it has at least one value, and each is allowed."""
    return (
        Rule("at least one value, or no list", bool),
        Rule(expected, lambda value: value < math.inf and holds(value), each=True),
    )


_EACH_AT_LEAST_ONE = _each("1 or more", lambda value: value >= 1)
_EACH_AT_LEAST_ZERO = _each("0 or more", lambda value: value >= 0)
_EACH_POSITIVE = _each("above 0", lambda value: value > 0)
_EACH_SAMPLING = _each("a probability, 0.0001 to 1", lambda value: 1e-4 <= value <= 1)


def _is_range(value: float | tuple[float, float]) -> bool:
    """Whether the value is a finite angle, or a pair of them with the smaller one first."""
    angles = value if isinstance(value, tuple) else (value, value)
    return all(map(math.isfinite, angles)) and angles[0] <= angles[1]


@dataclass(frozen=True)
class EngineConfig:
    """[engine]: where the work runs. Only micro_batch, threads, device and mixed_precision are part of the plan."""

    kind: Literal["auto", "serial", "mpi", "dask"] = key("auto: mpi under a launcher, else serial", default="auto")
    micro_batch: int = key("slots in every micro-batch", between(1, 2**31 - 1, "1 or more, below 2^31"), default=64)
    device: str = key(
        "cpu, or cuda (each rank takes the device of its local rank)",
        Rule("cpu or cuda", ("cpu", "cuda").__contains__),
        default="cpu",
    )
    mixed_precision: Literal["off", "bfloat16", "float16"] = key(
        "the type that forward passes take matrix products in (torch.autocast); clip, norms, sums and parameters keep theirs "
        "(docs/supercomputer.md#gpus)",
        default="off",
        unsaid=True,
    )
    threads: int = key("threads of each rank", between(1, 1024, "1 to 1024"), default=1)
    scheduler: str | None = key(
        "address of a Dask scheduler, tcp://host:8786; a local cluster when absent",
        Rule("host:port, such as tcp://node1:8786", lambda value: _ADDRESS.fullmatch(value) is not None),
        default=None,
    )
    workers: int | None = key(
        "processes of the local Dask cluster; one for each core when absent", at_least(1), default=None
    )


@dataclass(frozen=True)
class OutputConfig:
    """[output]: which files are kept."""

    keep_sketches: bool = key("keep the private sketch and quadratic files after their release", default=False)


@dataclass(frozen=True)
class TuneConfig:
    """[tune]: how ``distqexp tune`` rehearses on public records, and which settings it tries. It is not part of a plan."""

    holdout: float = key("share of the public units that is held out", SHARE, default=0.2)
    where: str | None = key(
        "filter: the held-out units are those with a record that passes, not random ones", default=None
    )
    test_share: float = key(
        "share of the held-out units that is tested on; the others play the role of the private ones",
        SHARE,
        default=0.5,
    )
    private: tuple[DataConfig, ...] = key(
        "public records that play the role of the private ones, instead of held-out records", default=()
    )
    eval: DataConfig | None = key("public records to test on, instead of held-out records", default=None)
    rotate: float | tuple[float, float] | None = key(
        "held-out images are turned by so many degrees, or by random angles from a range",
        Rule("degrees, or two angles, the smaller one first", lambda value: _is_range(value)),
        default=None,
    )
    noise: float = key(
        "normal noise of this standard deviation is added to the features of held-out records",
        at_least(0),
        default=0.0,
    )
    trials: int = key("number of settings to try at every epsilon", between(1, 10**6, "1 to 1000000"), default=24)
    seeds: int = key(
        "noise seeds for each setting at first; the leading ones get 3, then 5 times as many",
        between(1, 10**6, "1 to 1000000"),
        default=1,
    )
    seed: int = key("seed of the split, the shift and the order of the settings", SEED, default=0)
    metric: Literal["accuracy", "auroc", "log_loss", "mean_squared_error"] | None = key(
        "what is compared; when absent, accuracy, auroc or mean_squared_error, depending on the loss", default=None
    )
    rounds: tuple[int, ...] | None = key(
        "values of mechanism.rounds to try; the config's own when absent", *_EACH_AT_LEAST_ONE, default=None
    )
    parts: tuple[int, ...] | None = key("values of mechanism.parts", *_EACH_AT_LEAST_ONE, default=None)
    sampling: tuple[float, ...] | None = key("values of mechanism.sampling", *_EACH_SAMPLING, default=None)
    max_passes: int | None = key(
        "try no setting whose rounds together cost more passes over the records than this: rounds / parts * sampling",
        at_least(1),
        default=None,
    )
    step: tuple[float, ...] | None = key("values of mechanism.step", *_EACH_POSITIVE, default=None)
    final_step: tuple[float, ...] | None = key("values of mechanism.final_step", *_EACH_POSITIVE, default=None)
    warmup: tuple[int, ...] | None = key("values of mechanism.warmup", *_EACH_AT_LEAST_ZERO, default=None)
    momentum: tuple[float, ...] | None = key("values of mechanism.momentum", *_EACH_AT_LEAST_ZERO, default=None)
    damping: tuple[float, ...] | None = key("values of precision.damping", *_EACH_AT_LEAST_ZERO, default=None)
    clip: tuple[float, ...] | None = key(
        "values of mechanism.clip; each of the three clips takes the place of the others", *_EACH_POSITIVE, default=None
    )
    clip_quantile: tuple[float, ...] | None = key("values of mechanism.clip_quantile", *_EACH_POSITIVE, default=None)
    clip_natural: tuple[float, ...] | None = key("values of mechanism.clip_natural", *_EACH_POSITIVE, default=None)
    trust_radius: tuple[float, ...] | None = key("values of mechanism.trust_radius", *_EACH_POSITIVE, default=None)
    k: tuple[int, ...] | None = key("values of subspace.k", *_EACH_AT_LEAST_ONE, default=None)
    k_in: tuple[int, ...] | None = key("values of subspace.k_in", *_EACH_AT_LEAST_ONE, default=None)
    k_out: tuple[int, ...] | None = key("values of subspace.k_out", *_EACH_AT_LEAST_ONE, default=None)

    def needs(self) -> Iterator[Need]:
        """Yield what the keys must be, by themselves and together."""
        yield from field_needs("tune", self)
        yield Need(
            self.where is None or not self.private, "tune.where", self.where, "tune.where or tune.private, not both"
        )
        for i, data in enumerate(self.private):
            yield from data.needs(f"tune.private.{i}")
        if self.eval is not None:
            yield from self.eval.needs("tune.eval")
