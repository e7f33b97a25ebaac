"""Folders that ``save_pretrained`` writes: read as the model of a config, and written beside the weights of a run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.numpy

from distqexp.config import Config
from distqexp.errors import UsageError
from distqexp.problem.checkpoints import read_json
from distqexp.problem.huggingface import FAMILIES, REMEDY
from distqexp.problem.network import Network
from distqexp.storage.atomic import write_atomic

FROM_FOLDER = "distqexp.problem.huggingface:from_folder"
"""The factory that takes the model of the folder in ``model.weights``."""

FROM_CONFIG = "distqexp.problem.huggingface:from_config"
"""The factory of transformers models by their sizes."""

_IMAGES = ("Beit", "ConvNext", "DeiT", "Swin", "ViT")
_NO_SIZES = (
    "architectures",
    "model_type",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "num_labels",
    "id2label",
    "label2id",
)
_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "preprocessor_config.json",
)  # fmt: skip
"""Files of a tokenizer or an image processor, which a user of the model needs too."""


def resolved(config: Config) -> Config:
    """Return the config with the model of a folder spelt out as ``from_config`` takes it, so that a plan needs no folder.

    A config with any other factory is returned as it is. Nothing is fetched, and no code that the folder names is run.

    Raises:
        UsageError: the folder is not one of ``save_pretrained``, or of a family that is not known.
        FileContentError: its config.json is not one.
    """
    model = config.model
    if model.factory != FROM_FOLDER:
        return config
    folder = Path(model.weights or "")
    if not model.weights or not (folder / "config.json").is_file():
        raise UsageError(
            f"model.weights: found {model.weights!r}; expected a folder with config.json, as save_pretrained writes it; name one"
        )
    args = dict(model.args)
    outputs, name = args.pop("outputs", None), args.pop("model", None)
    tree = read_json(folder / "config.json")
    name = name or _class_of(tree, folder)
    args |= {"model": name, "config": _options(tree, name, outputs)}
    if args.get("dtype") == "auto":
        args["dtype"] = str(tree.get("dtype") or tree.get("torch_dtype") or "float32").removeprefix("torch.")
    return dataclasses.replace(config, model=dataclasses.replace(model, factory=FROM_CONFIG, args=args))


def write_companions(source: str | None, folder: Path) -> None:
    """Copy the tokenizer or image processor that lies beside the weights at ``source``, a folder, into ``folder``."""
    if source is None or not Path(source).is_dir():
        return
    for name in _COMPANIONS:
        file = Path(source) / name
        if file.is_file() and not (folder / name).exists():
            shutil.copyfile(file, folder / name)


def write_pretrained(network: Network, folder: Path, classes: Sequence[str] = ()) -> None:
    """Write what makes a run's folder one that ``from_pretrained`` reads: config.json, or for low-rank factors ``adapter/``.

    The weights of a Hugging Face model are model.safetensors already. An adapter has its factors and whatever else was trained. For
    any other module nothing is written. ``classes`` says what the outputs stand for, where they have names.
    """
    module: Any = network.module
    if hasattr(module, "peft_config"):
        _write_adapter(network, folder / "adapter")
    elif isinstance(getattr(module, "main_input_name", None), str) and hasattr(module.config, "to_json_string"):
        module.config.architectures = [type(module).__name__]
        if classes and len(classes) == module.config.num_labels:
            module.config.id2label = dict(enumerate(classes))
            module.config.label2id = {name: number for number, name in enumerate(classes)}
        write_atomic(folder / "config.json", module.config.to_json_string().encode())


def _write_adapter(network: Network, folder: Path) -> None:
    module: Any = network.module
    trained = {name for name, _ in network.names_shapes}
    tensors = {}
    for name, array in network.state().items():
        if name in trained or ".lora_" in name:
            plain = name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
            tensors[plain.removesuffix(".default")] = array
    folder.mkdir(exist_ok=True)
    write_atomic(folder / "adapter_model.safetensors", safetensors.numpy.save(tensors, {"format": "pt"}))
    module.peft_config["default"].save_pretrained(str(folder))


def _class_of(tree: Mapping[str, Any], folder: Path) -> str:
    """Return the class for the model of a config.json: its own if that classifies, else the classifier of its family."""
    for name in tree.get("architectures") or []:
        if isinstance(name, str) and name.endswith(("ForSequenceClassification", "ForImageClassification")):
            return name
    kind = "".join(letter for letter in str(tree.get("model_type", "")).lower() if letter.isalnum())
    family = next((family for family in FAMILIES if family.lower() == kind), None)
    if family is None:
        raise UsageError(
            f"model.weights: {folder}: config.json has model_type {tree.get('model_type')!r}; expected one of "
            f"{', '.join(family.lower() for family in FAMILIES)}; for another write a factory of your own"
        )
    return f"{family}For{'Image' if family in _IMAGES else 'Sequence'}Classification"


def _options(tree: Mapping[str, Any], name: str, outputs: int | None) -> dict[str, Any]:
    """Return the keys of a config.json that differ from the defaults of its class, with names for the outputs."""
    try:
        import transformers
    except ImportError:
        raise UsageError(f"model.factory: transformers is not installed; {REMEDY}") from None
    kind: Any = getattr(transformers, name, None)
    if kind is None or not hasattr(kind, "config_class"):
        raise UsageError(f"model.args.model: transformers {transformers.__version__} has no {name}; correct the name")
    defaults: Any = kind.config_class()
    allowed = {
        key: value
        for key, value in tree.items()
        if key not in _NO_SIZES and not key.startswith(("_", "auto_map", "trust", "quantization"))
    }
    options = {
        key: value
        for key, value in allowed.items()
        if hasattr(defaults, key) and not key.endswith("_implementation") and value != getattr(defaults, key)
    }
    names = tree.get("id2label")
    if isinstance(names, Mapping) and outputs in (None, len(names)):
        return options | {"id2label": dict(names), "label2id": {str(label): int(key) for key, label in names.items()}}
    return options if outputs is None else options | {"num_labels": outputs}
