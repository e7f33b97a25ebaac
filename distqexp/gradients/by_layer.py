"""Whitened gradients and clipped sums, layer by layer, without a per-example gradient of any layer in memory. Private."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distqexp.arrays import BoolArray, FloatArray
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.whitening import BlockWhitening
from distqexp.gradients.batching import Batch, pad_records, sum_by_unit
from distqexp.gradients.layers.forms import Raw, Tensor, merge_views
from distqexp.gradients.layers.store import BlockStore
from distqexp.gradients.raw import RawGradients, TapsOf
from distqexp.problem.hiding import only, unless_raised
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


@dataclass(frozen=True)
class ClippedSum:
    """The clipped sum over the records of a micro-batch, made while it is read. Private.

    Attributes:
        parts: Which coordinates these are, and their sums, float64, which are overwritten when the next are asked for unless they are
            in memory that was given. Each coordinate is in one part. To be read once.
        weights: The c_j, (records,).
        good: Which records count, (records,).
    """

    parts: Iterator[tuple[slice, FloatArray]]
    weights: FloatArray
    good: BoolArray


class BlockGradients(RawGradients):
    """Computes quickly what ``UnitGradients`` computes, for whitenings that are a Kronecker product on each block.

    As there, a record's numbers depend on that record alone, to the last bit: micro-batches have one padded shape,
    absent records are fed as zeros and masked, and no operation mixes records before they are clipped.

    Args:
        network: The model at the parameters of the round.
        loss: The training loss.
        whitening: The factors of each block. Public.
        blocks: What ``block_layout(network)`` gives. Public.
        micro_batch: The number of records in a batch, padding included.
        taps_of: Gives checked taps, see ``RawGradients``.
        private: Whether the records are private: one that the model or the loss raises an exception for is then not finite, and the
            exception tells nobody.

    Raises:
        UsageError: The factors don't fit the blocks.
    """

    def __init__(
        self,
        *,
        network: Network,
        loss: Loss,
        whitening: Sequence[BlockWhitening],
        blocks: Sequence[Block],
        micro_batch: int,
        taps_of: TapsOf | None = None,
        private: bool = True,
    ) -> None:
        super().__init__(network=network, loss=loss, blocks=blocks, micro_batch=micro_batch, taps_of=taps_of)
        self.private = private
        if len(whitening) != len(self.blocks):
            raise UsageError(
                f"whitening: factors of {len(whitening)} blocks; expected {len(self.blocks)}, the network's"
            )
        # Whitening runs in the network's own type; sums and norms of its results are in float64.
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
        # The whitened gradients of a block that stands still are zero, whatever its layer would give.
        self._still = frozenset(n for n, factors in enumerate(self.whitening) if not factors.row.any())
        self.shapes = [
            (block.copies, factors.row.shape[1], factors.column.shape[1])
            for block, factors in zip(self.blocks, self.whitening, strict=True)
        ]

    @property
    def k(self) -> int:
        """The number of whitened coordinates."""
        return sum(copies * rows * columns for copies, rows, columns in self.shapes)

    def of_piece(self, batches: Iterable[Batch]) -> tuple[FloatArray, BoolArray]:
        """Return a piece's whitened vectors, (units, k), and which are finite, (units,), as ``UnitGradients.of_piece`` does."""
        with np.errstate(all="ignore"):  # a warning would tell of the data
            sums, finite = sum_by_unit(batches, self._vectors)
            finite = finite & np.isfinite(sums).all(axis=1)
            np.copyto(sums, 0.0, where=~finite[:, None])
            return sums, finite

    def clipped_sum(
        self, records: Records, clip: float, cancellation: float, largest_terms: int, into: FloatArray | None = None
    ) -> ClippedSum:
        """Sum c_j g~_j over the records j of one micro-batch, each a unit of its own. Private.

        c_j = min(1, clip / ||g~_j||, cancellation * clip / spread_j), where the norm is bounded from above, rounding included,
        and spread_j sums ||row|| ||column|| over blocks and positions (it is the norm, where a block keeps the product). Without
        it two huge terms of a unit that cancel would erase the digits of its neighbours in the sum.

        Args:
            records: At most a micro-batch of records. Absent and non-finite ones contribute exactly zero.
            clip: C, in whitened units.
            cancellation: How many times the clip the spread of a record may be.
            largest_terms: How many terms a coordinate of the sum may have, a matter of shapes alone.
            into: Memory for the sum, (k,) float64, which is overwritten; None where it is not wanted as a whole.

        Raises:
            UsageError: A bound is not finite and above zero, or a coordinate has more than ``largest_terms`` terms.
        """
        for name, bound in (("clip", clip), ("cancellation", cancellation)):
            if not (np.isfinite(bound) and bound > 0):
                raise UsageError(f"{name}: found {bound!r}; expected a finite number above 0")
        count = len(records)
        weights, good = np.zeros(count), np.zeros(count, dtype=np.bool_)
        several: FloatArray | None = None
        for stores, present, rows in self._passes(records):
            _require_few_terms(stores, largest_terms)
            shares, counting = clip_weights(stores, present, clip, cancellation)
            weights[rows], good[rows] = shares.cpu().numpy()[rows], counting.cpu().numpy()[rows]
            if rows == slice(0, count):
                return ClippedSum(_parts(stores, shares, counting, into), weights, good)
            # The order of a sum's terms is free (docs/proofs/batches.md), so that of several passes is as good. It is rounded once.
            several = self._blank(into) if several is None else several
            for part, values in _parts(stores, shares, counting, None):
                several[part] += values
        return ClippedSum(iter([(slice(0, self.k), self._blank(into) if several is None else several)]), weights, good)

    def _blank(self, into: FloatArray | None) -> FloatArray:
        blank = np.empty(self.k) if into is None else into
        blank.fill(0.0)
        return blank

    def _vectors(self, records: Records) -> tuple[FloatArray, BoolArray]:
        count = len(records)
        rows_found: dict[int, FloatArray] = {}
        finite = np.zeros(count, dtype=np.bool_)
        for stores, present, rows in self._passes(records):
            parts = [store.vectors()[:count][rows].cpu().numpy() for store in stores]
            vectors, there = np.concatenate(parts, axis=1), present.cpu().numpy()[:count][rows]
            finite[rows] = np.isfinite(vectors).all(axis=1)
            np.copyto(vectors, 0.0, where=~(finite[rows] & there)[:, None])
            finite[rows] |= ~there
            if len(vectors) == count:
                return vectors, finite
            rows_found[rows.start] = vectors[0]
        blank = np.zeros(self.k)
        return np.stack([rows_found.get(number, blank) for number in range(count)]), finite

    def _passes(self, records: Records) -> Iterator[tuple[list[BlockStore], Tensor, slice]]:
        """Yield the gradients of a micro-batch, which records are present, and the rows that hold.

        Where private records make the model raise, each takes a pass of its own. One that it raises for alone is in none.
        """
        self._taps_for(records.inputs if records.views is None else records.inputs[:, 0])  # its errors are no record's
        found = self._unless_raised(records)
        if found is not None:
            yield *found, slice(0, len(records))
            return
        for number in range(len(records)):
            inputs, targets, present = (
                only(side, number) for side in (records.inputs, records.targets, records.present)
            )
            alone = dataclasses.replace(records, inputs=inputs, targets=targets, present=present)
            found = self._unless_raised(alone)
            if found is not None:
                yield *found, slice(number, number + 1)

    def _unless_raised(self, records: Records) -> tuple[list[BlockStore], Tensor] | None:
        return unless_raised(lambda: self._stores(records)) if self.private else self._stores(records)

    def _stores(self, records: Records) -> tuple[list[BlockStore], Tensor]:
        inputs, targets, present = pad_records(records, self.micro_batch)
        stores = [BlockStore(self.micro_batch, shape, self.network.device) for shape in self.shapes]

        def receive(number: int, raw: Raw) -> None:
            form = raw.whiten(self.blocks[number], self.whitening[number])
            stores[number].add(merge_views(form, records.views) if records.views else form)

        self._run(inputs, targets, receive, records.views)
        return stores, present.to(self.network.device)


