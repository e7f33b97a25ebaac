"""Refusals in a script's own words: the stages name keys of a config and scratch files, which a script never wrote."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distqexp.errors import DistqexpError

_UNNAMED = r"'sklearn-[0-9a-f]{8}-[0-9a-f-]{27}'"
"""The population of an estimator that was given none."""

_SOURCE = r"\bdata\.(?:public|private(?:\[\d+\])?|eval|\*)"
_OF_COLUMNS = rf"(?:config key )?(?:{_SOURCE}\.)?\bcolumns\."
_ADD = r"add to data\.public\.columns: (.*?); what is excluded there is excluded in data\.private and data\.eval too"

_WORDS = (
    (_ADD, lambda found: 'set settings["columns"] = { ' + re.sub(r"(\w+) = ", r'"\1": ', found[1]) + " }"),
    (rf"{_SOURCE}\.unit\b", "unit"),
    (rf"{_OF_COLUMNS}(features|target|classes|standardise)\b", r"\1"),
    (rf"{_OF_COLUMNS}(\w+)", r'settings["columns.\1"]'),
    (rf"{_SOURCE}\.columns\b", 'settings["columns"]'),
    (r"(?:config key )?privacy\.(epsilon|delta|units)\b", r"\1"),
    (r"(?:config key )?data\.population\b", "population"),
    (r"(?:config key )?data\.eval_private\b", "evaluation_private"),
    (r"(?:config key )?data\.(?:private(?:\[\d+\])?|\*)(?![\w.])", "private"),
    (r"(?:config key )?data\.public(?![\w.])", "public"),
    (r"(?:config key )?data\.eval(?![\w.])", "evaluation"),
    (r"(?:config key )?model\.(loss)\b", r"\1"),
    (r"(?:config key )?model\.factory\b", "model"),
    (r"config key ", "settings: "),
    (r"'lent:([^'/]*)(?:/[0-9a-f]+)?'", r"'\1'"),
    (r", go on with its run by --resume, or begin anew by --overwrite where nothing was spent", ", or resume=True"),
    (rf"population {_UNNAMED}(?:, {_UNNAMED})* before and is charged to {_UNNAMED} now", "other fits without population=... before"),
    (rf"{_UNNAMED}(?:, {_UNNAMED})*", "fits without population=..."),
    (r"correct it and plan again", "correct it and fit again"),
    (r"--out\b", "out"),
    (r"--resume\b", "resume=True"),
    (r"--insecure-noise-seed\b", "insecure_noise_seed"),
    (r"(?<=correct )the file\b|(?<=or )the file\b|\bthe file(?= has)", "the records"),
    (r"the plan's (?=\d+ features)", "the "),
)  # fmt: skip
_OF_MODULES = (
    (r"model\.args: the model ", "model: "),
    (r"the model or model\.args", "the model"),
    (r"set outputs = 1 in model\.args", "give the model one output"),
    (r"(?:config key )?model\.(?:args|trainable)\b", "model"),
)
"""Where the model is a live module: there is no factory, and no argument of one."""


class Wording:
    """How the stages' words are put for whoever called ``fit`` or ``predict``.

    Args:
        module: Whether the model is a live module; a factory's arguments keep their name.
        roles: The argument that each scratch file stands for, by the beginning of its name.

    Attributes:
        folder: The scratch folder, once there is one.
        ranks: How many ranks pass records of their own.
    """

    def __init__(self, module: bool, roles: dict[str, str]) -> None:
        self._words = (*_OF_MODULES, *_WORDS) if module else _WORDS
        self._roles = roles
        self.folder: Path | None = None
        self.ranks = 1

    def of(self, text: str) -> str:
        """Return a line of the stages in words of the arguments."""
        if self.folder is not None:
            if self.ranks > 1:
                text = re.sub(rf"{re.escape(str(self.folder))}/private-0*(\d+)\.\w+", r"private of rank \1", text)
            for name, role in self._roles.items():
                file = rf"{re.escape(str(self.folder))}/{name}(?:-\d+)?"
                text = re.sub(rf"{file}\.h5: column 'target'", f"{role} targets", text)
                text = re.sub(rf"{file}\.h5: column '(?:features|mask)'", f"{role} features", text)
                text = re.sub(rf"{file}\.parquet: column", f"{role} column", text)
                text = re.sub(rf"{file}\.\w+", role, text)
        for pattern, word in self._words:
            text = re.sub(pattern, word, text)
        return text

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Put every refusal of the block in these words; its class and its exit code stay."""
        try:
            yield
        except DistqexpError as error:
            error.args = (self.of(str(error)),)
            raise


@contextmanager
def told_once() -> Iterator[None]:
    """Let a refusal that the engine has told for all ranks end a script without every rank's traceback after its one line."""
    try:
        yield
    except DistqexpError as error:
        if getattr(error, "reported", False):
            told, show = error, sys.excepthook
            sys.excepthook = lambda kind, shown, place: None if shown is told else show(kind, shown, place)
        raise
