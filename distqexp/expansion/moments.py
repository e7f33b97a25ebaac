"""Second moments of the gradients of public records, block by block, with labels sampled from the model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.engines.collectives import require
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import MomentSums, explicit_moments, position_moments, sum_type
from distqexp.geometry.packing import moments_in, moments_size
from distqexp.geometry.subspaces.base import BlockSubspace
from distqexp.gradients.labels import label_noise
from distqexp.gradients.layers import CHUNK, Dense, Form, Indexed, Tensor, Whole, apply, apply_left
from distqexp.gradients.raw import RawGradients, TapsOf
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records

FLOAT32_CHUNK = 8 * CHUNK
"""How many entries of factors are worked on at a time in blocks whose moments are summed in float32, where there is little to copy."""


class FisherMoments:
    """Computes moments in the coordinates of a subspace of blocks, in one forward and one backward pass for each micro-batch.

    The moments of a layer are taken position by position: no per-example gradient is formed, and output gradients and activations
    are projected before their outer products. Parameters without factors (scales, shifts, position embeddings) have the moments of
    their gradients themselves. Numbers are of the network's own type up to the projection, of ``sum_type`` from there. For public records
    only.

    Args:
        network: The model at the parameters of the round.
        loss: The training loss.
        subspace: The coordinates.
        micro_batch: The number of records in a batch, padding included.
        taps_of: Gives checked taps, see ``RawGradients``.

    Raises:
        UsageError: The rows of a block of the subspace are picked, not projected.
    """

    def __init__(
        self,
        *,
        network: Network,
        loss: Loss,
        subspace: BlockSubspace,
        micro_batch: int,
        taps_of: TapsOf | None = None,
    ) -> None:
        self.subspace = subspace
        self.gradients = RawGradients(
            network=network, loss=loss, blocks=subspace.blocks, micro_batch=micro_batch, taps_of=taps_of
        )
        self._factors: list[tuple[Tensor | None, Tensor | None]] = []
        for block, factors in zip(subspace.blocks, subspace.factors, strict=True):
            if factors.row is not None and factors.row.ndim != 3:
                raise UsageError(f"second moments: block {block.name} has picked rows; expected a matrix, or all rows")
            row, column = (
                None if side is None else torch.from_numpy(side).to(network.device, network.dtype)
                for side in (factors.row, factors.column)
            )
            self._factors.append((row, column))

    def sums(self) -> PackedSums:
        """Return sums of zero, to which the moments of records are added."""
        return PackedSums(self.subspace.coordinates, self.gradients.network.device)

    def add_records(
        self, sums: PackedSums, records: Records, *, seed: int, round: int, first_slot: int, streamed: bool = True
    ) -> bool:
        """Add the moments of the present records to ``sums``, and return whether these are still of use.

        The labels are not the records' own but drawn from the model, which gives the Fisher matrix; their noise is a function of
        seed, round and slot. A record with an activation or a gradient that is not finite is left out of every block. A streamed
        pass adds the moments of a block as soon as it has its gradients, so that it takes hardly more memory than a plain pass, but
        it can't know then of such a record in a later block: the sums are of no use then, and the records want a pass that is not
        streamed.

        Args:
            sums: The sums.
            records: At most a micro-batch of records.
            seed: The seed of the labels' noise.
            round: The round.
            first_slot: The slot of the first record.
            streamed: Whether the pass is streamed. The moments are the same, to the last bit.
        """
        network, loss = self.gradients.network, self.gradients.loss
        with torch.no_grad(), network.sealed():
            outputs = network.forward(network.prepare(records.inputs))
        noise = label_noise(seed, round, first_slot, len(records), loss.noise_width(outputs)).to(outputs.device)
        targets = loss.sample(outputs, noise)
        if streamed:
            return self.gradients.stream(records, targets, sums.add, self._project)
        for number, *sides in self.gradients.raw_factors(records, targets, self._project):
            sums.add(number, *sides)
        return True

    def _project(self, number: int, form: Form) -> Form:
        row, column = self._factors[number]
        if isinstance(form, Whole):
            matrix = form.matrix if row is None else apply_left(form.matrix, row)
            return Whole(matrix if column is None else apply(matrix, column))
        right = form.column if column is None else apply(form.column, column)
        if isinstance(form, Dense):
            return Dense(form.row if row is None else apply(form.row, row), right)
        if row is None:
            return Indexed(form.token, form.scale, right, form.rows)
        return Dense(row[0].T[form.token].unsqueeze(1), right)


class PackedSums:
    """Second moments of all blocks, summed on the device of the network in the order in which they are added.

    Args:
        blocks: The blocks of the coordinates.
        device: Where the gradients are.
    """

    def __init__(self, blocks: Sequence[Block], device: torch.device) -> None:
        self._blocks = blocks
        self._flat = np.zeros(moments_size(blocks))
        self._views = [
            MomentSums(*(torch.from_numpy(array) for array in (part.row, part.column, part.energy)))
            for part in moments_in(blocks, self._flat)
        ]
        self._sums = [MomentSums(*(tensor.to(device) for tensor in view)) for view in self._views]

    def add(self, number: int, *sides: Tensor) -> None:
        """Add what records give to a block: (matrices,) or (row, column), as ``RawGradients`` yields them."""
        self._sums[number].add(_block_sums(self._blocks[number], sides))

    def flat(self) -> FloatArray:
        """Return the sums packed. On a CPU they are shared, so that later additions change them."""
        for view, sums in zip(self._views, self._sums, strict=True):
            for there, tensor in zip(view, sums, strict=True):
                if there.data_ptr() != tensor.data_ptr():
                    there.copy_(tensor)
        return self._flat


def _block_sums(block: Block, sides: Sequence[Tensor]) -> MomentSums:
    """Return the moments of one block, taken some records at a time, so that copies in another type stay small."""
    copies, steps, width = sides[-1].shape[1:]
    most = CHUNK if sum_type(block) == torch.float64 else FLOAT32_CHUNK
    step = max(1, most // (copies * steps * (width + (block.rows if len(sides) == 2 else 0) + steps)))
    total: MomentSums | None = None
    for some in zip(*(torch.split(side, step) for side in sides), strict=True):
        part = explicit_moments(block, *some) if len(some) == 1 else position_moments(block, *some)
        if total is None:
            total = part
        else:
            total.add(part)
    return require(total)