def _require_few_terms(stores: Sequence[BlockStore], largest: int) -> None:
    terms = max(store.terms for store in stores)
    if terms > largest:
        raise UsageError(
            f"engine.micro_batch: {terms} terms a coordinate (records times positions); expected at most {largest}; lower it"
        )


def _parts(
    stores: list[BlockStore], weights: Tensor, good: Tensor, into: FloatArray | None
) -> Iterator[tuple[slice, FloatArray]]:
    """Yield the weighted sums of all blocks, the smallest first: its factors are gone when the largest sum is made."""
    ends = np.cumsum([store.size for store in stores])
    waiting = sorted(zip(ends, stores, strict=True), key=lambda pair: -pair[1].size)
    scratch = np.empty(max(store.size for store in stores) if into is None else 0)
    stores.clear()
    while waiting:
        end, store = waiting.pop()
        part = slice(int(end) - store.size, int(end))
        values = scratch[: store.size] if into is None else into[part]
        total = torch.from_numpy(values).to(weights.device)  # the same memory, on a CPU
        store.weighted_sum(total, weights, good)
        if total.device.type != "cpu":
            np.copyto(values, total.cpu().numpy())
        yield part, values


def clip_weights(
    stores: Sequence[BlockStore], present: Tensor, clip: float, cancellation: float
) -> tuple[Tensor, Tensor]:
    """Return the weight c_j of each record, (B,) float64, and which records count, (B,). Private."""
    squares = torch.zeros(len(present), dtype=torch.float64, device=present.device)
    spread = torch.zeros_like(squares)
    for store in stores:
        part, terms = store.norms()
        squares, spread = squares + part, spread + terms
    norm = squares.sqrt() * (1 + (len(stores) + 8) * 2.0**-53)
    spread = spread * (1 + (len(stores) + 8) * 2.0**-53)
    good = present & torch.isfinite(norm) & torch.isfinite(spread)
    # Replaced before any quotient: min(1, NaN) may be 1.
    norm, spread = torch.where(good, norm, 0.0), torch.where(good, spread, 0.0)
    weights = torch.minimum(clip / norm.clamp(min=clip), cancellation * clip / spread.clamp(min=cancellation * clip))
    return torch.where(good, weights, 0.0), good


__all__ = ["BlockGradients", "ClippedSum", "clip_weights"]
