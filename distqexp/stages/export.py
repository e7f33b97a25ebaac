"""Stage 5, export: the fine-tuned weights, the certificate, and the metrics, which are marked as not covered by it."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import distqexp
from distqexp.arrays import FloatArray
from distqexp.artefacts.card import ModelCard
from distqexp.artefacts.moves import WHOLE
from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release, charged_part, diagnostics_of
from distqexp.config import DataConfig
from distqexp.gradients.worker import Worker
from distqexp.kinds import Adjacency, Noise
from distqexp.mechanism.grid import Grid
from distqexp.privacy.expenses import Charge, Part, expenses
from distqexp.privacy.guarantee import Guarantee
from distqexp.problem.dataset import open_dataset
from distqexp.problem.hiding import unless_raised
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network
from distqexp.problem.pretrained import write_pretrained
from distqexp.problem.records import Records
from distqexp.problem.target_scaling import in_own_units, outputs_in_own_units
from distqexp.problem.weights import write_weights
from distqexp.report.certificate import Certificate, write_certificate
from distqexp.report.evaluation import Outputs
from distqexp.storage.atomic import write_atomic

EVALUATION_BATCH = 1024


def fine_tuned_network(plan: Plan, theta: FloatArray, worker: Worker | None = None) -> Network:
    """Return the plan's model with its trainable parameters at ``theta`` (d,).

    It is the worker's own network, and valid until the worker sets other parameters.
    """
    return (worker or Worker.of_plan(plan)).network_at(theta)


class Evaluation(NamedTuple):
    """What evaluation records say of a model. Not covered by epsilon, and private where the records are.

    Attributes:
        metrics: By name; empty without records.
        outputs: What the model says of each present record; None without any.
    """

    metrics: dict[str, float]
    outputs: Outputs | None = None


def evaluate(plan: Plan, theta: FloatArray, data: DataConfig | None, worker: Worker | None = None) -> dict[str, float]:
    """Compute the model's metrics at ``theta`` on the evaluation records; empty without records. Not covered by epsilon."""
    return evaluation_of(plan, theta, data, worker).metrics


def evaluation_of(plan: Plan, theta: FloatArray, data: DataConfig | None, worker: Worker | None = None) -> Evaluation:
    """Run the model at ``theta`` on the evaluation records. Not covered by epsilon, and private where the records are."""
    if data is None:
        return Evaluation({})
    private, worker = plan.config.data.eval_private, worker or Worker.of_plan(plan)
    reader = worker.readers.of(data, private=private)
    network = worker.network_at(theta)
    dataset = open_dataset(data, plan.schema, private=private, reader=reader).of_model(network)
    rows = dataset.slot_map().rows
    starts = range(0, max(len(rows), 1), EVALUATION_BATCH)
    batches = (dataset.read(rows[first : first + EVALUATION_BATCH]) for first in starts)
    loss = get_loss(plan.config.model.loss)
    # A record that the model or the loss raises for is left out. A public one is shown as long as nothing was charged.
    hidden = private or theta is not plan.state.theta
    sides = outputs_of(network, batches, hidden)
    if sides is None:
        return Evaluation({})
    outputs, targets = (outputs_in_own_units(plan.schema, values) for values in sides[:2])

    def evaluation() -> Evaluation:
        with loss.kept():
            usable = _usable(loss, outputs, targets, sides[2]) if hidden else (outputs, targets, sides[2])
            return Evaluation(loss.metrics(*usable), _of_present(loss, *usable))

    return (unless_raised(evaluation) or Evaluation({})) if hidden else evaluation()


def metrics_of(network: Network, loss: str, batches: Iterable[Records]) -> dict[str, float]:
    """Compute the metrics of a model on all of these records; the metrics are private when the records are."""
    sides = outputs_of(network, batches, hidden=False)
    return {} if sides is None else get_loss(loss).metrics(*sides)


