"""The command ``distqexp predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from distqexp.cli.options import say

commands = typer.Typer()


@commands.command(epilog="example: distqexp predict runs/icu new-patients.csv --out predictions.csv")
def predict(
    model: Annotated[Path, typer.Argument(help="the folder of a finished run, or of an exported model")],
    data: Annotated[
        Path,
        typer.Argument(
            help="file or folder of records in the form of the training's, without labels or with them, or a .npy or .npz array"
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="the new file: .csv with labels and probabilities, or .npy with these alone")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="of an image folder: a CSV file with the names of the images to predict for")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="of raw texts: the tokenizer's folder; the model's own folder, where it has one, when absent"
        ),
    ] = None,
) -> None:
    """Predict for new records by the schema that the training fixed. What it writes is as private as the records."""
    from distqexp import api

    line = api.predict(model, data, out, labels=labels, tokenizer=tokenizer)
    if line is not None:
        sys.stderr.write(f"distqexp: warning: {line}\n")
    say(f"{out}: a row for each record, as private as the records")
