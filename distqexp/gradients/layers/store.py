"""What a micro-batch keeps of each block between the backward pass and the sum: factors, or products. Private."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distqexp.gradients.layers.forms import Dense, Indexed, Kept, Tensor, Whole, joined, product, smaller

CHUNK = 1 << 21
"""Float64 entries of factors worked on at a time: the copies stay small beside the network's own tensors."""

CACHED = 1 << 17
"""The same where each entry is read once or twice, on a CPU: a copy that is still in the cache costs little."""

UNIT = 2.0**-53
"""Unit roundoff of float64."""

SMALLEST = 2.0**-400
"""Squares of sizes from here on are far from underflow in float64; float32 factors are all larger, or zero."""


@dataclass
class BlockStore:
    """The whitened gradients of one block, (B, copies, k_row, k_column), of a micro-batch. Uses add up."""

    count: int
    shape: tuple[int, int, int]
    device: torch.device
    kept: Kept | None = None

    def add(self, new: Kept) -> None:
        """Take in one more use of the block."""
        kept = new if self.kept is None else joined(self.kept, new)
        self.kept = smaller(kept.row, kept.column) if isinstance(kept, Dense) and kept is not new else kept

    @property
    def terms(self) -> int:
        """How many terms a coordinate of a sum over the micro-batch has."""
        if self.kept is None or isinstance(self.kept, Whole):
            return self.count
        return self.count * self.kept.column.shape[2]

    def vectors(self) -> Tensor:
        """(B, copies * k_row * k_column) float64."""
        if self.kept is None:
            size = self.shape[0] * self.shape[1] * self.shape[2]
            return torch.zeros((self.count, size), dtype=torch.float64, device=self.device)
        return product(self.kept).reshape(self.count, -1).double()

    def norms(self) -> tuple[Tensor, Tensor]:
        """An upper bound of each record's squared norm, and of its spread: (B,) float64 each.

        Spread: the sum over positions of ||row|| ||column||, at least the norm of every partial sum of the record's terms;
        where the product is kept, its norm. NaN or infinity where an entry is.
        """
        if self.kept is None:
            zeros = torch.zeros(self.count, dtype=torch.float64, device=self.device)
            return zeros, zeros
        if isinstance(self.kept, Whole):
            flat = self.kept.matrix.reshape(self.count, -1)
            parts = [torch.linalg.vector_norm(flat[some].double(), dim=1) for some in _rows(flat)]
            squared = torch.cat(parts).square()
            squared = squared * (1 + (2 * flat.shape[1] + 8) * UNIT)
            return squared, squared.sqrt() * (1 + 4 * UNIT)
        return _gram_norms(self.kept)

    @property
    def size(self) -> int:
        """How many coordinates the block has."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def add_weighted_sum(self, total: Tensor, weights: Tensor, good: Tensor) -> None:
        """Add sum_j weights_j G_j over the good records to ``total``, (size,) float64; the others add exactly zero."""
        if self.kept is None:
            return
        if isinstance(self.kept, Whole):
            _add_weighted_rows(total, self.kept.matrix.reshape(self.count, -1), weights, good)
            return
        found = total.view(self.shape)
        if isinstance(self.kept, Indexed):
            self._add_indexed(found[0], self.kept, weights, good)
            return
        row, column = self.kept.row, self.kept.column
        for number in range(self.shape[0]):
            for some in _ranges(self.count, row.shape[2] * (row.shape[3] + column.shape[3])):
                keep = good[some, None, None]
                # The factors of a record that doesn't count are replaced before the product: 0 x NaN would be NaN.
                left = _copied(row[some, number]).mul_(weights[some, None, None]).masked_fill_(~keep, 0.0)
                right = _copied(column[some, number]).masked_fill_(~keep, 0.0)
                found[number].addmm_(left.reshape(-1, left.shape[2]).T, right.reshape(-1, right.shape[2]))

    def _add_indexed(self, found: Tensor, kept: Indexed, weights: Tensor, good: Tensor) -> None:
        for some in _ranges(self.count, kept.column[0].numel()):
            scaled = kept.column[some, 0].double() * (kept.scale[some].double() * weights[some, None]).unsqueeze(2)
            scaled = torch.where(good[some, None, None], scaled, 0.0)
            found.index_add_(0, kept.token[some].reshape(-1), scaled.reshape(-1, scaled.shape[2]))


def _gram_norms(kept: Dense | Indexed) -> tuple[Tensor, Tensor]:
    """Squared norms by Gram matrices in float64: ||sum_t r_t c_t^T||^2 = sum_{s,t} <r_s, r_t> <c_s, c_t>.

    Of float32 (or float64) factors the sum has at most (k_row + k_column + copies L^2 + 4) roundings on any path, each a
    relative error of at most UNIT on terms whose sizes add up to at most spread^2 (Cauchy-Schwarz). So the true
    squared norm is at most the computed one plus that count times UNIT times spread^2; twice the count covers second order
    and the rounding of the spread itself. A unit whose terms cancel can't show a norm smaller than it has.
    Squares of float64 factors may underflow: a position with a factor smaller than SMALLEST counts as if it had that size.
    """
    column = kept.column
    count, copies, steps = column.shape[:3]
    wide = column.dtype == torch.float64
    width = column.shape[3] + (1 if isinstance(kept, Indexed) else kept.row.shape[3])
    squared: list[Tensor] = []
    spread: list[Tensor] = []
    lost: list[Tensor] = []
    for some in _ranges(count, copies * steps * (width + steps)):
        c = column[some].double()
        c_sizes, c_small = _sizes(c, wide)
        if isinstance(kept, Indexed):
            scale, token = kept.scale[some].double(), kept.token[some]
            r_sizes, r_small = _sizes(scale.unsqueeze(2).unsqueeze(1), wide)
        else:
            r = kept.row[some].double()
            r_sizes, r_small = _sizes(r, wide)
        terms = r_sizes * c_sizes
        spread.append(terms.flatten(1).sum(dim=1))
        if r_small is not None and c_small is not None:
            lost.append(torch.where(r_small | c_small, terms, 0.0).flatten(1).sum(dim=1))
        if steps == 1:
            squared.append(terms.square().flatten(1).sum(dim=1))
        elif isinstance(kept, Indexed):
            same = token.unsqueeze(2) == token.unsqueeze(1)
            scaled = c[:, 0] * scale.unsqueeze(2)
            squared.append(torch.where(same, scaled @ scaled.transpose(1, 2), 0.0).flatten(1).sum(dim=1))
        else:
            squared.append(((r @ r.transpose(2, 3)) * (c @ c.transpose(2, 3))).flatten(1).sum(dim=1))
    roundings = 2 * UNIT * (width + copies * steps * steps + 4)
    spreads = torch.cat(spread) * (1 + roundings)
    total = torch.cat(squared).clamp(min=0.0) + roundings * spreads.square()
    if lost:
        total = (total.sqrt() + torch.cat(lost)).square() * (1 + 16 * UNIT)
    return total, spreads


def _sizes(vectors: Tensor, wide: bool) -> tuple[Tensor, Tensor | None]:
    """Bounds of the norms over the last dimension; with ``wide``, where a vector is so small that its squares may underflow."""
    found = vectors.square().sum(dim=-1).sqrt()
    if not wide:
        return found, None
    small = (found < SMALLEST) & (vectors != 0).any(dim=-1)
    return torch.where(small, SMALLEST, found), small


def _add_weighted_rows(total: Tensor, flat: Tensor, weights: Tensor, good: Tensor) -> None:
    weights = torch.where(good, weights, 0.0)
    for some in _rows(flat):
        # Its factor is zero, but 0 x NaN would be NaN.
        rows = _copied(flat[some]).masked_fill_(~good[some, None], 0.0)
        total.addmv_(rows.T, weights[some])


def _ranges(count: int, each: int, most: int = CHUNK) -> list[slice]:
    """The records in runs of about ``most`` entries: the same runs for every batch of one shape."""
    step = max(1, most // max(1, each))
    return [slice(start, start + step) for start in range(0, count, step)]


def _copied(values: Tensor) -> Tensor:
    return values.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def _rows(flat: Tensor) -> list[slice]:
    return _ranges(len(flat), flat.shape[1], CACHED if flat.device.type == "cpu" else 1 << 24)
