"""What this machine's floating point computes, as one digest: two machines of one digest give the same bits."""

from __future__ import annotations

import hashlib

import numpy as np
import scipy.linalg
import torch

from distqexp.engines.threads import pin_threads


def arithmetic_digest() -> str:
    """SHA-256, in short, of what the kernels that a run rests on make of fixed inputs, on one thread."""
    pin_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((64, 1, 28, 28), generator=generator)
    kernels = torch.randn((32, 1, 5, 5), generator=generator)
    left, right = (torch.randn((500, 300), generator=generator) for _ in range(2))
    moments = (right.T @ right).double().numpy()
    pieces = [
        torch.nn.functional.conv2d(images, kernels).numpy(),
        (left @ right.T).numpy(),
        (left.double() @ right.T.double()).numpy(),
        torch.logsumexp(left, dim=1).numpy(),
        torch.nn.functional.gelu(left).numpy(),
        scipy.linalg.eigh(moments)[1],
        scipy.linalg.cholesky(moments + np.eye(len(moments)), lower=True),
        np.exp(moments / np.abs(moments).max()),
    ]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()[:16]
