"""[model]: what is fine-tuned. Public."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distqexp.config.rules import POSITIVE, SEED, Need, Rule, at_least, field_needs, key

LOSSES = ("cross-entropy", "binary-cross-entropy", "mean-squared-error")


@dataclass(frozen=True)
class PretrainConfig:
    """[model.pretrain]: how theta_0 is fitted to the public data before anything else."""

    epochs: int = key("passes over the public records", at_least(0), default=10)
    optimiser: str = key(
        "adam, sgd or lbfgs (full batch)",
        Rule("adam, sgd or lbfgs", ("adam", "sgd", "lbfgs").__contains__),
        default="adam",
    )
    learning_rate: float = key(
        "step of the optimiser", POSITIVE, Rule("at most 1e30", lambda value: value <= 1e30), default=0.001
    )
    batch: int = key("records in each step (ignored by lbfgs)", at_least(1), default=128)
    weight_decay: float = key(
        "L2 penalty, added to the mean loss as weight_decay/2 * ||theta||^2", at_least(0), default=0.0
    )
    seed: int = key("seed of the initial weights and of the order of the records", SEED, default=0)


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is fine-tuned."""

    factory: str = key(
        '"package.module:function" that returns a torch.nn.Module',
        Rule('"package.module:function"', lambda value: value.count(":") == 1),
    )
    loss: str = key(
        f'the training loss: {", ".join(LOSSES)}, or one of your own that is convex in the outputs: "package.module:name"',
        Rule(
            f'one of {", ".join(LOSSES)}, or "package.module:name"',
            lambda value: value in LOSSES or value.count(":") == 1,
        ),
    )
    args: Mapping[str, Any] = key("keyword arguments of the factory", default_factory=dict)
    weights: str | None = key(
        "pretrained weights: .safetensors, a torch file of tensors, or a folder of save_pretrained, peft or a run",
        default=None,
    )
    new_head: tuple[str, ...] = key(
        "patterns (fnmatch) of parameters that begin anew instead of being read from weights", default=()
    )
    pretrain: PretrainConfig | None = key("pretrain on data.public instead of loading weights", default=None)
    scale_targets: bool = key(
        "scale the targets of mean-squared-error by the moments of data.public, and the exported model's outputs back",
        default=True,
    )
    trainable: tuple[str, ...] = key("patterns (fnmatch) of the parameters that are fine-tuned", default=("*",))

    def needs(self, public: bool) -> Iterator[Need]:
        """Yield what the keys must be. ``public`` says whether there are public data."""
        yield Need(
            not (self.weights and self.pretrain), "model.weights", self.weights, "either weights or pretrain, not both"
        )
        yield Need(self.pretrain is None or public, "model.pretrain", "no data.public", "public data to pretrain on")
        yield Need(
            not self.new_head or self.weights is not None,
            "model.new_head",
            list(self.new_head),
            "model.weights, whose head it leaves out",
        )
        yield from field_needs("model", self)
        if self.pretrain is not None:
            yield from field_needs("model.pretrain", self.pretrain)
