"""Per-example gradients and curvature factors against plain automatic differentiation, one record at a time."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from distqexp.problem import mapping
from distqexp.problem.derivatives import loss_curvature_factors, per_example_gradients
from distqexp.problem.losses import Loss, get_loss
from distqexp.problem.models import cnn, logistic, mlp
from distqexp.problem.network import Network


def _tied() -> nn.Module:
    first, second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def _case(name: str) -> tuple[Network, Loss, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)

    def classes(count: int, width: int) -> torch.Tensor:
        return torch.randint(0, width, (count,), generator=generator)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "logistic":
        return Network(logistic(5).double()), get_loss("binary-cross-entropy"), normal(7, 5), classes(7, 2).float()
    if name == "mlp":
        return Network(mlp(5, 3, [4]).double()), get_loss("cross-entropy"), normal(7, 5), classes(7, 3)
    if name == "mlp head":
        return Network(mlp(5, 3, [4]).double(), ("3.*",)), get_loss("cross-entropy"), normal(7, 5), classes(7, 3)
    if name == "regression":
        return Network(mlp(5, 2, [4]).double()), get_loss("mean-squared-error"), normal(7, 5), normal(7, 2)
    if name == "tied":
        return Network(_tied().double()), get_loss("cross-entropy"), normal(4, 5), classes(4, 5)
    if name == "normalised":
        module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
        return Network(module), get_loss("cross-entropy"), normal(6, 5), classes(6, 3)
    return Network(cnn(3).double()), get_loss("cross-entropy"), normal(3, 1, 28, 28), classes(3, 3)


def _outputs(network: Network, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return network.functional(network.split(theta), x.unsqueeze(0)).squeeze(0)


CASES = ["logistic", "mlp", "mlp head", "regression", "tied", "normalised", "cnn"]


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_a_plain_autograd_loop(name: str) -> None:
    network, loss, inputs, targets = _case(name)
    found = per_example_gradients(network, loss, inputs, targets)
    assert found.shape == (len(inputs), network.d)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    parameters = [network.module.get_parameter(parameter) for parameter, _ in network.names_shapes]
    for row, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        value = loss.value(network.module(x.unsqueeze(0)), y.unsqueeze(0)).sum()
        gradients = torch.autograd.grad(value, parameters)
        torch.testing.assert_close(found[row], torch.cat([g.reshape(-1) for g in gradients]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [case for case in CASES if case != "cnn"])
def test_factors_equal_jacobian_and_hessian_of_autograd(name: str) -> None:
    network, loss, inputs, targets = _case(name)
    found = loss_curvature_factors(network, loss, inputs)
    theta = torch.from_numpy(network.theta())
    for row, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        jacobian = torch.autograd.functional.jacobian(lambda t, x=x: _outputs(network, t, x), theta)
        hessian = torch.autograd.functional.hessian(
            lambda o, y=y: loss.value(o.unsqueeze(0), y.unsqueeze(0)).sum(), _outputs(network, theta, x)
        )
        expected = jacobian.T @ hessian.reshape(len(jacobian), len(jacobian)) @ jacobian
        torch.testing.assert_close(found[row].T @ found[row], expected, rtol=1e-9, atol=1e-12)


def test_gauss_newton_is_the_hessian_for_a_linear_model() -> None:
    network, loss, inputs, targets = _case("logistic")
    factors = loss_curvature_factors(network, loss, inputs).reshape(-1, network.d)
    hessian = torch.autograd.functional.hessian(
        lambda t: loss.value(network.functional(network.split(t), inputs), targets).sum(),
        torch.from_numpy(network.theta()),
    )
    torch.testing.assert_close(factors.T @ factors, hessian, rtol=1e-10, atol=1e-12)


def _float32_case(model: str) -> tuple[Network, Loss, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    module, shape = (cnn(), (32, 1, 28, 28)) if model == "cnn" else (mlp(64, 10, [32]), (32, 1, 8, 8))
    inputs = torch.rand(*shape, generator=generator)
    return Network(module), get_loss("cross-entropy"), inputs, torch.randint(0, 10, (32,), generator=generator)


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_blanking_records_leaves_every_other_gradient_bit(model: str) -> None:
    network, loss, inputs, targets = _float32_case(model)
    whole = per_example_gradients(network, loss, inputs, targets)
    random = np.random.default_rng(11)
    for share in (0.05, 0.5, 0.9, 0.97):
        blank = torch.from_numpy(random.random(32) < share)
        masked, labels = inputs.clone(), targets.clone()
        masked[blank], labels[blank] = 0, 0
        found = per_example_gradients(network, loss, masked, labels)
        assert torch.equal(found[~blank], whole[~blank])
    scaled = inputs.clone()
    scaled[::2] *= 1e6  # wild neighbours instead of blank ones
    assert torch.equal(per_example_gradients(network, loss, scaled, targets)[1::2], whole[1::2])


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_permuting_records_permutes_their_gradient_bits(model: str) -> None:
    network, loss, inputs, targets = _float32_case(model)
    whole = per_example_gradients(network, loss, inputs, targets)
    for seed in range(3):
        order = torch.randperm(32, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(per_example_gradients(network, loss, inputs[order], targets[order]), whole[order])


def test_a_non_finite_record_spoils_its_own_gradient_only() -> None:
    network, loss, inputs, targets = _float32_case("mlp")
    whole = per_example_gradients(network, loss, inputs, targets)
    spoiled = inputs.clone()
    spoiled[3] = float("nan")
    found = per_example_gradients(network, loss, spoiled, targets)
    assert torch.isnan(found[3]).any()
    others = torch.arange(32) != 3
    assert torch.equal(found[others], whole[others])


def test_torch_s_remark_on_the_speed_of_vmap_is_left_out_and_no_other_warning(recwarn: pytest.WarningsRecorder) -> None:
    def remarked(x: torch.Tensor) -> torch.Tensor:
        warnings.warn(
            "There is a performance drop because we have not yet implemented the batching rule for aten::x.",
            stacklevel=1,
        )
        warnings.warn("another", stacklevel=1)
        return 2 * x

    assert mapping.vmap(remarked)(torch.ones(3)).tolist() == [2, 2, 2]
    assert [str(warning.message) for warning in recwarn] == ["another"]
    warnings.warn("There is a performance drop because we have not yet implemented the batching rule", stacklevel=1)
    assert len(recwarn) == 2, "outside of a pass it is shown"
