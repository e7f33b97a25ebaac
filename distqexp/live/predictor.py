"""A released model with all that turns records into its inputs: predictions for arrays, tables, loaders and files.

What it returns is as private as the records that it is given; nothing is printed or stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray
from distqexp.artefacts.card import ModelCard
from distqexp.errors import UsageError
from distqexp.live.batches import Batch, Roles, batches_of
from distqexp.live.new_records import as_images, class_names_of, new_records, open_new_records
from distqexp.live.scratch import scratch_folder
from distqexp.live.spool import is_frame, spool
from distqexp.live.wording import Wording
from distqexp.problem.dataset import Dataset, usable_inputs
from distqexp.problem.faults import Fault, checked_inputs
from distqexp.problem.losses import is_own
from distqexp.problem.network import Network

_ROWS_AT_ONCE = 1024
_WHERE = "data"


class Predictor:
    """A model at released parameters. Public.

    Args:
        network: The model.
        card: What a record looks like, and what the outputs stand for.
        tokenizer: The folder of the tokenizer that came with the model, if one did.
    """

    def __init__(self, network: Network, card: ModelCard, tokenizer: Path | None = None) -> None:
        self.network = network
        self.card = card
        self.tokenizer = tokenizer

    @property
    def model(self) -> torch.nn.Module:
        """The module, in evaluation mode."""
        return self.network.module

    @property
    def loss(self) -> str:
        """The name of the training loss, which says what the outputs are."""
        return str(self.card.model["loss"])

    @property
    def classes(self) -> NDArray[Any] | None:
        """The labels, in the order of ``predict_proba``'s columns; None for a regression."""
        if self.loss == "mean-squared-error" or is_own(self.loss):
            return None
        if self.card.classes is not None:
            return np.array(self.card.classes)
        count = 2 if self.loss == "binary-cross-entropy" else self.card.schema.classes or 2
        names = class_names_of(self.card.schema)
        return np.array([*names, *map(str, range(len(names), count))]) if names else np.arange(count)

    def outputs(self, data: Any) -> FloatArray:
        """Return the model's outputs, float64 (n, o): logits, or the values of a regression.

        A record that the model can't take (infinite, a token out of range) has NaN for its outputs.

        Args:
            data: Records without labels: an array or tensor (n, ...), a mapping of arrays (tokens), a DataFrame with the features of the
                training (others are ignored), a torch Dataset or DataLoader (of features, or of tuples that begin with them), or the
                path of a file or folder, as for ``outputs_of_file``.
        """
        parts = [self._outputs_of(inputs, usable) for inputs, usable in self._inputs(data)]
        if not parts:
            raise UsageError(f"{_WHERE}: no record; expected at least one")
        return np.concatenate(parts)

    def predict(self, data: Any) -> NDArray[Any]:
        """Return the label of the largest probability, (n,), or a regression's values, (n,) or (n, o).

        An unusable record has NaN, or None where the labels are texts. ``data`` is as for ``outputs``.
        """
        outputs, classes = self.outputs(data), self.classes
        return outputs[:, 0] if classes is None and outputs.shape[1] == 1 else self.labels_of(outputs)

    def labels_of(self, outputs: FloatArray) -> NDArray[Any]:
        """Return the predictions that belong to ``outputs``, (n, o)."""
        classes = self.classes
        if classes is None:
            return outputs
        unusable = np.isnan(outputs).any(axis=1)
        places = np.argmax(np.nan_to_num(self.probabilities_of(outputs)), axis=1)
        labels = classes[places]
        if not unusable.any():
            return labels
        labels = labels.astype(np.float64 if labels.dtype.kind in "iuf" else object)
        labels[unusable] = np.nan if labels.dtype.kind == "f" else None
        return labels

    def predict_proba(self, data: Any) -> FloatArray:
        """Return the probability of each class, (n, classes), in the order of ``classes``; rows of NaN for unusable records.

        Raises UsageError for a regression. ``data`` is as for ``outputs``.
        """
        if self.classes is None:
            raise UsageError("predict_proba: the model is a regression; expected a classifier; use predict")
        return self.probabilities_of(self.outputs(data))

    def probabilities_of(self, outputs: FloatArray) -> FloatArray:
        """Return the probabilities, (n, classes), that belong to ``outputs``, (n, o)."""
        logits = torch.from_numpy(outputs)
        if self.loss == "binary-cross-entropy":
            return torch.sigmoid(torch.cat([-logits, logits], dim=1)).numpy()
        return torch.softmax(logits, dim=1).numpy()

    def outputs_of_file(self, path: Path, labels: Path | None = None, tokenizer: Path | None = None) -> FloatArray:
        """Return ``outputs`` for the records of a file or folder, read by the schema of the training; labels are not looked at.

        Args:
            path: Records in the form of the private ones, or in another form that has the same features; ``new_records`` lists them.
            labels: Of image folders, a CSV file with the names of the images, whose rows are those of the result.
            tokenizer: The tokenizer's folder, for raw texts; when None the model's own folder, where it has one.

        Raises:
            UsageError, FileContentError: The file can't be used.
        """
        return self.outputs_of_records(self.records(path, labels, tokenizer))

    def records(self, path: Path, labels: Path | None = None, tokenizer: Path | None = None) -> Dataset:
        """Open the records that ``outputs_of_file`` predicts for; the arguments are the same."""
        return open_new_records(self.card, new_records(self.card, path, labels, tokenizer or self.tokenizer))

    def outputs_of_records(self, records: Dataset) -> FloatArray:
        """Return ``outputs`` for opened records."""
        parts = [self._outputs_of(inputs, usable) for inputs, usable in _in_parts(records)]
        if not parts:
            raise UsageError(f"{records.reader.files()[0]}: no record; expected at least one")
        return np.concatenate(parts)

    def _outputs_of(self, inputs: torch.Tensor, usable: BoolArray) -> FloatArray:
        outputs = self.network.outputs(inputs).double().reshape(len(inputs), -1).numpy()
        return np.where(usable[:, None], outputs, np.nan)

    def _inputs(self, data: Any) -> Iterator[tuple[torch.Tensor, BoolArray]]:
        if isinstance(data, str | Path):
            yield from _in_parts(self.records(Path(data)))
        elif is_frame(data):
            yield from self._of_frame(data)
        else:
            for batch in batches_of(data, Roles(_WHERE, labelled=False)):
                yield self._of_batch(batch)

    def _of_batch(self, batch: Batch) -> tuple[torch.Tensor, BoolArray]:
        schema, raw = self.card.schema, batch.features
        if schema.image:
            raw = as_images(raw, schema.shape)
        if schema.tokens:
            mask = np.ones_like(raw) if batch.mask is None else batch.mask
            raw = np.stack([raw, mask], axis=1).astype(np.int64)
        if schema.shape is not None and raw.shape[1:] != schema.shape:
            raise UsageError(f"{_WHERE}: records of shape {raw.shape[1:]}; expected {schema.shape}, as in the training")
        with np.errstate(all="ignore"):
            values, faults = checked_inputs(schema.inputs(raw), schema)
        usable = faults == Fault.NONE
        return usable_inputs(values, usable, schema), usable

    def _of_frame(self, frame: Any) -> Iterator[tuple[torch.Tensor, BoolArray]]:
        names = [str(name) for name in frame.columns]
        missing = [name for name in self.card.schema.names if name not in names]
        if missing:
            raise UsageError(
                f"{_WHERE}: no column {', '.join(map(repr, missing[:6]))}; expected the features of the training"
            )
        table = frame.set_axis(names, axis=1)[list(self.card.schema.names)]
        if len(table) == 0:
            return
        with scratch_folder(None) as folder:
            wording = Wording(True, {"records": _WHERE})
            wording.folder = folder
            with wording.errors():
                spooled = spool(table, folder / "records", Roles(_WHERE, labelled=False), self.card.schema.names[0])
                yield from _in_parts(self.records(spooled.path))


def _in_parts(records: Dataset) -> Iterator[tuple[torch.Tensor, BoolArray]]:
    """Yield inputs and which of them can be used, some rows at a time, in the order of the rows."""
    count = records.reader.count
    for first in range(0, count, _ROWS_AT_ONCE):
        yield records.inputs(np.arange(first, min(first + _ROWS_AT_ONCE, count)))
