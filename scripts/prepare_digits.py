"""Write scikit-learn's handwritten digits as images of MNIST's shape, for configs/mnist-scratch/tune.toml. Needs no network.

    python scripts/prepare_digits.py --out runs/digits28
    distqexp tune configs/mnist-scratch/tune.toml --out runs/scratch-tuned --epsilon 1

The 1,797 images are enlarged from 8 x 8 to 20 x 20 and put into the middle of 28 x 28, as MNIST's are. They are public. The first
1,437 come nine times, moved by up to one pixel down and across: so many stand-ins are enough to rehearse all noise.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

SIDE, MARGIN = 20, 4
STAND_INS = 1437
PLACES = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]


def enlarged(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return images (n, 8, 8) with pixels from 0 to 16 as bytes (n, 28, 28), by linear interpolation."""
    scale = SIDE / images.shape[1]
    larger = zoom(images, (1, scale, scale), order=1, mode="nearest", grid_mode=True)
    framed = np.pad(larger, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    return np.rint(framed * (255 / 16)).astype(np.uint8)


def moved(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images (n, 28, 28), whose margins are black, once for each of ``PLACES``: moved by so many pixels along each axis."""
    return np.concatenate([np.roll(images, place, axis=(1, 2)) for place in PLACES])


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Write bytes as a packed IDX file: two zero bytes, the type (8: unsigned bytes), the number of axes, sizes, values."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; made where it is absent")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images, labels = enlarged(digits.images), digits.target.astype(np.uint8)
    write_idx(out / "images.gz", np.concatenate([moved(images[:STAND_INS]), images[STAND_INS:]]))
    write_idx(out / "labels.gz", np.concatenate([np.tile(labels[:STAND_INS], len(PLACES)), labels[STAND_INS:]]))
    print(f"{out}: images.gz, labels.gz, of {len(labels)} digits")


if __name__ == "__main__":
    main()
