"""Convolutions: rows are output gradients a position, columns the patches under the kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from distqexp.geometry.blocks import Block
from distqexp.gradients.layers.forms import (
    Dense,
    Kept,
    Positions,
    Raw,
    Tensor,
    Whitening,
    Whole,
    apply,
    apply_left,
    association,
    keeps_factors,
    width,
)

UNFOLDING = 4
"""Rough cost of copying one entry of the unfolded input, in multiply-adds."""

CHUNK = 1 << 20
"""Entries of unfolded or whitened patches at a time: they are many times the input, and live only for a product."""


@dataclass(frozen=True)
class Patches(Raw):
    """A convolution's use: row (B, groups, L, rows), the padded input (B, channels, *space) and the kernel's geometry."""

    row: Tensor
    padded: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    constant: bool = False

    def plain(self, block: Block) -> Kept:
        column = self.unfolded(block.copies)
        if block.bias is not None:
            last = column.new_full((*column.shape[:3], 1), 1.0 if self.constant else 0.0)
            column = torch.cat([column, last], dim=3)
        return Dense(self.row, column)

    def whiten(self, block: Block, whitening: Whitening) -> Kept:
        steps = self.row.shape[2]
        k_row, k_column = width(whitening.row), width(whitening.column)
        if keeps_factors(steps, k_row, k_column):
            return Dense(apply(self.row, whitening.row), self.convolved(block, whitening.column))
        step = max(1, CHUNK // (steps * block.columns))
        parts = []
        for start in range(0, len(self.row), step):
            some = slice(start, start + step)
            parts.append(replace(self, row=self.row[some], padded=self.padded[some])._product(block, whitening))
        return Whole(torch.cat(parts) if len(parts) != 1 else parts[0])

    def _product(self, block: Block, whitening: Whitening) -> Tensor:
        """(B, groups, k_row, k_column)."""
        steps, rows = self.row.shape[2:]
        k_row, k_column = width(whitening.row), width(whitening.column)
        row_late, column_late = association(steps, rows, block.columns, k_row, k_column, UNFOLDING)
        row = self.row if row_late else apply(self.row, whitening.row)
        if column_late:
            matrix = row.transpose(2, 3) @ self.unfolded(block.copies)
            if block.bias is not None:
                total = row.sum(dim=2) if self.constant else row.new_zeros((len(row), row.shape[1], row.shape[3]))
                matrix = torch.cat([matrix, total.unsqueeze(3)], dim=3)
            matrix = apply(matrix, whitening.column)
        else:
            matrix = row.transpose(2, 3) @ self.convolved(block, whitening.column)
        return apply_left(matrix, whitening.row) if row_late else matrix

    def unfolded(self, groups: int) -> Tensor:
        """The patches, (B, groups, L, channels / groups * kernel size)."""
        count, channels = self.padded.shape[:2]
        spaces = len(self.kernel)
        windows = self.padded
        for axis in range(spaces):
            reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1
            windows = windows.unfold(2 + axis, reach, self.stride[axis])
        if any(step > 1 for step in self.dilation):
            every = [slice(None)] * (2 + spaces) + [slice(None, None, step) for step in self.dilation]
            windows = windows[tuple(every)]
        # (B, channels, *positions, *kernel) -> (B, groups, channels / groups, kernel, positions): copied along positions.
        order = (0, 1, *range(2 + spaces, 2 + 2 * spaces), *range(2, 2 + spaces))
        size = channels // groups * math.prod(self.kernel)
        return windows.permute(order).reshape(count, groups, size, -1).transpose(2, 3)

    def convolved(self, block: Block, factor: Tensor) -> Tensor:
        """The whitened patches, (B, groups, L, k_column), by a convolution with the factor's rows as kernels."""
        if factor.ndim == 2:
            patches = self.unfolded(block.copies)
            scaled = patches * factor[:, : patches.shape[3]].unsqueeze(1)
            if block.bias is None:
                return scaled
            last = factor[:, -1:] if self.constant else torch.zeros_like(factor[:, -1:])
            return torch.cat([scaled, last.unsqueeze(1).expand(*scaled.shape[:3], 1)], dim=3)
        copies, k = factor.shape[:2]
        kernels = factor[:, :, : block.weight_columns].reshape(copies * k, -1, *self.kernel)
        bias = factor[:, :, -1].reshape(-1) if self.constant else None
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.kernel) - 1]
        found = convolve(self.padded, kernels, bias, self.stride, 0, self.dilation, copies)
        return found.reshape(len(found), copies, k, -1).transpose(2, 3)


def convolution(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> Mapping[str, Raw]:
    """The rule of nn.Conv1d, nn.Conv2d and nn.Conv3d."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    groups = module.groups
    row = gradient.reshape(len(gradient), groups, module.out_channels // groups, -1).transpose(2, 3)
    found: dict[str, Raw] = {"bias": Positions(row, None, constant=True)}
    if "weight" in wanted:
        found["weight"] = Patches(row, pad(module, inputs), module.kernel_size, module.stride, module.dilation)
    return found


def pad(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """The input with its padding written out, so that a position's patch is a slice of it."""
    sides = module._reversed_padding_repeated_twice  # of "same" too, where the two sides may differ
    if not any(sides):
        return inputs
    return functional.pad(inputs, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
