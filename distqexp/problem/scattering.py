"""Scattering features of images below a linear head: a fixed, data-independent body that nobody has to pretrain.

The scattering transform is a cascade of wavelets, absolute values and an average over small neighbourhoods (Bruna and Mallat,
"Invariant scattering convolution networks", 2013; Oyallon and Mallat, "Deep roto-translation scattering for object classification",
2015). Tramer and Boneh, "Differentially private learning needs better features (or much more data)", 2021, found it to be a better
start for private training than networks that train from scratch. Its filters are written down, not learned. What follows it here, square
roots, a projection and scales, is fitted to synthetic drawings (``problem.drawings``): no record of anybody is looked at, public or
private.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distqexp.arrays import FloatArray
from distqexp.problem.drawings import drawings

_SCALES = 2
"""Wavelets have wavelengths of about 2.7 and 5.3 pixels, and averages are taken every 2**_SCALES = 4 pixels."""
_STRIDE = 2**_SCALES
_MARGIN = 2
"""Black pixels above and to the left; below and to the right there are as many."""
_BATCH = 100


class Scattering(nn.Module):
    """The scattering transform with two scales: (n, c, size, size) images to (n, c * (1 + 2 L + L^2), size / 4, size / 4) for L angles.

    The maps of a channel are in this order: the image's average; L averages of absolute values at the finer scale, L at the coarser;
    and L blocks, one for an angle of the finer scale, of L angles of the coarser one. Averages are centred at the pixels 2, 6, 10, ...
    Convolutions are cyclic on the image with its margin. Each image is taken alone. There is no parameter.
    """

    fine: torch.Tensor
    coarse: torch.Tensor
    average: torch.Tensor
    average_half: torch.Tensor

    def __init__(self, size: int = 28, angles: int = 8) -> None:
        super().__init__()
        if size < _STRIDE or size % _STRIDE or angles < 1:
            raise ValueError(
                f"found size {size} and {angles} angles; expected a multiple of {_STRIDE} and at least one angle"
            )
        self.size, self.angles = size, angles
        self.maps = 1 + _SCALES * angles + angles**2
        padded = size + 2 * _MARGIN
        for scale, name in enumerate(("fine", "coarse")):
            spectra = _spectra([morlet(padded, scale, turn, angles) for turn in range(angles)])
            self.register_buffer(name, torch.from_numpy(spectra.astype(np.float32)))
        for step, name in enumerate(("average", "average_half"), start=1):
            self.register_buffer(name, torch.from_numpy(averages(padded, step).astype(np.float32)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps of images (n, c, size, size)."""
        if images.ndim != 4 or tuple(images.shape[2:]) != (self.size, self.size):
            raise ValueError(
                f"found records {tuple(images.shape[1:])}; expected images (channels, {self.size}, {self.size})"
            )
        count, channels = images.shape[:2]
        padded = nn.functional.pad(images.flatten(0, 1), (_MARGIN,) * 4)
        spectrum = torch.fft.fft2(padded)[:, None]
        first = torch.fft.ifft2(spectrum * self.fine).abs()
        maps = [_smoothed(padded[:, None], self.average), _smoothed(first, self.average), self._coarse(spectrum)]
        first_spectrum = torch.fft.fft2(first)
        maps += [self._coarse(first_spectrum[:, angle : angle + 1]) for angle in range(self.angles)]
        side = self.size // _STRIDE
        return torch.cat(maps, dim=1).reshape(count, channels * self.maps, side, side)

    def _coarse(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Return averages of the absolute values of the coarser wavelets, which are taken at every second pixel."""
        half = spectrum.shape[-1] // 2
        product = (spectrum * self.coarse).reshape(len(spectrum), self.angles, 2, half, 2, half)
        # The spectrum of every second pixel is the mean over frequencies that look alike there.
        return _smoothed(torch.fft.ifft2(product.mean(dim=(-4, -2))).abs(), self.average_half)


class Whitened(nn.Module):
    """Square roots of maps, less a mean, projected, whitened, and scaled to a mean square of 1 a record: (n, ...) to (n, features).

    The square root evens out strong and weak maps (signed for what averages leave below zero). There is no parameter.
    """

    mean: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, mean: torch.Tensor, matrix: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the features; those of a record whose maps are the mean itself are zero."""
        features = (signed_root(maps).flatten(1) - self.mean) @ self.matrix
        size = torch.linalg.vector_norm(features, dim=1, keepdim=True) / math.sqrt(features.shape[1])
        return features / size.clamp_min(1e-6)


class FixedFeaturesAndHead(nn.Module):
    """A body without parameters, and a linear head that starts at zero, which is all that trains."""

    def __init__(self, body: nn.Module, features: int, outputs: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, outputs)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, outputs) of images (n, c, h, w) with pixels from 0 to 1."""
        logits: torch.Tensor = self.head(self.body(records))
        return logits


def scattering(
    outputs: int = 10,
    *,
    size: int = 28,
    features: int = 800,
    angles: int = 8,
    synthetic: int = 2000,
    damping: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Make a linear head of zeros on whitened scattering features of grey images (n, 1, size, size). Nothing is fetched or learned.

    The first model of a process takes about a minute, as the body is fitted to drawings then; later ones take it from memory.

    Args:
        outputs: The number of classes.
        size: The side of an image, a multiple of 4.
        features: The number of features, the leading directions of the drawings' maps.
        angles: The number of angles of the wavelets.
        synthetic: The number of drawings, more than ``features``.
        damping: What is added to a direction's variance before whitening, relative to the mean over the ``features`` directions.
        seed: The seed of the drawings.
    """
    maps = Scattering(size, angles)
    if not 0 < features <= min(synthetic - 1, maps.maps * (size // _STRIDE) ** 2) or not damping > 0:
        raise ValueError(
            f"found features = {features}, synthetic = {synthetic}, damping = {damping}; expected fewer features than drawings, at "
            f"most {maps.maps * (size // _STRIDE) ** 2} of them, and a damping above 0"
        )
    mean, matrix = _fitted(size, angles, features, synthetic, damping, seed)
    body = nn.Sequential(maps, Whitened(mean.clone(), matrix.clone()))
    return FixedFeaturesAndHead(body, features, outputs)


def signed_root(maps: torch.Tensor) -> torch.Tensor:
    """Return the square roots of absolute values, with the signs of the values."""
    return maps.sign() * maps.abs().sqrt()


def morlet(side: int, scale: int, turn: int, angles: int) -> NDArray[np.complex128]:
    """Return a Morlet wavelet on a cyclic grid (side, side), centred at (0, 0): a wave under a Gaussian, less what makes its sum zero.

    Args:
        side: The side of the grid.
        scale: 0 or 1; each scale doubles the wavelength and the width.
        turn: The wave runs at turn * 180 / angles degrees to the first axis.
        angles: The number of angles. The Gaussian is angles / 4 times as wide across the wave's direction as along it.
    """
    angle, width, frequency = math.pi * turn / angles, 0.8 * 2**scale, 0.75 * math.pi / 2**scale
    wave, envelope = (_gabor(side, width, angle, wavenumber, 4 / angles) for wavenumber in (frequency, 0.0))
    return wave - wave.sum() / envelope.sum() * envelope


def averages(side: int, step: int) -> FloatArray:
    """Return the matrix of Gaussian averages along one axis, cyclic and centred at the pixels 4, 8, ... of a padded image.

    Args:
        side: The side of the padded image.
        step: 1, or 2 for maps that hold every second pixel.
    """
    centres = np.arange(_STRIDE, side, _STRIDE)
    distances = np.arange(0, side, step) - centres[:, None]
    width = 0.8 * 2 ** (_SCALES - 1)
    periods = np.arange(-2, 3)[:, None, None] * side
    weights = np.exp(-np.square(distances + periods) / (2 * width**2)).sum(axis=0)
    return weights * step / math.sqrt(2 * math.pi * width**2)


def _spectra(filters: list[NDArray[np.complex128]]) -> FloatArray:
    """Return the spectra of filters on a cyclic grid, which are real: a filter at -x is the conjugate of that at x."""
    return np.fft.fft2(np.stack(filters)).real


def _gabor(side: int, width: float, angle: float, wavenumber: float, slant: float) -> NDArray[np.complex128]:
    """Return a wave under a Gaussian, summed over five periods of the grid along each axis."""
    places = np.arange(-2 * side, 3 * side, dtype=np.float64)
    down, right = places[:, None], places[None, :]
    along = down * math.cos(angle) + right * math.sin(angle)
    across = right * math.cos(angle) - down * math.sin(angle)
    values = np.exp(-(along**2 + (slant * across) ** 2) / (2 * width**2) + 1j * wavenumber * along)
    return values.reshape(5, side, 5, side).sum(axis=(0, 2)) * slant / (2 * math.pi * width**2)


def _smoothed(maps: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return the averages of maps (..., s, s) along both axes."""
    return average @ maps @ average.T


@functools.lru_cache(maxsize=4)
def _fitted(
    size: int, angles: int, features: int, synthetic: int, damping: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean (d,) and the matrix (d, features) of ``Whitened``, from the leading directions of drawings' maps."""
    module = Scattering(size, angles)
    images = torch.from_numpy(drawings(synthetic, size, seed))
    with torch.no_grad():
        parts = [signed_root(module(part)).flatten(1).numpy() for part in torch.split(images, _BATCH)]
    maps = np.concatenate(parts).astype(np.float64)
    mean = maps.mean(axis=0)
    maps -= mean
    variances, directions = _leading(maps, features)
    scales = 1.0 / np.sqrt(variances + damping * variances.mean())
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy((directions * scales).astype(np.float32))


def _leading(rows: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Return the variances (count,) and directions (d, count) of centred rows (n, d), the largest first."""
    n, width = rows.shape
    wide = width > n
    moment = (rows @ rows.T if wide else rows.T @ rows) / n
    values, vectors = np.linalg.eigh(moment)
    variances = np.maximum(values[::-1][:count], 1e-12)
    leading = vectors[:, ::-1][:, :count]
    directions = rows.T @ leading / np.sqrt(n * variances) if wide else leading
    return variances, directions
