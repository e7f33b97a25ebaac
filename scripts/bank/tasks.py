"""The tasks of the bank: scikit-learn's data sets, generated tables, images, texts, regressions of wild scales, and MNIST."""

from __future__ import annotations

import functools
import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from sklearn import datasets
from torch import nn

from bank.modules import Maker, Words, convolutions, flattened, frozen_body, layers, linear

Arrays = tuple[NDArray, NDArray]

LARGEST_EVALUATION = 2000
"""At most so many records tell how good a model is."""


@dataclass(frozen=True)
class Task:
    """Records in three roles, and the module to begin with.

    Attributes:
        private: Features and targets of the private records.
        public: The same of the public ones.
        evaluation: The same of those that tell how good a model is.
        module: Makes the module.
        loss: The loss.
        pretrained: Whether the start is fitted to the public records.
        rate: The rate of that; a wide table wants a small one, or the start is sure of everything.
    """

    private: Arrays
    public: Arrays
    evaluation: Arrays
    module: Callable[[], nn.Module]
    loss: str
    pretrained: bool = True
    rate: float = 0.01

    @property
    def tokens(self) -> bool:
        """Whether records are tokens and mask, int64 (n, 2, L)."""
        return self.private[0].dtype == np.int64


def task(
    records: Arrays, private: int, public: int, module: Maker, scale: bool = True, raw_targets: bool = False,
    public_too: Arrays | None = None, **more: Any,
) -> Task:  # fmt: skip
    """Shuffle and split: ``private`` private records, ``public`` public ones, and of the rest those for the evaluation.

    ``scale`` standardises the features of tables by the public records' moments, and ``raw_targets`` leaves a regression's targets
    in their own unit. ``public_too`` are the same records as the public sees them, where that is another way.
    """
    features, targets = records
    regression = targets.dtype.kind == "f"
    order = np.random.default_rng(0).permutation(len(features))
    places = np.split(order, [private, private + public, private + public + LARGEST_EVALUATION])[:3]
    parts = [(features[place], targets[place]) for place in places]
    if public_too is not None:
        parts[1] = (public_too[0][places[1]], public_too[1][places[1]])
    if features.dtype.kind == "f" and features.ndim == 2 and scale:
        mean, deviation = parts[1][0].mean(axis=0), parts[1][0].std(axis=0) + 1e-6
        parts = [(np.clip((a - mean) / deviation, -10, 10), b) for a, b in parts]
    if regression and not raw_targets:
        mean, deviation = parts[1][1].mean(), parts[1][1].std()
        parts = [(a, (b - mean) / deviation) for a, b in parts]
    kinds = (np.int64 if features.dtype.kind in "iu" else np.float32, np.float32 if regression else np.int64)
    typed = [(a.astype(kinds[0]), b.astype(kinds[1])) for a, b in parts]
    return Task(*typed, module, "mean-squared-error" if regression else "cross-entropy", **more)


def classes(records: int, features: int, count: int = 2) -> Arrays:
    """Clusters, told apart by 8 features."""
    return datasets.make_classification(
        records, features, n_informative=min(features, 8), n_redundant=0, n_classes=count, n_clusters_per_class=1,
        random_state=1,
    )  # fmt: skip


def factors(records: int, features: int) -> Arrays:
    """A wide table as of gene expression: ten factors stand behind all features, and behind the label."""
    random = np.random.default_rng(3)
    hidden, loadings, weights = (
        random.standard_normal(shape, np.float32) for shape in ((records, 10), (10, features), (10,))
    )
    found = 3 * random.standard_normal((records, features), np.float32)
    found += hidden @ loadings
    return found, (hidden @ weights > 0).astype(np.int64)


def friedman(unit: float) -> Arrays:
    """Friedman's first regression, its targets times ``unit``."""
    features, targets = datasets.make_friedman1(4000, noise=1.0, random_state=1)
    return features, unit * targets


def shifted(records: Arrays, by: float) -> Arrays:
    """The same records with every feature moved."""
    return records[0] + by, records[1]


def texts(longest: int) -> Arrays:
    """Texts of 4 to ``longest`` tokens of a vocabulary of 200, (n, 2, longest); each token has a weight in the label."""
    random = np.random.default_rng(2)
    tokens = random.integers(1, 200, size=(10000, longest))
    mask = np.arange(longest) < random.integers(4, longest + 1, size=(10000, 1))
    weight = random.normal(size=200)
    mean = (weight[tokens] * mask).sum(axis=1) / mask.sum(axis=1)
    labels = (mean + 0.1 * random.normal(size=10000) > 0).astype(np.int64)
    return np.stack([tokens * mask, mask], axis=1), labels


@functools.cache
def mnist(count: int = 6000) -> Arrays:
    """The first images of MNIST, (n, 1, 28, 28)."""
    folder = mnist_folder()
    assert folder is not None
    images, labels = (
        np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=skip)
        for name, skip in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8))
    )
    return images.reshape(-1, 1, 28, 28)[:count] / np.float32(255), labels[:count].astype(np.int64)


def mnist_folder() -> Path | None:
    """Where DISTQEXP_DATA has MNIST, or None."""
    folder = Path(os.environ.get("DISTQEXP_DATA", "")) / "mnist"
    return folder if os.environ.get("DISTQEXP_DATA") and (folder / "train-images-idx3-ubyte.gz").is_file() else None


def halved(records: Arrays) -> Arrays:
    """Images of half the side, each pixel the mean of four."""
    images, labels = records
    return images.reshape(len(images), 1, 14, 2, 14, 2).mean(axis=(3, 5)), labels


