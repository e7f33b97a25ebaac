"""Hugging Face models behind the network's one tensor: arguments, logits, tied and low-rank weights, whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_harness import to_toml
from small_runs import context_of, plan_of, unit_integers, with_blank
from token_files import LENGTH, MODELS, VOCABULARY, factory, random_tokens, token_config, write_tokens
from torch import nn

from distqexp import fit
from distqexp.config import config_from_tree
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.derivatives import per_example_gradients
from distqexp.problem.huggingface import from_config
from distqexp.problem.independence import refuse_coupling, vocabulary_of
from distqexp.problem.losses import get_loss
from distqexp.problem.models import build_model, require_allowed_factory
from distqexp.problem.network import Network
from distqexp.problem.pretrained import write_pretrained
from distqexp.problem.weights import load_weights
from distqexp.storage.hdf5 import read_header

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

TEXT = [name for name in MODELS if "Sequence" in name]
LOSS = get_loss("cross-entropy")


def _model(name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return from_config(name, MODELS[name], **more)


def _inputs(count: int = 5) -> torch.Tensor:
    ids, mask, _ = random_tokens(count, 1)
    return torch.from_numpy(np.stack([ids, mask], axis=1))


def _by_hand(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Each record's gradient by plain automatic differentiation, called as Hugging Face documents it."""
    rows = []
    for record, target in zip(inputs, targets, strict=True):
        module.zero_grad()
        output = module(input_ids=record[:1], attention_mask=record[1:])
        logits = output if isinstance(output, torch.Tensor) else output.logits
        nn.functional.cross_entropy(logits, target[None]).backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        rows.append(torch.cat([gradients[name].reshape(-1) for name in names]))  # type: ignore[union-attr]
    return torch.stack(rows)


@pytest.mark.parametrize("name", TEXT)
def test_gradients_are_those_of_the_documented_call(name: str) -> None:
    network = Network(_model(name).double())
    inputs, targets = _inputs(), torch.tensor([0, 1, 2, 0, 1])
    found = per_example_gradients(network, LOSS, inputs, targets)
    plain = _model(name).double().eval()
    expected = _by_hand(plain, inputs, targets, [name for name, _ in network.names_shapes])
    close = {"rtol": 1e-9, "atol": 1e-12}
    if "Llama" in name:  # its normalisation and softmax stay in float32
        close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **close)
    outputs = plain(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).logits
    torch.testing.assert_close(network.outputs(inputs), outputs.detach(), **close)


@pytest.mark.parametrize("name", TEXT)
def test_padding_is_masked(name: str) -> None:
    network = Network(_model(name))
    inputs = torch.stack([torch.randint(1, 10, (8, LENGTH)), torch.ones(8, LENGTH, dtype=torch.int64)], dim=1)
    hidden = slice(4, None) if "Bert" in name else slice(0, 2)  # BERT pools the first token, the others the last
    other = inputs.clone()
    other[:, 0, hidden] += 10
    assert not torch.equal(network.outputs(inputs), network.outputs(other))
    inputs[:, 1, hidden] = other[:, 1, hidden] = 0
    assert torch.equal(network.outputs(inputs), network.outputs(other))


@pytest.mark.parametrize("name", TEXT)
def test_models_know_their_vocabulary_and_keep_records_apart(name: str) -> None:
    network = Network(_model(name))
    assert vocabulary_of(network, LENGTH) == VOCABULARY
    refuse_coupling(network, (2, LENGTH), True, VOCABULARY)


def test_a_user_s_own_model_with_fast_attention_is_used_by_its_eager_one() -> None:
    config = transformers.BertConfig(**MODELS["BertForSequenceClassification"], attn_implementation="sdpa")
    torch.manual_seed(0)
    network = Network(transformers.BertForSequenceClassification(config))
    refuse_coupling(network, (2, LENGTH), True, VOCABULARY)
    expected = Network(_model("BertForSequenceClassification")).outputs(_inputs())
    assert torch.equal(network.outputs(_inputs()), expected)
    again = Network(network.module)  # adapted once
    assert torch.equal(again.outputs(_inputs()), expected)


