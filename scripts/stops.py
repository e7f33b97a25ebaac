"""Stop a run at random instants of every stage, resume it, and hold its releases against those of an undisturbed run.

    python scripts/stops.py --out runs/stops                # 20 stops of four ranks: stops.json, a line for each

Each stop is a real run of ``python -m distqexp.fit`` under mpirun, on the digits task with a small network and seeded noise. SIGTERM goes
to one rank, to all of them (as Slurm sends it) or, with ``--whom launcher``, to mpirun. The instant is a seeded share of a stage's length
in the undisturbed run, counted from when that stage begins. A stop is good when mpirun ends with 75 within ten seconds, and ``--resume``
gives the same bytes and one charge a round. A run that was all done when the signal came ends with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROUNDS, SEED, LIMIT = 3, "7", 10.0
END = "end"
STAGES = ("start", "plan", "sketch", "release", "export")
WHOM = ("one rank", "all ranks")

SETTINGS = (
    f"mechanism.rounds={ROUNDS}",
    "model.factory=distqexp.problem.models:mlp",
    "model.args={inputs=64, outputs=10, hidden=[64, 64]}",
    "model.pretrain.optimiser=adam",
    "model.pretrain.learning_rate=0.01",
    "model.pretrain.epochs=60",
    "precision.kind=kronecker",
    "precision.damping=0.3",
    "precision.refresh=1",
    "precision.rotate=[0, 40]",
    "subspace.kind=kronecker-pca",
    "subspace.k_in=16",
    "subspace.k_out=16",
    "augment.views=8",
    "augment.shift=1.0",
    "engine.micro_batch=8",
)
"""The digits task with every stage long enough to be hit; curvature is refreshed in every round, so that a release takes a while."""


@dataclass(frozen=True)
class Event:
    """The beginning of a stage, in seconds since the run was started."""

    stage: str
    round: int | None
    seconds: float


@dataclass(frozen=True)
class Stop:
    """A stop: where it came, whom it went to, and what came of it."""

    stage: str
    round: int | None
    share: float
    whom: str
    seconds: float
    code: int
    left: list[str]
    lines: list[str]
    whole: bool
    same: bool = False
    charges: int = 0

    @property
    def good(self) -> bool:
        """Whether it ended in time with 75 (or was all done, with 0), and its resumed run as the undisturbed one."""
        code = self.code == 75 or (self.code == 0 and self.whole)
        return code and self.seconds <= LIMIT and self.same and self.charges == ROUNDS

    def words(self) -> str:
        """One line."""
        where = self.stage if self.round is None else f"{self.stage} of round {self.round + 1}"
        return f"{where} at {self.share:.2f}, {self.whom}: exit {self.code} after {self.seconds:.1f} s"


class Job:
    """A run on so many ranks, with a ledger beside its folder. Its stages are read from progress.jsonl as they begin."""

    def __init__(self, out: Path, ranks: int, *more: str) -> None:
        self.out = out
        self._began = time.monotonic()
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        command = [
            _mpirun(),
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            str(ranks),
            sys.executable,
            "-m",
            "distqexp.fit",
        ]
        environ = dict(
            os.environ, OMP_NUM_THREADS="1", DISTQEXP_LEDGER=f"{out}.sqlite", TMPDIR=tempfile.mkdtemp(prefix="mpi-")
        )
        with out.with_suffix(".err").open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, "--out", str(out), "--insecure-noise-seed", SEED, *settings, *more],
                env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip

    def events(self) -> Iterator[Event]:
        """The stages as they begin, until the run has ended."""
        seen, path = 0, self.out / "progress.jsonl"
        while True:
            ended = self.process.poll() is not None
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            for event in map(json.loads, lines[seen:]):
                if event["share"] == 0.0 or (event["stage"], event["share"]) == ("export", 1.0):
                    yield Event(event["stage"] if event["share"] == 0.0 else END, event["round"], self.elapsed())
            seen = len(lines)
            if ended:
                return
            time.sleep(0.003)

    def elapsed(self) -> float:
        """Seconds since the run was started."""
        return time.monotonic() - self._began

    def ranks(self) -> list[int]:
        """Process ids of the ranks that run now."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if words[1:3] == [b"-m", b"distqexp.fit"] and str(self.out).encode() in words:
                    found.append(int(entry.name))
        return sorted(found)

    def signal(self, whom: str, chance: random.Random) -> float:
        """Send SIGTERM and return the seconds until the launcher has ended."""
        while not (ranks := self.ranks()) and self.process.poll() is None:
            time.sleep(0.003)
        victims = {"one rank": [chance.choice(ranks or [0])], "all ranks": ranks, "launcher": [self.process.pid]}[whom]
        sent = time.monotonic()
        for pid in filter(None, victims):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.process.wait(120)
        return time.monotonic() - sent


@contextmanager
def job(out: Path, ranks: int, *more: str) -> Iterator[Job]:
    """A run that doesn't outlive the block."""
    running = Job(out, ranks, *more)
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            running.process.kill()
        running.process.wait()


def undisturbed(out: Path, ranks: int) -> dict[tuple[str, int | None], tuple[float, float]]:
    """Run to the end; when each stage began and how long it took, the start of the processes first."""
    with job(out, ranks) as running:
        events = list(running.events())
        end = running.elapsed()
    if running.process.returncode != 0:
        sys.exit(f"the undisturbed run ended with {running.process.returncode}:\n{out.with_suffix('.err').read_text()}")
    starts = [Event("start", None, 0.0), *events]
    ends = [*(event.seconds for event in events), end]
    return {
        (event.stage, event.round): (event.seconds, until - event.seconds)
        for event, until in zip(starts, ends, strict=True)
    }


