"""What one rank works with from the first round to the last."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from distqexp.arrays import Arrays, FloatArray
from distqexp.artefacts.plan import Plan
from distqexp.config import Config
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions import precision_kind, register_precision
from distqexp.geometry.subspaces import register_subspace, subspace_kind
from distqexp.gradients.setup import blocks_of, build_network
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema
from distqexp.problem.sources import Readers


class Worker:
    """The model, built once, and the readers of records, opened once; a round's state is an argument to what is done with it.

    config, schema: of the plan. weights: every parameter and buffer of the pretrained model. network, readers: of the
    process, where they are at hand; the network's parameters are the worker's from then on. A pickled worker (Dask) builds
    and opens where it arrives. Public, but for the records behind the readers.
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
        self._network = network
        self._theta: FloatArray | None = None

    @staticmethod
    def of_plan(plan: Plan) -> Worker:
        """A worker on a plan's model."""
        return Worker(plan.config, plan.schema, plan.weights)

    def __getstate__(self) -> dict[str, Any]:
        # The kinds travel as objects: where a worker process hasn't met them yet, it learns them so.
        kinds = (subspace_kind(self.config.subspace.kind), precision_kind(self.config.precision.kind))
        return {"kinds": kinds, "parts": (self.config, self.schema, self.weights)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        subspace, precision = state["kinds"]
        register_subspace(subspace)
        register_precision(precision)
        self.__init__(*state["parts"])  # type: ignore[misc]

    @property
    def network(self) -> Network:
        """The model, for its shapes and names: the parameters are those of whichever round was last."""
        if self._network is None:
            self._network = build_network(self.config)
        return self._network

    def lend(self) -> Network:
        """The model, for whoever sets parameters: ``network_at`` sets them anew."""
        self._theta = None
        return self.network

    def network_at(self, theta: FloatArray) -> Network:
        """The model with its trainable parameters at ``theta`` (d,), frozen parts included."""
        network = self.network
        if self._theta is None:
            network.load_state(self.weights)
        if self._theta is None or not np.array_equal(self._theta, theta, equal_nan=True):
            network.load(theta)
            self._theta = np.array(theta)
        return network

    @cached_property
    def loss(self) -> Loss:
        """The training loss."""
        return get_loss(self.config.model.loss)

    @cached_property
    def blocks(self) -> list[Block] | None:
        """The parameters as matrices, where the subspace or the precision works layer by layer."""
        return blocks_of(self.config, self.network)
