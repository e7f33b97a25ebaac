"""Where a round's records come from, slots of a source or synthetic records; and the readers that a process keeps open."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from distqexp.config import DataConfig
from distqexp.problem.dataset import Dataset, open_dataset
from distqexp.problem.features import FeatureFile
from distqexp.problem.identity import FileFacts, another_file, file_facts, require_opened
from distqexp.problem.images import Turns
from distqexp.problem.probes import Probes
from distqexp.problem.readers import Reader, open_reader
from distqexp.problem.schema import Schema
from distqexp.problem.slots import Partition, SlotMap, slot_map


class Readers:
    """The readers of one process: a source's files are opened, and a table is indexed, only once.

    A reader stays with the files that it opened. Where other files lie at their paths now, ``DataSource.facts`` show it to whoever reads.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[DataConfig, bool], Reader] = {}

    def of(self, data: DataConfig, *, private: bool) -> Reader:
        """Return the reader of a source, which the first call opens. Raises what open_reader raises."""
        key = (data, private)
        if key not in self._open:
            self._open[key] = open_reader(data, private=private)
        return self._open[key]


@dataclass(frozen=True)
class DataSource:
    """One source of records with its slots: rows of the file and the unit of each slot, in slot order.

    The slot map of private data is public under zero-out and replace-one adjacency, and private under add-remove.

    Attributes:
        data: the source in the config.
        slots: its slot map.
        partition: the part of each unit, where the plan has parts and the source is not one part of another already.
        turns: the random angles by which public images are turned.
        private: whether the records play a private role, see Dataset.
        facts: of the files when the slots were read from them, where the files must not change.
        features: the file with what the frozen part of the model gives for each record, where there is one.
    """

    data: DataConfig
    slots: SlotMap
    partition: Partition | None = None
    turns: Turns | None = None
    private: bool = True
    facts: FileFacts | None = None
    features: FeatureFile | None = None

    def of_part(self, number: int, parts: int) -> DataSource:
        """Return the source with the slots of part ``number`` of ``parts`` alone, which is all that a round may see."""
        if parts == 1:
            return self
        if self.partition is None:
            raise ValueError(f"a source without its partition; expected one of {parts} parts")
        return dataclasses.replace(self, slots=self.slots.only(self.partition.part == number), partition=None)

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """Return half-open slot ranges: whole units, at most a micro-batch in each, or one larger unit."""
        return self.slots.pieces(micro_batch)

    def open(self, schema: Schema, round: int, readers: Readers | None = None) -> Dataset:
        """Open the records, which are the same in every round.

        Raises RecordsChangedError where other files are open than ``facts`` says. What the paths name before and after doesn't tell:
        a link or a folder may lead elsewhere for an instant.
        """
        reader = readers.of(self.data, private=self.private) if readers else None
        dataset = open_dataset(self.data, schema, self.turns, private=self.private, reader=reader)
        if self.facts is not None:
            require_opened(self.data, self.facts, dataset.opened_files())
        return dataset

    def require_same_files(self) -> None:
        """Raise RecordsChangedError where this process meets other files than those that the slots were read from."""
        if self.facts is not None and not self.facts.agree(file_facts(self.data)):
            raise another_file(self.data)


@dataclass(frozen=True)
class ProbeSource:
    """Synthetic records in the place of public ones, each a unit, other ones in every round. Public.

    Attributes:
        count: the number of records.
        seed: the seed of their stream.
    """

    count: int
    seed: int

    @property
    def slots(self) -> SlotMap:
        """The slot map, with record i in slot i."""
        return slot_map(np.arange(self.count), None)

    def pieces(self, micro_batch: int) -> list[tuple[int, int]]:
        """Return half-open slot ranges, as a DataSource does."""
        return self.slots.pieces(micro_batch)

    def open(self, schema: Schema, round: int, readers: Readers | None = None) -> Probes:
        """Open the records of a round."""
        return Probes(schema, self.seed, round)
