"""A consortium in a folder: a coordinator and its sites, each with a ledger of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_harness import Commands, run_process, table_source, table_tree, to_toml, write_table

from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file

SEED = "17"


ROUNDS = 3


SHARDS = ("north", "south", "east", "west")


@dataclass
class Consortium:
    """A coordinator with the config and the public data, and one folder a site with its own table."""

    root: Path
    shards: Sequence[str]
    run: Commands
    patch: pytest.MonkeyPatch

    @property
    def curator(self) -> Path:
        return self.root / "curator"

    def site(self, shard: str) -> Path:
        return self.root / shard

    def at(self, folder: Path) -> Commands:
        """Commands in ``folder`` with the ledger of that folder."""
        self.patch.chdir(folder)
        (folder / "books").mkdir(exist_ok=True)
        self.patch.setenv("DISTQEXP_LEDGER", str(folder / "books" / "ledger.sqlite"))
        return self.run

    def plan(self) -> None:
        self.at(self.curator).done("plan", "task.toml", "--out", "plan.h5")
        for shard in self.shards:
            shutil.copy(self.curator / "plan.h5", self.site(shard))

    def sketch(self, shard: str, round: int, *, own_process: bool = False, seed: str = SEED) -> Path:
        """Sketch at a site, by what lies in its folder; the sketch file is carried to the coordinator."""
        folder, name = self.site(shard), f"{shard}-{round}.h5"
        arguments = ["sketch", "plan.h5", "--data", f"{shard}.csv", "--out", name, "--insecure-noise-seed", seed]
        if round:
            arguments += ["--release", f"release-{round - 1:03d}.h5"]
        if own_process:
            (folder / "books").mkdir(exist_ok=True)
            environ = {"DISTQEXP_LEDGER": str(folder / "books" / "ledger.sqlite")}
            outcome = run_process("distqexp.cli", *arguments, folder=folder, environ=environ)
            assert (outcome.code, outcome.reasons()) == (0, []), outcome
        else:
            self.at(folder).done(*arguments)
        assert not (folder / f"{name}.parts").exists()
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        return Path(shutil.copy(folder / name, self.curator))

    def pool(self, round: int, sketches: Sequence[Path]) -> Path:
        path = self.curator / f"quadratic-{round:03d}.h5"
        self.at(self.curator).done("pool", "plan.h5", *sketches, "--out", path)
        assert path.stat().st_mode & 0o777 == 0o600
        return path

    def release_command(self, round: int, name: str = "", seed: str = SEED) -> list[str]:
        arguments = ["release", "plan.h5", f"quadratic-{round:03d}.h5", "--config", "task.toml", "--keep-quadratic"]
        if round:
            arguments += ["--previous", f"release-{round - 1:03d}.h5"]
        return [*arguments, "--out", name or f"release-{round:03d}.h5", "--insecure-noise-seed", seed]

    def release(self, round: int) -> None:
        self.at(self.curator).done(*self.release_command(round))
        for shard in self.shards:
            shutil.copy(self.curator / f"release-{round:03d}.h5", self.site(shard))

    def all_rounds(self, *, own_processes: int) -> None:
        """Plan to export; the sketches of the first so many rounds are made in processes of their own."""
        self.plan()
        for round in range(ROUNDS):
            sketches = [self.sketch(shard, round, own_process=round < own_processes) for shard in self.shards]
            self.pool(round, sketches[::-1])
            self.release(round)
        releases = [f"release-{round:03d}.h5" for round in range(ROUNDS)]
        shown = self.at(self.curator).done("export", "plan.h5", *releases, "--config", "task.toml", "--out", "model")
        assert "NOT PRIVATE" in shown.out

    def as_one_run(self) -> Path:
        """The folder of a single run over the same shards."""
        folder = self.root / "one"
        folder.mkdir()
        arguments = ["task.toml", "--out", folder / "run", "--insecure-noise-seed", SEED]
        commands = self.at(self.curator)
        self.patch.setenv("DISTQEXP_LEDGER", str(folder / "ledger.sqlite"))
        assert commands.fit(*arguments, "--set", "output.keep_sketches=true").code == 0
        return folder / "run"

    def check_against(self, one: Path) -> None:
        """Every file that both ways have is the same, byte for byte; each ledger was charged once a round."""
        curator = self.curator
        for round in range(ROUNDS):
            name = f"quadratic-{round:03d}.h5"
            by_hand, together = read_file(curator / name).arrays["sums"], read_file(one / name).arrays["sums"]
            assert by_hand.any()
            np.testing.assert_array_equal(by_hand, together)
        names = ["plan.h5", *(f"{kind}-{n:03d}.h5" for kind in ("quadratic", "release") for n in range(ROUNDS))]
        for name in names:
            assert (curator / name).read_bytes() == (one / name).read_bytes(), name
        for name in ("model.safetensors", "model.pt", "certificate.json"):
            assert (curator / "model" / name).read_bytes() == (one / name).read_bytes(), name
        for shard in self.shards:
            assert self.charges(self.site(shard)) == [(f"site-{shard}", str(n)) for n in range(ROUNDS)]
        assert self.charges(curator) == [("release", str(n)) for n in range(ROUNDS)]

    def charges(self, folder: Path) -> list[tuple[str, str]]:
        """Role and round of every charge in a folder's ledger."""
        keys = [row.key.split("/") for row in Ledger.open(folder / "books" / "ledger.sqlite").rows()]
        return [(key[0], key[2]) for key in keys]


def gather(
    root: Path, tree: Mapping[str, Any], shards: Sequence[str], run: Commands, patch: pytest.MonkeyPatch
) -> Consortium:
    """Folders, ledgers and the config; the tables are for the caller to write, at ``<shard>/<shard>.csv``."""
    for folder in ("curator", *shards):
        (root / folder / "books").mkdir(parents=True)
    (root / "curator" / "task.toml").write_text(to_toml(tree), "utf-8")
    return Consortium(root, shards, run, patch)


def four_sites(
    root: Path, run: Commands, patch: pytest.MonkeyPatch, mechanism: Mapping[str, Any], adjacency: str = "zero-out"
) -> Consortium:
    """Four sites of generated patients with one to four records each, and a curator with public and evaluation data."""
    tree = table_tree(data={"eval": table_source("eval.csv")}, privacy={"adjacency": adjacency})
    tree["mechanism"] = {"clip_quantile": 0.8, **mechanism}
    tree["data"]["private"] = [table_source(f"../{shard}/{shard}.csv", unit=True, shard=shard) for shard in SHARDS]
    sites = gather(root, tree, SHARDS, run, patch)
    write_table(sites.curator / "public.csv", 1, 80)
    write_table(sites.curator / "eval.csv", 2, 40)
    for number, shard in enumerate(SHARDS):
        write_table(sites.site(shard) / f"{shard}.csv", 10 + number, 12 + 7 * number, records=4, shift=0.3)
    return sites
