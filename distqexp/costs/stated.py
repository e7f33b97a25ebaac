"""The memory of a rank's GPU as stated by a model's shapes alone: nothing is read, computed or measured, so any machine will do.

The model is made of tensors without memory (torch's fake tensors), and one micro-batch runs through the code of a sketch.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distqexp.config import Config
from distqexp.costs.live_bytes import LiveBytes
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.packing import moments_size
from distqexp.geometry.subspaces.kronecker import kronecker_sides
from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.automatic import chosen
from distqexp.gradients.by_layer import clip_weights
from distqexp.gradients.layers.forms import Raw
from distqexp.gradients.layers.routing import make_routing
from distqexp.gradients.layers.store import BlockStore
from distqexp.gradients.layers.taps import Taps
from distqexp.gradients.setup import blocks_of, dimension_of, module_of
from distqexp.kinds import Needs
from distqexp.problem.derivatives import per_example_gradients
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.mixed import Mixed
from distqexp.problem.network import Network
from distqexp.problem.pretrained import resolved
from distqexp.problem.schema import Schema, fit_schema, schema_from_config
from distqexp.problem.user_code import own_code

CONTEXT = 600 * 2**20
"""What CUDA, cuBLAS and torch's own kernels take of a GPU besides, about."""


@dataclass(frozen=True)
class Stated:
    """What a rank needs of its GPU, in bytes, by the shapes of a config's model. Public.

    Attributes:
        model: The model's factory.
        parameters: The number of all parameters.
        d: The number of those that move.
        k: The number of coordinates.
        micro_batch: The records of a micro-batch.
        weights: All parameters and buffers in their own types.
        whitening: The factors or rows that map gradients to coordinates.
        batch: The most that a micro-batch takes besides: activations, gradients of layers, norms, sums.
        moments: The public second moments while the plan is made, and while a round renews them.
        host: Main memory for weights: the model's, and what they are put back from.
    """

    model: str
    parameters: int
    d: int
    k: int
    micro_batch: int
    weights: int
    whitening: int
    batch: int
    moments: int
    host: int

    @property
    def sketch(self) -> int:
        """The bytes of a GPU in a round."""
        return CONTEXT + self.weights + self.whitening + self.batch

    @property
    def plan(self) -> int:
        """The bytes of a GPU while the plan is made: at first with a copy of the weights, then with second moments."""
        return CONTEXT + max(2 * self.weights, self.weights + self.batch + self.moments)

    def lines(self) -> list[str]:
        """Return lines for people."""
        gib = {name: f"{value / 2**30:,.2f}" for name, value in asdict(self).items() if isinstance(value, int)}
        return [
            f"{self.model}: {self.parameters:,} parameters, d = {self.d:,}, k = {self.k:,}; micro-batches of {self.micro_batch}",
            "stated by shapes alone, nothing measured: GiB of a GPU for each rank",
            f"  a round   {self.sketch / 2**30:,.2f}: weights {gib['weights']}, whitening {gib['whitening']}, a micro-batch "
            f"{gib['batch']}, CUDA {CONTEXT / 2**30:,.2f}",
            f"  the plan  {self.plan / 2**30:,.2f}: with a copy of the weights, or second moments {gib['moments']}",
            f"  main memory for weights {gib['host']}",
            "for seconds, measure on a machine with such a GPU: distqexp cost CONFIG --gpus",
        ]

    def tree(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"stated": asdict(self) | {"sketch": self.sketch, "plan": self.plan, "context": CONTEXT}}


class _WithoutValues(Network):
    """A network whose tensors have shapes alone: there is nothing that a pass could change."""

    @contextmanager
    def sealed(self, loss: Loss | None = None) -> Iterator[None]:
        """Every pass is inside."""
        yield


