"""Each layer's per-example gradient, unwhitened, from one forward and one backward pass. Private unless the records are public."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from distqexp.geometry.blocks import Block
from distqexp.gradients.batching import flattened, pad_records
from distqexp.gradients.layers.check import checked_taps
from distqexp.gradients.layers.forms import Indexed, Kept, Raw, Tensor, Whole, joined
from distqexp.gradients.layers.taps import Receive, Taps
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records

RawFactors = tuple[int, Tensor] | tuple[int, Tensor, Tensor]
Shrink = Callable[[int, Kept], Kept]


class RawGradients:
    """Runs micro-batches of one padded shape and hands over each block's gradient in the form that its layer gives.

    ``blocks`` must be ``block_layout(network)``. Public.
    """

    def __init__(self, *, network: Network, loss: Loss, blocks: Sequence[Block], micro_batch: int) -> None:
        self.network = network
        self.loss = loss
        self.blocks = list(blocks)
        self.micro_batch = micro_batch
        self._taps: tuple[tuple[object, ...], Taps] | None = None

    def raw_factors(self, records: Records, targets: Tensor, shrink: Shrink | None = None) -> Iterator[RawFactors]:
        """Each block's unwhitened gradients of the loss at ``targets``: (number, row, column) or (number, matrix).

        row (B, copies, L, rows), column (B, copies, L, columns), float, as many positions as the block's uses have in all;
        for a block with ``sparse_rows`` row may be the token numbers, int64 (B, 1, L), instead of one-hot rows. matrix (B, copies,
        rows, columns). B = len(records). A block without a gradient is left out. Absent records are zero, and so is in all
        blocks a record with an entry that is not finite in any. For public records, without views.

        ``shrink``: changes what a use of a block gives, record by record, before it is kept for the end of the pass.
        """
        count = len(records)
        inputs, _, present = pad_records(records, self.micro_batch)
        padded = torch.cat([targets, targets.new_zeros((self.micro_batch - count, *targets.shape[1:]))])
        found: dict[int, Kept] = {}

        def receive(number: int, raw: Raw) -> None:
            new = raw.plain(self.blocks[number])
            new = new if shrink is None else shrink(number, new)
            found[number] = joined(found[number], new) if number in found else new

        self._run(inputs, padded, receive)
        keep = present.to(self.network.device)
        for kept in found.values():
            for side in _floating(kept):
                keep = keep & torch.isfinite(side).flatten(1).all(dim=1)
        keep = keep[:count, None, None, None]
        for number in sorted(found):
            # Replaced before any product: 0 x NaN is NaN.
            kept = found.pop(number)
            sides = [torch.where(keep, side[:count], 0.0) for side in _floating(kept)]
            if isinstance(kept, Indexed):
                sides = [kept.token[:count].unsqueeze(1), *sides]
            yield (number, sides[0]) if len(sides) == 1 else (number, sides[0], sides[1])

    def _run(self, inputs: Tensor, targets: Tensor, receive: Receive, views: int | None = None) -> None:
        """``views``: inputs are (B, views, ...), and what ``receive`` gets are gradients of each view's share of the mean loss."""
        inputs, targets = flattened(inputs, targets, views)
        key = (tuple(inputs.shape[1:]), inputs.dtype)
        if self._taps is None or self._taps[0] != key:
            self._taps = (key, checked_taps(self.network, self.blocks, torch.zeros_like(inputs[:1])))
        truth = targets.to(self.network.device)
        self._taps[1].run(inputs, lambda outputs: self.loss.value(outputs, truth) / (views or 1), receive)


def _floating(kept: Kept) -> list[Tensor]:
    if isinstance(kept, Whole):
        return [kept.matrix]
    return [kept.column] if isinstance(kept, Indexed) else [kept.row, kept.column]


__all__ = ["RawFactors", "RawGradients"]
