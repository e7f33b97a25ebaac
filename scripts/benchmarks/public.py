"""No private record at all: the model pretrained on public records with the shift that the configs assume of private ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from distqexp.config import Config
from distqexp.gradients.setup import build_network
from distqexp.problem.dataset import open_dataset
from distqexp.problem.images import Turns
from distqexp.problem.losses import get_loss
from distqexp.problem.pretrain import pretrain
from distqexp.problem.records import Records
from distqexp.problem.schema import fit_schema
from distqexp.problem.weights import load_weights

COPIES = 4
"""Each public image is there so many times, every time at another angle."""

Angles = tuple[float, float]


def assumed_angles(config: Config) -> Angles | None:
    """Return the range of angles that a config turns public images by.

    It is that of the public curvature (``precision.rotate``) or else that of the rehearsals that settings were chosen in
    (``tune.rotate``); None where the config has neither.
    """
    if config.precision.rotate is not None:
        return config.precision.rotate
    turned = config.tune.rotate if config.tune is not None else None
    return (turned, turned) if isinstance(turned, float) else turned


def turned_records(config: Config, angles: Angles) -> Records:
    """Return the public records, COPIES of each, every copy turned by a random angle of its own."""
    if config.data.public is None:
        raise SystemExit("frontier: the config has no data.public; expected the records of its pretraining")
    schema = fit_schema(config.data.public, loss=config.model.loss)
    parts = []
    for copy in range(COPIES):
        dataset = open_dataset(config.data.public, schema, Turns(*angles, config.subspace.seed, copy))
        parts.append(dataset.read(dataset.slot_map().rows))
    inputs, targets, present = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "targets", "present")
    )
    return Records(inputs, targets, present)


def pretrained_on_turned(config: Config, angles: Angles) -> torch.nn.Module:
    """Return the config's model, pretrained as it says but on public records turned at random.

    There are as many steps as without turns: with adam and sgd, an epoch of the config is one of COPIES of them.

    Args:
        config: A config that pretrains.
        angles: The range of angles in degrees.
    """
    if config.model.pretrain is None:
        raise SystemExit("frontier: the config doesn't pretrain (model.pretrain); expected it for public data alone")
    network = build_network(config)
    if config.model.weights is not None:
        load_weights(network, Path(config.model.weights))
    epochs = config.model.pretrain.epochs
    if config.model.pretrain.optimiser != "lbfgs":
        epochs = -(-epochs // COPIES)
    pretrain(
        network,
        get_loss(config.model.loss),
        turned_records(config, angles),
        replace(config.model.pretrain, epochs=epochs),
    )
    return network.module


def distinct_angles(configs: Sequence[Config]) -> list[Angles]:
    """Return the ranges of angles that these configs assume, each once, in order."""
    return sorted({angles for angles in map(assumed_angles, configs) if angles is not None})
