"""What is fine-tuned, as tensors: the pretrained start and the records, both as distqexp has them."""

from __future__ import annotations

import copy
import csv
import dataclasses
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from distqexp.config import Config, DataConfig, config_to_tree, load_config, without_paths
from distqexp.engines import make_engine
from distqexp.gradients.setup import build_network
from distqexp.problem.dataset import open_dataset
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema, fit_schema
from distqexp.stages.plan import make_plan
from distqexp.storage.atomic import write_atomic

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Problem:
    """One task on one split of its records: everybody starts at the same weights and sees the same records."""

    config: Config
    split: int

    @property
    def delta(self) -> float:
        """Of all methods."""
        return self.config.privacy.delta

    @cached_property
    def loss(self) -> Loss:
        """The training loss."""
        return get_loss(self.config.model.loss)

    @cached_property
    def private(self) -> Records:
        """The private records, preprocessed."""
        return _read(self.config.data.private[0], self._public, self.config.model.loss)

    @cached_property
    def public(self) -> Records:
        """The public records, preprocessed."""
        return _read(self._public, self._public, self.config.model.loss)

    @cached_property
    def evaluation(self) -> Records:
        """The records that metrics are computed on."""
        if self.config.data.eval is None:
            raise SystemExit("frontier: the config has no data.eval; expected records to compare on; add them")
        return _read(self.config.data.eval, self._public, self.config.model.loss)

    def module(self) -> torch.nn.Module:
        """A copy of the pretrained model, its trainable parameters marked."""
        return copy.deepcopy(self._network.module)

    def metrics(self, module: torch.nn.Module) -> dict[str, float | None]:
        """On the evaluation records; None for what is not finite."""
        training = module.training
        module.eval()
        with torch.no_grad():
            parts = [module(part) for part in torch.split(self.evaluation.inputs, EVALUATION_BATCH)]
        module.train(training)
        found = self.loss.metrics(torch.cat(parts), self.evaluation.targets, self.evaluation.present)
        return {name: value if np.isfinite(value) else None for name, value in found.items()}

    def metrics_at(self, theta: np.ndarray) -> dict[str, float | None]:
        """Metrics of the model with trainable parameters theta (d,)."""
        network = Network(self.module(), self.config.model.trainable)
        network.load(theta)
        return self.metrics(network.module)

    @cached_property
    def identity(self) -> str:
        """A hash of what is computed with: start, records, loss, delta. Another epsilon or mechanism is the same task."""
        digest = hashlib.sha256(json.dumps([self.config.model.loss, self.delta, self.split]).encode())
        for name, values in sorted(self._network.state().items()):
            digest.update(name.encode() + values.tobytes())
        for records in (self.private, self.evaluation):
            digest.update(records.inputs.numpy().tobytes() + records.targets.numpy().tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def _network(self) -> Network:
        network = build_network(self.config)
        if self.config.model.weights is None:
            raise SystemExit("frontier: a problem without weights; expected those of the start")
        network.load_state(safetensors.numpy.load_file(self.config.model.weights))
        return network

    @property
    def _public(self) -> DataConfig:
        if self.config.data.public is None:
            raise SystemExit("frontier: the config has no data.public; expected the records of its pretraining")
        return self.config.data.public


@cache
def _schema(public: DataConfig, loss: str) -> Schema:
    """The preprocessing that public records give; the same for all splits."""
    return fit_schema(public, loss=loss)


@cache
def _read(data: DataConfig, public: DataConfig, loss: str) -> Records:
    """The records of a source that are present, preprocessed."""
    dataset = open_dataset(data, _schema(public, loss))
    records = dataset.read(dataset.slot_map().rows)
    keep = records.present
    return Records(records.inputs[keep], records.targets[keep], keep[keep])


class Start:
    """theta_0 of a base config's plan, made once and kept in a folder, and every config set to begin there."""

    def __init__(self, base: Path, overrides: Sequence[str], folder: Path) -> None:
        self.overrides = list(overrides)
        self.folder = folder
        self.base = base
        config = load_config(base, self.overrides)
        tree = config_to_tree(config)
        facts = [tree["model"], config_to_tree(without_paths(config))["data"]["public"]]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        self.weights = folder / f"start-{name}.safetensors"
        if not self.weights.exists():
            with make_engine(config.engine, {}) as engine:
                plan = make_plan(config, engine)
            weights = {name: np.ascontiguousarray(array) for name, array in plan.weights.items()}
            write_atomic(self.weights, safetensors.numpy.save(weights))

    def config(self, path: Path | None = None, epsilon: float | None = None, split: int = 0) -> Config:
        """The config at ``path`` (the base one when None), from these weights, at epsilon and on a split."""
        extra = [] if epsilon is None else [f"privacy.epsilon={epsilon}"]
        config = load_config(path or self.base, [*self.overrides, *extra])
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, weights=str(self.weights), pretrain=None)
        )
        return split_of(config, split, self.folder) if split else config

    def pretraining(self, path: Path | None = None) -> Config:
        """The config at ``path`` (the base one when None) as it stands, with its pretraining."""
        return load_config(path or self.base, self.overrides)

    def problem(self, split: int = 0) -> Problem:
        """The task of the base config."""
        return Problem(self.config(split=split), split)


def split_of(config: Config, split: int, folder: Path) -> Config:
    """The config with the rows of its one table, private and evaluation records alike, shuffled by the split's number.

    Split 0 is the table as it stands. The shuffled table is written into the folder once.
    """
    (private,), evaluation = config.data.private, config.data.eval
    if evaluation is None or private.path is None or private.path != evaluation.path or private.format != "csv":
        raise SystemExit("frontier: splits need data.private and data.eval to be rows of one CSV file; use one split")
    source = Path(private.path)
    path = folder / f"{source.name.split('.')[0]}-split-{split}.csv"
    if not path.exists():
        content = source.read_bytes()
        text = (gzip.decompress(content) if source.suffix == ".gz" else content).decode("utf-8")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        order = np.random.default_rng(split).permutation(len(rows))
        shuffled = io.StringIO(newline="")
        csv.writer(shuffled, lineterminator="\n").writerows([header, *(rows[i] for i in order)])
        write_atomic(path, shuffled.getvalue().encode())
    sources = [dataclasses.replace(data, path=str(path)) for data in (private, evaluation)]
    data = dataclasses.replace(config.data, private=(sources[0],), eval=sources[1])
    return dataclasses.replace(config, data=data)
