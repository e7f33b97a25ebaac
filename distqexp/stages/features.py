"""Features: the frozen part of a model runs once over every private record, for all rounds. They are as private as the records."""

from __future__ import annotations

import dataclasses
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.artefacts.plan import Plan
from distqexp.engines.base import Engine
from distqexp.engines.threads import pin_threads
from distqexp.gradients.batching import pad_inputs
from distqexp.gradients.context import RoundContext
from distqexp.gradients.worker import Worker
from distqexp.problem.features import FeatureFile, writer_of_features
from distqexp.stages.shards import Shards
from distqexp.storage.atomic import write_atomic


def keep_features(plan: Plan, shards: Shards, folder: Path, engine: Engine, worker: Worker) -> Shards:
    """Return the shards with a private scratch file of their features each, where the model has a frozen part. Collective.

    The files' folder must be one that every process reads. Nothing is kept, and every round runs the whole model, where there is no
    frozen part, where each round has other views of the records, or where the disk hasn't twice the room. What is written depends
    on the records alone: a round then takes the same time whoever joins it.

    Args:
        plan: The plan.
        shards: The private shards.
        folder: Where the files are written.
        engine: The engine.
        worker: A worker on the plan.
    """
    worker.network_at(plan.state.theta)
    part = worker.frozen
    if part is None or plan.config.augment.active:
        return shards
    dtype = "<f8" if part.head.dtype == torch.float64 else "<f4"
    size = int(dtype[-1]) * math.prod(part.shape) * sum(len(source.slots.rows) for source in shards.sources)
    if not engine.on_root(lambda: shutil.disk_usage(folder).free > 2 * size):
        return shards
    context = RoundContext(worker, plan.state.theta, round=0, k=plan.k, sources=shards.sources)
    micro_batch = plan.config.engine.micro_batch
    sources = []
    for number, source in enumerate(shards.sources):
        count = len(source.slots.rows)
        path = folder / f"features-{number:03d}.npy"
        work = partial(_features_of_batch, number=number, context=context)
        blocks = engine.collect(work, worker, range(-(-count // micro_batch)))
        if engine.is_root:
            write_atomic(path, writer_of_features((count, *part.shape), dtype, blocks), private=True)
        else:
            for _ in blocks:
                raise AssertionError("a process that isn't the first was given features")
        engine.on_root(lambda: None)  # nobody reads before it is written
        sources.append(dataclasses.replace(source, features=FeatureFile.of_slots(path, source.slots.rows)))
    return Shards(tuple(sources), shards.fingerprints)


def _features_of_batch(worker: Worker, item: int, *, number: int, context: RoundContext) -> FloatArray:
    """Return the features of a micro-batch of slots, padded to its full size so that no record depends on its number."""
    context.on(worker)
    pin_threads(context.config.engine.threads)
    size = context.config.engine.micro_batch
    rows = context.sources[number].slots.rows[item * size : (item + 1) * size]
    records = context.datasets[number].read(rows)
    features = context.frozen_features(pad_inputs(records.inputs, size))
    return np.asarray(features[: len(rows)].double().numpy())