def test_images_go_in_by_name() -> None:
    module = _model("ViTForImageClassification")
    images = torch.rand(3, 1, 8, 8)
    network = Network(module)
    refuse_coupling(network, (1, 8, 8), False, None)
    assert network.outputs(images).shape == (3, 10)
    rows = per_example_gradients(network, LOSS, images, torch.tensor([1, 2, 3]))
    alone = per_example_gradients(network, LOSS, images[1:2], torch.tensor([2]))
    torch.testing.assert_close(rows[1:2], alone, rtol=1e-3, atol=1e-6)


def test_outputs_of_other_modules_are_used_by_their_logits() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(x), "hidden": x}

    network = Network(Named())
    assert network.outputs(torch.ones(2, 4)).shape == (2, 3)
    assert per_example_gradients(network, LOSS, torch.ones(2, 4), torch.tensor([0, 1])).shape == (2, 15)
    assert [name for name, _ in network.names_shapes] == ["layer.weight", "layer.bias"]


# --- the factory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "BertModel"}, r"model.args.model: found 'BertModel'"),
        ({"model": "TimmWrapperForImageClassification"}, "factory of your own"),
        ({"model": "BertForSequenceClassification; x"}, "found"),
        ({"model": "LlamaForImageClassification"}, "has no LlamaForImageClassification"),
        ({"config": {"_attn_implementation": "somebody/kernels"}}, "not taken"),
        ({"config": {"attn_implementation": "somebody/kernels"}}, "not taken"),
        ({"config": {"quantization_config": {}}}, "not taken"),
        ({"config": {"hiden_size": 8}}, "BertConfig has no hiden_size"),
        ({"config": {"hidden_act": "nope"}}, "refuses it"),
        ({"config": {"hidden_size": "8"}}, "refuses it"),
        ({"config": {"hidden_size": 7, "num_attention_heads": 2}}, "not a multiple"),
        ({"lora": {"rank": 2}}, "model.args.lora: found rank"),
        ({"lora": {"r": 2, "init_lora_weights": "pissa"}}, "init_lora_weights"),
        ({"lora": {"r": 2, "target_modules": ["none"]}}, "none"),
    ],
)
def test_what_the_factory_refuses(arguments: dict[str, Any], words: str) -> None:
    if "lora" in arguments:
        pytest.importorskip("peft")
        arguments = {"config": MODELS["BertForSequenceClassification"], **arguments}
    with pytest.raises(UsageError, match=words) as caught:
        build_model("distqexp.problem.huggingface:from_config", {"model": "BertForSequenceClassification", **arguments})
    assert "\n" not in str(caught.value)


def test_the_factory_may_be_named_by_a_plan_from_elsewhere() -> None:
    require_allowed_factory("distqexp.problem.huggingface:from_config")
    with pytest.raises(FileContentError):
        require_allowed_factory("transformers:AutoModel.from_pretrained")


@pytest.mark.parametrize(("package", "part"), [("transformers", "model.factory"), ("peft", "model.args.lora")])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, package: str, part: str) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{part}: {package} is not installed.*distqexp\[hf\]"):
        from_config("BertForSequenceClassification", MODELS["BertForSequenceClassification"], lora={"r": 2})


# --- weights -------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.words.weight

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.words(records[:, 0]).mean(dim=1))
        return found


def test_one_name_of_a_tied_parameter_is_enough() -> None:
    torch.manual_seed(1)
    state = Network(Tied()).state()
    assert set(state) == {"words.weight", "head.weight"}
    for names in (["words.weight"], ["head.weight"], list(state)):
        network = Network(Tied())
        network.load_state({name: state[name] for name in names})
        assert all(np.array_equal(network.state()[name], state[name]) for name in state)
        assert network.module.head.weight is network.module.words.weight
    with pytest.raises(FileContentError, match=r"weight and \w+\.weight differ"):
        Network(Tied()).load_state({**state, "head.weight": state["head.weight"] + 1})
    with pytest.raises(FileContentError, match="missing"):
        Network(Tied()).load_state({})


def test_a_file_as_hugging_face_stores_tied_weights_loads(tmp_path: Path) -> None:
    module = Tied()
    safetensors_torch.save_model(module, tmp_path / "model.safetensors")
    network = Network(Tied())
    load_weights(network, tmp_path / "model.safetensors")
    assert torch.equal(network.module.words.weight, module.words.weight)


