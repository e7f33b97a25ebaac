"""Hugging Face models as they are: records to their arguments, their outputs to logits, and a factory by configurations."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distqexp.errors import UsageError
from distqexp.problem.mean_pooling import body_weights, mean_pooled
from distqexp.problem.mixed import TYPES

FAMILIES = (
    "Albert", "Bert", "Beit", "ConvNext", "DeiT", "DistilBert", "Electra", "GPT2", "GPTNeoX", "Llama", "Mistral", "OPT",
    "Qwen2", "Roberta", "Swin", "ViT", "XLMRoberta",
)  # fmt: skip
"""The families that ``from_config`` builds: their classes fetch nothing and run no code that a configuration names."""

_CLASS = re.compile(rf"({'|'.join(FAMILIES)})For(Sequence|Image)Classification")
_LORA_KEYS = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "bias", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
)  # fmt: skip
LORA_PREFIX = "base_model.model."
"""What peft puts before the names of a model with low-rank factors."""
REMEDY = "expected it installed; pip install 'distqexp[hf]'"


def from_config(  # noqa: PLR0913 - the keys of a config's model.args
    model: str,
    config: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    head: str | None = None,
    frozen_layers: int | None = None,
    dtype: str | None = None,
    checkpointing: bool = False,
) -> nn.Module:
    """Make a transformers model with random weights; pretrained ones come from ``model.weights``. Nothing is fetched.

    Args:
        model: a class such as "BertForSequenceClassification", of one of the families in FAMILIES.
        config: keyword arguments of its configuration class.
        lora: keyword arguments of peft.LoraConfig, when low-rank factors are to be added; ``model.trainable`` then chooses what is
            trained, such as ["*lora_*", "*classifier*"], or ["*lora_B*", "*classifier*"] with the first factors frozen.
        pooling: "mean" puts a linear head on the mean of a text model's last hidden states; None keeps the model's own head.
        head: "zero" starts the head at zero, so that the first outputs are those of no knowledge at all; None draws it.
        frozen_layers: with pooling, so many of the body's layers stay as they are and run once over all records; the others, and the
            head, are ``top``.
        dtype: the type of the weights, such as "bfloat16", for a body that doesn't train; with ``engine.mixed_precision`` what trains is
            float32 all the same. None: float32. For a folder "auto" is the type of its weights.
        checkpointing: whether each layer of the body is computed again in the backward pass, so that of its activations only its
            input, and what the gradients of trained layers take, is kept meanwhile.

    Raises:
        UsageError: an argument is not allowed, or a package is not installed.
        ValueError, TypeError: the classes refuse an argument.
    """
    if not _CLASS.fullmatch(model):
        raise UsageError(
            f"model.args.model: found {model!r}; expected one of {', '.join(FAMILIES)}, then ForSequenceClassification or "
            "ForImageClassification; for another class write a factory of your own"
        )
    options = dict(config or {})
    for name in options:
        # A private or implementation key may make transformers fetch code.
        if name.startswith(("_", "auto_map", "trust", "quantization")) or name.endswith("_implementation"):
            raise UsageError(
                f"model.args.config.{name}: not taken; expected the sizes and options of {model}; remove it"
            )
    try:
        import transformers
        from huggingface_hub.errors import StrictDataclassError
    except ImportError:
        raise UsageError(f"model.factory: transformers is not installed; {REMEDY}") from None
    kind = getattr(transformers, model, None)
    if kind is None:
        raise UsageError(f"model.args.model: transformers {transformers.__version__} has no {model}; update it")
    defaults = kind.config_class()
    unknown = sorted(name for name in options if not hasattr(defaults, name))
    if unknown:
        raise UsageError(
            f"model.args.config: {kind.config_class.__name__} has no {', '.join(unknown)}; correct the name"
        )
    try:
        with _weights_in(dtype):
            module: nn.Module = kind(kind.config_class(**options))
    except (KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"model.args.config: {model} refuses it ({reason}); correct the value") from None
    if pooling is not None or frozen_layers is not None:
        module = mean_pooled(module, pooling, frozen_layers, model, _keep_records_apart)
    if head is not None:
        _zero_head(module, head)
    _checkpoint_layers(module, model if checkpointing else None)
    return module if lora is None else _with_lora(module, dict(lora))


def from_folder(**arguments: Any) -> nn.Module:
    """Stand for the factory of a config whose ``model.weights`` is a folder of ``save_pretrained``.

    ``problem.pretrained.resolved`` replaces it by ``from_config`` with the sizes in the folder's config.json. Its arguments are
    those of ``from_config`` but ``config``, with ``outputs`` for another number of outputs than the folder's.

    Raises:
        UsageError: always, as it is called without a folder.
    """
    raise UsageError(
        "model.factory: from_folder takes the model of the folder in model.weights; expected such a folder; set model.weights"
    )


@contextmanager
def _weights_in(name: str | None) -> Iterator[None]:
    """Modules that are made inside have weights of this type."""
    if name not in (None, "float32", *TYPES):
        raise UsageError(
            f"model.args.dtype: found {name!r}; expected float32, {' or '.join(TYPES)}, or with from_folder auto"
        )
    before = torch.get_default_dtype()
    torch.set_default_dtype(TYPES.get(name or "", before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _checkpoint_layers(module: nn.Module, model: str | None) -> None:
    """Compute every layer of the body anew in the backward pass, in evaluation mode too, where transformers' own switch does nothing.

    ``model`` is the name of the class; None changes nothing.
    """
    if model is None:
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(f"model.args.checkpointing: {model} has no layers that can be computed anew; leave it out")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _zero_head(module: nn.Module, head: str) -> None:
    """Set the last linear layer to zero."""
    if head != "zero":
        raise UsageError(f"model.args.head: found {head!r}; expected zero, or none")
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def adapt(module: nn.Module) -> None:
    """Make a module, called with one tensor of records, return logits.

    Outputs with ``logits`` (an attribute or a key) are replaced by them. A Hugging Face model (known by its ``main_input_name``)
    that takes input_ids gets the tokens and the mask of int64 (n, 2, L) inputs by name; another one gets the tensor by the name of
    its main input. The attention of every such model, inside another module too, is set to the eager implementation, and its masks
    never depend on whether any record of the batch has padding, so that records stay apart. Of several outputs the one that can be
    logits is taken. Half precision that autocast left is widened. All of this is done by hooks, so that parameters keep their names.
    """
    if isinstance(module, torch.jit.ScriptModule) or _logits in module._forward_hooks.values():
        return  # TorchScript takes no hooks
    for part in module.modules():
        if isinstance(getattr(part, "main_input_name", None), str):
            _keep_records_apart(part)
    if isinstance(getattr(module, "main_input_name", None), str):
        module.register_forward_pre_hook(_by_name, with_kwargs=True)
    module.register_forward_hook(_logits)


def plain_name(name: str) -> str:
    """Return the name that a tensor of a model with low-rank factors has in the model without them; any other as it is."""
    if not name.startswith(LORA_PREFIX):
        return name
    return re.sub(r"\.(base_layer|original_module|modules_to_save\.default)\.", ".", name[len(LORA_PREFIX) :])


def base_weights(own: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of a plain model as that of one with low-rank factors, or with a head on means, and any other as it is.

    Args:
        own: the state of the module; its factors and its head keep their values.
        state: the state from a file.
    """
    prefix = LORA_PREFIX
    state = body_weights(own, state, prefix if next(iter(own), "").startswith(prefix) else "")
    if not all(name.startswith(prefix) for name in own) or any(name.startswith(prefix) for name in state):
        return state
    tensors: dict[str, Any] = {name: tensor for name, tensor in own.items() if ".lora_" in name}
    rest = dict(state)
    for name in own.keys() - tensors.keys():
        plain = plain_name(name)
        if plain in state:
            tensors[name] = state[plain]
            rest.pop(plain, None)
    return {**tensors, **rest}


