"""The gradients of convolutions: a row is the output gradient at a position, a column the patch under the kernel."""

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
    Form,
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
"""The rough cost of copying one entry of the unfolded input, in multiply-adds."""

CHUNK = 1 << 20
"""How many entries of unfolded or whitened patches exist at a time: they are many times the input, and live for a product only."""


@dataclass(frozen=True)
class Patches(Raw):
    """The gradient of one use of a convolution, whose columns are the patches of its input.

    Attributes:
        row: (B, groups, L, rows).
        padded_inputs: (B, channels, *space).
        kernel: The kernel's size along each dimension of space.
        stride: The steps between positions.
        dilation: The steps between the kernel's entries.
        constant: Whether there is a gradient of the bias too, whose column is 1 at every position.
    """

    row: Tensor
    padded_inputs: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    constant: bool = False

    def plain(self, block: Block) -> Form:
        column = self.patches(block.copies)
        if block.bias is not None:
            last = column.new_full((*column.shape[:3], 1), 1.0 if self.constant else 0.0)
            column = torch.cat([column, last], dim=3)
        return Dense(self.row, column)

    def whiten(self, block: Block, whitening: Whitening) -> Form:
        steps = self.row.shape[2]
        k_row, k_column = width(whitening.row), width(whitening.column)
        if keeps_factors(steps, k_row, k_column):
            return Dense(apply(self.row, whitening.row), self.whitened_patches(block, whitening.column))
        step = max(1, CHUNK // (steps * block.columns))
        parts = []
        for start in range(0, len(self.row), step):
            some = slice(start, start + step)
            parts.append(
                replace(self, row=self.row[some], padded_inputs=self.padded_inputs[some])._product(block, whitening)
            )
        return Whole(torch.cat(parts) if len(parts) != 1 else parts[0])

    def _product(self, block: Block, whitening: Whitening) -> Tensor:
        """Return the whitened gradients as matrices, (B, groups, k_row, k_column)."""
        steps, rows = self.row.shape[2:]
        k_row, k_column = width(whitening.row), width(whitening.column)
        row_late, column_late = association(steps, rows, block.columns, k_row, k_column, UNFOLDING)
        row = self.row if row_late else apply(self.row, whitening.row)
        if column_late:
            matrix = row.transpose(2, 3) @ self.patches(block.copies)
            if block.bias is not None:
                total = row.sum(dim=2) if self.constant else row.new_zeros((len(row), row.shape[1], row.shape[3]))
                matrix = torch.cat([matrix, total.unsqueeze(3)], dim=3)
            matrix = apply(matrix, whitening.column)
        else:
            matrix = row.transpose(2, 3) @ self.whitened_patches(block, whitening.column)
        return apply_left(matrix, whitening.row) if row_late else matrix

    def patches(self, groups: int) -> Tensor:
        """Return the patches, (B, groups, L, channels / groups * kernel size)."""
        count, channels = self.padded_inputs.shape[:2]
        spaces = len(self.kernel)
        windows = self.padded_inputs
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

    def whitened_patches(self, block: Block, factor: Tensor) -> Tensor:
        """Return the whitened patches, (B, groups, L, k_column), by a convolution with the factor's rows as kernels."""
        if factor.ndim == 2:
            patches = self.patches(block.copies)
            patches = patches * factor[:, : patches.shape[3]].unsqueeze(1)
            if block.bias is None:
                return patches
            last = factor[:, -1:] if self.constant else torch.zeros_like(factor[:, -1:])
            return torch.cat([patches, last.unsqueeze(1).expand(*patches.shape[:3], 1)], dim=3)
        copies, k = factor.shape[:2]
        kernels = factor[:, :, : block.weight_columns].reshape(copies * k, -1, *self.kernel)
        bias = factor[:, :, -1].reshape(-1) if self.constant else None
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(self.kernel) - 1]
        outputs = convolve(self.padded_inputs, kernels, bias, self.stride, 0, self.dilation, copies)
        return outputs.reshape(len(outputs), copies, k, -1).transpose(2, 3)


def convolution(module: nn.Module, inputs: Tensor, gradient: Tensor, names: frozenset[str]) -> Mapping[str, Raw]:
    """Apply the rule of nn.Conv1d, nn.Conv2d and nn.Conv3d."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    groups = module.groups
    row = gradient.reshape(len(gradient), groups, module.out_channels // groups, -1).transpose(2, 3)
    gradients: dict[str, Raw] = {"bias": Positions(row, None, constant=True)}
    if "weight" in names:
        gradients["weight"] = Patches(row, _pad(module, inputs), module.kernel_size, module.stride, module.dilation)
    return gradients


def _pad(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """Return the input with its padding written out, so that a position's patch is a slice of it."""
    sides = module._reversed_padding_repeated_twice  # right for padding="same" too, where the two sides may differ
    if not any(sides):
        return inputs
    return functional.pad(inputs, sides, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
