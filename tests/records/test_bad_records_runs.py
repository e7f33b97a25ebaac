"""Whole runs with bad private records: the words, releases and certificate of the neighbour whose records are blank.

And what still ends a run because of a private file: found in every shard before the first round, before any charge.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bad_records import FORMATS, ROWS, Spoiled
from bad_runs import public_bytes, task, two_shards
from run_harness import Commands, Outcome, overrides, to_toml

from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file

TIMES = re.compile(r"done in .*|\d+ s left|\d+%, .*|plan [0-9a-f]{16}|(?<=/)(bad|blank)(?=/model)")


def words(outcome: Outcome) -> list[str]:
    """All that was printed, without its times and the name of the run's folder."""
    return [
        TIMES.sub("", line)
        for line in (outcome.out + outcome.err).splitlines()
        if "% " not in line and "left" not in line
    ]


def alike(run: Commands, config: Path, spoiled: Spoiled) -> dict[str, Any]:
    """Run with bad records and with blank ones, and compare all that anybody sees."""
    folder = config.parent
    seeded = ["--insecure-noise-seed", "5", "--out"]
    bad = run.fit(config, *seeded, folder / "bad")
    mask = overrides(f"data.private.blank={spoiled.blank(folder)}")
    blank = run.fit(config, *seeded, folder / "blank", *mask)
    assert (bad.code, blank.code) == (0, 0), (bad, blank)
    assert words(bad) == words(blank)
    found = public_bytes(folder / "bad")
    assert found == public_bytes(folder / "blank")
    return found


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "parts": ("csv", {"mechanism": {"rounds": 4, "parts": 2}}),
    "diagnostics": ("csv", {"diagnostics": {"share": 0.1}, "precision": {"kind": "dense"}}),
    "private curvature": (
        "csv",
        {"mechanism": {"curvature": "private", "trust_radius": 1.0, "noise": "gaussian"}, "precision": {"kind": "dense"}},
    ),
    "add-remove": ("csv", {"privacy": {"adjacency": "add-remove"}, "mechanism": {"parts": 2}}),
    "replace-one": ("parquet texts", {"privacy": {"adjacency": "replace-one"}}),
    "tokens": (
        "hdf5 tokens", {"subspace": {"kind": "gaussian", "k": 5}, "diagnostics": {"share": 0.1}}
    ),
    "batches of views": (
        "idx",
        {
            "augment": {"views": 2, "rotate": 20.0, "shift": 1.0}, "subspace": {"kind": "kronecker", "k_in": 2, "k_out": 2},
            "precision": {"kind": "kronecker"}, "engine": {"micro_batch": 16},
        },
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_bad_records_is_the_run_with_blank_ones(tmp_path: Path, run: Commands, kind: str) -> None:
    name, sections = KINDS[kind]
    config, spoiled = task(tmp_path, name, **sections)
    found = alike(run, config, spoiled)
    rounds = sections.get("mechanism", {}).get("rounds", 2)
    assert len([name for name in found if name.startswith("release-")]) == rounds
    if kind == "diagnostics":
        assert len(found["certificate"]["diagnostics"]["rounds"]) == rounds


def test_a_label_that_a_model_without_public_data_cannot_have(tmp_path: Path, run: Commands) -> None:
    """The number of classes is asked of the model even where no record's shape is known to the plan."""
    config, spoiled = task(tmp_path, "idx", subspace={"kind": "gaussian", "k": 6})
    text = "\n".join(line for line in config.read_text("utf-8").splitlines())
    tree_without = re.sub(r', "public" = \{[^}]*\}', "", text)
    assert tree_without != text
    config.write_text(tree_without, "utf-8")
    alike(run, config, spoiled)


def test_private_evaluation_records_end_nothing_and_public_ones_are_refused(tmp_path: Path, run: Commands) -> None:
    config, spoiled = task(tmp_path, "csv")
    seen = overrides(
        f"data.eval={to_toml({'e': spoiled.source}).removeprefix('e = ').strip()}", "data.eval_private=true"
    )
    assert run.fit(config, *seen, "--out", tmp_path / "one").code == 0
    seen[-1] = "data.eval_private=false"
    assert run.fit(config, *seen, "--out", tmp_path / "two").code == 3


def test_by_hand_a_site_sketches_the_same_sums(tmp_path: Path, run: Commands) -> None:
    config, spoiled = task(tmp_path, "csv")
    run.done("plan", config, "--out", tmp_path / "plan.h5")
    site = ["sketch", tmp_path / "plan.h5", "--data", tmp_path / "private.csv", "--out"]
    bad = run.done(*site, tmp_path / "bad.h5")
    blank = run.done(*site, tmp_path / "blank.h5", "--blank", spoiled.blank(tmp_path))
    assert words(bad) == words(blank)
    sums = [read_file(tmp_path / name).arrays["sums"] for name in ("bad.h5", "blank.h5")]
    assert np.array_equal(*sums)
    assert sums[0].any()


def test_a_count_meets_ids_and_filters_that_are_bad(tmp_path: Path, run: Commands) -> None:
    config, spoiled = task(tmp_path, "csv")
    Ledger.open().set_cap("somebody", 1.0, 1e-5)
    counted = ["count", config, "--epsilon", "0.5", "--insecure-noise-seed", "1", "--json"]
    found = run.done(*counted, *overrides("data.private.where=age >= -100"))
    assert json.loads(found.out.splitlines()[-1])["units"] > 0
    assert spoiled.faults


# --- what a file as a whole is refused for --------------------------------------------------------------------------


def spoil_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def damage_gzip(folder: Path) -> Path:
    path = folder / "south.csv.gz"
    path.write_bytes(gzip.compress((folder / "private.csv").read_bytes()))
    spoil_byte(path, path.stat().st_size // 2)
    return path


def damage_chunk(folder: Path) -> Path:
    """One compressed chunk of the features, that of the last rows."""
    path = folder / "south.h5"
    path.write_bytes((folder / "private.h5").read_bytes())
    with h5py.File(path) as file:
        chunks: list[Any] = []
        file["x"].id.chunk_iter(chunks.append)
    spoil_byte(path, chunks[-1].byte_offset + chunks[-1].size // 2)
    return path


def damage_group(folder: Path) -> Path:
    """The data of one column in the last row group."""
    import pyarrow.parquet

    path = folder / "south.parquet"
    path.write_bytes((folder / "private.parquet").read_bytes())
    metadata = pyarrow.parquet.ParquetFile(path).metadata
    column = metadata.row_group(metadata.num_row_groups - 1).column(2)
    for at in range(column.data_page_offset, column.data_page_offset + 12):
        spoil_byte(path, at)
    return path


def other_type(folder: Path) -> Path:
    """A column of dates where numbers are expected."""
    import pyarrow
    import pyarrow.parquet

    path = folder / "south.parquet"
    table = pyarrow.parquet.read_table(folder / "private.parquet")
    dates = pyarrow.array(np.zeros(ROWS, dtype="datetime64[s]"))
    pyarrow.parquet.write_table(table.set_column(2, "age", dates), path)
    return path


@pytest.mark.parametrize(
    ("name", "damage"),
    [("csv", damage_gzip), ("hdf5", damage_chunk), ("parquet numbers", damage_group), ("parquet numbers", other_type)],
)
def test_damage_anywhere_is_found_before_the_first_round(tmp_path: Path, run: Commands, name: str, damage: Any) -> None:
    FORMATS[name][1](tmp_path)
    south = damage(tmp_path)
    config = two_shards(tmp_path, name, south)
    run.fit(config, "--out", tmp_path / "run").refused(3, south.name)
    assert not [*(tmp_path / "run").glob("release-*"), *(tmp_path / "run").glob("sketch-*")]
    assert Ledger.open().rows() == []


def test_targets_of_another_width_than_the_model_s_are_found_before_the_first_round(
    tmp_path: Path, run: Commands
) -> None:
    config, _ = task(tmp_path, "hdf5 regression")
    with h5py.File(tmp_path / "private.h5", "r+") as file:
        del file["y"]
        file["y"] = np.zeros((ROWS, 3))
    run.fit(config, "--out", tmp_path / "run").refused(3, "targets of shape (3,)", "expected 2 numbers")
    assert Ledger.open().rows() == []


def test_labels_of_more_than_one_number_are_found_before_the_first_round(tmp_path: Path, run: Commands) -> None:
    config, _ = task(tmp_path, "hdf5")
    with h5py.File(tmp_path / "private.h5", "r+") as file:
        del file["y"]
        file["y"] = np.zeros((ROWS, 2))
    run.fit(config, "--out", tmp_path / "run").refused(3, "labels of shape (2,)", "one label a record")
    assert Ledger.open().rows() == []


def test_the_certificate_says_what_may_still_end_a_run(tmp_path: Path, run: Commands) -> None:
    config, spoiled = task(tmp_path, "csv")
    found = alike(run, config, spoiled)
    covered = [line for line in found["certificate"]["not_covered"] if "refused before its first round" in line]
    assert len(covered) == 1
