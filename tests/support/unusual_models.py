"""Models as people have them, which torch.func or the layers' rules can't always take. Factories of configs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

BERT: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 11,
    "max_position_embeddings": 8,
}  # fmt: skip
"""Sizes of a tiny BERT."""


class Last(nn.Module):
    """A recurrent layer on (n, 4, 3) and a head on its last output; the layer's fused kernel has no rule for batches."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM] = nn.GRU) -> None:
        super().__init__()
        self.rnn = kind(3, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Packed(nn.Module):
    """A recurrent layer on packed sequences of tokens and mask (n, 2, 5): the batch decides how many rows are taken at once."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.rnn = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)
        if frozen:
            self.tokens.requires_grad_(False)
            self.rnn.requires_grad_(False)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        lengths = records[:, 1].sum(dim=1).clamp(min=1).cpu()
        vectors = self.tokens(records[:, 0])
        packed = nn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


class Padded(nn.Module):
    """A transformer encoder with a padding mask, on tokens and mask (n, 2, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        mask = records[:, 1] == 0
        return self.head(self.encoder(self.tokens(records[:, 0]), src_key_padding_mask=mask)[:, 0])


class Around(nn.Module):
    """A module around a BERT body, on tokens and mask (n, 2, 5)."""

    def __init__(self) -> None:
        import transformers

        super().__init__()
        sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BertConfig(intermediate_size=8, vocab_size=11, max_position_embeddings=8, **sizes)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(8, 3)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return self.head(self.bert(input_ids=records[:, 0], attention_mask=records[:, 1]).last_hidden_state[:, 0])


class Clipped(torch.autograd.Function):
    """A plain function, without the rules that torch.func asks for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)


class Vectors(nn.Module):
    """Two layers on (n, 6), and between them what ``kind`` says."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        if kind == "prelu":
            self.slopes = nn.Parameter(torch.full((8,), 0.3))

    def forward(self, x: torch.Tensor) -> Any:
        if self.kind in ("checkpoint", "re-entrant"):
            hidden = torch.tanh(checkpoint(self.body, x, use_reentrant=self.kind == "re-entrant"))
        elif self.kind == "function":
            hidden = Clipped.apply(self.body(x))
        elif self.kind == "branch":
            rows = self.body(x)
            hidden = torch.stack([torch.relu(row) if row.sum().item() > 0 else torch.tanh(row) for row in rows])
        elif self.kind == "numpy":
            hidden = torch.tanh(self.body(torch.from_numpy(np.abs(x.numpy()))))
        elif self.kind == "prelu":
            hidden = torch.nn.functional.prelu(self.body(x), self.slopes)
        elif self.kind == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.head(torch.tanh(self.body(x)))
        elif self.kind == "decay":
            self.body.weight.data.mul_(0.9)
            hidden = self.body(x)
        else:
            hidden = torch.tanh(self.body(x))
        if self.kind == "missing":
            return self.head(hidden) + {}["scale"]
        if self.kind == "shy" and len(x) == 1 and float(x.max()) > 4:
            raise ValueError(f"a large record: {float(x.max())}")
        logits = self.head(hidden)
        outputs = {
            "two candidates": (logits, hidden),
            "one candidate": (logits.mean(), logits, hidden[:, :, None, None]),
            "named": {"anything": logits},
            "no candidate": (None, hidden[:, :, None, None]),
        }
        return outputs.get(self.kind, logits)


class Means(nn.Module):
    """The mean of embeddings of tokens (n, 2, 5), and a head."""

    def __init__(self, bag: bool = False, **options: Any) -> None:
        super().__init__()
        self.tokens = nn.EmbeddingBag(11, 4, mode="mean", **options) if bag else nn.Embedding(11, 4, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        vectors = self.tokens(records[:, 0])
        return self.head(vectors if vectors.ndim == 2 else vectors.mean(dim=1))


def lazy() -> nn.Module:
    """A module without sizes."""
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))


def scripted(whole: bool = True) -> nn.Module:
    """TorchScript, as a whole or as the first of three layers."""
    if whole:
        return torch.jit.script(Wrapped())
    return nn.Sequential(torch.jit.script(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))


class Wrapped(nn.Module):
    """What wrappers are put around."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


def wrapped(kind: str) -> nn.Module:
    """A module in a wrapper."""
    return nn.DataParallel(Wrapped()) if kind == "parallel" else torch.compile(Wrapped())  # type: ignore[return-value]


def frozen_body(whole: bool = False) -> nn.Module:
    """A module whose first layer, or all of it, the factory froze."""
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    (module if whole else module[0]).requires_grad_(False)
    return module


def broken() -> nn.Module:
    """A factory that raises."""
    return {}["weights"]
