"""The fast path against torch.func in float64, layer family by layer family."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from layers_harness import agree, random_records
from torch import nn

from distqexp.errors import UsageError
from distqexp.gradients.layers import block_layout, register_rule
from distqexp.gradients.layers.forms import Positions, Raw
from distqexp.problem import models
from distqexp.problem.network import Network


class Double(nn.Module):
    """A layer, an activation and a head."""

    def __init__(self, layer: nn.Module, head: int, outputs: int = 3) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(head, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x)).flatten(1))


class Pooled(nn.Module):
    """Token numbers -> vectors -> layers -> mean over positions -> a head."""

    def __init__(self, vocabulary: int, width: int, *layers: nn.Module, padding: int | None = None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layers(self.tokens(x))).mean(dim=1))


def convolution(data: st.DataObject, dimensions: int) -> tuple[nn.Module, tuple[int, ...]]:
    groups = data.draw(st.integers(1, 3))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(dimensions))
    dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(dimensions))
    mode = data.draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    same = data.draw(st.booleans())
    stride = (1,) * dimensions if same else tuple(data.draw(st.integers(1, 2)) for _ in range(dimensions))
    padding = "same" if same else tuple(data.draw(st.integers(0, 2)) for _ in range(dimensions))
    channels = groups * data.draw(st.integers(1, 2))
    shape = (channels, *(data.draw(st.integers(5, 7)) for _ in range(dimensions)))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    layer = kind(
        channels,
        groups * data.draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=mode,
    )
    return layer, shape


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_convolutions_of_every_shape_agree_with_automatic_differentiation(data: st.DataObject) -> None:
    torch.manual_seed(0)
    layer, shape = convolution(data, data.draw(st.integers(1, 3)))
    size = layer(torch.zeros(1, *shape)).numel()
    frozen = data.draw(st.sampled_from([("*",), ("layer.*",), ("layer.weight",), ("head.*", "layer.bias")]))
    k = data.draw(st.sampled_from([None, 2, 4]))
    agree(Double(layer, size), random_records(shape, 3), k=k, trainable=frozen, diagonal=data.draw(st.booleans()))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_linear_layers_on_vectors_and_sequences_agree(data: st.DataObject) -> None:
    torch.manual_seed(0)
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    layer = nn.Linear(shape[-1], data.draw(st.integers(1, 5)), bias=data.draw(st.booleans()))
    size = layer.out_features * math.prod(shape[:-1])
    k = data.draw(st.sampled_from([None, 1, 3]))
    trainable = data.draw(st.sampled_from([("*",), ("*weight",), ("*.bias",)]))
    agree(Double(layer, size), random_records(shape, 3), k=k, trainable=trainable, diagonal=data.draw(st.booleans()))


@pytest.mark.parametrize("k", [None, 5])
def test_the_built_in_networks_agree(k: int | None) -> None:
    torch.manual_seed(0)
    agree(models.cnn(), random_records((1, 28, 28), 10, 3), k=k)
    agree(models.mlp(12, 4, [7, 9]), random_records((3, 4), 4), k=k)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (4, 6)),
        (nn.LayerNorm((4, 6)), (4, 6)),
        (nn.LayerNorm(6, bias=False), (6,)),
        (nn.RMSNorm(6), (4, 6)),
        (nn.GroupNorm(2, 4), (4, 3, 2)),
        (nn.GroupNorm(2, 4), (4,)),
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm2d(4), (4, 3, 3)),
    ],
)
def test_normalisations_agree(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    for k in (None, 2):
        agree(Double(layer, math.prod(shape)), random_records(shape, 3), k=k)
    agree(Double(layer, math.prod(shape)), random_records(shape, 3), trainable=("layer.weight",))


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("vocabulary", [9, 1500])
def test_embeddings_agree_and_padding_gets_no_gradient(k: int | None, vocabulary: int) -> None:
    torch.manual_seed(0)
    records = random_records((6,), 3, vocabulary=vocabulary)
    records.inputs[:, 3:] = 2
    agree(Pooled(vocabulary, 4, nn.Linear(4, 4), padding=2), records, k=k)
    agree(Pooled(vocabulary, 4), records, k=k, diagonal=True)


def test_an_embedding_that_changes_or_couples_is_refused() -> None:
    for options in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        module = Pooled(9, 4)
        module.tokens = nn.Embedding(9, 4, **options)
        with pytest.raises(UsageError, match="Embedding has"):
            agree(module, random_records((6,), 3, vocabulary=9))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_layers_agree(batch_first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, norm_first=norm_first)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if batch_first:
                return self.head(self.encoder(x).mean(dim=1))
            return self.head(self.encoder(x.transpose(0, 1)).mean(dim=0))

    for k in (None, 3):
        agree(Encoder(), random_records((5, 8), 3), k=k)
    agree(Encoder(), random_records((5, 8), 3), trainable=("*out_proj*",))


def test_attention_with_masks_weights_and_other_keys_is_the_modules_own() -> None:
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self, weights: bool) -> None:
            super().__init__()
            self.weights = weights
            self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.triu(torch.ones(3, 4, dtype=torch.bool, device=x.device), 2)
            padding = torch.zeros(len(x), 4, dtype=torch.bool, device=x.device)
            padding[:, 3] = True
            out, weights = self.attention(
                x[:, :3], x[:, 1:], x[:, 1:] * 2, attn_mask=mask, key_padding_mask=padding, need_weights=self.weights
            )
            logits = self.head(out.sum(dim=1))
            return logits if weights is None else logits + weights.square().sum(dim=(1, 2)).unsqueeze(1)

    for weights in (True, False):
        agree(Cross(weights), random_records((5, 6), 3), k=3)


def test_layers_called_twice_and_shared_weights_add_up() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)
            self.other = nn.Linear(5, 5)
            self.other.weight = self.layer.weight
            self.head = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = torch.tanh(self.other(torch.tanh(self.layer(x))))
            return self.head(x)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7)
            self.head.weight = self.tokens.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.tokens(x)).sum(dim=1))

    for k in (None, 2):
        for diagonal in (False, True):
            agree(Twice(), random_records((5,), 3), k=k, diagonal=diagonal)
            agree(Tied(), random_records((6,), 7, vocabulary=7), k=k, diagonal=diagonal)


def test_activations_in_place_are_allowed_and_a_changed_input_is_refused() -> None:
    torch.manual_seed(0)
    records = random_records((2, 6, 6), 3)
    agree(
        nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(inplace=True),
            nn.GroupNorm(1, 3),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(48, 3),
        ),
        records,
    )

    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)[:, :6] * 1.0
            out = self.layer(x)
            x.mul_(2)
            return out

    with pytest.raises(UsageError, match="changed in place"):
        agree(Changes(), records)


class Scaled(nn.Module):
    """A user's layer: linear in its parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) @ self.mixing.T


