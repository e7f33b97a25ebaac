"""A tokenizer's folder: texts become token numbers of one length. Nothing is fetched, and no code of the folder runs."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import FileContentError, UsageError
from distqexp.problem.readers.base import existing_file, existing_folder

_LARGEST = 1 << 28
"""The most bytes of a tokenizer's file."""


class FolderTokenizer:
    """The tokenizer in the file tokenizer.json of a folder, with the padding token that the file beside it may name.

    Attributes:
        digest: a hexadecimal SHA-256 of the file and of the number of the padding token. Equal digests give equal tokens.
        vocabulary: the number of its tokens: every number is below it.
    """

    def __init__(self, folder: str | None) -> None:
        """Load the tokenizer. Raises UsageError where it or its library isn't there, and FileContentError for a damaged file."""
        try:
            import tokenizers
        except ImportError:
            raise UsageError("data.tokenizer: texts need a library; pip install 'distqexp[text]'") from None
        path = existing_file(str(existing_folder(folder, "data.tokenizer") / "tokenizer.json"), "data.tokenizer")
        content = _content(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception:  # noqa: BLE001 - the library has one class of its own for everything
            raise FileContentError(
                f"{path}: not a tokenizer that this library reads; expected what save_pretrained writes; save it anew"
            ) from None
        self._path = path
        self._padding = self._padding_token()
        self._tokenizer.no_padding()
        self.vocabulary = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0) + 1
        self.digest = hashlib.sha256(hashlib.sha256(content).digest() + str(self._padding).encode()).hexdigest()

    def tokens(self, text: str | None, length: int) -> NDArray[np.int64]:
        """Return the tokens of a text and their mask, (2, length), cut off or padded; no token is seen of None.

        Raises UsageError where the length has no room for more than the tokenizer's own marks.
        """
        result = np.full((2, length), self._padding, dtype=np.int64)
        result[1] = 0
        if text is None:
            return result
        marks = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if length <= marks:
            raise UsageError(
                f"data.*.columns.length: {length}; the tokenizer adds {marks} marks to each text; expected more"
            )
        self._tokenizer.enable_truncation(max_length=length)
        ids = self._tokenizer.encode(text).ids
        result[0, : len(ids)], result[1, : len(ids)] = ids, 1
        return result

    def _padding_token(self) -> int:
        if self._tokenizer.padding is not None:
            return int(self._tokenizer.padding["pad_id"])
        beside = self._path.with_name("tokenizer_config.json")
        name: Any = None
        if beside.is_file():
            try:
                name = json.loads(_content(beside)).get("pad_token")
            except (ValueError, AttributeError, RecursionError):
                raise FileContentError(
                    f"{beside}: not a JSON object; expected what save_pretrained writes; save it anew"
                ) from None
        name = name.get("content") if isinstance(name, dict) else name
        number = self._tokenizer.token_to_id(name) if isinstance(name, str) else None
        return 0 if number is None else int(number)


@lru_cache(maxsize=4)
def open_tokenizer(folder: str | None) -> FolderTokenizer:
    """Return the tokenizer of a folder, which a process loads once. Raises what FolderTokenizer raises."""
    return FolderTokenizer(folder)


def check_vocabulary(folder: str | None, vocabulary: int | None) -> None:
    """Raise UsageError where a tokenizer has more tokens than the model."""
    size = open_tokenizer(folder).vocabulary
    if vocabulary is not None and size > vocabulary:
        raise UsageError(
            f"data.tokenizer: {size} tokens for a model of {vocabulary}; expected the model's own tokenizer; correct it or model.args"
        )


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise FileContentError(f"{path}: larger than 256 MiB; expected a tokenizer's file; give the right folder")
    return content
