"""From a config to the model, its parameters as matrices, and the subspace of a round. Public."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distqexp.arrays import Arrays
from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.subspaces import Frame, Subspace, subspace_kind
from distqexp.gradients.layers.layout import block_layout
from distqexp.problem.models import build_model
from distqexp.problem.network import Network


def build_network(config: Config) -> Network:
    """The module of the config, in evaluation mode, on its device, with the trainable parameters selected."""
    seed = config.model.pretrain.seed if config.model.pretrain else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_model(config.model.factory, config.model.args)
    return Network(module, config.model.trainable, device=config.engine.device)


def blocks_of(config: Config, network: Network) -> list[Block] | None:
    """The parameters as matrices, where the subspace or the precision works layer by layer."""
    return block_layout(network) if config.by_blocks else None


def dimension_of(config: Config, network: Network) -> int:
    """k: what the config says, or what the parameters give."""
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
    """P of one round. ``blocks``: of ``blocks_of``. ``arrays``: the state's, for a subspace made from public data.

    Raises UsageError when k > d, FileContentError for other arrays than the kind's.
    """
    if not 1 <= k <= d:
        raise UsageError(
            f"subspace {config.subspace.kind}: k = {k}, with d = {d} trainable parameters; expected 1 <= k <= d; lower k"
        )
    return subspace_kind(config.subspace.kind).restore(_frame(config, d, k, round, blocks), arrays or {})


def made_subspace(config: Config, d: int, k: int, round: int, blocks: Sequence[Block] | None, public: Any) -> Arrays:
    """The arrays of a subspace that is made from public data; see ``SubspaceKind.make``."""
    return subspace_kind(config.subspace.kind).make(_frame(config, d, k, round, blocks), public)


def _frame(config: Config, d: int, k: int, round: int, blocks: Sequence[Block] | None) -> Frame:
    subspace = config.subspace
    return Frame(
        d=d,
        k=k,
        seed=subspace.seed,
        round=config.precision.made_at(round),  # kept as long as the precision in its coordinates
        blocks=blocks,
        k_in=subspace.k_in,
        k_out=subspace.k_out,
        nonzeros=subspace.nonzeros,
    )
