"""The figures that a run stores for its report. All of them are public: nothing of private evaluation records is among them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.release import Release
from distqexp.config import DataConfig
from distqexp.errors import DistqexpError
from distqexp.gradients.worker import Worker
from distqexp.privacy.expenses import Part, expenses
from distqexp.problem.dataset import open_dataset
from distqexp.report.evaluation import evaluation_figures
from distqexp.report.html import FIGURES, REPORT, write_report
from distqexp.stages.charging import Charging
from distqexp.stages.export import Evaluation, guarantee_of
from distqexp.storage.atomic import write_atomic

SCHEMA = 1

PUBLIC_RECORDS = 500
"""The public loss of a round is the mean over at most so many records."""

MOST_ROUNDS = 40
"""Of more rounds than this evenly spread ones are shown."""

POINTS = 41
"""The epsilon-delta curve has so many points, from 0 to twice the run's epsilon."""


@dataclass(frozen=True)
class Account:
    """What a report is made from besides plan, releases and certificate.

    Attributes:
        charging: The ledger that the releases were charged to.
        payers: The part whose units each round was charged to; None for everybody's.
        evaluations: What the evaluation records say before and after; empty without such records.
        public: The public records, if any.
        worker: A worker on the plan.
        processes: How many processes took part.
        engine: The kind of engine; None where each stage was run by hand.
    """

    charging: Charging
    payers: Sequence[Part | None]
    evaluations: Mapping[str, Evaluation]
    public: DataConfig | None
    worker: Worker
    processes: int = 1
    engine: str | None = None


def store_report(
    plan: Plan, releases: Sequence[Release], certificate: Mapping[str, Any], account: Account, folder: Path
) -> str | None:
    """Write report.json and report.html beside a certificate; return None, or why it was left out.

    By now the model is paid for and stored, so nothing that goes wrong here ends a run. Where the same figures lie there already, both
    files stay as they are.
    """
    try:
        tree = report_figures(plan, releases, certificate, account)
        content = (json.dumps(tree, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
        path = folder / FIGURES
        if path.exists() and path.read_bytes() == content and (folder / REPORT).exists():
            return None
        write_atomic(path, content)
        write_report([folder], folder / REPORT)
    except DistqexpError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - the run is paid for; its report can be made again
        return f"unexpected {type(error).__name__}"
    return None


def report_figures(
    plan: Plan, releases: Sequence[Release], certificate: Mapping[str, Any], account: Account
) -> dict[str, Any]:
    """Return the figures of a finished run for its report, as JSON types. They are the same whenever they are computed."""
    config = plan.config
    return {
        "schema": SCHEMA,
        "plan_id": plan.plan_id,
        "population": config.data.population,
        "model": config.model.factory,
        "loss": config.model.loss,
        "pretrained": config.model.pretrain is not None,
        "classes": list(plan.schema.words_of_classes),
        "evaluation": _evaluation(plan, account.evaluations),
        "public_loss": public_losses(plan, releases, account.public, account.worker),
        "curve": _curve(plan, releases, account.payers, float(certificate["epsilon"])),
        "budget": budget(plan, account.charging),
        "took_part": {
            "shards": list(config.shards),
            "processes": account.processes,
            "engine": account.engine,
            "public": config.data.public is not None,
        },
    }


def _evaluation(plan: Plan, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the figures of the evaluation records, or why there are none: of private ones there is never any."""
    if not plan.config.data.eval:
        return {"withheld": "none"}
    if plan.config.data.eval_private:
        return {"withheld": "private"}
    outputs = {when: one.outputs for when, one in evaluations.items() if one.outputs is not None}
    # Records that a model raises for are left out: without the same ones on both sides nothing can be compared.
    if set(outputs) != {"before", "after"} or len({len(one.losses) for one in outputs.values()}) != 1:
        return {"withheld": "absent"}
    return evaluation_figures(plan.config.model.loss, outputs["before"], outputs["after"])


def public_losses(
    plan: Plan, releases: Sequence[Release], public: DataConfig | None, worker: Worker
) -> list[dict[str, Any]]:
    """Return the mean loss on public records at the start and after rounds, which costs no privacy; empty without such records.

    Of a plan that names its weights memory holds the parameters of the last round alone.

    A loss that is no finite number is null. ``rounds`` counts the rounds that were released by then.
    """
    if public is None:
        return []
    dataset = open_dataset(public, plan.schema, reader=worker.readers.of(public, private=False))
    rows = dataset.slot_map().rows
    if len(rows) == 0:
        return []
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), PUBLIC_RECORDS)).round().astype(int))
    records = dataset.of_model(worker.network).read(rows[chosen])
    frozen, device = worker.frozen, worker.network.device
    # In micro-batches, as a round takes them: a deep model's activations for all records may not fit.
    batches = [batch.to(device) for batch in torch.split(records.inputs, plan.config.engine.micro_batch)]
    if frozen is not None:
        worker.network_at(plan.state.theta)
        batches = [frozen.features(batch).to(device) for batch in batches]
    thetas = {0: plan.state.theta} | {number + 1: one.theta for number, one in enumerate(releases) if not one.lacking}
    places = np.unique(np.linspace(0, len(thetas) - 1, min(len(thetas), MOST_ROUNDS + 1)).round().astype(int))
    losses = []
    for number in [list(thetas)[place] for place in places]:
        network = worker.network_at(thetas[number])
        model = network if frozen is None else frozen.head
        outputs = torch.cat([model.outputs(batch).cpu() for batch in batches])
        mean = float(worker.loss.value(outputs, records.targets)[records.present].double().mean())
        losses.append({"rounds": int(number), "loss": mean if math.isfinite(mean) else None})
    return losses


def _curve(
    plan: Plan, releases: Sequence[Release], payers: Sequence[Part | None], epsilon: float
) -> list[list[float | None]]:
    """Return pairs of epsilon and the base-10 logarithm of its delta, null where delta is 0."""
    guarantee = guarantee_of(plan, releases, payers)
    points: list[list[float | None]] = []
    for place in np.linspace(0.0, 2 * epsilon, POINTS):
        log_delta = guarantee.log_delta(float(place)) / math.log(10)
        points.append([float(place), log_delta if math.isfinite(log_delta) else None])
    return points


def budget(plan: Plan, charging: Charging) -> dict[str, Any]:
    """Return what of the population's budget was spent before this run and after it, as epsilons at the cap's delta.

    Charges that came after the run's last one are left out, so that the figures stay those of the run.
    """
    population, ledger = charging.population_of(plan), charging.ledger
    set_cap, privacy = ledger.cap(population), plan.config.privacy
    epsilon, delta = (set_cap.epsilon, set_cap.delta) if set_cap else (privacy.epsilon, privacy.delta)
    declaration = set_cap.declaration if set_cap else None
    rows = [row for row in ledger.rows(population) if row.universe == charging.universe and row.state != "voided"]
    own = {row.id for row in rows if row.key.split("/")[1:2] == [plan.plan_id]}
    last = max(own, default=0)
    charges = {
        "before": [row.charge for row in rows if row.id < last and row.id not in own],
        "after": [row.charge for row in rows if row.id <= last],
    }
    spent = {
        when: expenses(some, declaration).guarantee().epsilon(delta) if some else 0.0 for when, some in charges.items()
    }
    return {
        "population": population,
        "epsilon": epsilon,
        "delta": delta,
        "set": set_cap is not None,
        "test": charging.noise_seed is not None,
        **{when: figure if math.isfinite(figure) else None for when, figure in spent.items()},
    }
