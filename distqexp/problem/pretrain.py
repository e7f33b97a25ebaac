"""Pretraining of theta_0 on public records."""

from __future__ import annotations

from collections.abc import Callable

import torch

from distqexp.config import PretrainConfig
from distqexp.errors import UsageError
from distqexp.problem.losses import Loss
from distqexp.problem.network import Network
from distqexp.problem.records import Records


def pretrain(network: Network, loss: Loss, records: Records, config: PretrainConfig) -> None:
    """Minimise mean loss + weight_decay/2 ||theta||^2 over every parameter of the module that the factory left trainable.

    ``trainable`` says only what is fine-tuned later; what it chooses of those that the factory froze is pretrained too. Layers are in
    training mode meanwhile. The same seed, thread count and kind of machine give the same weights; torch's global generator is left
    as it was. With lbfgs, ``epochs`` counts full-batch iterations with a strong-Wolfe line search. Raises UsageError where no record
    is present, or when the weights stop being finite.
    """
    keep = records.present.bool()
    inputs, targets = network.prepare(records.inputs[keep]), records.targets[keep].to(network.device)
    if len(targets) == 0:
        raise UsageError("model.pretrain: no complete public record; expected at least one; check data.public")
    flags = {name: parameter.requires_grad for name, parameter in network.module.named_parameters()}
    parameters = [
        parameter
        for name, parameter in network.module.named_parameters()
        if parameter.is_floating_point() and name not in network.frozen_by_factory
    ]
    for parameter in parameters:
        parameter.requires_grad_(True)
    devices = [network.device] if network.device.type == "cuda" else []
    network.module.train()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(config.seed)
            _train(network, loss, inputs, targets, parameters, config)
    finally:
        network.module.eval()
        for name, parameter in network.module.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise UsageError(
            f"model.pretrain.learning_rate: {config.learning_rate} made the weights infinite; expected a smaller one"
        )


def _train(
    network: Network,
    loss: Loss,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    parameters: list[torch.nn.Parameter],
    config: PretrainConfig,
) -> None:
    def objective(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = loss.value(network.forward(x), y).mean()
        if config.weight_decay:
            total = total + config.weight_decay / 2 * torch.stack([(p * p).sum() for p in parameters]).sum()
        return total

    def closure(optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
        def evaluate() -> float:
            optimiser.zero_grad()
            value = objective(x, y)
            value.backward()  # type: ignore[no-untyped-call]
            return float(value.detach())

        return evaluate

    if config.epochs == 0:
        return
    if config.optimiser == "lbfgs":
        optimiser: torch.optim.Optimizer = torch.optim.LBFGS(
            parameters,
            lr=config.learning_rate,
            max_iter=config.epochs,
            max_eval=4 * config.epochs + 25,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )
        optimiser.step(closure(optimiser, inputs, targets))
        return
    if config.optimiser not in ("adam", "sgd"):
        raise UsageError(f"model.pretrain.optimiser: found {config.optimiser!r}; expected adam, sgd or lbfgs")
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.SGD
    optimiser = kind(parameters, lr=config.learning_rate)
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        permutation = torch.randperm(len(targets), generator=order).to(network.device)
        for batch in torch.split(permutation, config.batch):
            optimiser.step(closure(optimiser, inputs[batch], targets[batch]))
