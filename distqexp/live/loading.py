"""A model's folder, of a run or an export, as something that predicts."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from distqexp.artefacts.card import ModelCard
from distqexp.errors import FileContentError
from distqexp.live.predictor import Predictor
from distqexp.problem.lent import FACTORY, borrow, copied, lent_object
from distqexp.problem.models import build_model, require_allowed_factory
from distqexp.problem.network import Network
from distqexp.problem.weights import load_weights


class LoadedModel(Predictor):
    """A model that was read from its folder, with its certificate."""

    def __init__(
        self, network: Network, card: ModelCard, certificate: dict[str, object], tokenizer: Path | None = None
    ) -> None:
        super().__init__(network, card, tokenizer)
        self.certificate = certificate

    def __repr__(self) -> str:
        return (
            f"{type(self.model).__name__} with {self.network.d:,} released parameters: {self.certificate['statement']}"
        )


def load_model(folder: str | Path, model: nn.Module | None = None) -> LoadedModel:
    """Read a released model from the folder of a run or of an export. No code that the folder names is run, unless it is allowed.

    Args:
        folder: The folder, with model.safetensors, model.json and certificate.json.
        model: The module that the weights belong to, where the run was given a live module that isn't made of torch's own layers
            alone, or a factory of your own; it is copied, and its own weights don't matter.

    Returns:
        The model with ``predict``, ``predict_proba``, ``model`` (the module) and ``certificate``.

    Raises:
        UsageError: There is no model in the folder, or ``model`` is needed.
        FileContentError: A file is damaged, or the weights are not those of the module.
    """
    path = Path(folder)
    card = ModelCard.read(path)
    certificate, module = _certificate(path / "certificate.json"), _module(card, model)
    if (
        "gradients" in certificate
    ):  # of a run in mixed precision: what it trained is float32, whatever the factory makes
        module = module.float()
    network = Network(module, tuple(card.model["trainable"]))
    load_weights(network, path / "model.safetensors")
    tokenizer = path if (path / "tokenizer.json").is_file() else None
    return LoadedModel(network, card, certificate, tokenizer)


def _module(card: ModelCard, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return copied(model)
    factory, args = str(card.model["factory"]), dict(card.model["args"])
    if factory == FACTORY and lent_object(str(args.get("module"))) is None:
        borrow(str(args.get("module")))  # which says what is missing
    if factory != FACTORY:
        require_allowed_factory(factory)
    return build_model(factory, args)


def _certificate(path: Path) -> dict[str, object]:
    try:
        certificate = json.loads(path.read_bytes())
        if not isinstance(certificate, dict) or not isinstance(certificate.get("statement"), str):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise FileContentError(
            f"{path}: no certificate, or a damaged one; expected the folder as it was written"
        ) from None
    return certificate
