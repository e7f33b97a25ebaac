"""One run, one set of records: a file that changes under a running fit, or a running sketch, ends it before its sums are used."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_tables import Patients, config_of, parts_charged, source

from distqexp import api
from distqexp.config import Config
from distqexp.errors import FileContentError, RecordsChangedError
from distqexp.privacy.expenses import Part
from distqexp.privacy.ledger import Ledger
from distqexp.problem.identity import file_facts, fingerprint
from distqexp.problem.readers import open_reader
from distqexp.report.progress import ProgressEvent
from distqexp.sketching.sketcher import Sketcher
from distqexp.stages import sketch as sketch_stage

RECORDS = 4
TABLE = Patients.some(30, RECORDS, seed=2, first=100)


def task(folder: Path, parts: int = 2, **private: Any) -> Config:
    """30 patients with four rows each, in two rounds."""
    TABLE.write(folder / "private.csv")
    Patients.some(50, 4, seed=1, first=1000).write(folder / "public.csv")
    return config_of(
        source(folder / "public.csv"),
        source(folder / "private.csv", **private),
        mechanism={"rounds": 2, "parts": parts},
    )


def replaced(path: Path) -> None:
    """Another file under the name, with the old one's size and time."""
    before = path.stat()
    other = TABLE.by_visit(RECORDS).write(path.with_name("other.csv"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def rewritten(path: Path) -> None:
    """The same file with other content, of the old size and time."""
    before = path.stat()
    content = TABLE.by_visit(RECORDS).write(path.with_name("other.csv")).read_bytes()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def there_and_back(path: Path) -> None:
    """Another file for an instant."""
    path.rename(path.with_name("kept.csv"))
    TABLE.by_visit(RECORDS).write(path)
    path.with_name("kept.csv").rename(path)


def gone(path: Path) -> None:
    path.unlink()


CHANGES = [replaced, rewritten, there_and_back, gone]


def after_round_zero(change: Callable[[], None]) -> Callable[[ProgressEvent], None]:
    """A callback of a fit."""

    def call(event: ProgressEvent) -> None:
        if event.stage == "release" and event.round == 0 and event.share == 0:
            change()

    return call


def amid(patch: pytest.MonkeyPatch, round: int, change: Callable[[], None]) -> None:
    """Make the change after the first batch of a round was sketched."""
    batches, original = [0], Sketcher.sketch
    rounds, sketch_round = [-1], sketch_stage.sketch_round

    def next_round(*arguments: Any, **keywords: Any) -> Any:
        rounds[0], batches[0] = rounds[0] + 1, 0
        return sketch_round(*arguments, **keywords)

    def changing(self: Sketcher, found: Any) -> Any:
        sums = original(self, found)
        batches[0] += 1
        if rounds[0] == round and batches[0] == 1:
            change()
        return sums

    patch.setattr(sketch_stage, "sketch_round", next_round)
    patch.setattr(Sketcher, "sketch", changing)


def refused(config: Config, out: Path, **keywords: Any) -> str:
    """The message of a run that ends because its records changed."""
    with pytest.raises(RecordsChangedError) as caught:
        api.fit(config, out, **keywords)
    assert caught.value.exit_code == FileContentError.exit_code == 3
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_changes_between_two_rounds_ends_the_run(
    change: Callable[[Path], None], parts: int, tmp_path: Path, own_ledger: Path
) -> None:
    """The case c2_swap_mid_run: today one patient stands in both parts, and the certificate says half."""
    config, out, path = task(tmp_path, parts), tmp_path / "out", tmp_path / "private.csv"
    text = refused(config, out, callback=after_round_zero(lambda: change(path)))
    assert "private.csv: changed since the run read it first" in text
    assert parts_charged(own_ledger) == [Part(0, 2) if parts == 2 else None]
    assert sorted(file.name for file in out.iterdir()) == ["plan.h5", "progress.jsonl", "release-000.h5"]


@pytest.mark.parametrize("round", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_changes_while_a_round_reads_it_ends_the_run_uncharged(
    change: Callable[[Path], None], round: int, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = task(tmp_path), tmp_path / "out"
    amid(monkeypatch, round, lambda: change(tmp_path / "private.csv"))
    refused(config, out)
    assert parts_charged(own_ledger) == [Part(0, 2)][:round]
    assert not [*out.glob("sketch-*"), *out.glob("quadratic-*")]


def test_a_link_that_points_elsewhere_for_an_instant_leaves_no_sums_behind(
    tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by whoever reads, when the sums are stored: at the checks of the root the first file is back."""
    config = task(tmp_path)
    path, kept = tmp_path / "private.csv", tmp_path / "kept.csv"
    path.rename(kept)
    path.symlink_to(kept)
    other = TABLE.by_visit(RECORDS).write(tmp_path / "other.csv")

    def elsewhere() -> None:
        path.unlink()
        path.symlink_to(other)

    amid(monkeypatch, 0, elsewhere)
    original = sketch_stage.require_same_records

    def back(*arguments: Any) -> None:
        path.unlink()
        path.symlink_to(kept)
        original(*arguments)

    monkeypatch.setattr(sketch_stage, "require_same_records", back)
    refused(config, tmp_path / "out")
    assert parts_charged(own_ledger) == []
    assert not [*(tmp_path / "out").glob("sketch-*"), *(tmp_path / "out").glob("quadratic-*")]


def test_blanks_and_labels_are_part_of_the_records(tmp_path: Path, own_ledger: Path) -> None:
    blank, other = tmp_path / "blank.npy", tmp_path / "other.npy"
    np.save(blank, np.arange(30 * RECORDS) < 4)
    np.save(other, np.arange(30 * RECORDS) > 115)
    config = task(tmp_path, blank=str(blank))
    text = refused(config, tmp_path / "out", callback=after_round_zero(lambda: os.replace(other, blank)))
    assert "blank.npy" in text
    images, labels = tmp_path / "images.idx", tmp_path / "labels.idx"
    for path, dimensions in ((images, (5, 2, 2)), (labels, (5,))):
        head = bytes([0, 0, 8, len(dimensions)]) + np.array(dimensions, dtype=">u4").tobytes()
        path.write_bytes(head + bytes(int(np.prod(dimensions))))
    data = replace(config.data.private[0], format="idx", path=str(images), labels=str(labels), blank=None, unit=None)
    facts = file_facts(data)
    labels.write_bytes(labels.read_bytes())
    assert len(facts.files) == 2
    assert not facts.agree(file_facts(data))


@pytest.mark.parametrize("parts", [1, 2])
def test_after_the_first_file_is_back_the_run_goes_on_as_if_nothing_had_been(
    parts: int, tmp_path: Path, own_ledger: Path
) -> None:
    config, out, path = task(tmp_path, parts), tmp_path / "out", tmp_path / "private.csv"
    refused(config, out, callback=after_round_zero(lambda: replaced(path)))
    TABLE.write(path)
    result = api.fit(config, out, resume=True)
    assert result is not None
    assert parts_charged(own_ledger) == ([Part(0, 2), Part(1, 2)] if parts == 2 else [None, None])
    assert result.certificate["epsilon"] <= 2.0


def test_a_run_resumed_on_the_other_file_charges_everybody_for_the_rest(tmp_path: Path, own_ledger: Path) -> None:
    config, out, path = task(tmp_path), tmp_path / "out", tmp_path / "private.csv"
    refused(config, out, callback=after_round_zero(lambda: replaced(path)))
    TABLE.in_order(np.roll(np.arange(len(TABLE.y)), RECORDS)).write(path)
    with Ledger.open(own_ledger) as ledger:
        ledger.set_cap("patients", 4.0, 1e-5)
    result = api.fit(config, out, resume=True)
    assert result is not None
    assert parts_charged(own_ledger) == [Part(0, 2), None]
    assert [release.everybody for release in result.releases] == [False, True]
    with Ledger.open(own_ledger) as ledger:
        assert result.certificate["epsilon"] == ledger.spent("patients").epsilon(1e-5) > 2.5


@pytest.mark.parametrize("change", CHANGES)
def test_a_site_whose_table_changes_while_it_is_read_hands_nothing_on(
    change: Callable[[Path], None], tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = task(tmp_path)
    api.plan(config, tmp_path / "plan.h5")
    original, out, changes = Sketcher.sketch, tmp_path / "site.h5", [change]

    def changing(self: Sketcher, found: Any) -> Any:
        sums = original(self, found)
        for one in [changes.pop()] if changes else []:
            one(tmp_path / "private.csv")
        return sums

    with monkeypatch.context() as patch:
        patch.setattr(Sketcher, "sketch", changing)
        with pytest.raises(FileContentError):
            api.sketch(tmp_path / "plan.h5", tmp_path / "private.csv", out)
    assert parts_charged(own_ledger) == []
    assert not list(tmp_path.glob("site.h5.parts/sketch-*"))
    assert not out.exists()
    TABLE.write(tmp_path / "private.csv")
    api.sketch(tmp_path / "plan.h5", tmp_path / "private.csv", out)
    assert parts_charged(own_ledger) == [Part(0, 2)]


@pytest.mark.parametrize("column", ["ids", "filter"])
def test_the_digest_sees_what_the_file_system_hides(column: str, tmp_path: Path, own_ledger: Path) -> None:
    """Where facts tell no change, as those of another machine: other ids or filter columns are seen; a ledger's digest is its own."""
    config = task(tmp_path, where="ward == 'north'")
    (data,), facts = config.data.private, replace(file_facts(config.data.private[0]), host="another")

    def found(ledger: Path) -> str:
        with Ledger.open(ledger) as books:
            return fingerprint(data, facts, lambda: open_reader(data), books.keyed_digest)

    first = found(own_ledger)
    assert first == found(own_ledger), "a resume with the same ledger takes up what is there"
    assert first != found(tmp_path / "another.sqlite")
    lines = (tmp_path / "private.csv").read_text().splitlines()
    lines[2] = lines[2].replace("100,north", "109,north") if column == "ids" else lines[2].replace("north", "south")
    (tmp_path / "private.csv").write_text("\n".join(lines) + "\n")
    assert first != found(own_ledger)
    TABLE.write(tmp_path / "private.csv")
    assert first == found(own_ledger)


def test_copies_on_another_machine_are_compared_by_size(tmp_path: Path) -> None:
    data = task(tmp_path).data.private[0]
    facts = file_facts(data)
    elsewhere = replace(facts, host="another", files=tuple((file[0], 1, 2, 3, 4) for file in facts.files))
    longer = replace(elsewhere, files=tuple((file[0] + 1, *file[1:]) for file in facts.files))
    assert facts.agree(elsewhere)
    assert not facts.agree(longer)
    assert not facts.agree(replace(elsewhere, host=facts.host))
