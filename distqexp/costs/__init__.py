"""``distqexp cost``: what a run will take in time, memory and bytes, on how many ranks, before it is queued."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distqexp.config import Config
from distqexp.costs.calibration import Calibration, Network
from distqexp.costs.forecast import Forecast, table
from distqexp.costs.words import lines_of, tree_of
from distqexp.costs.workload import Workload, evaluation_records, workload_of
from distqexp.engines import make_engine
from distqexp.engines.collectives import on_root_only
from distqexp.errors import FileContentError, UsageError

if TYPE_CHECKING:
    from distqexp.costs.stated import Stated

__all__ = ["Calibration", "Costs", "Network", "Question", "ask", "costs_of"]


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        config: The config.
        ranks: Numbers of ranks; powers of two to 4,096 when None.
        units: The private records, when not as many as ``privacy.units``.
        evaluations: The evaluation records, where the config doesn't say how many.
        latency: Seconds of the network, when not measured or the default.
        bandwidth: Bytes a second of the network, likewise.
        calibration: A file with an earlier calibration of the same model, instead of a probe.
        stated: Whether to state the memory of a GPU from the model's shapes instead of measuring anything.
    """

    config: Config
    ranks: tuple[int, ...] | None = None
    units: int | None = None
    evaluations: int | None = None
    latency: float | None = None
    bandwidth: float | None = None
    calibration: Path | None = None
    stated: bool = False


@dataclass(frozen=True)
class Costs:
    """The answer.

    Attributes:
        calibration: What was measured.
        work: What the run has to do.
        network: What lies between ranks.
        forecasts: What it costs, for each number of ranks.
    """

    calibration: Calibration
    work: Workload
    network: Network
    forecasts: Sequence[Forecast]

    def lines(self) -> list[str]:
        """Return lines for people."""
        return lines_of(self.calibration, self.work, self.network, self.forecasts)

    def tree(self) -> dict[str, Any]:
        """Return JSON types."""
        return tree_of(self.calibration, self.work, self.network, self.forecasts)


def ask(question: Question, environ: Mapping[str, str]) -> Costs | Stated | None:
    """Return what a run costs. Collective under a launcher: all ranks measure what lies between them, the first does the rest.

    Where it is to be stated, or a GPU is asked for and none is here, that is the memory alone.

    Opens public files alone, charges nothing, and writes to a temporary folder that it removes. Returns None on all ranks but the first.
    """
    from distqexp.costs.ranks import measured_network

    engine_config = dataclasses.replace(question.config.engine, kind="auto")
    with make_engine(engine_config, environ) as engine:
        if question.stated or (
            question.config.engine.device == "cuda" and question.calibration is None and not _has_gpu()
        ):
            return on_root_only(engine, lambda: _stated(question.config))
        network = measured_network(engine, Network())
        return on_root_only(engine, lambda: costs_of(question, _calibration(question), network))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.device_count() > 0


def _stated(config: Config) -> Stated:
    from distqexp.costs.stated import stated

    return stated(config)


def costs_of(question: Question, calibration: Calibration, network: Network) -> Costs:
    """Return the answer that follows from a calibration. Raises UsageError where that is of another task."""
    config = question.config
    if (config.model.factory, config.subspace.k or calibration.k) != (calibration.model, calibration.k):
        raise UsageError(
            f"--calibration: of {calibration.model} with k = {calibration.k}; the config has {config.model.factory} with "
            f"k = {config.subspace.k}: probe anew"
        )
    if question.latency is not None:
        network = dataclasses.replace(network, latency=question.latency)
    if question.bandwidth is not None:
        network = dataclasses.replace(network, bandwidth=question.bandwidth)
    evaluations = question.evaluations
    if evaluations is None and evaluation_records(config) is None:
        evaluations = calibration.evaluations
    work = workload_of(config, _samples(config, calibration), units=question.units, evaluations=evaluations)
    return Costs(calibration, work, network, table(calibration, work, network, question.ranks))


def _samples(config: Config, calibration: Calibration) -> int:
    """Return the public records or probes of the config's curvature: of public ones no more than the probe found."""
    wanted = config.precision.samples
    found = calibration.samples_whole
    return wanted if found and config.precision.source == "probes" else min(wanted, found)


def _calibration(question: Question) -> Calibration:
    """Read the calibration of a file, or measure one."""
    path = question.calibration
    if path is None:
        from distqexp.costs.probe import measure

        with tempfile.TemporaryDirectory(prefix="distqexp-cost-") as scratch:
            return measure(question.config, Path(scratch))
    try:
        tree = json.loads(path.read_text("utf-8").splitlines()[-1])
        return Calibration.from_tree(tree["calibration"])
    except FileNotFoundError:
        raise UsageError(f"--calibration {path}: no such file; expected what cost --json printed") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise FileContentError(f"--calibration {path}: can't be read; expected what cost --json printed") from None
