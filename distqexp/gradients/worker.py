"""The worker: a model and readers of records that one rank keeps from the first round to the last."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from distqexp.arrays import Arrays, FloatArray
from distqexp.artefacts.plan import Plan
from distqexp.config import Config
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions import precision_kind, register_precision
from distqexp.geometry.subspaces import register_subspace, subspace_kind
from distqexp.gradients.setup import blocks_of, build_network, dimension_of
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.network import Network
from distqexp.problem.schema import Schema
from distqexp.problem.sources import Readers


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
        self._network = network
        self._theta: FloatArray | None = None

    @staticmethod
    def of_plan(plan: Plan) -> Worker:
        """Return a worker for a plan's model."""
        return Worker(plan.config, plan.schema, plan.weights)

    def __getstate__(self) -> dict[str, Any]:
        # The kinds travel as objects: a worker process that doesn't know them yet registers them on arrival.
        kinds = (subspace_kind(self.config.subspace.kind), precision_kind(self.config.precision.kind))
        return {"kinds": kinds, "parts": (self.config, self.schema, self.weights)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        subspace, precision = state["kinds"]
        register_subspace(subspace)
        register_precision(precision)
        self.__init__(*state["parts"])  # type: ignore[misc]

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
        if self._theta is not theta:
            network.load(theta)
            self._theta = theta
        return network

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