def _with_lora(module: nn.Module, options: dict[str, Any]) -> nn.Module:
    unknown = sorted(set(options) - set(_LORA_KEYS))
    if unknown:
        raise UsageError(f"model.args.lora: found {', '.join(unknown)}; expected keys among {', '.join(_LORA_KEYS)}")
    if not (isinstance(options.get("init_lora_weights", True), bool) or options["init_lora_weights"] == "gaussian"):
        raise UsageError(
            f"model.args.lora.init_lora_weights: found {options['init_lora_weights']!r}; expected true, false or gaussian"
        )
    try:
        import peft
    except ImportError:
        raise UsageError(f"model.args.lora: peft is not installed; {REMEDY}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's own calls to transformers
        low_rank: nn.Module = peft.get_peft_model(module, peft.LoraConfig(**options))
    return low_rank


def _by_name(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Hand a tensor of records on by the names of the model's arguments."""
    if len(args) != 1 or kwargs:
        return None
    (records,) = args
    name = str(module.main_input_name)
    if name != "input_ids" or records.ndim != 3:
        return (), {name: records}
    return (), {"input_ids": records[:, 0], "attention_mask": records[:, 1]}


def _logits(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Replace an output that has logits by them, and several outputs by the only one that can be logits."""
    logits = output
    if not isinstance(output, torch.Tensor):
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        logits = _only_candidate(output) if named is None else named
    half = isinstance(logits, torch.Tensor) and logits.dtype in (torch.float16, torch.bfloat16)
    if half and next(module.parameters()).dtype == torch.float32:  # under autocast
        logits = logits.float()
    return None if logits is output else logits


def _only_candidate(output: Any) -> Any:
    """Return the only vector or matrix of numbers among several outputs; the outputs themselves where they aren't several."""
    if isinstance(output, Mapping):
        parts = {f"[{name!r}]": value for name, value in output.items()}
    elif isinstance(output, list | tuple):
        parts = {f"[{number}]": value for number, value in enumerate(output)}
    else:
        return output
    shapes = {
        name: tuple(value.shape)
        for name, value in parts.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    candidates = [name for name, shape in shapes.items() if len(shape) in (1, 2)]
    if len(candidates) != 1:
        found = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items()) or "no tensor of numbers"
        raise UsageError(
            f"model: it returns a {type(output).__name__} of {len(parts)}: {found}; expected one that can be logits, (n, outputs); "
            "let forward return the logits alone, or wrap the module in one whose forward does"
        )
    return parts[candidates[0]]


def _keep_records_apart(module: nn.Module) -> None:
    choose = getattr(module, "set_attn_implementation", None)
    if callable(choose):
        choose("eager")
    config = getattr(module, "config", None)
    if getattr(config, "use_cache", None):
        config.use_cache = False  # type: ignore[union-attr]  # keys and values of earlier calls are of no use here
    masks = sys.modules.get("transformers.masking_utils")
    if masks is None or masks.ALL_MASK_ATTENTION_FUNCTIONS["eager"] is not masks.eager_mask:
        return
    plain = masks.eager_mask

    def whole_mask(*args: Any, **kwargs: Any) -> Any:
        """Make the mask without the short cut for batches without padding, which looks at all records at once."""
        return plain(*args, **{**kwargs, "allow_is_bidirectional_skip": False})

    masks.ALL_MASK_ATTENTION_FUNCTIONS.register("eager", whole_mask)
