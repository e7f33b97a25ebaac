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

RawFactors = tuple[int, *tuple[Tensor, ...]]
"""The number of a block, and its gradients: (number, matrix) or (number, row, column)."""

Take = Callable[..., None]
"""Takes what ``RawFactors`` has."""

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
        gradients: dict[int, Form] = {}

        def receive(number: int, raw: Raw) -> None:
            self._join(gradients, number, raw, shrink)

        present = self._run_records(records, targets, receive)
        keep = present
        for form in gradients.values():
            keep = keep & _finite(form)
        for number in sorted(gradients):
            yield number, *_sides(gradients.pop(number), keep, count)

    def stream(self, records: Records, targets: Tensor, take: Take, shrink: Shrink | None = None) -> bool:
        """Give ``take`` each block's gradients as ``raw_factors`` yields them, as soon as all uses of the block are known.

        They are not stored until the pass ends, so that it takes hardly more memory than a plain one. Returns whether they are those of
        ``raw_factors``. They are not where an entry is not finite, as a record is then left out of all blocks, or where the model uses
        a layer again while the backward pass runs: what was taken is then of no use.

        Args:
            records: At most a micro-batch of public records, without views.
            targets: The targets at which the loss is differentiated, one for each record.
            take: Takes the number of a block and one or two tensors.
            shrink: Changes the gradients of one use of a block, record by record.
        """
        count, good = len(records), True
        gradients: dict[int, Form] = {}
        finished: set[int] = set()
        present = self._padded_presence(records)

        def receive(number: int, raw: Raw) -> None:
            nonlocal good
            good = good and number not in finished
            if good:
                self._join(gradients, number, raw, shrink)

        def finish(number: int) -> None:
            nonlocal good
            finished.add(number)
            form = gradients.pop(number, None)
            if form is None:
                return
            good = good and bool((_finite(form) | ~present).all())
            if good:
                with torch.no_grad():
                    take(number, *_sides(form, present, count))

        self._run_records(records, targets, receive, finish)
        for number in sorted(gradients):  # of uses that the loss didn't depend on
            finish(number)
        return good

    def _join(self, gradients: dict[int, Form], number: int, raw: Raw, shrink: Shrink | None) -> None:
        """Add one use of a block to its gradients."""
        form = raw.plain(self.blocks[number])
        form = form if shrink is None else shrink(number, form)
        gradients[number] = join_uses(gradients[number], form) if number in gradients else form

    def _padded_presence(self, records: Records) -> Tensor:
        """Return which records of the padded micro-batch are present, (micro_batch,), on the device of the network."""
        return pad_records(records, self.micro_batch)[2].to(self.network.device)

    def _run_records(
        self, records: Records, targets: Tensor, receive: Receive, finish: Callable[[int], None] | None = None
    ) -> Tensor:
        """Run one pass of a padded micro-batch, and return which of its records are present."""
        inputs, _, present = pad_records(records, self.micro_batch)
        padded = torch.cat([targets, targets.new_zeros((self.micro_batch - len(records), *targets.shape[1:]))])
        self._run(inputs, padded, receive, finish=finish)
        return present.to(self.network.device)

    def _run(
        self,
        inputs: Tensor,
        targets: Tensor,
        receive: Receive,
        views: int | None = None,
        finish: Callable[[int], None] | None = None,
    ) -> None:
        """Run one pass. With ``views``, inputs are (B, views, ...), and gradients are those of each view's share of the mean loss."""
        inputs, targets = flatten_views(inputs, targets, views)
        taps, truth = self._taps_for(inputs), targets.to(self.network.device)
        with self.network.sealed(self.loss):
            taps.run(
                inputs, lambda outputs: self.loss.value(outputs, truth) / (views or 1), receive, self._still, finish
            )

    def _taps_for(self, inputs: Tensor) -> Taps:
        """Return the taps for records (B, ...) like these, whose values don't matter."""
        key = (tuple(inputs.shape[1:]), inputs.dtype)
        if self._taps is None or self._taps[0] != key:
            self._taps = (key, self._taps_of(torch.zeros_like(inputs[:1])))
        return self._taps[1]


def _finite(form: Form) -> Tensor:
    """Return which records have finite gradients, (B,)."""
    good = [torch.isfinite(side).flatten(1).all(dim=1) for side in _floating_sides(form)]
    return good[0] if len(good) == 1 else good[0] & good[1]


def _sides(form: Form, keep: Tensor, count: int) -> list[Tensor]:
    """Return the tensors of a form for the first ``count`` records, zero where ``keep`` (B,) is not."""
    kept = keep[:count, None, None, None]
    # Replaced before any product: 0 x NaN is NaN.
    sides = [torch.where(kept, side[:count], 0.0) for side in _floating_sides(form)]
    return [form.token[:count].unsqueeze(1), *sides] if isinstance(form, Indexed) else sides


def _floating_sides(form: Form) -> list[Tensor]:
    if isinstance(form, Whole):
        return [form.matrix]
    return [form.column] if isinstance(form, Indexed) else [form.row, form.column]


__all__ = ["RawFactors", "RawGradients", "TapsOf"]
