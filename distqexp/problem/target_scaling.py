"""Targets of a regression in units of their public moments, and the model's last layer, which turns outputs back.

A run works on targets (t - mean) / deviation, with moments of the public records, so that neither clip nor damping depends on
whether targets are kilograms or micrograms. The model outside the run speaks in the targets' own units: its last linear layer is
brought into the run's units before the first round, and back when the model is exported.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distqexp.arrays import Arrays, FloatArray
from distqexp.errors import FileContentError
from distqexp.problem.dataset import Dataset
from distqexp.problem.losses import MeanSquaredError
from distqexp.problem.network import Network
from distqexp.problem.probes import synthetic_records
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema

_TRIAL_RECORDS = 4
_TRIAL_MEAN, _TRIAL_SCALE = 0.7, 1.9
_STARTING_RECORDS = 256
_FAR_FROM_ONE = 10.0


def with_target_moments(schema: Schema, dataset: Dataset, network: Network) -> Schema:
    """Return the schema with the moments of the public targets, where the model's outputs end in a layer that can be rescaled.

    Args:
        schema: The schema of a regression's records, fitted on public ones.
        dataset: The public records.
        network: The model; its parameters are afterwards as they were.
    """
    records = dataset.read(dataset.slot_map().rows)
    targets = records.targets.reshape(len(records.targets), -1)[records.present].double().numpy()
    if len(targets) == 0:
        return schema
    head = _scalable_head(network, schema, targets.shape[1])
    if head is None:
        return schema
    deviation = targets.std(axis=0)
    scales = np.where(deviation > 0, deviation, 1.0)
    return dataclasses.replace(
        schema,
        target_means=tuple(targets.mean(axis=0).tolist()),
        target_scales=tuple(scales.tolist()),
        target_head=head,
    )


def unscaled_targets(schema: Schema, dataset: Dataset) -> str | None:
    """Return words on public targets that are far from 1 in size where the model has no layer that could scale them; else None."""
    if schema.target_scales:
        return None
    records = dataset.read(dataset.slot_map().rows)
    targets = records.targets.reshape(len(records.targets), -1)[records.present].double()
    size = float((targets.mean(dim=0).abs() + targets.std(dim=0, correction=0)).max()) if len(targets) else 0.0
    if not size > _FAR_FROM_ONE:
        return None
    return (
        f"targets are about {size:.2g} in size, and the model doesn't end in a trained torch.nn.Linear with a bias, which could scale "
        "them: they are hardly learnt; end it in one, or divide the targets by a public number"
    )


def start_in_run_units(network: Network, schema: Schema, dataset: Dataset) -> None:
    """Bring a model whose outputs are in the targets' own units into the run's, where public records say that they are.

    A new model's outputs are about 0, which is as good a start in the run's units: whichever reading has the smaller loss on public
    records is taken.
    """
    if schema.target_head is None:
        return
    rows = dataset.slot_map().rows
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _STARTING_RECORDS)).astype(np.int64))
    records = dataset.read(rows[places])
    as_given = network.state()
    loss = _mean_loss(network, records)
    network.load_state(_rescaled(as_given, schema, into_run=True))
    if not _mean_loss(network, records) < loss:
        network.load_state(as_given)


def state_in_own_units(network: Network, schema: Schema) -> Arrays:
    """Return all parameters and buffers of a run's model, by name, for a model whose outputs are in the targets' own units."""
    return in_own_units(network.state(), schema)


def in_own_units(state: Arrays, schema: Schema) -> Arrays:
    """Return a run's state for a model whose outputs are in the targets' own units."""
    return state if schema.target_head is None else _rescaled(state, schema, into_run=False)


def outputs_in_own_units(schema: Schema, values: torch.Tensor) -> torch.Tensor:
    """Turn a run's outputs or targets, (n,) or (n, o), into the targets' own units, float64."""
    if not schema.target_scales:
        return values
    matrix = values.double().reshape(len(values), len(schema.target_scales))
    own = matrix * torch.tensor(schema.target_scales).double() + torch.tensor(schema.target_means).double()
    return own.reshape(values.shape)


def _mean_loss(network: Network, records: Records) -> float:
    outputs = network.outputs(records.inputs).double()
    return float(MeanSquaredError().value(outputs, records.targets.double())[records.present].mean())


def _rescaled(state: Arrays, schema: Schema, *, into_run: bool) -> Arrays:
    means, scales = np.array(schema.target_means), np.array(schema.target_scales)
    if into_run:
        means, scales = -means / scales, 1.0 / scales
    weight, bias = _parameters(schema.target_head or "")
    return {
        **state,
        weight: _like(state[weight], scales[:, None] * state[weight]),
        bias: _like(state[bias], scales * state[bias] + means),
    }


def _parameters(layer: str) -> tuple[str, str]:
    """Return the names of the weight and the bias of a layer; the module itself has the name ""."""
    return f"{layer}.weight".removeprefix("."), f"{layer}.bias".removeprefix(".")


def _like(values: NDArray[Any], numbers: FloatArray) -> NDArray[Any]:
    return np.asarray(numbers, dtype=values.dtype)


def _scalable_head(network: Network, schema: Schema, width: int) -> str | None:
    """Return the name of the linear layer, all of it trainable, that outputs are affine in, by trial at random parameters."""
    trainable = {name for name, _ in network.names_shapes}
    heads = [
        name
        for name, module in network.module.named_modules()
        if type(module) is nn.Linear and module.out_features == width and set(_parameters(name)) <= trainable
    ]
    as_given, theta = network.state(), network.theta()
    random = np.random.default_rng(0)
    inputs = synthetic_records(schema, _TRIAL_RECORDS, 0, 0, 0).inputs
    try:
        network.load(theta + 0.1 * random.standard_normal(len(theta)))
        state, outputs = network.state(), network.outputs(inputs).double()
        if outputs.numel() != _TRIAL_RECORDS * width:
            return None
        expected = _TRIAL_MEAN + _TRIAL_SCALE * outputs
        return next((name for name in reversed(heads) if _gives(network, state, name, inputs, expected)), None)
    finally:
        network.load_state(as_given)


def _gives(network: Network, state: Arrays, name: str, inputs: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether rescaling this layer rescales the outputs."""
    weight, bias = _parameters(name)
    rescaled = {
        **state,
        weight: _like(state[weight], _TRIAL_SCALE * state[weight]),
        bias: _like(state[bias], _TRIAL_SCALE * state[bias] + _TRIAL_MEAN),
    }
    try:
        network.load_state(rescaled)
    except FileContentError:  # the layer shares its parameters with another
        return False
    outputs = network.outputs(inputs).double()
    return bool(torch.allclose(outputs, expected, rtol=1e-3, atol=1e-3))