def scaled_rule(
    module: nn.Module, inputs: torch.Tensor, gradient: torch.Tensor, names: frozenset[str]
) -> dict[str, Raw]:
    flat = [t.reshape(len(t), 1, -1, t.shape[-1]) for t in (gradient, torch.tanh(inputs))]
    return {"mixing": Positions(*flat)}


class Rescaled(Scaled):
    """The same, but its rule is wrong."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) @ self.mixing.T * 2


def test_a_users_rule_is_used_and_a_wrong_one_is_found_out() -> None:
    torch.manual_seed(0)
    register_rule(Scaled, scaled_rule)
    agree(Double(Scaled(4), 12), random_records((3, 4), 3), k=2)
    register_rule(Rescaled, scaled_rule)
    gradients = agree(Double(Rescaled(4), 12), random_records((3, 4), 3), k=2, rules_only=False)
    assert gradients._taps is not None
    (fallback,) = gradients._taps[1].routing.fallbacks.values()
    assert list(fallback.places) == ["layer.mixing"]
    with pytest.raises(UsageError, match="register_rule"):
        register_rule("Scaled", scaled_rule)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.bilinear = nn.Bilinear(6, 4, 3)
        self.scalar = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bilinear(torch.tanh(self.one(x)), x) * torch.exp(self.scalar)


class Uncalled(nn.Module):
    """Reads a layer's weight without calling the layer, and one that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Linear(4, 4)
        self.called = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x @ self.kept.weight.T + self.kept.bias)
        return self.head(torch.tanh(self.called(x)) @ self.called.weight)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Merged(nn.Module):
    """The batch is merged with the positions before the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x.reshape(-1, 4))).reshape(x.shape).sum(dim=1))


@pytest.mark.parametrize("kind", [Bilinear, Uncalled, Recurrent, Merged])
def test_other_layers_fall_back_to_automatic_differentiation(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    shape = (4,) if kind in (Bilinear, Uncalled) else (3, 4)
    for k in (None, 2):
        gradients = agree(kind(), random_records(shape, 3), k=k, rules_only=False)
    assert gradients._taps is not None
    routing = gradients._taps[1].routing
    assert routing.fallbacks
    assert routing.rules


def test_weight_normalisation_falls_back() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
    agree(Double(layer, 6), random_records((4,), 3), rules_only=False)


def test_positions_shared_by_all_records_are_expanded() -> None:
    torch.manual_seed(0)

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, 4)
            self.positions = nn.Embedding(8, 4)
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
            return self.head(self.norm(self.tokens(x) + self.positions(places)).square().sum(dim=1))

    for k in (None, 3):
        agree(Positional(), random_records((6,), 3, vocabulary=9), k=k)


def test_a_model_that_couples_records_is_refused() -> None:
    class Couples(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x - x.mean(dim=0))

    with pytest.raises(UsageError, match="for each record alone"):
        agree(Couples(), random_records((4,), 3))


def test_the_layout_is_by_types_and_shapes() -> None:
    module = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6, 5), nn.LayerNorm(5, bias=False)
    )
    module.append(Scaled(5))
    blocks = block_layout(Network(module, ["0.*", "1.*", "3.bias", "4.*", "5.*"]))
    assert [(block.name, block.shape) for block in blocks] == [
        ("0.weight", (2, 3, 19)),
        ("1.weight", (1, 6, 2)),
        ("3.bias", (1, 5, 1)),
        ("4.weight", (1, 5, 1)),
        ("5.mixing", (1, 5, 5)),
    ]
    assert blocks[2].weight is None
