"""Per-example gradients of each layer, unwhitened, from one forward and backward pass. As private as the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from distqexp.geometry.blocks import Block
from distqexp.gradients.batching import flatten_views, pad_records
from distqexp.gradients.layers.check import checked_taps
from distqexp.gradients.layers.forms import Form, Indexed, Raw, Tensor, Whole, join_uses
from distqexp.gradients.layers.taps import Receive, Taps
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records

RawFactors = tuple[int, Tensor] | tuple[int, Tensor, Tensor]
"""The number of a block, and its gradients: (number, matrix) or (number, row, column)."""

TapsOf = Callable[[Tensor], Taps]
"""Gives the taps for records of the shape and type of one record (1, ...)."""

Shrink = Callable[[int, Form], Form]
"""Maps the number of a block and the gradients of one use of it to smaller ones."""


class RawGradients:
    """Runs micro-batches of one padded shape and hands over each block's gradient in the form that its layer gives.

    ``blocks`` must be what ``block_layout(network)`` gives. ``taps_of`` gives the checked taps for records like one (1, ...), which
    ``Worker.taps_of`` keeps over rounds; without it they are checked here, and a model that couples records is refused. Public.
    """

    def __init__(
        self,
        *,
        network: Network,
        loss: Loss,
        blocks: Sequence[Block],
        micro_batch: int,
        taps_of: TapsOf | None = None,
    ) -> None:
        self.network = network
        self.loss = loss
        self.blocks = list(blocks)
        self.micro_batch = micro_batch
        self._taps_of = taps_of or partial(checked_taps, network, self.blocks, may_refuse=True)
        self._taps: tuple[tuple[object, ...], Taps] | None = None
        self._still: frozenset[int] = frozenset()

    def raw_factors(self, records: Records, targets: Tensor, shrink: Shrink | None = None) -> Iterator[RawFactors]:
        """Yield each block's unwhitened gradients of the loss: (number, row, column) or (number, matrix).

        With B = len(records), row is (B, copies, L, rows) and column (B, copies, L, columns), both floating point, where L
        counts the positions of all uses of the block; matrix is (B, copies, rows, columns). For a block with ``sparse_rows``
        row may be the token numbers, int64 (B, 1, L), instead of one-hot rows. A block without a gradient is left out. Absent
        records are zero. A record with an entry that is not finite in any block is zero in all of them.

        Args:
            records: At most a micro-batch of public records, without views.
            targets: The targets at which the loss is differentiated, one for each record.
            shrink: Changes the gradients of one use of a block, record by record, before they are stored until the pass ends.
        """
        count = len(records)
        inputs, _, present = pad_records(records, self.micro_batch)
        padded_targets = torch.cat([targets, targets.new_zeros((self.micro_batch - count, *targets.shape[1:]))])
        gradients: dict[int, Form] = {}

        def receive(number: int, raw: Raw) -> None:
            form = raw.plain(self.blocks[number])
            form = form if shrink is None else shrink(number, form)
            gradients[number] = join_uses(gradients[number], form) if number in gradients else form

        self._run(inputs, padded_targets, receive)
        keep = present.to(self.network.device)
        for form in gradients.values():
            for side in _floating_sides(form):
                keep = keep & torch.isfinite(side).flatten(1).all(dim=1)
        keep = keep[:count, None, None, None]
        for number in sorted(gradients):
            # Replaced before any product: 0 x NaN is NaN.
            form = gradients.pop(number)
            sides = [torch.where(keep, side[:count], 0.0) for side in _floating_sides(form)]
            if isinstance(form, Indexed):
                sides = [form.token[:count].unsqueeze(1), *sides]
            yield (number, sides[0]) if len(sides) == 1 else (number, sides[0], sides[1])

    def _run(self, inputs: Tensor, targets: Tensor, receive: Receive, views: int | None = None) -> None:
        """Run one pass. With ``views``, inputs are (B, views, ...), and gradients are those of each view's share of the mean loss."""
        inputs, targets = flatten_views(inputs, targets, views)
        taps, truth = self._taps_for(inputs), targets.to(self.network.device)
        with self.network.sealed(self.loss):
            taps.run(inputs, lambda outputs: self.loss.value(outputs, truth) / (views or 1), receive, self._still)

    def _taps_for(self, inputs: Tensor) -> Taps:
        """Return the taps for records (B, ...) like these, whose values don't matter."""
        key = (tuple(inputs.shape[1:]), inputs.dtype)
        if self._taps is None or self._taps[0] != key:
            self._taps = (key, self._taps_of(torch.zeros_like(inputs[:1])))
        return self._taps[1]


def _floating_sides(form: Form) -> list[Tensor]:
    if isinstance(form, Whole):
        return [form.matrix]
    return [form.column] if isinstance(form, Indexed) else [form.row, form.column]


__all__ = ["RawFactors", "RawGradients", "TapsOf"]
