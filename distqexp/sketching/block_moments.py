"""Second moments of public records' gradients, block by block, with labels sampled from the model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from distqexp.geometry.moments import explicit_moments, pack
from distqexp.geometry.philox import raw_words, stream_key
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace
from distqexp.problem.derivatives import per_example_gradients
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records

FloatArray = npt.NDArray[np.float64]


def label_noise(seed: int, round: int, first_slot: int, count: int, width: int) -> torch.Tensor:
    """(count, width) float64, uniform on (0, 1): slot s has the words s width .. of the stream of (seed, round)."""
    words = raw_words(stream_key("labels", seed, round), first_slot * width, count * width)
    return torch.from_numpy((words + 0.5) * 2.0**-32).reshape(count, width)


def block_moments(
    network: Network,
    loss: Loss,
    subspace: KroneckerSubspace,
    records: Records,
    *,
    seed: int,
    round: int,
    first_slot: int,
) -> FloatArray:
    """Packed sums over the present records of the moments of ``subspace.coordinates``. Public records only.

    The labels are drawn from the model (Fisher matrix), not the records' own: the noise of a record is a function of
    (seed, round, slot). A record whose gradient is not finite is left out.
    """
    inputs, present = records.inputs, records.present.to(network.device)
    with torch.no_grad():
        outputs = network.module(network.prepare(inputs))
    noise = label_noise(seed, round, first_slot, len(present), loss.noise_width(outputs)).to(outputs.device)
    gradients = per_example_gradients(network, loss, inputs, loss.sample(outputs, noise))
    good = present & torch.isfinite(gradients).all(dim=1)
    gradients = torch.where(good[:, None], gradients, 0.0)
    blocks = zip(subspace.coordinates, subspace.project_blocks(gradients), strict=True)
    return pack([explicit_moments(block, matrices) for block, matrices in blocks])
