"""The worker: a model and readers of records that one rank keeps from the first round to the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from distqexp.arrays import Arrays, FloatArray
from distqexp.artefacts.plan import Plan
from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions import precision_kind, register_precision
from distqexp.geometry.subspaces import register_subspace, subspace_kind
from distqexp.geometry.subspaces.base import Subspace
from distqexp.gradients.layers.check import checked_taps
from distqexp.gradients.layers.taps import Taps
from distqexp.gradients.setup import blocks_of, build_network, dimension_of, subspace_of
from distqexp.gradients.vectorising import describe_way, hidden_by_checkpoints, learn_way
from distqexp.kinds import Needs
from distqexp.problem import lent
from distqexp.problem.feature_cache import FeatureCache
from distqexp.problem.frozen import FrozenPart, frozen_part
from distqexp.problem.independence import coupled_by_rounding
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network, described_parameters
from distqexp.problem.pages import in_pages
from distqexp.problem.schema import Schema
from distqexp.problem.sources import Readers
from distqexp.problem.user_code import own_code

_WITHOUT_LAYERS = (
    "correct the model, or take another subspace and precision.kind than kronecker's, which take any module"
)


class Worker:
    """A model that is built once and readers that are opened once. The state of a round comes as an argument.

    A pickled worker (Dask) builds its model and opens its readers anew where it arrives. Public, except for the records behind
    the readers.

    Args:
        config: The plan's config.
        schema: The plan's schema.
        weights: Every parameter and buffer of the pretrained model.
        network: A model that the process has already, if any; from now on the worker alone sets its parameters.
        readers: Readers that the process has already, if any.
    """

    def __init__(
        self,
        config: Config,
        schema: Schema,
        weights: Arrays,
        network: Network | None = None,
        readers: Readers | None = None,
    ) -> None:
        self.config = config
        self.schema = schema
        self.weights = dict(weights)
        self.readers = readers or Readers()
        self.public_features = FeatureCache()
        self._network = network
        self._theta: FloatArray | None = None
        self._subspace: tuple[tuple[int, int, int], Subspace] | None = None
        self._taps: dict[tuple[object, ...], Taps] = {}
        self._learnt: set[tuple[object, ...]] = set()
        self._parted = False

    @staticmethod
    def of_plan(plan: Plan) -> Worker:
        """Return a worker for a plan's model."""
        return Worker(plan.config, plan.schema, plan.weights)

    def __getstate__(self) -> dict[str, Any]:
        # The kinds travel as objects: a worker process that doesn't know them yet registers them on arrival.
        kinds = (subspace_kind(self.config.subspace.kind), precision_kind(self.config.precision.kind))
        name = str(self.config.model.args.get("module", "")) if self.config.model.factory == lent.FACTORY else ""
        return {
            "kinds": kinds,
            "lent": {key: lent.lent_object(key) for key in (name, self.config.model.loss)},
            "parts": (self.config, self.schema, self.weights),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        subspace, precision = state["kinds"]
        register_subspace(subspace)
        register_precision(precision)
        for name, item in state["lent"].items():
            if item is not None:
                lent.lend(name, item)
        config, schema, weights = state["parts"]
        self.__init__(config, schema, in_pages(dict(weights)))  # type: ignore[misc]

    @property
    def network(self) -> Network:
        """The model, for its shapes and names only: its parameters are those of whichever round was last."""
        if self._network is None:
            self._network = build_network(self.config)
        return self._network

    def lend(self) -> Network:
        """Return the model to a caller who will change its parameters; ``network_at`` then loads them anew."""
        self._theta = None
        return self.network

    def network_at(self, theta: FloatArray) -> Network:
        """Return the model, frozen parts included, with its trainable parameters at ``theta`` (d,).

        Parameters are loaded when ``theta`` is another array object than before, whatever its numbers: callers must not write
        into an array that they have passed.
        """
        network = self.network
        if self._theta is None:
            network.load_state(self.weights)
            self._part_records()
        if self._theta is not theta:
            network.load(theta)
            self._theta = theta
        return network

    def subspace_at(self, d: int, k: int, round: int, arrays: Arrays | None) -> Subspace:
        """Return the subspace P of a round, from its seed or from its arrays.

        One that is all seed, with what it has cached of its entries, stays until another is asked for: a round's curvature, its
        sketch and its release take the same P.
        """
        if arrays or self.blocks is not None:
            return subspace_of(self.config, d, k, round, self.blocks, arrays)
        if self._subspace is None or self._subspace[0] != (d, k, round):
            self._subspace = (d, k, round), subspace_of(self.config, d, k, round)
        return self._subspace[1]

    def _part_records(self) -> None:
        """Let records go through the model one at a time where their last bits would depend on the batch.

        That is found at the plan's weights, so that every process finds the same. Layer by layer there is no such way.
        """
        shape = self.schema.input_shape
        if not self._parted and self.blocks is None and shape is not None:
            self._parted = True
            self.network.separate = coupled_by_rounding(
                self.network, shape, self.schema.tokens, self.schema.vocabulary, self.config.records_together
            )

    def taps_of(self, record: torch.Tensor, *, whole: bool = False, may_refuse: bool = False) -> Taps:
        """Return the taps for records like this one (1, ...), checked once: at the plan's parameters, with none of them zero.

        They are those of the module on top of the frozen part, where there is one, unless the ``whole`` model is asked for. Plans
        and sites ask for that before anything is charged; a model that couples records is refused only if it ``may_refuse``, and
        else left to torch.func. Parameters are then as they were before.
        """
        network = self.network if whole or self.frozen is None else self.frozen.head
        key = (network is self.network, tuple(record.shape[1:]), record.dtype)
        if key not in self._taps:
            with self._at_plan():
                _wake(network)
                with network.sealed():
                    self._taps[key] = checked_taps(
                        network,
                        self.blocks or [],
                        record,
                        may_refuse=may_refuse,
                        together=self.config.records_together,
                    )
        return self._taps[key]

    def learn(self, record: torch.Tensor) -> None:
        """Learn whether torch.func can differentiate what rounds work on, for records like this one (1, ...), once.

        As for taps, at the plan's parameters, with none of them zero; parameters are then as they were before. Raises UsageError
        where the model can't be differentiated at all.
        """
        network = self.network if self.frozen is None else self.frozen.head
        key = (network is self.network, tuple(record.shape[1:]), record.dtype)
        if key not in self._learnt:
            factors = self.config.private_curvature or self.config.precision.traits.needs is Needs.CURVATURE
            with self._at_plan():
                _wake(network)
                with network.sealed(self.loss):
                    learn_way(network, self.loss, record, factors)
                self._learnt.add(key)

    def refuse_wrong_gradients(self, shape: Sequence[int]) -> None:
        """Refuse a model whose gradients couple the records of a batch, for records of this shape. Raises UsageError.

        For plans, and for shards before anything is charged. Without blocks there is nothing to check: each record is taken alone.
        """
        if self.blocks is None:
            return
        record = torch.zeros((1, *shape), dtype=self._record_type, device=self.network.device)
        with own_code(f"model: layer by layer, for synthetic records of shape {tuple(shape)}", _WITHOUT_LAYERS):
            with hidden_by_checkpoints() as hidden:
                self.taps_of(record, whole=True, may_refuse=True)
            if hidden():
                raise UsageError(
                    "model: a re-entrant checkpoint (torch.utils.checkpoint) hides the parameters inside from the gradient; expected "
                    f"use_reentrant=False; set it where the model calls checkpoint, or {_WITHOUT_LAYERS}"
                )

    def refuse_indifferentiable(self, shape: Sequence[int]) -> None:
        """Refuse a model that no way differentiates, for records of this shape, and learn the way. Raises UsageError."""
        self.refuse_wrong_gradients(shape)
        if self.blocks is None:
            self.learn(self._record_in_rounds(shape))

    def describe(self) -> list[str]:
        """Return lines on the model for whoever makes the plan: what is trained, and where records are taken one at a time."""
        lines, shape = [described_parameters(self.network)], self.schema.input_shape
        if self.network.separate:
            lines.append("outputs: one record at a time, as their last bits depend on the other records of a batch")
        if shape is not None and self.blocks is None:
            network = self.network if self.frozen is None else self.frozen.head
            record = self._record_in_rounds(shape)
            lines += describe_way(network, self.loss, record, self.config.engine.micro_batch)
        return lines

    @property
    def _record_type(self) -> torch.dtype:
        return torch.int64 if self.schema.tokens else torch.float32

    def _record_in_rounds(self, shape: Sequence[int]) -> torch.Tensor:
        """Return a blank record of this shape as rounds have it: with the features of a frozen part in place of inputs."""
        frozen, device = self.frozen, self.network.device
        if frozen is None:
            return torch.zeros((1, *shape), dtype=self._record_type, device=device)
        return torch.zeros((1, *frozen.shape), dtype=frozen.head.dtype, device=device)

    @cached_property
    def frozen(self) -> FrozenPart | None:
        """The part of the model that no round changes, where all that trains is one module on top of it.

        It is looked for at the pretrained weights, so that every process finds the same; parameters are then as they were before.
        """
        with self._at_plan():
            return frozen_part(self.network, self.schema)

    @contextmanager
    def _at_plan(self) -> Iterator[None]:
        """Inside, the network has the plan's weights and may be changed; afterwards it is back at its parameters."""
        theta = self._theta
        self.lend().load_state(self.weights)
        yield
        if theta is not None:
            self.network_at(theta)

    @cached_property
    def loss(self) -> Loss:
        """The training loss."""
        return get_loss(self.config.model.loss)

    @cached_property
    def blocks(self) -> list[Block] | None:
        """The parameters as matrices, where the subspace or the precision works layer by layer."""
        return blocks_of(self.config, self.network)

    @cached_property
    def k(self) -> int:
        """The number of coordinates of the subspace."""
        return dimension_of(self.config, self.network)


def _wake(network: Network) -> None:
    """Give parameters that are zero as a whole small random values: below a head of zeros no gradient could be compared."""
    generator = torch.Generator().manual_seed(0)
    for tensor in network.trainable_tensors().values():
        if tensor.ndim > 1 and not tensor.any():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(0.1 * values / tensor[0].numel() ** 0.5)