Sides = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Outputs (n, ...), targets and presence (n,) of records."""


def outputs_of(network: Network, batches: Iterable[Records], hidden: bool) -> Sides | None:
    """Return the outputs, targets and presence of all records; ``hidden``: of those that the model raises for nothing. None for none."""
    parts: list[Sides] = []
    for records in batches:
        sides = records.inputs.to(network.device), records.targets, records.present
        parts += _apart(lambda *part: (network.outputs(part[0]).cpu(), *part[1:]), sides, hidden)
    return _joined(parts)


def _usable(loss: Loss, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> Sides:
    """Return the records without those that the loss raises for."""

    def tried(*part: torch.Tensor) -> Sides:
        loss.value(part[0].double(), part[1])
        return part[0], part[1], part[2]

    sides = outputs, targets, present
    return _joined(_apart(tried, sides, hidden=True)) or (outputs[:0], targets[:0], present[:0])


def _apart(compute: Callable[..., Sides], sides: Sides, hidden: bool) -> list[Sides]:
    """Return what ``compute`` gives for all records, or ``hidden`` for each, without those that it raises for."""
    if not hidden:
        return [compute(*sides)]
    whole = unless_raised(lambda: compute(*sides))
    if whole is not None:
        return [whole]
    singles = zip(*(torch.split(side, 1) for side in sides), strict=True)
    found = (unless_raised(lambda single=single: compute(*single)) for single in singles)  # type: ignore[misc]
    return [part for part in found if part is not None]


def _joined(parts: Sequence[Sides]) -> Sides | None:
    if not parts:
        return None
    outputs, targets, present = (torch.cat(side) for side in zip(*parts, strict=True))
    return outputs, targets, present


def _of_present(loss: Loss, outputs: torch.Tensor, targets: torch.Tensor, present: torch.Tensor) -> Outputs | None:
    """Return what the model says of the present records; None where none is present."""
    outputs, targets = outputs[present.bool()].double(), targets[present.bool()]
    if len(targets) == 0:
        return None
    losses = loss.value(outputs, targets).double()
    return Outputs(outputs.reshape(len(targets), -1).numpy(), targets.double().numpy(), losses.numpy())


def export_model(
    plan: Plan,
    releases: Sequence[Release],
    folder: Path,
    ledger_entry: dict[str, Any],
    payers: Sequence[Part | None],
    worker: Worker | None = None,
) -> dict[str, Any]:
    """Write model.safetensors, model.pt, model.json and certificate.json into ``folder`` and return the certificate. All of it is public.

    A Hugging Face model gets config.json too, and one with low-rank factors a folder ``adapter``, so that their own programs read them.

    Args:
        plan: The plan.
        releases: The releases of every round, in order.
        folder: An existing folder.
        ledger_entry: Number and hash of the ledger's last row of this run.
        payers: The part whose units each round was charged to, or None for everybody's.
        worker: A worker on the plan; a new one when None.
    """
    worker = worker or Worker.of_plan(plan)
    network = worker.lend()
    # Not from what the network holds: it has seen records.
    state = in_own_units(network.state_at(plan.weights, releases[-1].theta), plan.schema)
    network.load_state(state)
    tensors = {name: np.asarray(array, order="C") for name, array in state.items()}
    digest = hashlib.sha256(write_weights(folder / "model.safetensors", tensors)).hexdigest()
    saved = {name: torch.from_numpy(array) for name, array in tensors.items()}
    write_atomic(folder / "model.pt", lambda file: torch.save(saved, file))
    write_pretrained(network, folder, plan.schema.words_of_classes)
    certificate = certificate_of(plan, releases, digest, ledger_entry, payers)
    ModelCard.of_plan(plan).write(folder)
    write_certificate(folder / "certificate.json", certificate)
    return certificate


def guarantee_of(plan: Plan, releases: Sequence[Release], payers: Sequence[Part | None] | None = None) -> Guarantee:
    """Return the guarantee that the releases together give a unit.

    Args:
        plan: The plan.
        releases: Its releases.
        payers: The part whose units a ledger charged each release to; when None, what the releases say themselves. A release
            that says everybody's is everybody's, whatever the ledger says.
    """
    parts = _payers(plan, releases, payers)
    return expenses(
        [
            Charge(
                f"release/{plan.plan_id}/{release.round}",
                plan.config.privacy.adjacency,
                plan.event(Grid(**release.state_header["grid"])),
                part,
            )
            for release, part in zip(releases, parts, strict=True)
        ]
    ).guarantee()


def certificate_of(
    plan: Plan,
    releases: Sequence[Release],
    model_sha256: str,
    ledger_entry: dict[str, Any],
    payers: Sequence[Part | None],
) -> dict[str, Any]:
    """Return the certificate, which has public figures only; the arguments are those of ``export_model``."""
    config, privacy = plan.config, plan.config.privacy
    discrete = config.mechanism.noise == Noise.DISCRETE
    parts = _payers(plan, releases, payers)
    grids = [Grid(**release.state_header["grid"]) for release in releases]
    guarantee = guarantee_of(plan, releases, parts)
    # One seeded round is enough to make the whole run not private.
    seed = next((release.noise_seed for release in releases if release.noise_seed is not None), None)
    return Certificate(
        epsilon=guarantee.epsilon(privacy.delta),
        delta=privacy.delta,
        mu=guarantee.mu,
        rho=guarantee.rho if discrete else None,
        pure_epsilon=guarantee.pure if math.isfinite(guarantee.pure) else None,
        adjacency=privacy.adjacency,
        unit=_unit(plan),
        unit_column=config.unit if config.data.private[0].unit else None,
        units=privacy.units,
        rounds=[
            _round_figures(plan, release, grid, part)
            for release, grid, part in zip(releases, grids, parts, strict=True)
        ],
        parts=config.mechanism.parts,
        sampling=config.mechanism.sampling,
        sampling_failure=guarantee.failure,
        micro_batch=config.engine.micro_batch if config.by_batch else None,
        noise=config.mechanism.noise,
        arithmetic=_arithmetic(plan),
        mechanism=_mechanism(plan),
        subspace={"kind": config.subspace.kind, "k": plan.k, "d": plan.d, "seed": config.subspace.seed},
        precision={
            "kind": config.precision.kind,
            "source": config.precision.source,
            "damping": config.precision.damping,
            "reference": config.precision.reference,
            "floor": config.precision.floor,
        },
        plan_id=plan.plan_id,
        ledger=ledger_entry,
        model_sha256=model_sha256,
        versions={
            "distqexp": distqexp.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        diagnostics=_diagnostics(plan, releases),
        mixed_precision=None if config.engine.mixed_precision == "off" else config.engine.mixed_precision,
        sampler_slack=_sampler_slack(plan, grids),
        kept=releases[-1].kept / WHOLE,
        noise_seed=seed,
        shares=(len(config.shards), tolerated) if (tolerated := config.mechanism.tolerated_sites) else None,
        shares_variation=guarantee.shares_variation,
        evaluation_private=config.data.eval_private,
        classes_private=config.data.classes_private,
    ).tree()


def _round_figures(plan: Plan, release: Release, grid: Grid, part: Part | None) -> dict[str, Any]:
    """A round's entry in the certificate; ``part`` is the part whose units pay for it, None everybody's."""
    return {
        "round": release.round,
        "part": part.number if part else None,
        "mu": plan.event(grid).mu,
        "sampling": plan.config.mechanism.sampling,
        "clip": release.state_header["clip"],
        "grid_step": grid.step,
        "sensitivity": grid.sensitivity * grid.step,
        "sigma": grid.sigma,
        "temperature": (grid.sigma * grid.step) ** 2,
        "halvings": release.halvings,
    }


def _payers(plan: Plan, releases: Sequence[Release], ledger: Sequence[Part | None] | None) -> list[Part | None]:
    """The part whose units pay for each release: the worse of what the release says itself and of what the ledger says."""
    own = [charged_part(plan, release) for release in releases]
    if ledger is None:
        return own
    return [one if one == other else None for one, other in zip(own, ledger, strict=True)]


def _diagnostics(plan: Plan, releases: Sequence[Release]) -> dict[str, Any] | None:
    """What the rounds told about the units, or None where the config shares no diagnostics."""
    figures = [(release.round, diagnostics_of(plan, release)) for release in releases]
    rounds = [{"round": round, **asdict(diagnostics)} for round, diagnostics in figures if diagnostics is not None]
    config = plan.config.diagnostics
    return {"share": config.share, "largest_loss": config.largest_loss, "rounds": rounds} if rounds else None


def _sampler_slack(plan: Plan, grids: Sequence[Grid]) -> float:
    """The slack of all rounds together; their rules differ by the grid alone."""
    rule = plan.rule(plan.state)
    return min(1.0, math.fsum(replace(rule, grid=grid).sampler_slack for grid in grids))


def _unit(plan: Plan) -> str:
    data, presence = plan.config.data, plan.config.privacy.presence
    single = all(source.unit is None for source in data.private)
    unit = "one record" if single else "all records of one unit id"
    return unit if presence == 1 else f"{unit} and its like in other shards, {presence} shards at most"


def _mechanism(plan: Plan) -> str:
    radius = plan.config.mechanism.trust_radius
    beta = "beta = 1 (private curvature)" if plan.config.private_curvature else "beta = 0"
    return f"exponential mechanism, {beta}, " + (f"trust radius {radius:g}" if radius else "infinite trust radius")


def _arithmetic(plan: Plan) -> str:
    if plan.config.mechanism.noise == Noise.GAUSSIAN:
        return "idealised float64"
    # The place of a unit in its micro-batch depends on the other units' coins.
    if plan.config.privacy.adjacency == Adjacency.ZERO_OUT and not plan.config.mechanism.sampled:
        return "exact integer"
    return "exact integer sums and noise; gradient evaluation counts as idealised floating point"
