"""Folders as save_to_disk of Hugging Face's datasets writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc


def save_dataset(folder: Path, columns: dict[str, Any], files: int = 1, batch: int = 7, **options: Any) -> Path:
    """Store columns in so many Arrow streams of batches, with the two JSON files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    names = [f"data-{place:05d}-of-{files:05d}.arrow" for place in range(files)]
    for place, name in enumerate(names):
        first, after = (table.num_rows * step // files for step in (place, place + 1))
        with pyarrow.OSFile(str(folder / name), "wb") as sink:
            writer = pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options))
            with writer:
                for piece in table.slice(first, after - first).to_batches(max_chunksize=batch):
                    writer.write_batch(piece)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder
