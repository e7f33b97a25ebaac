"""The choice of a rank's GPU by its number on the host, from plain data."""

from __future__ import annotations

from distqexp.errors import UsageError


def device_of(device: str, local_rank: int, visible: int) -> str:
    """Return the torch device of a rank: "cpu", or "cuda:N".

    Ranks take the GPUs of their host in turn. Where a launcher shows each rank one GPU alone, that is number 0 for all of them.

    Args:
        device: The config's ``engine.device``.
        local_rank: The rank's number on its host.
        visible: The number of GPUs that this process sees.

    Raises:
        UsageError: The config asks for a GPU, and this process sees none.
    """
    if device == "cpu":
        return device
    if visible < 1:
        raise UsageError(
            "engine.device: cuda, and this process sees no GPU; expected one: install torch for CUDA and ask the scheduler for a GPU, "
            "or set engine.device = cpu"
        )
    return f"cuda:{local_rank % visible}"
