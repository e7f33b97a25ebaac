"""Pinned threads and deterministic kernels, as sums differ in their last bits with the number of threads."""

from __future__ import annotations

import os


def pin_threads(count: int) -> None:
    """Make this process compute with ``count`` threads, deterministic kernels and full float32 products (no TF32).

    The threads are those of torch and of the BLAS and OpenMP libraries. Call it in the thread that computes.
    """
    # CUDA's libraries read these variables when they are first used: without the first, products may depend on the stream. The
    # others switch off products in fewer bits than their arguments', whatever somebody's shell says.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.update(
        NVIDIA_TF32_OVERRIDE="0", CUBLAS_EMULATE_SINGLE_PRECISION="0", CUBLAS_EMULATE_DOUBLE_PRECISION="0"
    )
    os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(limits=count)
    torch.set_num_threads(count)
    if torch.cuda.is_available():
        # On a CPU nothing used here is nondeterministic, and the call would load torch's compiler, 70 MB on each rank.
        torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
