"""Building what a config describes: the model, its parameters as matrices, and the subspace of a round. Public."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distqexp.arrays import Arrays
from distqexp.config import Config
from distqexp.engines.launcher import local_rank
from distqexp.engines.placement import device_of
from distqexp.engines.threads import pin_threads
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.subspaces import Frame, Subspace, subspace_kind
from distqexp.gradients.layers.layout import block_layout
from distqexp.problem.mixed import TYPES, Mixed
from distqexp.problem.models import build_model
from distqexp.problem.network import Network
from distqexp.problem.pretrained import FROM_CONFIG, resolved


def build_network(config: Config) -> Network:
    """Build the config's module in evaluation mode, on its device, with the trainable parameters selected."""
    visible = 0
    if config.engine.device != "cpu":
        pin_threads(config.engine.threads)  # before anything is computed there, as cuBLAS reads its settings once
        visible = torch.cuda.device_count()
    device = device_of(config.engine.device, local_rank(os.environ), visible)
    if device != "cpu":
        torch.cuda.set_device(device)  # else every rank has a context on the first GPU, too
    config = resolved(config)
    mixed = Mixed.named(config.engine.mixed_precision)
    return Network(module_of(config), config.model.trainable, device=device, mixed=mixed)


def module_of(config: Config) -> nn.Module:
    """Call the factory of a config that names no folder any more (``problem.pretrained.resolved``), with its seed."""
    _refuse_half_weights(config)
    seed = config.model.pretrain.seed if config.model.pretrain else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config.model.factory, config.model.args)


def _refuse_half_weights(config: Config) -> None:
    """Refuse weights in half precision without passes in it: layers of two types don't fit together."""
    dtype, engine = config.model.args.get("dtype"), config.engine
    if config.model.factory == FROM_CONFIG and dtype in TYPES and engine.mixed_precision == "off":
        raise UsageError(
            f"model.args.dtype: found {dtype!r} with engine.mixed_precision = off; expected {dtype}, so that frozen and trained layers "
            "fit together; set engine.mixed_precision"
        )


def blocks_of(config: Config, network: Network) -> list[Block] | None:
    """Return the parameters as matrices, where the subspace or the precision works layer by layer; else None."""
    return block_layout(network) if config.by_blocks else None


def still_blocks(config: Config, network: Network, blocks: Sequence[Block], round: int) -> frozenset[int]:
    """Return the numbers of the blocks that stand still in a round, because the head alone moves first.

    Args:
        config: The config.
        network: The model.
        blocks: What ``blocks_of`` gives.
        round: The round.

    Raises:
        UsageError: ``mechanism.head`` holds no block or every one, or one parameter of a block without the other.
    """
    mechanism = config.mechanism
    if not mechanism.head:
        return frozenset()
    chosen, start = {}, 0
    for name, shape in network.names_shapes:
        chosen[start] = any(fnmatch.fnmatchcase(name, pattern) for pattern in mechanism.head)
        start += math.prod(shape)
    still = set()
    for number, block in enumerate(blocks):
        sides = {chosen[place] for place in (block.weight, block.bias) if place is not None}
        if len(sides) == 2:
            raise UsageError(
                f"mechanism.head: {list(mechanism.head)} match one of weight and bias of {block.name}; expected both or neither"
            )
        if not sides.pop():
            still.add(number)
    if len(still) in (0, len(blocks)):
        names = ", ".join(name for name, _ in network.names_shapes[-8:])
        raise UsageError(
            f"mechanism.head: {list(mechanism.head)} match {'every' if not still else 'no'} trainable parameter; expected patterns "
            f"of some, such as of {names}"
        )
    return frozenset(still) if round < mechanism.head_rounds else frozenset()


def dimension_of(config: Config, network: Network) -> int:
    """Return k, the dimension of the subspace: the config's own, or what follows from the parameters."""
    blocks = block_layout(network) if config.subspace.traits.by_blocks else None
    return subspace_kind(config.subspace.kind).dimension(_frame(config, network.d, config.subspace.k or 0, 0, blocks))


def subspace_of(
    config: Config,
    d: int,
    k: int,
    round: int,
    blocks: Sequence[Block] | None = None,
    arrays: Arrays | None = None,
) -> Subspace:
    """Return the subspace P of one round.

    Args:
        config: The run's config.
        d: The number of trainable parameters.
        k: The number of coordinates.
        round: The round.
        blocks: What ``blocks_of`` gives.
        arrays: The subspace's arrays in the round's state, where it is made from public data.

    Raises:
        UsageError: k is above d.
        FileContentError: The arrays are not those of the kind of subspace.
    """
    if not 1 <= k <= d:
        raise UsageError(
            f"subspace {config.subspace.kind}: k = {k}, with d = {d} trainable parameters; expected 1 <= k <= d; lower k"
        )
    return subspace_kind(config.subspace.kind).restore(_frame(config, d, k, round, blocks), arrays or {})


def damping_of(config: Config) -> Damping:
    """Return what the config adds to a public curvature."""
    precision = config.precision
    return Damping(precision.damping, precision.reference or "mean", precision.floor)


def make_subspace_arrays(
    config: Config, d: int, k: int, round: int, blocks: Sequence[Block] | None, public: Any
) -> Arrays:
    """Make the arrays of a subspace from public data; see ``SubspaceKind.make``."""
    return subspace_kind(config.subspace.kind).make(_frame(config, d, k, round, blocks), public)


def _frame(config: Config, d: int, k: int, round: int, blocks: Sequence[Block] | None) -> Frame:
    subspace = config.subspace
    return Frame(
        d=d,
        k=k,
        seed=subspace.seed,
        round=config.refresh_round(round),  # it lasts as long as the precision in its coordinates
        blocks=blocks,
        k_in=subspace.k_in,
        k_out=subspace.k_out,
        nonzeros=subspace.nonzeros,
    )
