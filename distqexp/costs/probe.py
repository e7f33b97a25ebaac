"""The probe: one process does a little of everything that a run does, on public and synthetic records, and is measured.

No private file is opened, and the ledger is a new one in a scratch folder: nothing is charged to anybody.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqexp.artefacts.plan import Plan
from distqexp.artefacts.sums import Quadratic, Sketch
from distqexp.config import Config, DataConfig
from distqexp.costs.calibration import Calibration
from distqexp.costs.meter import Meter, forget_peak, peak_bytes
from distqexp.costs.stand_in import Reading, stand_in_for
from distqexp.engines.launcher import local_rank
from distqexp.engines.placement import device_of
from distqexp.engines.serial import SerialEngine
from distqexp.engines.threads import pin_threads
from distqexp.errors import UsageError
from distqexp.expansion.source import curvature_source
from distqexp.expansion.state import next_state
from distqexp.gradients.worker import Worker
from distqexp.privacy.ledger import Ledger
from distqexp.problem.dataset import open_dataset
from distqexp.problem.pretrain import pretrain
from distqexp.problem.records import blank_inputs
from distqexp.stages.charging import Charging, charged_parts, ledger_entry
from distqexp.stages.export import Evaluation, evaluation_of, export_model
from distqexp.stages.guard import Guard
from distqexp.stages.naming import with_contents
from distqexp.stages.plan import plan_and_worker
from distqexp.stages.release import Draw, draw_release, make_release
from distqexp.stages.reporting import PUBLIC_RECORDS, Account, store_report
from distqexp.stages.shards import open_shards, require_same_records
from distqexp.stages.shares import refuse_one_group
from distqexp.stages.synthetic import SyntheticRound

MOST_SAMPLES = 2048
"""The plan of a probe makes its curvature from at most so many records."""

MOST_PRETRAINED = 2048
"""An epoch of pretraining is timed on at most so many records, where the optimiser's time is in proportion to them."""

_SECONDS = 0.3
"""Micro-batches are repeated until they take about so long."""