def stated(config: Config) -> Stated:
    """Return what a rank needs of a GPU for a config. The model needs no weights; of a folder config.json is read.

    Raises:
        UsageError: The shape of a record is not known, or the model can't be made, or run, from shapes alone.
    """
    config = resolved(config)
    schema = _schema(config)
    remedy = "expected one that can be made without memory; measure on a GPU that holds it instead: distqexp cost CONFIG --gpus"
    with own_code("model: from shapes alone", remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            module = module_of(config)
        with FakeTensorMode():
            mixed = Mixed.named(config.engine.mixed_precision)
            network = _WithoutValues(_on_fake_memory(module), config.model.trainable, mixed=mixed)
            return _stated(chosen(config, network, schema), network, schema)


def _on_fake_memory(module: nn.Module) -> nn.Module:
    """Give a module that was made on the meta device tensors that say they are on the CPU, where all code paths work."""
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None:
                continue
            if id(tensor) not in made:
                fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                is_parameter = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            holder: dict[str, Any] = part._parameters if name in part._parameters else part._buffers
            holder[name] = made[id(tensor)]
    return module


def _stated(config: Config, network: Network, schema: Schema) -> Stated:
    own = [*network.module.parameters(), *network.module.buffers()]
    blocks, k, loss = blocks_of(config, network), dimension_of(config, network), get_loss(config.model.loss)
    sides = [] if blocks is None else [_sides(config, block) for block in blocks]
    inputs = torch.zeros((config.records_together, *(schema.input_shape or ())), dtype=_record_type(schema))
    whitening = [_whitening(*pair) for pair in zip(blocks or [], sides, strict=True)]
    with LiveBytes() as live:
        live.know([*own, *(side for pair in whitening for side in (pair.row, pair.column))])
        if blocks is None:
            _rows(network, loss, inputs)
        else:
            _clipped_sum(network, loss, inputs, blocks, whitening)
    size = config.engine.micro_batch
    weights = sum(tensor.numel() * tensor.element_size() for tensor in own)
    flat = (
        0 if blocks is not None else size * (12 * network.d + 16 * k)
    )  # float32 rows, projected and whitened in float64
    return Stated(
        model=str(config.model.args.get("model", config.model.factory)),
        parameters=sum(parameter.numel() for parameter in network.module.parameters()),
        d=network.d,
        k=k,
        micro_batch=size,
        weights=weights,
        whitening=sum(4 * (pair.row.numel() + pair.column.numel()) for pair in whitening),
        batch=live.peak + flat,
        moments=8 * moments_size(_moment_blocks(config, blocks, sides)) if blocks is not None else 0,
        host=weights + sum(max(4, tensor.element_size()) * tensor.numel() for tensor in own),
    )


def _schema(config: Config) -> Schema:
    loss, shape, public = config.model.loss, config.data.record_shape, config.data.public
    if public is None:
        schema = schema_from_config(config.data.private[0], loss=loss, record_shape=shape)
    else:
        schema = fit_schema(public, loss=loss, record_shape=shape)
    if schema.input_shape is None:
        raise UsageError("data.record_shape: absent; without data.public expected it: the shape of one record")
    return schema


def _record_type(schema: Schema) -> torch.dtype:
    return torch.int64 if schema.tokens else torch.float32


def _sides(config: Config, block: Block) -> tuple[int, int]:
    return kronecker_sides(block, config.subspace.k_in, config.subspace.k_out)


def _whitening(block: Block, sides: tuple[int, int]) -> BlockWhitening:
    """Return factors of a block's shapes."""
    row = (block.copies, block.rows) if block.sparse_rows else (block.copies, sides[0], block.rows)
    return BlockWhitening(torch.zeros(row), torch.zeros(block.copies, sides[1], block.columns))


def _moment_blocks(config: Config, blocks: Sequence[Block], sides: Sequence[tuple[int, int]]) -> list[Block]:
    """Return the blocks that have second moments: those of theta, or of the coordinates of random factors."""
    if config.subspace.traits.needs is not Needs.NOTHING:
        return list(blocks)
    return [
        dataclasses.replace(block, rows=pair[0], columns=pair[1]) for block, pair in zip(blocks, sides, strict=True)
    ]


def _clipped_sum(
    network: Network, loss: Loss, inputs: torch.Tensor, blocks: Sequence[Block], whitening: Sequence[BlockWhitening]
) -> None:
    """Take one micro-batch through the passes, norms and sums of a sketch, layer by layer."""
    count = len(inputs)
    targets = _targets(network, loss, inputs)
    taps = Taps(network, blocks, make_routing(network, blocks, inputs[:1], frozenset()))
    shapes = [
        (block.copies, len(pair.row[0]), pair.column.shape[1]) for block, pair in zip(blocks, whitening, strict=True)
    ]
    stores = [BlockStore(count, shape, network.device) for shape in shapes]

    def receive(number: int, raw: Raw) -> None:
        stores[number].add(raw.whiten(blocks[number], whitening[number]))

    taps.run(inputs, lambda outputs: loss.value(outputs, targets), receive)
    weights, good = clip_weights(stores, torch.ones(count, dtype=torch.bool, device=network.device), 1.0, 1.0)
    while stores:
        store = stores.pop(0)
        store.weighted_sum(torch.empty(store.size, dtype=torch.float64, device=network.device), weights, good)


def _rows(network: Network, loss: Loss, inputs: torch.Tensor) -> None:
    """Take one micro-batch through the passes that give each record's whole gradient."""
    per_example_gradients(network, loss, inputs, _targets(network, loss, inputs), private=False)


def _targets(network: Network, loss: Loss, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        outputs = network.forward(network.prepare(inputs[:1]))
    noise = torch.full((1, loss.noise_width(outputs)), 0.3, dtype=torch.float64, device=outputs.device)
    target = loss.sample(outputs, noise)
    return target.expand(len(inputs), *target.shape[1:])


__all__ = ["Stated", "stated"]
