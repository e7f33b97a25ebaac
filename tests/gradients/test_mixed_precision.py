"""Forward passes in half precision: gradients agree with autograd's under the same autocast, and records stay apart to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from layers_harness import CrossEntropy, clipped_sum, fast, random_records, relative_error, whitening_for
from torch import nn
from torch.utils.checkpoint import checkpoint

from distqexp.errors import UsageError
from distqexp.geometry.subspaces.identity import IdentitySubspace
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.by_layer import BlockGradients, clip_weights
from distqexp.gradients.layers import block_layout
from distqexp.gradients.layers.check import _vectors, checked_taps
from distqexp.gradients.layers.forms import Dense, Form, Whole, product
from distqexp.gradients.vectorising import learn_way
from distqexp.problem import models
from distqexp.problem.frozen import frozen_part
from distqexp.problem.independence import refuse_coupling
from distqexp.problem.mixed import Mixed
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.problem.schema import Schema

BRAIN, HALF = Mixed(torch.bfloat16), Mixed(torch.float16)
ROUNDING = {BRAIN: 0.06, HALF: 0.008}
"""About eight units in the last place of the type: what a few layers round a gradient by."""


class Slopes(nn.Module):
    """A layer without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.linspace(0.1, 0.5, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, self.slopes * x)


class Attending(nn.Module):
    """A small transformer on (n, 5, 8): packed attention, a normalisation, a checkpoint, and a layer without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 12)
        self.slopes = Slopes()
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(x + self.attention(x, x, x)[0])
        inner = checkpoint(self.inner, hidden, use_reentrant=False)
        outputs: torch.Tensor = self.head(self.slopes(inner).mean(dim=1))
        return outputs


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attending, (5, 8)),
    "convolutions": (small_cnn, (1, 8, 8)),
}


def setting(name: str, mixed: Mixed | None) -> tuple[Network, Records]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    network = Network(make(), mixed=mixed)
    return network, random_records(shape, 3, 6)


def alone(network: Network, records: Records) -> torch.Tensor:
    """(n, d): each record's gradient by autograd, the model called under autocast by hand."""
    rows = []
    for x, y in zip(records.inputs, records.targets, strict=True):
        with torch.autocast("cpu", dtype=network.mixed.type if network.mixed else None, enabled=bool(network.mixed)):
            outputs = network.module(x[None].float())
        value = torch.nn.functional.cross_entropy(outputs.float(), y[None])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(value, network.trainable_parameters)]))
    return torch.stack(rows).double()


def by_layer(network: Network) -> BlockGradients:
    return fast(network, CrossEntropy(), whitening_for(block_layout(network), None), 8)


def whole(network: Network) -> UnitGradients:
    identity = Whitening(IdentitySubspace(network.d), None)
    learn = partial(learn_way, network, CrossEntropy(), factors=False)
    return UnitGradients(network=network, loss=CrossEntropy(), whitening=identity, micro_batch=8, prepare=learn)


def raw(gradients: BlockGradients, records: Records) -> torch.Tensor:
    """(n, d): what the taps give, unwhitened, put back into the places of the parameters."""
    taps = gradients._taps_for(records.inputs)
    return _vectors(
        taps, records.inputs, lambda outputs: CrossEntropy().value(outputs, records.targets), slice(0, len(records))
    ).double()


def in_doubles(form: Form) -> Form:
    """The stored factors, whose product is what a sum adds, exactly."""
    return Whole(form.matrix.double()) if isinstance(form, Whole) else Dense(form.row.double(), form.column.double())