def test_weights_of_the_plain_model_load_into_one_with_low_rank_factors(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = _model("BertForSequenceClassification")
    torch.manual_seed(9)
    lora = {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
    adapted = from_config("BertForSequenceClassification", MODELS["BertForSequenceClassification"], lora=lora)
    network = Network(adapted, ["*lora_*", "*modules_to_save*"])
    before = network.outputs(_inputs())
    plain.save_pretrained(tmp_path)
    load_weights(network, tmp_path / "model.safetensors")
    expected = Network(plain).outputs(_inputs())
    assert not torch.equal(before, expected)
    assert torch.equal(network.outputs(_inputs()), expected)  # factors begin at zero
    state = {name: torch.from_numpy(array) for name, array in Network(plain).state().items()}
    for change, words in ((("bert.pooler.dense.bias", None), "missing"), (("extra", torch.ones(1)), "unexpected")):
        broken = {name: value for name, value in {**state, change[0]: change[1]}.items() if value is not None}
        safetensors_torch.save_file(broken, tmp_path / "broken.safetensors")
        with pytest.raises(FileContentError, match=words):
            load_weights(network, tmp_path / "broken.safetensors")


# --- runs ----------------------------------------------------------------------------------------------------------


def _folder(folder: Path, count: int = 18) -> Path:
    write_tokens(folder / "public.h5", 12, 3)
    write_tokens(folder / "private.h5", count, 4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    "subspace", [{"kind": "gaussian", "k": 5}, {"kind": "kronecker", "k_in": 2, "k_out": 2, "k": None}]
)
def test_a_blank_record_moves_no_other_record_s_bits(tmp_path: Path, name: str, subspace: dict[str, Any]) -> None:
    tree = token_config(_folder(tmp_path), factory(name), subspace=subspace)
    config = config_from_tree(tree)
    plan = plan_of(config)
    whole = unit_integers(config, plan)
    blank = np.zeros(18, dtype=np.bool_)
    blank[[0, 5, 6, 17]] = True
    np.save(tmp_path / "blank.npy", blank)
    found = unit_integers(with_blank(config, tmp_path / "blank.npy"), plan)
    assert np.array_equal(found[~blank], whole[~blank])
    assert not found[blank].any()
    assert whole.any(axis=1).all()


def test_low_rank_factors_and_patterns_choose_what_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = factory("GPT2ForSequenceClassification", lora={"r": 2, "target_modules": ["c_attn"]})
    tree = token_config(_folder(tmp_path), {**model, "trainable": ["*lora_*", "*score*"]})
    plan = plan_of(config_from_tree(tree))
    assert plan.d == 2 * (8 * 2 + 2 * 24) + 8 * 3
    names = [name for name, _ in context_of(config_from_tree(tree), plan).network.names_shapes]
    assert all("lora_" in name or "score" in name for name in names)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "ViTForImageClassification"])
def test_a_whole_run(tmp_path: Path, name: str) -> None:
    tree = token_config(_folder(tmp_path), factory(name), mechanism={"rounds": 2})
    tree["data"]["eval"] = {**tree["data"]["private"], "path": str(tmp_path / "public.h5")}
    if "Image" in name:
        rows = {"private": [[0, 30]], "public": [[30, 50]], "eval": [[50, 90]]}
        tree["data"] |= {part: {"format": "digits", "rows": found} for part, found in rows.items()}
    (tmp_path / "run.toml").write_text(to_toml(tree), "utf-8")
    out = tmp_path / "out"
    assert fit.main([str(tmp_path / "run.toml"), "--out", str(out), "--insecure-noise-seed", "1"]) == 0
    certificate = json.loads((out / "certificate.json").read_text("utf-8"))
    assert len(certificate["rounds"]) == 2
    assert read_header(out / "plan.h5").header["schema"]["tokens"] is ("Sequence" in name)
    network = Network(_model(name))
    load_weights(network, out / "model.safetensors")
    assert bool(np.isfinite(network.theta()).all())


def test_the_folder_names_the_classes(tmp_path: Path) -> None:
    network = Network(_model("BertForSequenceClassification"))
    count = network.module.config.num_labels  # type: ignore[union-attr]
    names = tuple(f"stage {number}" for number in range(count))
    write_pretrained(network, tmp_path, names)
    tree = json.loads((tmp_path / "config.json").read_bytes())
    assert tree["id2label"] == {str(number): name for number, name in enumerate(names)}
    assert tree["label2id"] == {name: number for number, name in enumerate(names)}
    write_pretrained(network, tmp_path, ("one more", *names))
    assert json.loads((tmp_path / "config.json").read_bytes()) == tree


