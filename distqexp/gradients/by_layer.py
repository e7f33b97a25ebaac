"""Whitened gradients and clipped sums by layers: one forward, one backward, no per-example gradient. Private results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.batching import Batch, pad_records, sum_by_unit
from distqexp.gradients.layers.forms import Raw, Tensor, merged
from distqexp.gradients.layers.store import BlockStore
from distqexp.gradients.raw import RawGradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


class BlockGradients(RawGradients):
    """The fast way to what ``UnitGradients`` computes, for whitenings that are a Kronecker product a block.

    A record's numbers depend on that record alone, to the last bit, as there: micro-batches have one padded shape,
    absent records are fed as zeros and masked, and no operation mixes records before they are clipped. ``blocks`` must be
    ``block_layout(network)``; ``whitening`` has the factors of each. Both public.
    """

    def __init__(
        self,
        *,
        network: Network,
        loss: Loss,
        whitening: Sequence[BlockWhitening],
        blocks: Sequence[Block],
        micro_batch: int,
    ) -> None:
        super().__init__(network=network, loss=loss, blocks=blocks, micro_batch=micro_batch)
        if len(whitening) != len(self.blocks):
            raise UsageError(
                f"whitening: factors of {len(whitening)} blocks; expected {len(self.blocks)}, the network's"
            )
        # Whitening runs in the network's own type; sums and norms of what it gives in float64.
        self.whitening = [
            BlockWhitening(*(side.to(network.device, network.dtype) for side in (factors.row, factors.column)))
            for factors in whitening
        ]
        for block, factors in zip(self.blocks, self.whitening, strict=True):
            sides = [(factors.row, block.rows), (factors.column, block.columns)]
            if any((len(factor), factor.shape[-1]) != (block.copies, size) for factor, size in sides):
                raise UsageError(
                    f"whitening: block {block.name} has factors {tuple(factors.row.shape)} and {tuple(factors.column.shape)}; "
                    f"expected {block.copies} copies on {block.rows} rows and {block.columns} columns"
                )
        self.shapes = [
            (block.copies, factors.row.shape[1], factors.column.shape[1])
            for block, factors in zip(self.blocks, self.whitening, strict=True)
        ]

    @property
    def k(self) -> int:
        """Number of whitened coordinates."""
        return sum(copies * rows * columns for copies, rows, columns in self.shapes)

    def of_piece(self, batches: Iterable[Batch]) -> tuple[FloatArray, BoolArray]:
        """Whitened vectors (units, k) of one piece, and which are finite, (units,): as ``UnitGradients.of_piece``."""
        with np.errstate(over="ignore", invalid="ignore"):  # a warning would tell of the data
            sums, finite = sum_by_unit(batches, self._vectors)
            finite = finite & np.isfinite(sums).all(axis=1)
            return np.where(finite[:, None], sums, 0.0), finite

    def clipped_sum(
        self, records: Records, clip: float, cancellation: float, largest_terms: int | None = None
    ) -> FloatArray:
        """sum_j c_j g~_j over one micro-batch, each record a unit, (k,) float64.

        c_j = min(1, clip / ||g~_j||, cancellation * clip / spread_j), where the norm is bounded from above, rounding included,
        and spread_j sums ||row|| ||column|| over blocks and positions (the norm, where a block's product is kept): two
        huge terms of a unit that cancel would otherwise erase its neighbours' digits in the sum. Absent and
        non-finite records contribute exactly zero. Raises UsageError unless both bounds are finite and above zero, and
        when a coordinate has more than ``largest_terms`` terms, a matter of shapes alone.
        """
        return self.clipped_sum_and_weights(records, clip, cancellation, largest_terms)[0]

    def clipped_sum_and_weights(
        self, records: Records, clip: float, cancellation: float, largest_terms: int | None = None
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """As ``clipped_sum``, with each record's c_j and whether it counts, (records,). Private."""
        for name, bound in (("clip", clip), ("cancellation", cancellation)):
            if not (np.isfinite(bound) and bound > 0):
                raise UsageError(f"{name}: found {bound!r}; expected a finite number above 0")
        stores, present = self._stores(records)
        terms = max(store.terms for store in stores)
        if largest_terms is not None and terms > largest_terms:
            raise UsageError(
                f"engine.micro_batch: {terms} terms a coordinate (records times positions); expected at most {largest_terms}; "
                "lower it"
            )
        weights, good = clip_weights(stores, present, clip, cancellation)
        total, at = torch.zeros(self.k, dtype=torch.float64, device=self.network.device), 0
        while stores:
            store = stores.pop(0)
            store.add_weighted_sum(total[at : at + store.size], weights, good)
            at += store.size
        count = len(records)
        return total.cpu().numpy(), weights[:count].cpu().numpy(), good[:count].cpu().numpy()

    def _vectors(self, records: Records) -> tuple[FloatArray, BoolArray]:
        stores, present = self._stores(records)
        found = torch.cat([store.vectors().cpu() for store in stores], dim=1)
        finite = torch.isfinite(found).all(dim=1)
        keep = finite & present.cpu()
        vectors = torch.where(keep[:, None], found, 0.0).numpy()
        return vectors[: len(records)], (finite | ~present.cpu()).numpy()[: len(records)]

    def _stores(self, records: Records) -> tuple[list[BlockStore], Tensor]:
        inputs, targets, present = pad_records(records, self.micro_batch)
        stores = [BlockStore(self.micro_batch, shape, self.network.device) for shape in self.shapes]

        def receive(number: int, raw: Raw) -> None:
            kept = raw.whiten(self.blocks[number], self.whitening[number])
            stores[number].add(merged(kept, records.views) if records.views else kept)

        self._run(inputs, targets, receive, records.views)
        return stores, present.to(self.network.device)


def clip_weights(
    stores: Sequence[BlockStore], present: Tensor, clip: float, cancellation: float
) -> tuple[Tensor, Tensor]:
    """c_j, (B,) float64, and which records count, (B,). Private."""
    squared = torch.zeros(len(present), dtype=torch.float64, device=present.device)
    spread = torch.zeros_like(squared)
    for store in stores:
        part, terms = store.norms()
        squared, spread = squared + part, spread + terms
    norm = squared.sqrt() * (1 + (len(stores) + 8) * 2.0**-53)
    spread = spread * (1 + (len(stores) + 8) * 2.0**-53)
    good = present & torch.isfinite(norm) & torch.isfinite(spread)
    # Replaced before any quotient: min(1, NaN) may be 1.
    norm, spread = torch.where(good, norm, 0.0), torch.where(good, spread, 0.0)
    weights = torch.minimum(clip / norm.clamp(min=clip), cancellation * clip / spread.clamp(min=cancellation * clip))
    return torch.where(good, weights, 0.0), good


__all__ = ["BlockGradients", "clip_weights"]
