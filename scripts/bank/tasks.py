"""The tasks of the bank: scikit-learn's data sets, generated tables, images, texts and regressions of wild scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from torch import nn

Arrays = tuple[NDArray, NDArray]


@dataclass(frozen=True)
class Task:
    """Records in three roles, and the module to begin with.

    Attributes:
        name: What it is.
        private: Features and targets of the private records.
        public: The same of the public ones.
        evaluation: The same of those that tell how good a model is.
        module: Makes the module.
        loss: The loss.
        pretrained: Whether the start is fitted to the public records.
    """

    name: str
    private: Arrays
    public: Arrays
    evaluation: Arrays
    module: Callable[[], nn.Module]
    loss: str
    pretrained: bool = True


class Words(nn.Module):
    """A tiny transformer over token numbers, which come as floats in one vector a text."""

    def __init__(self, vocabulary: int, length: int, width: int = 16, attention: bool = True) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True) if attention else None
        self.head = nn.Linear(width, 2)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(numbers.long())
        if self.attention is not None:
            hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return self.head(hidden.mean(dim=1))


class OnFrozenBody(nn.Module):
    """A body that stays as it is below a new head."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        for parameter in self.body.parameters():
            parameter.requires_grad_(False)
        self.head = nn.Linear(width, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(features))


def linear(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def layers(inputs: int, *sizes: int) -> Callable[[], nn.Module]:
    """Fully connected layers of these sizes."""

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        before = inputs
        for size in sizes:
            parts += [nn.Linear(before, size), nn.ReLU()]
            before = size
        return nn.Sequential(*parts[:-1])

    return make


def convolutions(side: int, outputs: int) -> Callable[[], nn.Module]:
    """A small network of one's own for images (1, side, side)."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * (side // 4) ** 2, outputs),
    )  # fmt: skip


def tasks() -> Iterator[Task]:
    """Yield every task."""
    yield from _tables()
    yield from _generated()
    yield from _regressions()
    yield from _images()
    yield from _texts()


def _task(
    name: str, features: NDArray, targets: NDArray, private: int, module: Callable[[], nn.Module], **more: object
) -> Task:
    """Shuffle, and split: ``private`` private records, half as many public ones (20 at least), the rest for the evaluation."""
    regression = targets.dtype.kind == "f"
    order = np.random.default_rng(0).permutation(len(features))
    x, y = features[order].astype(np.float32), targets[order].astype(np.float32 if regression else np.int64)
    public = max(20, min(private // 2, (len(x) - private) // 2))
    parts = [(x[a:b], y[a:b]) for a, b in ((0, private), (private, private + public), (private + public, len(x)))]
    if parts[0][0].ndim == 2 and more.pop("scale", True):
        mean, deviation = parts[1][0].mean(axis=0), parts[1][0].std(axis=0) + 1e-6
        parts = [(np.clip((a - mean) / deviation, -10, 10), b) for a, b in parts]
    loss = "mean-squared-error" if regression else "cross-entropy"
    return Task(name, *parts, module, loss, **more)  # type: ignore[arg-type]


def _tables() -> Iterator[Task]:
    cancer, wine, iris, digits = (
        load(return_X_y=True)
        for load in (datasets.load_breast_cancer, datasets.load_wine, datasets.load_iris, datasets.load_digits)
    )
    yield _task("breast cancer, linear", *cancer, 300, linear(30, 2))
    yield _task("breast cancer, layers", *cancer, 300, layers(30, 16, 2))
    yield _task("wine, linear", *wine, 100, linear(13, 3))
    yield _task("iris, linear", *iris, 100, linear(4, 3))
    yield _task("digits, linear", *digits, 900, linear(64, 10))
    yield _task("digits, layers", *digits, 900, layers(64, 32, 10))
    yield _task("digits, frozen body", *digits, 900, lambda: OnFrozenBody(64, 128, 10))
    yield _task("digits, linear, from nothing", *digits, 900, linear(64, 10), pretrained=False)


def _generated() -> Iterator[Task]:
    def classes(records: int, features: int, count: int = 2) -> Arrays:
        useful = min(features, 8)
        return datasets.make_classification(
            records,
            features,
            n_informative=useful,
            n_redundant=0,
            n_classes=count,
            n_clusters_per_class=1,
            random_state=1,
        )

    yield _task("3 features, 100 units", *classes(600, 3), 100, linear(3, 2))
    yield _task("20 features, 20,000 units", *classes(32000, 20), 20000, linear(20, 2))
    yield _task("20 features, 7 classes, layers", *classes(18000, 20, 7), 10000, layers(20, 32, 7))
    yield _task("2,000 features", *classes(4000, 2000), 2000, linear(2000, 2))
    yield _task("20,000 features", *classes(2500, 20000), 1000, linear(20000, 2))
    yield _task("moons, layers", *datasets.make_moons(1500, noise=0.2, random_state=1), 500, layers(2, 16, 2))
    yield _task(
        "circles, layers", *datasets.make_circles(5000, noise=0.1, factor=0.5, random_state=1), 2000, layers(2, 16, 2)
    )


def _regressions() -> Iterator[Task]:
    diabetes = datasets.load_diabetes(return_X_y=True)
    yield _task("diabetes, linear", *diabetes, 250, linear(10, 1))
    yield _task("diabetes, layers", *diabetes, 250, layers(10, 16, 1))
    features, targets = datasets.make_friedman1(4000, random_state=1)
    yield _task("friedman, linear", features, targets, 2000, linear(10, 1))
    yield _task("friedman in millions", features, 1e6 * targets, 2000, layers(10, 32, 1))
    yield _task("friedman in millionths", features, 1e-6 * targets, 2000, layers(10, 32, 1))
    yield _task("swiss roll", *datasets.make_swiss_roll(3000, random_state=1), 1500, layers(3, 32, 1))


def _images() -> Iterator[Task]:
    digits = datasets.load_digits()
    pictures = (digits.images / 16.0)[:, None]
    turned = np.rot90(pictures, axes=(2, 3)).copy()
    yield _task("pictures of digits", pictures, digits.target, 900, convolutions(8, 10))
    yield _task("pictures, turned", turned, digits.target, 900, convolutions(8, 10))
    large = np.kron(pictures, np.ones((1, 1, 2, 2)))
    yield _task("larger pictures", large, digits.target, 900, convolutions(16, 10), pretrained=False)


def _texts() -> Iterator[Task]:
    random = np.random.default_rng(2)
    texts = random.integers(0, 200, size=(8000, 12))
    weight = random.normal(size=200)
    labels = (weight[texts].mean(axis=1) + 0.1 * random.normal(size=8000) > 0).astype(np.int64)
    yield _task("texts, a tiny transformer", texts, labels, 2000, lambda: Words(200, 12), scale=False)
    yield _task("texts, mean of embeddings", texts, labels, 5000, lambda: Words(200, 12, attention=False), scale=False)
