"""What a rank computes on, told to the first rank: one run wants one kind of GPU and of libraries, for its bits to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distqexp.arrays import FloatArray
from distqexp.engines.base import Engine
from distqexp.errors import UsageError


def refuse_mixed_devices(device: str, engine: Engine) -> None:
    """Refuse ranks with GPUs, or libraries for them, of several kinds. Collective; does nothing on the CPU.

    Args:
        device: The config's ``engine.device``.
        engine: The engine.

    Raises:
        UsageError: Two ranks differ.
    """
    if device == "cpu":
        return
    names = [
        np.asarray(array).astype(np.uint8).tobytes().decode()
        for array in engine.collect(_named, None, range(engine.size))
    ]
    engine.on_root(lambda: require_one_kind(names))


def require_one_kind(names: Sequence[str]) -> None:
    """Raise UsageError where the ranks' devices, by ``described_device``, are of several kinds."""
    other = next((rank for rank, name in enumerate(names) if name != names[0]), None)
    if other is not None:
        raise UsageError(
            f"engine.device: rank 0 has {names[0]}, rank {other} has {names[other]}; expected one kind on all ranks, as kinds differ in "
            "last bits; ask the scheduler for one (Slurm: --constraint, or --gpus-per-node=KIND:N)"
        )


def described_device() -> str:
    """Return this process's current GPU and the libraries that compute on it, in words. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return (
        f"{properties.name} ({properties.major}.{properties.minor}), torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    )


def _named(context: Any, item: int) -> FloatArray:
    return np.frombuffer(described_device().encode(), dtype=np.uint8).astype(np.float64)


__all__ = ["described_device", "refuse_mixed_devices", "require_one_kind"]