def _pooled(name: str, **more: Any) -> nn.Module:
    return _model(name, pooling="mean", **more)


@pytest.mark.parametrize("name", TEXT)
def test_mean_pooling_is_the_mean_over_tokens(name: str) -> None:
    """By hand from the plain body's last hidden states; padding counts in neither sum nor number."""
    pooled, inputs = _pooled(name), _inputs()
    network = Network(pooled)
    body = dict(pooled.named_modules())["body"]
    expected = []
    for record in inputs:
        hidden = body(input_ids=record[:1], attention_mask=record[1:]).last_hidden_state[0]
        mean = hidden[record[1].bool()].mean(dim=0)
        expected.append(pooled.classifier(mean))  # type: ignore[operator]
    torch.testing.assert_close(network.outputs(inputs), torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)
    refuse_coupling(network, (2, LENGTH), True, VOCABULARY)


def test_gradients_of_a_mean_pooled_model_are_those_of_single_records() -> None:
    name, inputs = TEXT[0], _inputs()
    targets = torch.tensor([0, 1, 1, 0, 1])
    network = Network(_pooled(name), ["*classifier*", "*query*"])
    rows = []
    for record, target in zip(inputs, targets, strict=True):
        network.module.zero_grad()
        nn.functional.cross_entropy(network.module(record[None]), target[None]).backward()
        named = dict(network.module.named_parameters())
        rows.append(torch.cat([named[key].grad.reshape(-1) for key, _ in network.names_shapes]))  # type: ignore[union-attr]
    found = per_example_gradients(network, LOSS, inputs, targets)
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": ["query"]}])
def test_a_zero_head_starts_without_an_opinion(lora: dict[str, Any] | None) -> None:
    for pooling in (None, "mean"):
        module = _model(TEXT[0], pooling=pooling, head="zero", lora=lora)
        assert not Network(module).outputs(_inputs()).any()


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": ["query"]}])
def test_a_mean_pooled_model_takes_the_weights_of_its_body(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    """As a plain body is saved: with a pooling of its own, which is not used, and with positions, as older files have them."""
    plain = _model(TEXT[0])
    body = getattr(plain, plain.base_model_prefix)  # type: ignore[call-overload]
    state = {name: tensor.clone() + 0.25 for name, tensor in body.state_dict().items()}
    state |= {"embeddings.position_ids": torch.arange(5.0), "pooler.dense.weight": torch.ones(2, 2)}
    safetensors_torch.save_file(state, tmp_path / "body.safetensors")
    module = _pooled(TEXT[0], lora=lora)
    head = {name: tensor.clone() for name, tensor in module.state_dict().items() if "classifier" in name}
    load_weights(Network(module), tmp_path / "body.safetensors")
    loaded = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): tensor
        for name, tensor in module.state_dict().items()
        if "lora" not in name
    }
    for name, tensor in state.items():
        if not name.startswith("pooler.") and name != "embeddings.position_ids":
            assert torch.equal(loaded[f"body.{name}"], tensor), name
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in head.items())


def test_low_rank_factors_with_the_first_one_frozen() -> None:
    """What is trained is the second factors and the head; all of them have a gradient from the first step on."""
    lora = {"r": 2, "target_modules": ["query", "value"]}
    network = Network(_pooled(TEXT[0], lora=lora), ["*lora_B*", "*classifier*"])
    names = [name for name, _ in network.names_shapes]
    assert [name for name in names if "lora_A" in name] == []
    assert any("lora_B" in name for name in names)
    gradients = per_example_gradients(network, LOSS, _inputs(), torch.tensor([0, 1, 1, 0, 1]))
    parts = network.split(gradients.abs().sum(dim=0).double())
    assert all(part.any() for part in parts.values())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"pooling": "max"}, r"model\.args\.pooling"), ({"head": "one"}, r"model\.args\.head")],
)
def test_other_poolings_and_heads_are_refused(arguments: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        _model(TEXT[0], **arguments)
    image = next(name for name in MODELS if "Image" in name)
    with pytest.raises(UsageError, match=r"model\.args\.pooling"):
        _pooled(image)
