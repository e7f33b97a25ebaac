"""A micro-batch's gradients of each block, stored as factors or products between the backward pass and the sum. Private."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distqexp.gradients.layers.forms import Dense, Form, Indexed, Tensor, Whole, join_uses, product, smaller_form

CHUNK = 1 << 21
"""How many float64 entries of factors are worked on at a time: copies stay small beside the network's own tensors."""

CACHE_CHUNK = 1 << 17
"""The same on a CPU, where each entry is read once or twice only: a copy that is still in the cache costs little."""

UNIT = 2.0**-53
"""The unit roundoff of float64."""

SMALLEST = 2.0**-400
"""Sizes from here on have squares far from underflow in float64; those of float32 factors are larger, or zero."""


@dataclass
class BlockStore:
    """The whitened gradients of one block for the records of a micro-batch. Several uses of the block add up.

    Attributes:
        count: The number of records, B.
        shape: (copies, k_row, k_column).
        device: Where the gradients are.
        form: The gradients; None before the first use.
    """

    count: int
    shape: tuple[int, int, int]
    device: torch.device
    form: Form | None = None

    def add(self, use: Form) -> None:
        """Take in the gradients of one more use of the block."""
        form = use if self.form is None else join_uses(self.form, use)
        self.form = smaller_form(form.row, form.column) if isinstance(form, Dense) and form is not use else form

    @property
    def terms(self) -> int:
        """The number of terms that a coordinate of a sum over the micro-batch has."""
        if self.form is None or isinstance(self.form, Whole):
            return self.count
        return self.count * self.form.column.shape[2]

    def vectors(self) -> Tensor:
        """Return each record's gradient as a vector, (B, size) float64."""
        if self.form is None:
            return torch.zeros((self.count, self.size), dtype=torch.float64, device=self.device)
        return product(self.form).reshape(self.count, -1).double()

    def norms(self) -> tuple[Tensor, Tensor]:
        """Return upper bounds of each record's squared norm and of its spread, (B,) float64 each.

        The spread is the sum over positions of ||row|| ||column||, which is at least the norm of every partial sum of the
        record's terms; where the product is stored, it is the norm. A record with an entry that is not finite has bounds that
        are not finite.
        """
        if self.form is None:
            zeros = torch.zeros(self.count, dtype=torch.float64, device=self.device)
            return zeros, zeros
        if isinstance(self.form, Whole):
            flat = self.form.matrix.reshape(self.count, -1)
            parts = [torch.linalg.vector_norm(flat[some].double(), dim=1) for some in _rows(flat)]
            squares = torch.cat(parts).square()
            squares = squares * (1 + (2 * flat.shape[1] + 8) * UNIT)
            return squares, squares.sqrt() * (1 + 4 * UNIT)
        return _gram_norms(self.form)

    @property
    def size(self) -> int:
        """The number of coordinates of the block."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def weighted_sum(self, total: Tensor, weights: Tensor, good: Tensor) -> None:
        """Write sum_j weights_j G_j over the good records j to ``total``, (size,) float64; other records add exactly zero.

        Args:
            total: What is overwritten, so that memory fresh from the system is touched once.
            weights: The weight of each record, (B,) float64.
            good: Which records count, bool (B,).
        """
        if isinstance(self.form, Dense):
            self._sum_factors(total.view(self.shape), self.form, weights, good)
            return
        total.zero_()
        if isinstance(self.form, Whole):
            _add_weighted_rows(total, self.form.matrix.reshape(self.count, -1), weights, good)
        elif self.form is not None:
            self._add_by_token(total.view(self.shape)[0], self.form, weights, good)

    def _sum_factors(self, total: Tensor, form: Dense, weights: Tensor, good: Tensor) -> None:
        row, column = form.row, form.column
        for number in range(self.shape[0]):
            for some in _ranges(self.count, row.shape[2] * (row.shape[3] + column.shape[3])):
                keep = good[some, None, None]
                # The factors of a record that doesn't count are replaced before the product: 0 x NaN would be NaN.
                left = _copy(row[some, number]).mul_(weights[some, None, None]).masked_fill_(~keep, 0.0)
                right = _copy(column[some, number]).masked_fill_(~keep, 0.0)
                sides = left.reshape(-1, left.shape[2]).T, right.reshape(-1, right.shape[2])
                total[number].addmm_(*sides, beta=1 if some.start else 0)

    def _add_by_token(self, total: Tensor, form: Indexed, weights: Tensor, good: Tensor) -> None:
        for some in _ranges(self.count, form.column[0].numel()):
            rows = form.column[some, 0].double() * (form.scale[some].double() * weights[some, None]).unsqueeze(2)
            rows = torch.where(good[some, None, None], rows, 0.0)
            total.index_add_(0, form.token[some].reshape(-1), rows.reshape(-1, rows.shape[2]))


def _gram_norms(form: Dense | Indexed) -> tuple[Tensor, Tensor]:
    """Bound squared norms and spreads by Gram matrices in float64: ||sum_t r_t c_t^T||^2 = sum_{s,t} <r_s, r_t> <c_s, c_t>.

    For float32 or float64 factors the sum has at most (k_row + k_column + copies L^2 + 4) roundings on any path, each a
    relative error of at most UNIT on terms whose sizes add up to at most spread^2 (Cauchy-Schwarz). So the true
    squared norm is at most the computed one plus that count times UNIT times spread^2. Twice the count covers second order
    and the rounding of the spread itself. A unit whose terms cancel can't show a smaller norm than it has.
    Squares of float64 factors may underflow: a position with a factor smaller than SMALLEST counts as if it had that size.
    """
    column = form.column
    count, copies, steps = column.shape[:3]
    wide = column.dtype == torch.float64
    width = column.shape[3] + (1 if isinstance(form, Indexed) else form.row.shape[3])
    squares: list[Tensor] = []
    spread: list[Tensor] = []
    underflow: list[Tensor] = []
    for some in _ranges(count, copies * steps * (width + steps)):
        c_sizes, c_small = _sizes(column[some], wide)
        row = form.scale[some].unsqueeze(2).unsqueeze(1) if isinstance(form, Indexed) else form.row[some]
        r_sizes, r_small = _sizes(row, wide)
        terms = r_sizes * c_sizes
        spread.append(terms.flatten(1).sum(dim=1))
        if r_small is not None and c_small is not None:
            underflow.append(torch.where(r_small | c_small, terms, 0.0).flatten(1).sum(dim=1))
        if steps == 1:
            squares.append(terms.square().flatten(1).sum(dim=1))
        elif isinstance(form, Indexed):
            token, c = form.token[some], column[some].double()
            same = token.unsqueeze(2) == token.unsqueeze(1)
            rows = c[:, 0] * form.scale[some].double().unsqueeze(2)
            squares.append(torch.where(same, rows @ rows.transpose(1, 2), 0.0).flatten(1).sum(dim=1))
        else:
            r, c = row.double(), column[some].double()
            squares.append(((r @ r.transpose(2, 3)) * (c @ c.transpose(2, 3))).flatten(1).sum(dim=1))
    roundings = 2 * UNIT * (width + copies * steps * steps + 4)
    spreads = torch.cat(spread) * (1 + roundings)
    total = torch.cat(squares).clamp(min=0.0) + roundings * spreads.square()
    if underflow:
        total = (total.sqrt() + torch.cat(underflow)).square() * (1 + 16 * UNIT)
    return total, spreads


def _sizes(vectors: Tensor, wide: bool) -> tuple[Tensor, Tensor | None]:
    """Bound the norms over the last dimension and, where ``wide``, tell which vectors are so small that squares may underflow."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    if not wide:
        return norms, None
    small = (norms < SMALLEST) & (vectors != 0).any(dim=-1)
    return torch.where(small, SMALLEST, norms), small


def _add_weighted_rows(total: Tensor, flat: Tensor, weights: Tensor, good: Tensor) -> None:
    weights = torch.where(good, weights, 0.0)
    for some in _rows(flat):
        # Its factor is zero, but 0 x NaN would be NaN.
        rows = _copy(flat[some]).masked_fill_(~good[some, None], 0.0)
        total.addmv_(rows.T, weights[some])


def _ranges(count: int, each: int, most: int = CHUNK) -> list[slice]:
    """Divide the records into runs of about ``most`` entries, the same runs for every batch of one shape."""
    step = max(1, most // max(1, each))
    return [slice(start, start + step) for start in range(0, count, step)]


def _copy(values: Tensor) -> Tensor:
    return values.to(torch.float64, copy=True, memory_format=torch.contiguous_format)


def _rows(flat: Tensor) -> list[slice]:
    return _ranges(len(flat), flat.shape[1], CACHE_CHUNK if flat.device.type == "cpu" else 1 << 24)
