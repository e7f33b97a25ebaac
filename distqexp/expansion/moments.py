"""Second moments of the gradients of public records, block by block, with labels sampled from the model."""

from __future__ import annotations

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import explicit_moments, moments_size, pack, position_moments
from distqexp.geometry.subspaces.base import BlockSubspace
from distqexp.gradients.labels import label_noise
from distqexp.gradients.layers import CHUNK, Dense, Form, Indexed, Tensor, Whole, apply, apply_left
from distqexp.gradients.raw import RawGradients, TapsOf
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


class FisherMoments:
    """Computes moments in the coordinates of a subspace of blocks, in one forward and one backward pass for each micro-batch.

    The moments of a layer are taken position by position: no per-example gradient is formed, and output gradients and activations
    are projected before their outer products. Parameters without factors (scales, shifts, position embeddings) have the moments of
    their gradients themselves. Numbers are of the network's own type up to the projection, float64 from there. For public records
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

    def of_records(self, records: Records, *, seed: int, round: int, first_slot: int) -> FloatArray:
        """Sum the moments of the blocks ``subspace.coordinates`` over the present records, and return them packed.

        The labels are not the records' own but drawn from the model, which gives the Fisher matrix; their noise is a function of
        seed, round and slot. A record with an activation or a gradient that is not finite is left out of every block.

        Args:
            records: At most a micro-batch of records.
            seed: The seed of the labels' noise.
            round: The round.
            first_slot: The slot of the first record.
        """
        network, loss = self.gradients.network, self.gradients.loss
        with torch.no_grad(), network.sealed():
            outputs = network.module(network.prepare(records.inputs))
        noise = label_noise(seed, round, first_slot, len(records), loss.noise_width(outputs)).to(outputs.device)
        coordinates = self.subspace.coordinates
        sums = [np.zeros(moments_size([block])) for block in coordinates]
        for number, *sides in self.gradients.raw_factors(records, loss.sample(outputs, noise), self._project):
            sums[number] = _block_sums(coordinates[number], sides)
        return np.concatenate(sums)

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


def _block_sums(block: Block, sides: list[Tensor]) -> FloatArray:
    """Return the packed moments of one block, taken some records at a time, so that float64 copies stay small."""
    copies, steps, width = sides[-1].shape[1:]
    step = max(1, CHUNK // (copies * steps * (width + (block.rows if len(sides) == 2 else 0) + steps)))
    total = np.zeros(moments_size([block]))
    for some in zip(*(torch.split(side, step) for side in sides), strict=True):
        total += pack([explicit_moments(block, *some) if len(some) == 1 else position_moments(block, *some)])
    return total
