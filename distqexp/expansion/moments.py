"""Second moments of public records' gradients, block by block, with labels sampled from the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import explicit_moments, moments_size, pack, position_moments
from distqexp.geometry.subspaces.base import BlockSubspace
from distqexp.gradients.labels import label_noise
from distqexp.gradients.layers.forms import Dense, Indexed, Kept, Tensor, Whole, apply, apply_left
from distqexp.gradients.layers.store import CHUNK
from distqexp.gradients.raw import RawGradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records

FloatArray = npt.NDArray[np.float64]


class FisherMoments:
    """Moments in the coordinates of a subspace of blocks, by one forward and one backward pass a micro-batch.

    A layer's are taken by positions: no per-example gradient is formed, and output gradients and activations are projected
    before their outer products. Those of parameters without factors (scales, shifts, position embeddings) are of the
    gradients themselves. The network's own type up to the projection, float64 from there. Public records only.
    """

    def __init__(self, *, network: Network, loss: Loss, subspace: BlockSubspace, micro_batch: int) -> None:
        self.subspace = subspace
        self.gradients = RawGradients(network=network, loss=loss, blocks=subspace.blocks, micro_batch=micro_batch)
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
        """Packed sums over the present records, at most a micro-batch, of the moments of ``subspace.coordinates``.

        The labels are drawn from the model (Fisher matrix), not the records' own: the noise of a record is a function of
        (seed, round, slot). A record with an activation or a gradient that is not finite is left out of every block.
        """
        network, loss = self.gradients.network, self.gradients.loss
        with torch.no_grad():
            outputs = network.module(network.prepare(records.inputs))
        noise = label_noise(seed, round, first_slot, len(records), loss.noise_width(outputs)).to(outputs.device)
        coordinates = self.subspace.coordinates
        found = [np.zeros(moments_size([block])) for block in coordinates]
        for number, *sides in self.gradients.raw_factors(records, loss.sample(outputs, noise), self._projected):
            found[number] = _packed(coordinates[number], sides)
        return np.concatenate(found)

    def _projected(self, number: int, kept: Kept) -> Kept:
        row, column = self._factors[number]
        if isinstance(kept, Whole):
            matrix = kept.matrix if row is None else apply_left(kept.matrix, row)
            return Whole(matrix if column is None else apply(matrix, column))
        right = kept.column if column is None else apply(kept.column, column)
        if isinstance(kept, Dense):
            return Dense(kept.row if row is None else apply(kept.row, row), right)
        if row is None:
            return Indexed(kept.token, kept.scale, right, kept.rows)
        return Dense(row[0].T[kept.token].unsqueeze(1), right)


def _packed(block: Block, sides: list[Tensor]) -> FloatArray:
    """The packed moments of one block, some records at a time: float64 copies stay small."""
    copies, steps, width = sides[-1].shape[1:]
    step = max(1, CHUNK // (copies * steps * (width + (block.rows if len(sides) == 2 else 0) + steps)))
    total = np.zeros(moments_size([block]))
    for some in zip(*(torch.split(side, step) for side in sides), strict=True):
        total += pack([explicit_moments(block, *some) if len(some) == 1 else position_moments(block, *some)])
    return total
