"""Small tokenizers, as save_pretrained writes them."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "the", "patient", "is", "well", "ill", "very")


def write_tokenizer(
    folder: Path, words: tuple[str, ...] = WORDS, pad_token: object = "[PAD]", marks: bool = True
) -> Path:
    """A tokenizer of whole words, whose number is their place; with marks, [CLS] begins and [SEP] ends a text."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if marks:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    if pad_token is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad_token}))
    return folder
