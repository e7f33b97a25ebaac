"""EfficientNet-Lite0, pretrained on ImageNet, below a linear head: images of any size to its frozen features, and these to logits."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from distqexp.errors import UsageError

WIDTH = 1280
"""The number of features of the body: means of its last maps over the image."""

_CHANNELS = 3
_SMALLEST = 32
"""The body halves an image five times; below this nothing is left of it."""
_MEAN, _DEVIATION = 127 / 255, 128 / 255
"""What the body was trained with: pixels from 0 to 255, less 127, over 128, for all three colours."""


class Resized(nn.Module):
    """Images of one or three channels, pixels from 0 to 1, as the body takes them: (n, c, h, w) to (n, 3, size, size).

    Nothing here is a parameter or a buffer, and each image is taken alone.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return the images stretched (bilinear), in three channels, centred and scaled. A grey image has three equal ones."""
        if records.ndim != 4 or records.shape[1] not in (1, _CHANNELS):
            raise ValueError(f"found records {tuple(records.shape[1:])}; expected images (1, h, w) or (3, h, w)")
        images = functional.interpolate(records, (self.size, self.size), mode="bilinear", antialias=True)
        return ((images - _MEAN) / _DEVIATION).expand(-1, _CHANNELS, -1, -1)


class FeaturesAndHead(nn.Module):
    """A body, which gives (n, WIDTH) features of images, and a linear head that starts at zero.

    The names are those of ``mean_pooling.MeanPooled``, so that ``model.weights`` may be a file of the body alone.
    """

    def __init__(self, resized: Resized, body: nn.Module, outputs: int) -> None:
        super().__init__()
        self.resized = resized
        self.body = body
        self.classifier = nn.Linear(WIDTH, outputs)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, outputs) of images (n, c, h, w) with pixels from 0 to 1."""
        logits: torch.Tensor = self.classifier(self.body(self.resized(records)))
        return logits


def lite0(outputs: int = 1, size: int = 112) -> nn.Module:
    """Make an EfficientNet-Lite0 with a linear head of zeros; pretrained weights come from ``model.weights``. Nothing is fetched.

    With ``model.trainable = ["classifier.*"]`` the body is frozen, and runs once over all records. ``scripts/prepare_pneumonia.py``
    writes the file of the body's weights.

    Args:
        outputs: The number of outputs: 1 for two classes by binary cross-entropy.
        size: The side that images are stretched to, at least 32; the body was trained with 224. Work grows with its square.

    Returns:
        The model, in evaluation mode, of images (n, 1, h, w) or (n, 3, h, w) with pixels from 0 to 1.

    Raises:
        UsageError: An argument is out of range, or the package is not installed.
    """
    if outputs < 1:
        raise UsageError(f"model.args.outputs: found {outputs}; expected at least 1")
    if size < _SMALLEST:
        raise UsageError(f"model.args.size: found {size}; expected at least {_SMALLEST}")
    try:
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise UsageError(
            "model.factory: efficientnet-lite-pytorch is not installed; expected it installed; "
            "pip install 'distqexp[efficientnet]'"
        ) from None
    body: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    body._fc = nn.Identity()  # the head for ImageNet's classes
    for part in body.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.num_batches_tracked = None  # a count of training steps, which nothing reads
    return FeaturesAndHead(Resized(size), body, outputs).eval()
