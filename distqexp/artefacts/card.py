"""What stands beside a model's weights so that they can be used: which module they belong to, and how records become its inputs. Public."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distqexp.artefacts.plan import Plan
from distqexp.config import DataConfig, config_from_tree, config_to_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.schema import Schema
from distqexp.storage.atomic import write_atomic
from distqexp.storage.canonical import canonical_json

FILE_NAME = "model.json"
_KIND = "distqexp model 1"
_LARGEST = 2**26


@dataclass(frozen=True)
class ModelCard:
    """How to build a model and to read records for it. All of it is public.

    Attributes:
        model: The [model] of the plan's config: factory, args, loss, trainable.
        data: The plan's source of private records, without paths: formats and roles of columns.
        schema: What a record looks like.
        classes: What the outputs stand for, where a script declared it; None for 0, 1, 2, ...
    """

    model: Mapping[str, Any]
    data: DataConfig
    schema: Schema
    classes: tuple[Any, ...] | None = field(default=None)

    @staticmethod
    def of_plan(plan: Plan, classes: tuple[Any, ...] | None = None) -> ModelCard:
        """Return the card of a plan's model."""
        config = plan.config
        model = {
            name: value for name, value in config_to_tree(config.model).items() if name not in ("weights", "pretrain")
        }
        return ModelCard(model, config.data.private[0], plan.schema, classes)

    def tree(self) -> dict[str, Any]:
        """Return the card in JSON types."""
        return {
            "kind": _KIND,
            "model": dict(self.model),
            "data": config_to_tree(self.data),
            "schema": self.schema.to_tree(),
            "classes": None if self.classes is None else list(self.classes),
        }

    def write(self, folder: Path) -> None:
        """Write the card into the folder of the weights."""
        write_atomic(folder / FILE_NAME, canonical_json(self.tree()) + b"\n")

    @staticmethod
    def read(folder: Path) -> ModelCard:
        """Read the card in a model's folder. Raises UsageError where there is none, FileContentError for a damaged one."""
        path = folder / FILE_NAME
        if not path.is_file():
            raise UsageError(
                f"{folder}: no {FILE_NAME} in it; expected the folder of a finished run or an exported model"
            )
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError
            tree = json.loads(path.read_bytes())
            if tree["kind"] != _KIND:
                raise ValueError
            return ModelCard.of_tree(tree)
        except (KeyError, TypeError, ValueError, RecursionError, OSError):
            raise FileContentError(f"{path}: not a model's description, or damaged; export the model again") from None

    @staticmethod
    def of_tree(tree: Mapping[str, Any]) -> ModelCard:
        """Make the card that ``tree`` returned this tree of. Raises UsageError or FileContentError for others."""
        classes = tree["classes"]
        config = config_from_tree(
            {
                "model": tree["model"],
                "data": {"private": tree["data"], "population": "none"},
                "privacy": {"epsilon": 1.0, "delta": 1e-6, "units": 1},
                "mechanism": {"clip": 1.0},
            }
        )
        schema = Schema.from_tree(tree["schema"])
        return ModelCard(tree["model"], config.data.private[0], schema, None if classes is None else tuple(classes))