def content(out: Path) -> dict[str, bytes]:
    """The bytes that must not depend on stops."""
    names = ["plan.h5", "model.safetensors", *(f"release-{number:03d}.h5" for number in range(ROUNDS))]
    return {name: (out / name).read_bytes() for name in names if (out / name).exists()}


def charges(out: Path) -> int:
    """Committed rows of the run's ledger."""
    from distqexp.privacy.ledger import Ledger

    path = Path(f"{out}.sqlite")
    if not path.exists():
        return 0
    with Ledger.open(path) as ledger:
        return sum(row.state == "committed" for row in ledger.rows())


def stop(
    out: Path,
    ranks: int,
    stage: str,
    whom: str,
    number: int,
    lengths: dict[tuple[str, int | None], tuple[float, float]],
) -> Stop:
    """Stop a run at an instant of a stage, resume it, and compare it with the undisturbed one."""
    chance = random.Random(f"stop {number}")
    round = chance.randrange(ROUNDS) if (stage, 0) in lengths else None
    share, (_, length) = chance.random(), lengths[stage, round]
    with job(out, ranks) as running:
        if stage == "start":
            while not running.ranks():
                time.sleep(0.003)
        else:
            next(event for event in running.events() if (event.stage, event.round) == (stage, round))
        time.sleep(share * length)
        seconds = running.signal(whom, chance)
    code, left = running.process.returncode, sorted(path.name for path in out.iterdir()) if out.exists() else []
    lines = [line for line in out.with_suffix(".err").read_text("utf-8", "replace").splitlines() if "stopped" in line]
    until = time.monotonic() + 20
    while running.ranks() and time.monotonic() < until:
        time.sleep(0.05)
    whole = (out / "report.json").exists() and content(out) == content(out.with_name("undisturbed"))
    return Stop(stage, round, share, whom, seconds, code, left, lines, whole)


RESUME = """
import os, sys
from distqexp import fit

for out in sys.argv[2:]:
    os.environ["DISTQEXP_LEDGER"] = out + ".sqlite"
    code = fit.main(["--out", out, "--resume", *sys.argv[1].split("|")])
    if code:
        sys.exit(code)
"""
"""Resumes runs one after the other, so that the processes start once."""


def resume(folder: Path, options: argparse.Namespace) -> bool:
    """Resume every stopped run: the even ones on as many ranks, the odd ones on one. Return whether both jobs ended well."""
    settings = "|".join(["--insecure-noise-seed", SEED, *(word for setting in SETTINGS for word in ("--set", setting))])
    environ, codes = dict(os.environ, OMP_NUM_THREADS="1", TMPDIR=tempfile.mkdtemp(prefix="mpi-")), []
    for ranks, first in ((options.ranks, 0), (1, 1)):
        outs = [str(folder / str(number)) for number in range(options.first + first, options.first + options.stops, 2)]
        command = [_mpirun(), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), sys.executable, "-c", RESUME]
        codes.append(
            subprocess.run([*command, settings, *outs], env=environ, stdout=subprocess.DEVNULL, check=False).returncode
        )
    return codes == [0, 0]


def resumed(one: Stop, out: Path) -> Stop:
    """What came of a stop when it was resumed."""
    return replace(one, same=content(out) == content(out.with_name("undisturbed")), charges=charges(out))


def _mpirun() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for stops.json")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first stop, which says where and when it comes"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--whom", nargs="+", choices=(*WHOM, "launcher"), default=list(WHOM), help="who gets the signal, in turn"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as text:
        folder = Path(text).resolve()
        lengths = undisturbed(folder / "undisturbed", options.ranks)
        print(
            "undisturbed: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in _totals(lengths)), flush=True
        )
        found: list[Stop] = []
        for number in range(options.first, options.first + options.stops):
            stage = options.stages[number % len(options.stages)]
            whom = options.whom[number // len(options.stages) % len(options.whom)]
            found.append(stop(folder / str(number), options.ranks, stage, whom, number, lengths))
            print(found[-1].words(), flush=True)
        found = (
            [resumed(one, folder / str(number)) for number, one in enumerate(found, options.first)]
            if resume(folder, options)
            else found
        )
    for one in found:
        same = "the same bytes" if one.same else "OTHER BYTES"
        print(
            f"{'good' if one.good else 'NOT GOOD'}: {one.words()}; resumed: {same}, {one.charges} charges", flush=True
        )
    results = {"ranks": options.ranks, "undisturbed": dict(_totals(lengths)), "stops": [asdict(one) for one in found]}
    (options.out / "stops.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    good = sum(one.good for one in found)
    print(f"{good} of {len(found)} stops are good", flush=True)
    sys.exit(0 if good == len(found) else 1)


def _totals(lengths: dict[tuple[str, int | None], tuple[float, float]]) -> list[tuple[str, float]]:
    """Seconds of every stage, all rounds together."""
    stages: dict[str, float] = {}
    for (stage, _), (_, length) in lengths.items():
        stages[stage] = stages.get(stage, 0.0) + length
    return list(stages.items())


if __name__ == "__main__":
    main()