class Probe:
    """Measures a config part by part, in the order of a run, so that what is slow the first time is met where a run meets it.

    Args:
        config: The config.
        scratch: A folder for plan, sums, ledger and model, which the caller removes.
    """

    def __init__(self, config: Config, scratch: Path) -> None:
        refuse_one_group(config)
        pin_threads(config.engine.threads)
        cuda = config.engine.device == "cuda"
        device_of(config.engine.device, local_rank(os.environ), torch.cuda.device_count() if cuda else 0)
        self.meter = Meter(
            processor=not cuda and config.engine.threads == 1, ready=torch.cuda.synchronize if cuda else None
        )
        importlib.import_module("distqexp.stages.rounds")  # what a run loads
        self.config, self.scratch, self.engine = config, scratch, SerialEngine()
        self.found: dict[str, Any] = {"model": config.model.factory, "clock": self.meter.clock}
        self.notes: list[str] = []

    def calibration(self) -> Calibration:
        """Do everything once, and return what it took."""
        with self.engine:
            self.found |= {"imports": self.meter.since_start(), "bytes_imports": peak_bytes()}
            plan, worker = self._plan()
            evaluations = self._evaluate(plan, worker)
            self._curvature(plan, worker)
            with Ledger.open(self.scratch / "ledger.sqlite") as ledger:
                charging = Charging(ledger)
                self._read(plan, worker, charging)
                sums = self._sketch(plan, worker)
                self._release(plan, worker, charging, sums, evaluations)
        cuda = self.config.engine.device == "cuda"
        device = torch.cuda.max_memory_allocated() if cuda else 0
        operations = self._operations(plan, worker)
        return Calibration(**self.found, bytes_device=device, operations_record=operations, notes=tuple(self.notes))

    # --- public work ---------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[Plan, Worker]:
        """Make the plan as a run does, with few epochs of pretraining and not too many records for its curvature."""
        config, pretraining = self.config, self.config.model.pretrain
        epochs = 0 if pretraining is None else pretraining.epochs
        if pretraining is not None and pretraining.optimiser != "lbfgs" and epochs > 1:
            epochs = 1
            model = dataclasses.replace(config.model, pretrain=dataclasses.replace(pretraining, epochs=1))
            config = dataclasses.replace(config, model=model)
        if config.precision.samples > MOST_SAMPLES:
            self.notes.append(f"plan: measured with {MOST_SAMPLES} of {config.precision.samples} records for curvature")
            config = dataclasses.replace(config, precision=dataclasses.replace(config.precision, samples=MOST_SAMPLES))

        def work() -> tuple[Plan, Worker]:
            plan, worker = plan_and_worker(config, self.engine)
            plan.write(self.scratch / "plan.h5")
            return plan, worker

        seconds, (plan, worker) = self.meter.timed(work)
        self.found |= {
            "plan": seconds,
            "epochs": epochs,
            "d": plan.d,
            "k": plan.k,
            "width": plan.width,
            "micro_batch": plan.config.engine.micro_batch,
            "plan_bytes": plan.nbytes,
            "bytes_plan": peak_bytes(),
            "pretrain_epoch": 0.0 if epochs == self._epochs else self._epoch(worker),
        }
        return plan, worker

    @property
    def _epochs(self) -> int:
        return self.config.model.pretrain.epochs if self.config.model.pretrain else 0

    def _epoch(self, worker: Worker) -> float:
        """Return the seconds of an epoch of pretraining on all public records."""
        public, pretraining = self.config.data.public, self.config.model.pretrain
        if public is None or pretraining is None:
            return 0.0
        dataset = open_dataset(public, worker.schema, reader=worker.readers.of(public, private=False))
        rows = dataset.slot_map().rows
        records = dataset.read(rows[:MOST_PRETRAINED])
        one = dataclasses.replace(pretraining, epochs=1)
        network = worker.lend()
        network.load_state(worker.weights)
        seconds = self.meter.least(lambda: pretrain(network, worker.loss, records, one), 2)
        worker.lend()
        return seconds * len(rows) / min(len(rows), MOST_PRETRAINED)

    def _curvature(self, plan: Plan, worker: Worker) -> None:
        """Time what later rounds make anew of public records, on two numbers of them; ranks share what grows with the number."""
        config, public = self.config, self.config.data.public
        source = curvature_source(plan.config, public, plan.schema, readers=worker.readers)
        samples = 0 if source is None else len(source.slots.rows)
        whole = samples
        if plan.config.precision.samples < config.precision.samples and samples >= plan.config.precision.samples:
            whole = config.precision.samples
        found = {"samples": samples, "samples_whole": whole, "curvature_record": 0.0, "curvature_fixed": 0.0}
        if samples > 1:
            few = self._state_seconds(plan, worker, samples // 2)
            all_of_them = self._state_seconds(plan, worker, samples)
            if few is None or all_of_them is None:
                self.notes.append(
                    "curvature: too few public records to tell what ranks share; all of it counted as the first rank's"
                )
            else:
                (n, short), (m, long) = few, all_of_them
                each = max(0.0, (long - short) / (m - n)) if m > n else 0.0
                found |= {"curvature_record": each, "curvature_fixed": max(0.0, long - m * each)}
        self.found |= found

    def _state_seconds(self, plan: Plan, worker: Worker, samples: int) -> tuple[int, float] | None:
        """Return how many records a state was made from, and the seconds; None where they are too few."""
        precision = dataclasses.replace(plan.config.precision, samples=samples)
        config = dataclasses.replace(plan.config, precision=precision)
        source = curvature_source(config, self.config.data.public, plan.schema, readers=worker.readers)
        if source is None:
            return None

        def work() -> None:
            worker.public_features.clear()  # a later round may look at other records than the rounds before
            next_state(
                worker=worker, calibration=plan.calibration, theta=plan.state.theta, round=0, source=source,
                engine=self.engine,
            )  # fmt: skip

        try:
            return len(source.slots.rows), self.meter.least(work, 2)
        except UsageError:
            return None

    def _evaluate(self, plan: Plan, worker: Worker) -> dict[str, Evaluation]:
        """Evaluate public evaluation records twice; private ones are not opened."""
        data = self.config.data
        network = worker.network_at(plan.state.theta)
        inputs = blank_inputs(plan.schema, plan.config.engine.micro_batch).to(network.device)
        forward = (
            0.0 if plan.schema.input_shape is None else self.meter.least(lambda: network.outputs(inputs)) / len(inputs)
        )
        rounds = forward * PUBLIC_RECORDS if data.public else 0.0
        found = {"evaluations": 0, "evaluate_first": 0.0, "evaluate_record": forward, "export_round": rounds}
        evaluation = Evaluation({})
        if data.eval is not None and data.eval_private:
            self.notes.append("evaluation: private records were not opened; their reading is not in the estimate")
        elif data.eval is not None:
            reader = worker.readers.of(data.eval, private=False)
            first, evaluation = self.meter.timed(lambda: evaluation_of(plan, plan.state.theta, data.eval, worker))
            again, _ = self.meter.timed(lambda: evaluation_of(plan, plan.state.theta, data.eval, worker))
            count = max(1, len(open_dataset(data.eval, plan.schema, reader=reader).slot_map().rows))
            found |= {
                "evaluations": count,
                "evaluate_first": max(0.0, first - again),
                "evaluate_record": again / count,
            }
        self.found |= found
        return {"before": evaluation, "after": evaluation}

    def _read(self, plan: Plan, worker: Worker, charging: Charging) -> None:
        """Time the opening and reading of public records as if they were the private ones."""
        found = {"read_record": 0.0, "open": 0.0, "check": 0.0}
        stand_in = stand_in_for(self.config)
        if isinstance(stand_in, str):
            self.notes.append(stand_in)
        else:
            found |= self._reading(plan, worker, charging, stand_in)
        self.found |= found

    def _reading(self, plan: Plan, worker: Worker, charging: Charging, stand_in: DataConfig) -> dict[str, float]:
        opening, shards = self.meter.timed(lambda: open_shards(plan, (stand_in,), self.engine, worker=worker))
        population = self.config.data.population
        naming, _ = self.meter.timed(lambda: with_contents(charging, population, (stand_in,), worker.readers))
        reading = Reading(plan, worker, shards.sources[0])
        return {
            "read_record": self.meter.least(reading.read) / reading.count,
            "open": opening + naming,
            "check": self.meter.least(lambda: require_same_records(shards, self.engine)),
        }

    # --- a round -------------------------------------------------------------------------------------------------

    def _sketch(self, plan: Plan, worker: Worker) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Time micro-batches of two sizes, so that what each costs and what each record costs part; return some sums."""
        size = plan.config.engine.micro_batch
        small = max(1, size // 2)
        halves = dataclasses.replace(plan.config.engine, micro_batch=small)
        less = Worker(
            dataclasses.replace(worker.config, engine=halves),
            plan.schema,
            worker.weights,
            worker.network,
            worker.readers,
        )
        first, short, fixed, low, _ = self._batches(plan, less)
        worker.lend()
        _, long, fixed_again, high, round = self._batches(plan, worker)
        fixed = min(fixed, fixed_again)
        each = (long - short) / (size - small) if size > small else long / size
        each = min(max(each, 0.0), long / size)
        grown = max(0.0, (high - low) / (size - small)) if size > small else 0.0
        sums = round.sketch(2)
        path = self.scratch / "sketch.h5"
        numbers = round.frozen(1)
        feature = (self.meter.least(lambda: round.frozen(2)) - self.meter.least(lambda: round.frozen(1))) / size
        part = Sketch(plan.plan_id, 0, plan.state.identity(), "all", sums, np.ones(1, np.bool_), "")

        def files() -> None:
            part.write(path)
            quadratic = self._quadratic(plan, sums)
            quadratic.write(self.scratch / "quadratic.h5")
            Quadratic.read(self.scratch / "quadratic.h5", plan, own=True)

        self.found |= {
            "batch_fixed": max(0.0, long - size * each),
            "batch_record": each,
            "sketch_first": max(0.0, first - fixed - short),
            "round_fixed": fixed,
            "feature_record": max(0.0, feature) if numbers else 0.0,
            "feature_numbers": numbers,
            "files": self.meter.least(files),
            "bytes_fixed": high - size * grown,
            "bytes_record": grown,
        }
        return sums

    def _batches(self, plan: Plan, worker: Worker) -> tuple[float, float, float, int, SyntheticRound]:
        """Return the seconds of the first sketch, of a micro-batch and of a round's beginning; the peak; and the round."""
        round = SyntheticRound(plan, worker, 2)
        note = "memory: this system doesn't forget peaks; what a record adds is not told apart"
        if not forget_peak() and note not in self.notes:
            self.notes.append(note)
        first, _ = self.meter.timed(lambda: round.sketch(1))
        one = self.meter.least(lambda: round.sketch(1), 2)
        more = min(64, max(2, math.ceil(_SECONDS / max(one, 1e-4))))
        each = max(1e-9, (self.meter.least(lambda: round.sketch(1 + more)) - one) / more)
        peak = peak_bytes()

        def begin() -> None:
            round.start()
            round.sketch(1)

        return first, each, max(0.0, self.meter.least(begin) - each), peak, round

    def _quadratic(self, plan: Plan, sums: np.ndarray[Any, np.dtype[np.int64]]) -> Quadratic:
        return Quadratic(plan.plan_id, 0, plan.state.identity(), sums, b"")

    def _release(
        self,
        plan: Plan,
        worker: Worker,
        charging: Charging,
        sums: np.ndarray[Any, np.dtype[np.int64]],
        evaluations: dict[str, Evaluation],
    ) -> None:
        """Charge the scratch ledger, draw real noise, release, and export what comes of it."""
        forget_peak()
        public, guard, state = self.config.data.public, Guard(plan, self.config.data.public, worker), plan.state
        quadratic = self._quadratic(plan, sums)
        drawing, noisy = self.meter.timed(lambda: draw_release(plan, state, quadratic, charging))
        again = drawing
        if drawing < 30:
            with Ledger.open(self.scratch / "again.sqlite") as ledger:  # the other one has the draw for these sums
                again, _ = self.meter.timed(lambda: draw_release(plan, state, quadratic, Charging(ledger)))

        def release() -> Any:
            made = make_release(plan, state, Draw(noisy), public, self.engine, worker, guard)
            made.write(self.scratch / "release-000.h5")
            return made

        first, made = self.meter.timed(release)
        renewed = plan.config.mechanism.rounds > 1 and plan.config.refresh_round(1) == 1
        curvature = self.found["curvature_fixed"] + self.found["samples"] * self.found["curvature_record"]
        first -= curvature * renewed
        next_one = first if first > 10 else self.meter.least(release, 1) - curvature * renewed
        payers = charged_parts(plan, charging)[:1]
        account = Account(charging, payers, evaluations, public, worker, 1, self.engine.kind)

        def export() -> None:
            certificate = export_model(plan, [made], self.scratch, ledger_entry(plan, charging, 0), payers, worker)
            store_report(plan, [made], certificate, account, self.scratch)

        self.found |= {
            "draw_first": max(0.0, drawing - again),
            "draw": again / plan.k,
            "release_first": max(0.0, first - next_one),
            "release": max(0.0, min(first, next_one)),
            "export": self.meter.timed(export)[0],
            "bytes_release": peak_bytes(),
        }

    def _operations(self, plan: Plan, worker: Worker) -> float:
        """Return the floating-point operations of a record's sketch, as torch counts those of its products."""
        from torch.utils.flop_counter import FlopCounterMode

        round = SyntheticRound(plan, worker, 1)
        with FlopCounterMode(display=False) as counter:
            round.sketch(1)
        return float(counter.get_total_flops()) / round.micro_batch


def measure(config: Config, scratch: Path) -> Calibration:
    """Return the calibration of a config on this machine; ``scratch`` is an empty folder that the caller removes.

    Raises UsageError where the plan is refused, or the shape of a record is not known.
    """
    return Probe(config, scratch).calibration()
