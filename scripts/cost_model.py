"""Hold the forecasts of ``distqexp cost`` against real runs, on configurations that they were not calibrated on.

    python scripts/cost_model.py --out runs/cost-model            # needs DISTQEXP_DATA for MNIST and the ICU table
    python scripts/cost_model.py --out runs/cost-model --only digits --repeats 1

Each case is calibrated once, on a base config, by one process, from synthetic and public records. The run that is measured differs in
ranks, in the size of its micro-batches, in rounds, records or epochs, and reads real records. Time is the processor time of the rank that
took most, since this machine may be shared and its clock would measure the others; of several runs the least counts. Memory is
the peak resident size of the rank that needs most. Every run has a folder and a ledger of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
TIME_WITHIN, MEMORY_WITHIN = 0.25, 0.15

VECTORS = """
[model]
factory = "distqexp.problem.models:mlp"
args = {{ inputs = 64, outputs = 10, hidden = [{hidden}] }}
loss = "cross-entropy"

[data]
population = "vectors"
record_shape = [64]

[data.private]
format = "hdf5"
path = "vectors.h5"
columns = {{ features = ["inputs"], target = "target", standardise = false }}

[privacy]
epsilon = 1.0
delta = 1e-5
units = 8192

[subspace]
kind = "sjlt"
k = {k}

[precision]
kind = "identity"

[mechanism]
clip = 1.0
"""

TEXTS = """
[model]
factory = "distqexp.problem.huggingface:from_config"
loss = "cross-entropy"

[model.args]
model = "BertForSequenceClassification"

[model.args.config]
num_labels = 2
hidden_size = 128
num_hidden_layers = 4
num_attention_heads = 4
intermediate_size = 512
vocab_size = 2000
max_position_embeddings = 64

[data]
population = "texts"
record_shape = [48]

[data.private]
format = "hdf5"
path = "texts.h5"
columns = { features = ["ids"], target = "y", tokens = true, mask = "seen" }

[privacy]
epsilon = 1.0
delta = 1e-5
units = 1024

[subspace]
kind = "kronecker-pca"
k_in = 32
k_out = 32

[precision]
kind = "kronecker"
source = "probes"
samples = 128

[mechanism]
rounds = 2
clip_natural = 1.5

[engine]
micro_batch = 64
"""


@dataclass(frozen=True)
class Case:
    """A run to be forecast.

    Attributes:
        name: Its name.
        config: The config, by its name in the scratch folder or in ``configs``.
        ranks: The ranks of the run.
        base: Overrides of the calibrated config.
        run: Overrides of the run, besides those.
    """

    name: str
    config: str
    ranks: int
    base: tuple[str, ...] = ()
    run: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What differs from the calibration."""
        return ", ".join([*(text.split(".", 1)[1] for text in self.run), f"{self.ranks} rank(s)"])


MNIST = ("model.pretrain.epochs=4", "mechanism.rounds=4")
CASES = (
    Case("digits", "digits.toml", 2, (), ("engine.micro_batch=16", "mechanism.rounds=4")),
    Case("vectors", "vectors-large.toml", 2, (), ("engine.micro_batch=16",)),
    Case(
        "vectors, k small",
        "vectors.toml",
        1,
        (),
        ("engine.micro_batch=128", "mechanism.rounds=3", "mechanism.step=0.5"),
    ),
    Case("table", "icu.toml", 2, (), ("mechanism.rounds=3", "engine.micro_batch=128")),
    Case("cnn", "mnist-kronecker.toml", 2, MNIST, ("engine.micro_batch=200",)),
    Case(
        "cnn, dense",
        "mnist-rotated.toml",
        1,
        ("model.pretrain.epochs=2",),
        ("model.pretrain.epochs=1", "engine.micro_batch=32"),
    ),
    Case("transformer", "texts.toml", 1, (), ("engine.micro_batch=32", "mechanism.rounds=3")),
    Case("transformer, two ranks", "texts.toml", 2, (), ("precision.samples=256",)),
)


def write_inputs(folder: Path) -> None:
    """Write the generated records and the configs on them."""
    import h5py

    generator = np.random.default_rng(0)
    with h5py.File(folder / "vectors.h5", "w") as file:
        file["inputs"] = generator.standard_normal((8192, 64)).astype(np.float32)
        file["target"] = generator.integers(0, 10, 8192)
    ids = generator.integers(1, 2000, (1024, 48))
    with h5py.File(folder / "texts.h5", "w") as file:
        file["ids"], file["seen"] = ids, np.ones_like(ids)
        file["y"] = generator.integers(0, 2, 1024)
    (folder / "texts.toml").write_text(TEXTS, "utf-8")
    (folder / "vectors.toml").write_text(VECTORS.format(hidden=128, k=5_000), "utf-8")
    (folder / "vectors-large.toml").write_text(VECTORS.format(hidden=512, k=20_000), "utf-8")


