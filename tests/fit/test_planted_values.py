"""Values planted in private records stand nowhere that a run writes or prints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from run_harness import (
    Commands,
    Outcome,
    table_source,
    table_tree,
    write_task,
)

from distqexp.privacy.ledger import Ledger
from distqexp.storage.hdf5 import read_file

MARK = "8675309"
"""Stands in every private cell that is planted below, and nowhere else."""

BAD_CELLS = {
    "label": ("p,0,0,0,{0}", {}),
    "label with a fraction": ("p,0,0,0,0.{0}", {}),
    "label that is no number": ("p,0,0,0,label{0}", {}),
    "feature that is no number": ("p,{0}x,0,0,1", {}),
    "feature with underscores": ("p,1_{0},0,0,1", {}),
    "too many fields": ("p,{0},{0},{0},1,{0}", {}),
    "open quote": ('p,"{0},0,0,1', {}),
    "missing id": (",{0},{0},{0},1", {"unit": True}),
    "bytes that are no text": ("p,{0}\udcff,0,0,1", {}),
    "filter on a column of texts": ("p{0},x{0},0,0,1", {"where": "age > 1"}),
}

WHOLE_FILES = {"too many fields", "open quote"}
"""What the file as a whole is refused for; any other bad cell makes its record as good as blank."""


def everything(*outcomes: Outcome, folders: tuple[Path, ...]) -> bytes:
    """All output, and all bytes of every file under the folders but the data that were given."""
    given = ("public.csv", "private.csv", "eval.csv", "outspoken.py")
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    files = [path for path in found if path.is_file() and path.name not in given]
    texts = [outcome.out + outcome.err for outcome in outcomes]
    return b"\n".join([*(text.encode() for text in texts), *(path.read_bytes() for path in files)])


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 2])
def test_private_cells_and_ids_stand_nowhere(
    run: Commands, tmp_path: Path, own_ledger: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """Not even in the private files, which hold sums; nor any digest of the data or of the sums outside them."""
    tree = table_tree(mechanism={"rounds": rounds}, output={"keep_sketches": True})
    tree["data"]["private"] = table_source("private.csv", unit=True)
    write_task(tmp_path, tree)
    rows = [f"{MARK}-{n % 20},{MARK}.{n},-{MARK}e-{n % 9},0.{MARK},{n % 2}" for n in range(60)]
    (tmp_path / "private.csv").write_text("\n".join(["patient,age,dose,rate,died", *rows]), "utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = run.fit("task.toml", "--out", "run", "--json", "--debug")
    assert outcome.code == 0, outcome
    others = [run.done("inspect", path) for path in sorted((tmp_path / "run").glob("*.h5"))]
    others += [run.done("verify", "run"), run.done("ledger", "show"), run.done("ledger", "verify")]
    assert MARK.encode() not in everything(outcome, *others, folders=(tmp_path, own_ledger.parent))

    sums = [read_file(path).arrays["sums"] for path in (tmp_path / "run").glob("quadratic-*.h5")]
    sketches = list((tmp_path / "run").glob("sketch-*.h5"))
    secrets = [hashlib.sha256(array.tobytes()).hexdigest() for array in sums]
    secrets += [json.dumps(array.tolist())[1:-1] for array in sums]
    secrets += [hashlib.sha256((tmp_path / "private.csv").read_bytes()).hexdigest()]
    secrets += [read_file(path).arrays["fingerprint"].tobytes().decode() for path in sketches]
    for path in [*sketches, *(tmp_path / "run").glob("quadratic-*.h5")]:
        secrets.append(hashlib.sha256(path.read_bytes()).hexdigest())
        path.unlink()
    public = everything(outcome, *others, folders=(tmp_path / "run",)) + json.dumps(Ledger.open().export()).encode()
    assert not [secret for secret in secrets if secret.encode() in public]
    assert not [array for array in sums if array.tobytes() in public]


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_CELLS)
@pytest.mark.parametrize("debug", [False, True])
def test_nothing_tells_the_value_of_a_bad_cell(
    run: Commands, tmp_path: Path, own_ledger: Path, case: str, debug: bool
) -> None:
    row, source = BAD_CELLS[case]
    task = write_task(tmp_path, table_tree(data={"private": table_source("private.csv", **source)}))
    rows = ["patient,age,dose,rate,died", *(f"q{n},0,0,{n},{n % 2}" for n in range(30)), row.format(MARK)]
    (tmp_path / "private.csv").write_bytes("\n".join(rows).encode("utf-8", "surrogateescape"))
    outcome = run.fit(task, "--out", tmp_path / "run", *(["--debug"] if debug else []))
    plan = run.distqexp("plan", task, "--out", tmp_path / "plan.h5")
    site = ["sketch", tmp_path / "plan.h5", "--data", tmp_path / "private.csv", "--out", tmp_path / "all.h5", "--yes"]
    by_hand = run.distqexp(*site, *(["--debug"] if debug else []))
    refused = case in WHOLE_FILES
    assert (outcome.code, plan.code, by_hand.code) == (3 * refused, 0, 3 * refused)
    if refused and not debug:
        outcome.refused(3, "private.csv")
    if not refused:
        empty = "distqexp: warning: data.private: no record is selected by rows and where; it adds nothing to the sums"
        assert [line for line in outcome.reasons() + by_hand.reasons() if line != empty] == []
    assert MARK.encode() not in everything(outcome, plan, by_hand, folders=(tmp_path, own_ledger.parent))


def test_an_error_of_foreign_code_is_not_told(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own model may raise with a value of the record in its message, also for a private record of the evaluation."""
    (tmp_path / "outspoken.py").write_text(
        "import torch\n"
        "class Model(torch.nn.Linear):\n"
        "    def forward(self, inputs):\n"
        "        if not torch._C._functorch.is_functorch_wrapped_tensor(inputs) and (inputs > 1e6).any():\n"
        "            raise ValueError(f'odd record {inputs.max().item():.0f}')\n"
        "        return super().forward(inputs)\n"
        "def make(**args):\n"
        "    return Model(3, 1)\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = table_tree(model={"factory": "outspoken:make"}, data={"eval": table_source("private.csv")})
    tree["data"]["eval_private"] = True
    task = write_task(tmp_path, tree)
    (tmp_path / "private.csv").write_text(f"patient,age,dose,rate,died\np,{MARK},0,0,1\nq,0,0,0,0\n", "utf-8")
    for flags in ([], ["--debug"]):
        outcome = run.fit(task, "--out", tmp_path / f"run{len(flags)}", *flags)
        assert outcome.code == 0
        assert "ValueError" not in outcome.err
        assert MARK not in outcome.out + outcome.err