@pytest.mark.parametrize("mixed", [BRAIN, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_gradients_are_those_of_autograd_under_the_same_autocast(name: str, mixed: Mixed) -> None:
    network, records = setting(name, mixed)
    refuse_coupling(network, MODELS[name][1], False, None, micro_batch=8)
    expected = alone(network, records)
    found = raw(by_layer(network), records)
    func = torch.from_numpy(whole(network)._record_vectors(records)[0])
    assert relative_error(found, expected) < ROUNDING[mixed]
    assert relative_error(func, expected) < ROUNDING[mixed]
    # It is another precision indeed, and torch.func's rows are in float32.
    exact = alone(setting(name, None)[0], records)
    assert relative_error(func, exact) > ROUNDING[mixed] / 100
    assert network.dtype == torch.float32


@pytest.mark.parametrize("mixed", [BRAIN, HALF], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_what_other_records_are_changes_no_bit(name: str, mixed: Mixed) -> None:
    network, records = setting(name, mixed)
    layers, func = by_layer(network), whole(network)
    rows = func._record_vectors(records)[0], torch.from_numpy(layers._vectors(records)[0])
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        keep = torch.rand(len(records), generator=generator) < 0.5
        inputs = torch.where(keep.reshape(-1, *[1] * (records.inputs.ndim - 1)), records.inputs, 1e30)
        for other in (replace(records, present=keep), replace(records, inputs=inputs)):
            again = func._record_vectors(other)[0], torch.from_numpy(layers._vectors(other)[0])
            for one, two in zip(rows, again, strict=True):
                np.testing.assert_array_equal(np.asarray(one)[keep.numpy()], np.asarray(two)[keep.numpy()])


def test_the_clip_holds_for_the_vector_that_is_summed_and_overflow_contributes_nothing() -> None:
    """float16 overflows above 65,504: such a record is left out, whatever its gradient would be in float32."""
    network, records = setting("convolutions", HALF)
    records.inputs[2] = 1e5
    assert np.isfinite(alone(setting("convolutions", None)[0], records).numpy()).all()
    gradients = by_layer(network)
    vectors, finite = gradients._vectors(records)
    assert list(np.flatnonzero(~finite)) == [2]
    clip = float(np.median(np.linalg.norm(vectors, axis=1)))
    stores, present = gradients._stores(records)
    weights, good = clip_weights(stores, present, clip, 1e6)
    weights, good = weights[:6].numpy(), good[:6].numpy()
    assert list(np.flatnonzero(~good)) == [2]
    assert weights[2] == 0
    forms = [store.form for store in stores]
    summed = np.concatenate([product(in_doubles(form)).reshape(8, -1)[:6] for form in forms if form], axis=1)
    norms = np.linalg.norm(weights[good, None] * summed[good], axis=1)
    assert clip * (1 - 1e-9) < norms.max() <= clip
    total = clipped_sum(gradients, records, clip, 1e6)
    np.testing.assert_allclose(total, (weights[:, None] * vectors).sum(axis=0), rtol=0, atol=1e-6 * clip)


class Coupled(nn.Module):
    """Centres the records of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(x - x.mean(dim=0))
        return outputs


def test_coupled_records_are_refused_in_half_precision_too() -> None:
    network = Network(Coupled(), mixed=BRAIN)
    with pytest.raises(UsageError, match="couples the records"):
        refuse_coupling(network, (4,), False, None, micro_batch=8)
    with pytest.raises(UsageError, match="differ"):
        checked_taps(network, block_layout(network), torch.zeros(1, 4), may_refuse=True)


def test_half_parameters_that_train_are_widened_and_frozen_ones_kept() -> None:
    module = models.mlp(6, 3, (8,)).bfloat16()
    network = Network(module, ("3.*",), mixed=BRAIN)
    assert {str(p.dtype) for name, p in module.named_parameters() if name.startswith("3")} == {"torch.float32"}
    assert {str(p.dtype) for name, p in module.named_parameters() if name.startswith("1")} == {"torch.bfloat16"}
    assert network.outputs(torch.randn(2, 6)).dtype == torch.float32
    assert Network(models.mlp(6, 3).bfloat16()).dtype == torch.bfloat16


def test_a_frozen_part_is_found_in_half_precision_too() -> None:
    network = Network(models.mlp(6, 3, (8,)), ("3.*",), mixed=BRAIN)
    part = frozen_part(network, Schema("cross-entropy", False, tuple("abcdef"), (6,), classes=3))
    assert part is not None
    inputs = torch.randn(4, 6)
    torch.testing.assert_close(part.head.outputs(part.features(inputs)), network.outputs(inputs), rtol=0, atol=0)