class Study:
    """Calibrates, forecasts and measures, in a scratch folder."""

    def __init__(self, folder: Path, launcher: str, repeats: int) -> None:
        self.folder, self.launcher, self.repeats = folder, launcher, repeats
        self._calibrated: dict[tuple[object, ...], Path] = {}
        self._runs = 0

    def case(self, case: Case) -> dict[str, Any]:
        """The forecast, the measurement and their ratios."""
        config = self.folder / case.config
        config = config if config.exists() else REPOSITORY / "configs" / case.config
        calibration = self._calibration(config, case.base)
        told = self._cost(
            config, [*case.base, *case.run], "--ranks", str(case.ranks), "--calibration", str(calibration)
        )
        (forecast,) = told["forecasts"]
        runs = [self._run(config, [*case.base, *case.run], case.ranks) for _ in range(self.repeats)]
        found = {name: min(run[name] for run in runs) for name in ("processor", "wall", "memory")}
        return {
            "case": case.name,
            "differs": case.words,
            "forecast_seconds": forecast["seconds"],
            "measured_seconds": found["processor"],
            "wall_seconds": found["wall"],
            "forecast_bytes": forecast["memory"],
            "measured_bytes": found["memory"],
            "time_ratio": forecast["seconds"] / found["processor"],
            "memory_ratio": forecast["memory"] / found["memory"],
            "stages": forecast["stages"],
        }

    def _calibration(self, config: Path, base: Sequence[str]) -> Path:
        key = (config, *base)
        if key not in self._calibrated:
            path = self.folder / f"calibration-{len(self._calibrated)}.json"
            path.write_text(json.dumps(self._cost(config, base, "--ranks", "1")), "utf-8")
            self._calibrated[key] = path
        return self._calibrated[key]

    def _cost(self, config: Path, overrides: Sequence[str], *options: str) -> dict[str, Any]:
        words = ["cost", str(config), "--json", *options, *(word for text in overrides for word in ("--set", text))]
        code = "import sys; from distqexp.cli import run; sys.exit(run(sys.argv[1:]))"
        answer: dict[str, Any] = json.loads(self._output([sys.executable, "-c", code, *words])[-1])
        return answer

    def _run(self, config: Path, overrides: Sequence[str], ranks: int) -> dict[str, float]:
        """One run: the most processor time and memory of a rank, and the seconds of the clock with the launcher."""
        self._runs += 1
        out = self.folder / f"run-{self._runs}"
        words = [str(config), "--out", str(out), *(word for text in overrides for word in ("--set", text))]
        launcher = shlex.split(self.launcher.format(ranks=ranks)) if ranks > 1 else []
        report = self.folder / f"report-{self._runs}"
        started = time.monotonic()
        self._output([*launcher, sys.executable, __file__, "--rank", str(report), *words])
        wall = time.monotonic() - started
        told = [json.loads(path.read_text("utf-8")) for path in self.folder.glob(f"{report.name}-*.json")]
        assert len(told) == ranks
        return {"wall": wall, **{name: max(rank[name] for rank in told) for name in ("processor", "memory")}}

    def _output(self, command: Sequence[str]) -> list[str]:
        environ = dict(
            os.environ, OMP_NUM_THREADS="1", DISTQEXP_LEDGER=str(self.folder / f"ledger-{self._runs}.sqlite")
        )
        path = os.pathsep.join([str(REPOSITORY), environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environ["PYTHONPATH"] = path
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout.splitlines()


def run_rank(report: str, arguments: Sequence[str]) -> int:
    """Be one rank of a run, and store what it took."""
    from distqexp import fit
    from distqexp.engines.launcher import launched_rank

    code = fit.main(list(arguments))
    used = resource.getrusage(resource.RUSAGE_SELF)
    told = {"processor": used.ru_utime + used.ru_stime, "memory": 1024 * used.ru_maxrss}
    Path(f"{report}-{launched_rank(os.environ)}.json").write_text(json.dumps(told), "utf-8")
    return code


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of the page."""
    lines = [
        "| task | differs from what was calibrated | seconds forecast | measured | ratio | MiB forecast | measured | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = [row[name] / 2**20 for name in ("forecast_bytes", "measured_bytes")]
        lines.append(
            f"| {row['case']} | {row['differs']} | {row['forecast_seconds']:.1f} | {row['measured_seconds']:.1f} | "
            f"{row['time_ratio']:.2f} | {memory[0]:.0f} | {memory[1]:.0f} | {row['memory_ratio']:.2f} |"
        )
    return lines


def _default_launcher() -> str:
    beside = Path(sys.executable).parent / "mpirun"
    return f"{beside if beside.exists() else 'mpirun'} --allow-run-as-root --oversubscribe -n {{ranks}}"


def main() -> int:
    """Entry point; returns 1 where a forecast is further off than it should be."""
    if sys.argv[1:2] == ["--rank"]:
        return run_rank(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for cost-model.json and cost-model.md")
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"some of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case, of which the least counts")
    parser.add_argument("--launcher", default=_default_launcher(), help="such as 'srun -n {ranks}'")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        scratch = Path(folder).resolve()
        write_inputs(scratch)
        study = Study(scratch, options.launcher, options.repeats)
        for case in CASES:
            if options.only and case.name not in options.only:
                continue
            if (
                case.config in ("icu.toml", "mnist-kronecker.toml", "mnist-rotated.toml")
                and "DISTQEXP_DATA" not in os.environ
            ):
                print(f"{case.name}: left out, DISTQEXP_DATA is not set", flush=True)
                continue
            rows.append(study.case(case))
            print(markdown(rows)[-1], flush=True)
            (options.out / "cost-model.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
            (options.out / "cost-model.md").write_text("\n".join(markdown(rows)) + "\n", "utf-8")
    off = [
        row["case"]
        for row in rows
        if abs(row["time_ratio"] - 1) > TIME_WITHIN or abs(row["memory_ratio"] - 1) > MEMORY_WITHIN
    ]
    print(f"{len(rows) - len(off)} of {len(rows)} within {TIME_WITHIN:.0%} of time and {MEMORY_WITHIN:.0%} of memory")
    return bool(off)


if __name__ == "__main__":
    sys.exit(main())