def turned(records: Arrays, degrees: float) -> Arrays:
    """Images turned about their middle."""
    return scipy.ndimage.rotate(records[0], degrees, axes=(2, 3), reshape=False, order=1), records[1]


def digits(repeat: int = 1) -> Arrays:
    """scikit-learn's digits as pictures (n, 1, 8, 8), each pixel ``repeat`` times along both axes."""
    found = datasets.load_digits()
    return np.kron((found.images / 16.0)[:, None], np.ones((1, 1, repeat, repeat))), found.target


def table(load: Callable[..., Arrays]) -> Arrays:
    """A table of scikit-learn's."""
    return load(return_X_y=True)


CANCER, WINE, IRIS, DIGITS, DIABETES = (
    functools.partial(table, load)
    for load in (
        datasets.load_breast_cancer, datasets.load_wine, datasets.load_iris, datasets.load_digits, datasets.load_diabetes,
    )
)  # fmt: skip

TASKS: dict[str, Callable[[], Task]] = {
    "breast cancer, linear": lambda: task(CANCER(), 300, 20, linear(30, 2)),
    "breast cancer, layers": lambda: task(CANCER(), 300, 20, layers(30, 16, 2)),
    "wine, linear": lambda: task(WINE(), 90, 12, linear(13, 3)),
    "iris, linear": lambda: task(IRIS(), 80, 15, linear(4, 3)),
    "digits, linear": lambda: task(DIGITS(), 900, 100, linear(64, 10)),
    "digits, layers": lambda: task(DIGITS(), 900, 100, layers(64, 32, 10)),
    "digits, frozen body, new head": lambda: task(DIGITS(), 900, 100, frozen_body(64, 128, 10)),
    "digits, linear, from nothing": lambda: task(DIGITS(), 900, 100, linear(64, 10), pretrained=False),
    "3 features, 100 units": lambda: task(classes(2500, 3), 100, 10, linear(3, 2)),
    "20 features, 20,000 units": lambda: task(classes(24000, 20), 20000, 40, linear(20, 2)),
    "20 features, public ones shifted": lambda: task(
        classes(8000, 20), 5000, 200, linear(20, 2), scale=False, public_too=shifted(classes(8000, 20), 1.0)
    ),
    "20 features, 7 classes, layers": lambda: task(classes(6200, 20, 7), 4000, 200, layers(20, 32, 7)),
    "2,000 features": lambda: task(classes(3900, 2000), 1500, 400, linear(2000, 2), rate=1e-4),
    "2,000 features, ten factors": lambda: task(factors(3600, 2000), 1500, 100, linear(2000, 2), rate=1e-4),
    "20,000 features, ten factors": lambda: task(factors(2600, 20000), 1000, 100, linear(20000, 2), rate=1e-5),
    "moons, layers": lambda: task(
        datasets.make_moons(3000, noise=0.2, random_state=1), 500, 20, layers(2, 16, 2)
    ),
    "circles, layers": lambda: task(
        datasets.make_circles(5000, noise=0.1, factor=0.5, random_state=1), 2000, 20, layers(2, 16, 2)
    ),
    "diabetes, linear": lambda: task(DIABETES(), 250, 30, linear(10, 1)),
    "diabetes, layers": lambda: task(DIABETES(), 250, 30, layers(10, 16, 1)),
    "friedman, linear": lambda: task(friedman(1.0), 1500, 40, linear(10, 1)),
    "friedman in millions, layers": lambda: task(friedman(1e6), 1500, 100, layers(10, 32, 1), raw_targets=True),
    "friedman in millionths, layers": lambda: task(friedman(1e-6), 1500, 100, layers(10, 32, 1), raw_targets=True),
    "swiss roll, layers": lambda: task(
        datasets.make_swiss_roll(4000, random_state=1), 1500, 100, layers(3, 32, 1), raw_targets=True
    ),
    "pictures of digits, own CNN": lambda: task(digits(), 900, 100, convolutions(8, 10)),
    "pictures, private ones turned, own CNN": lambda: task(
        turned(digits(), 30), 900, 100, convolutions(8, 10, 4), public_too=digits()
    ),
    "larger pictures, own CNN, from nothing": lambda: task(
        digits(2), 900, 100, convolutions(16, 10), pretrained=False
    ),
    "texts, tiny transformer": lambda: task(texts(12), 2000, 200, lambda: Words(200)),
    "texts, mean of embeddings": lambda: task(texts(12), 3000, 200, lambda: Words(200, attention=False)),
    "longer texts, tiny transformer": lambda: task(texts(24), 2000, 200, lambda: Words(200)),
}  # fmt: skip

OF_MNIST: dict[str, Callable[[], Task]] = {
    "MNIST, own CNN": lambda: task(mnist(), 2000, 200, convolutions(28, 10)),
    "MNIST, private ones turned, own CNN": lambda: task(
        turned(mnist(), 30), 2000, 300, convolutions(28, 10, 4), public_too=mnist()
    ),
    "MNIST, flattened, layers": lambda: task(mnist(), 3000, 200, flattened(784, 32, 10)),
    "MNIST of 14 x 14, linear": lambda: task(halved(mnist()), 2000, 100, flattened(196, 10)),
    "MNIST of 14 x 14, 300 units, layers": lambda: task(halved(mnist()), 300, 50, flattened(196, 16, 10)),
    "MNIST of 14 x 14, frozen body, new head": lambda: task(
        (halved(mnist())[0].reshape(-1, 196), mnist()[1]), 3000, 100, frozen_body(196, 100, 10), scale=False
    ),
}


def tasks() -> dict[str, Callable[[], Task]]:
    """Return what makes each task, by name; those of MNIST where DISTQEXP_DATA has it."""
    return TASKS | (OF_MNIST if mnist_folder() else {})
