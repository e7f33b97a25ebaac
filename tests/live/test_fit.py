"""``distqexp.fit`` with a live module: every form of records, what comes back, what is left behind."""

from __future__ import annotations

import gc
import json
import os
import pickle
import stat
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from live_records import BUDGET, EVALUATION, PRIVATE, PUBLIC, SETTINGS, OwnNet, linear, unequal
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import distqexp
from distqexp.artefacts.moves import HALVINGS
from distqexp.errors import BudgetError, NotAvailableYet, UsageError
from distqexp.live import Fitted
from distqexp.privacy.ledger import Ledger
from distqexp.report.progress import ProgressEvent
from distqexp.stages.verify import verify_paths

pytestmark = pytest.mark.process  # a small process watches over the scratch folder

SEEDED = {**BUDGET, "insecure_noise_seed": 1}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scratch files of this test alone."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


class Records(Dataset[tuple[torch.Tensor, int]]):
    """The private records one by one."""

    def __len__(self) -> int:
        return len(PRIVATE[1])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(PRIVATE[0][index]), int(PRIVATE[1][index])


class Stream(IterableDataset[Any]):
    """The private records in order."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(torch.from_numpy(PRIVATE[0]), torch.from_numpy(PRIVATE[1]), strict=True)


def frame(pair: tuple[Any, Any]) -> pandas.DataFrame:
    return pandas.DataFrame(pair[0], columns=list("abcd")).assign(died=pair[1])


FORMS = {
    "lists": lambda: (PRIVATE[0].tolist(), PRIVATE[1].tolist()),
    "tensors": lambda: (torch.from_numpy(PRIVATE[0]), torch.from_numpy(PRIVATE[1])),
    "column of labels": lambda: (PRIVATE[0], PRIVATE[1].reshape(-1, 1)),
    "mapping": lambda: {"features": PRIVATE[0], "labels": PRIVATE[1]},
    "tensor dataset": lambda: TensorDataset(torch.from_numpy(PRIVATE[0]), torch.from_numpy(PRIVATE[1])),
    "dataset": Records,
    "stream": Stream,
    "loader": lambda: DataLoader(Records(), batch_size=7),
    "generator": lambda: ((PRIVATE[0][i : i + 50], PRIVATE[1][i : i + 50]) for i in range(0, 400, 50)),
}


def test_a_fit_of_arrays_learns_and_says_what_it_cost(scratch: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module, events = linear(), list[ProgressEvent]()
    result = distqexp.fit(module, PRIVATE, public=PUBLIC, evaluation=EVALUATION, callback=events.append, **BUDGET)
    assert isinstance(result, Fitted)
    assert result.metrics["after"]["accuracy"] > max(0.75, result.metrics["before"]["accuracy"])
    assert 0 < result.epsilon <= 4
    assert result.delta == 1e-5
    assert result.certificate["units"] == 400
    assert [entry["round"] for entry in result.history] == [0, 1]
    assert all(entry["moved"] > 0 for entry in result.history)
    assert result.left == pytest.approx(4 - result.epsilon)
    with Ledger.open() as ledger:
        assert {row.population for row in ledger.rows()} == {"default"}
    # Quiet, as there is a callback; no record stays behind, in the scratch folder or the run's own.
    assert capfd.readouterr() == ("", "")
    assert {event.stage for event in events} == {"plan", "sketch", "pool", "release", "export"}
    assert [path.name for folder in scratch.iterdir() for path in sorted(folder.iterdir())] == [".owner", "run"]
    assert not [path for path in result.out.iterdir() if path.name.startswith(("sketch", "quadratic", "features"))]
    # The module that was passed in is as it was; the result's own is at the released parameters.
    assert not unequal(module, linear())
    assert unequal(result.model, linear()) == ["0.weight", "0.bias"]
    outputs = result.model(torch.from_numpy(EVALUATION[0]).float()).detach().double().numpy()
    np.testing.assert_array_equal(outputs, result.outputs(EVALUATION[0]))
    accuracy = float((result.predict(EVALUATION[0]) == EVALUATION[1]).mean())
    assert accuracy == pytest.approx(result.metrics["after"]["accuracy"])


def test_without_a_callback_the_plan_and_the_stages_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    distqexp.fit(linear(), PRIVATE, public=PUBLIC, **BUDGET)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("privacy: epsilon 4")]
    assert "distqexp: sketch, round 2/2: done" in err


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_records_gives_the_same_release(form: str) -> None:
    expected = distqexp.fit(linear(), PRIVATE, public=PUBLIC, callback=lambda _: None, **SEEDED)
    private = FORMS[form]()
    result = distqexp.fit(linear(), private, public=PUBLIC, callback=lambda _: None, population=form, **SEEDED)
    assert not unequal(result.model, expected.model)


def test_a_data_frame_is_standardised_by_public_moments_and_predicted_by_its_columns() -> None:
    private, public = frame(PRIVATE), frame(PUBLIC)
    private[["a", "b"]] *= 1000.0
    public[["a", "b"]] *= 1000.0
    private["flag"], public["flag"] = private["a"] > 0, public["a"] > 0
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 2))
    result = distqexp.fit(module, private, public=public, target="died", callback=lambda _: None, **SEEDED)
    assert result.card.schema.names == ("a", "b", "c", "d", "flag")
    assert result.card.schema.scales[0] > 500
    shuffled = private[["died", "flag", "d", "c", "b", "a"]]
    np.testing.assert_array_equal(result.predict_proba(shuffled), result.predict_proba(private))
    assert (result.predict(private) == private["died"]).mean() > 0.65
    series = distqexp.fit(
        module, (private.drop(columns="died"), private["died"]), public=(public.drop(columns="died"), public["died"]),
        callback=lambda _: None, population="series", **SEEDED,
    )  # fmt: skip
    whole = distqexp.fit(
        module, private, public=public, target="died", callback=lambda _: None, population="whole", **SEEDED
    )
    assert not unequal(series.model, whole.model)


def test_columns_of_words_and_dates_are_meant_as_in_the_public_frame() -> None:
    """Levels come from public records alone: a private one that isn't there is one of its own, as the unknown is."""

    def frame_of(pair: tuple[Any, Any], places: list[str]) -> pandas.DataFrame:
        count = len(pair[1])
        words = {"place": [places[row % len(places)] for row in range(count)], "smoker": ["yes", "no"] * (count // 2)}
        days = pandas.Timestamp("2021-03-01") + pandas.to_timedelta(np.arange(count) % 90, unit="D")
        return frame(pair).assign(**words, admitted=days, died=np.where(pair[1] > 0, "dead", "alive"))

    private, public = frame_of(PRIVATE, ["north", "south", "nowhere else"]), frame_of(PUBLIC, ["north", "south"])
    module = linear()
    module[0] = nn.Linear(9, 2)  # four numbers, three for place, smoker, admitted
    options = {**SEEDED, "target": "died", "public": public, "classes": ["alive", "dead"]}
    result = distqexp.fit(module, private, **options)
    assert sorted((c.column, c.kind, c.values) for c in result.card.schema.codings) == [
        ("admitted", "days", ("2000-01-01",)), ("place", "levels", ("north", "south")), ("smoker", "boolean", ()),
    ]  # fmt: skip
    assert set(result.predict(private)) <= {"alive", "dead"}
    assert "nowhere else" not in json.dumps(result.card.schema.to_tree())
    with pytest.raises(UsageError, match=r"public: targets are texts.*classes="):
        distqexp.fit(module, private.assign(died=0), **{**options, "classes": None})


def test_units_by_column_by_array_and_by_batch_are_one() -> None:
    patients = [f"p{number // 4}" for number in range(400)]
    table = frame(PRIVATE).assign(patient=patients)
    common: dict[str, Any] = {"callback": lambda _: None, **SEEDED}
    arrays = distqexp.fit(linear(), PRIVATE, public=PUBLIC, unit=np.array(patients), population="a", **common)
    by_name = pandas.Series(patients, name="patient")
    named = distqexp.fit(linear(), PRIVATE, public=PUBLIC, unit=by_name, population="b", **common)
    loader = (
        (PRIVATE[0][i : i + 50], PRIVATE[1][i : i + 50], np.array(patients[i : i + 50])) for i in range(0, 400, 50)
    )
    batches = distqexp.fit(linear(), loader, public=PUBLIC, unit="patient", population="c", **common)
    tabled = distqexp.fit(
        linear(),
        table,
        public=frame(PUBLIC),
        target="died",
        unit="patient",
        population="d",
        standardise=False,
        **common,
    )
    assert [result.certificate["units"] for result in (arrays, named, batches, tabled)] == [100] * 4
    assert [result.certificate["unit_column"] for result in (arrays, named, batches, tabled)] == [
        "unit", "patient", "patient", "patient",
    ]  # fmt: skip
    for other in (named, batches):
        assert not unequal(arrays.model, other.model)
    # A table's numbers are read as float64 and its schema is fitted, so that only rounding differs.
    torch.testing.assert_close(tabled.model.state_dict(), arrays.model.state_dict(), rtol=1e-4, atol=1e-5)


def test_labels_of_ones_own_are_mapped_and_come_back() -> None:
    names = np.array(["alive", "dead"])
    private, public = (PRIVATE[0], names[PRIVATE[1]]), (PUBLIC[0], names[PUBLIC[1]])
    common: dict[str, Any] = {"callback": lambda _: None, **SEEDED}
    result = distqexp.fit(linear(), private, public=public, classes=["alive", "dead"], population="a", **common)
    plain = distqexp.fit(linear(), PRIVATE, public=PUBLIC, population="b", **common)
    assert not unequal(result.model, plain.model)
    assert set(result.predict(EVALUATION[0])) == {"alive", "dead"}
    table = frame(PRIVATE).assign(died=private[1])
    framed = distqexp.fit(
        linear(), table, public=frame(PUBLIC).assign(died=public[1]), target="died", classes=["alive", "dead"],
        population="c", **common,
    )  # fmt: skip
    assert set(framed.predict(table)) == {"alive", "dead"}
    # A label that nobody declared ends nothing: the record counts as one without a label.
    odd = private[1].copy().astype(object)
    odd[3] = "unknown"
    distqexp.fit(linear(), (PRIVATE[0], odd), public=public, classes=["alive", "dead"], population="d", **common)
    with pytest.raises(UsageError, match=r"classes=\['no', 'yes'\]"):
        distqexp.fit(linear(), private, public=public, population="e", **common)


def test_a_factory_and_a_module_with_frozen_parts() -> None:
    common: dict[str, Any] = {"public": PUBLIC, "callback": lambda _: None, **SEEDED}
    own = OwnNet()
    own.body.requires_grad_(False)
    result = distqexp.fit(own, PRIVATE, population="a", **common)
    assert unequal(result.model, own) == ["head.weight", "head.bias"]
    assert own.head.weight.requires_grad
    assert not own.body.weight.requires_grad
    factory = "distqexp.problem.models:logistic"
    settings = {**SETTINGS, "model.args": {"inputs": 4, "outputs": 2}}
    made = distqexp.fit(
        factory, PRIVATE, loss="cross-entropy", population="b", **{**common, "settings": settings},
    )  # fmt: skip
    assert made.predict(PRIVATE[0]).shape == (400,)


def test_pretraining_goes_on_from_the_modules_own_weights() -> None:
    module = linear()
    settings = {**SETTINGS, "model.pretrain": {"epochs": 0}}
    result = distqexp.fit(module, PRIVATE, public=PUBLIC, callback=lambda _: None, **{**SEEDED, "settings": settings})
    plain = distqexp.fit(module, PRIVATE, public=PUBLIC, callback=lambda _: None, population="plain", **SEEDED)
    torch.testing.assert_close(result.model.state_dict(), plain.model.state_dict())
    assert result.card.model["factory"] == "distqexp.problem.layers:build"


def test_without_public_records_a_regression_and_its_loss() -> None:
    random = np.random.default_rng(5)
    features = random.normal(size=(300, 4)).astype(np.float32)
    targets = features @ np.array([0.5, -0.5, 0.2, 0.0], dtype=np.float32)
    settings = {"mechanism.clip": 0.2}
    with pytest.raises(UsageError, match="loss: not given"):
        distqexp.fit(linear(1), (features, targets), epsilon=2, delta=1e-5, settings=settings)
    result = distqexp.fit(
        linear(1), (features, targets), loss="mean-squared-error", epsilon=2, delta=1e-5, settings=settings, units=250,
        callback=lambda _: None,
    )  # fmt: skip
    assert result.predict(features).shape == (300,)
    assert result.certificate["units"] == 250
    with pytest.raises(UsageError, match="regression"):
        result.predict_proba(features)


def test_the_result_is_one_screen_and_can_be_kept(tmp_path: Path) -> None:
    result = distqexp.fit(linear(), PRIVATE, public=PUBLIC, evaluation=EVALUATION, callback=lambda _: None, **BUDGET)
    text = repr(result)
    assert len(text.splitlines()) < 20
    assert str(result.certificate["statement"]) in text
    assert "not covered" in text
    page = result._repr_html_()
    assert page.startswith("<table>")
    assert "&#x27;default&#x27;" in page
    kept = result.save(tmp_path / "kept")
    assert len(verify_paths([kept])) == len(list(kept.iterdir()))
    with pytest.raises(UsageError, match="nothing is overwritten"):
        result.save(kept)
    again = distqexp.load_model(kept)
    np.testing.assert_array_equal(again.predict_proba(EVALUATION[0]), result.predict_proba(EVALUATION[0]))
    assert again.certificate == result.certificate == json.loads((kept / "certificate.json").read_bytes())
    pickled = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(pickled.predict(EVALUATION[0]), result.predict(EVALUATION[0]))
    folder = result.out
    try:
        assert result.report().name == "report.html"
    except NotAvailableYet:
        assert not (folder / "report.html").exists()
    del result, pickled
    assert not folder.exists()


def test_warnings_come_with_the_result_in_words_of_the_arguments(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a callback keeps the plan's lines from being printed; and a model that stayed as it was is said to."""
    monkeypatch.setattr("distqexp.stages.guard.Guard.moved", lambda self, start, end: (start, HALVINGS))
    options = {**BUDGET, "epsilon": 30.0, "units": 10, "callback": lambda _: None}
    names = [f"sklearn-{uuid.UUID(int=number, version=4)}" for number in (1, 2)]
    for name in names:
        result = distqexp.fit(linear(), PRIVATE, public=PUBLIC, population=name, **options)
    [units] = [line for line in result.warnings if line.startswith("units: 10, while the slots are those of 400 units")]
    assert "steps are for units: correct it and fit again" in units
    [same] = [line for line in result.warnings if line.startswith("private: the same file")]
    assert "was charged to other fits without population=... before:" in same
    assert [line for line in result.warnings if line.startswith("epsilon: 30 promises next to nothing")]
    assert [line for line in result.warnings if line.startswith("moves: of 2 rounds' moves")]
    told = capfd.readouterr().err
    assert told.count("warning: units: 10, while") == 2
    assert "data.private" not in told
    assert "sklearn-" not in told
    text = repr(result)
    assert "unmoved     the model is as it was" in text
    assert text.count("\nwarning     ") == len(result.warnings)
    assert pickle.loads(pickle.dumps(result)).warnings == result.warnings


def test_public_entries_that_are_no_finite_numbers_are_named_and_private_ones_never() -> None:
    features, own = PUBLIC[0].copy(), PRIVATE[0].copy()
    features[7, 2], features[9, 0], own[5, 1] = np.inf, np.nan, np.nan
    result = distqexp.fit(linear(), (own, PRIVATE[1]), public=(features, PUBLIC[1]), callback=lambda _: None, **BUDGET)
    assert [line for line in result.warnings if "NaN" in line] == [
        "public: NaN or infinite at [7, 2], [9, 0] of its features; expected finite numbers: correct them, or leave these records out "
        "(they are no help: 2 of 120 records have such an entry)"
    ]


def test_no_file_is_left_open(recwarn: pytest.WarningsRecorder) -> None:
    """Of arrays and of tables, in the run and in predictions."""
    warnings.simplefilter("always", ResourceWarning)
    distqexp.fit(linear(), PRIVATE, public=PUBLIC, callback=lambda _: None, population="arrays", **BUDGET)
    tables = {"private": frame(PRIVATE), "public": frame(PUBLIC), "target": "died", "population": "tables"}
    result = distqexp.fit(linear(), **tables, callback=lambda _: None, **BUDGET)
    result.predict(frame(EVALUATION).drop(columns="died"))
    gc.collect()
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, ResourceWarning)] == []


def test_a_budget_that_is_spent_is_refused_with_the_way_out(tmp_path: Path, scratch: Path) -> None:
    distqexp.fit(linear(), PRIVATE, public=PUBLIC, callback=lambda _: None, **BUDGET)
    other = (PRIVATE[0][:200], PRIVATE[1][:200])
    with pytest.raises(BudgetError, match=r"budget of 'default'.*population="):
        distqexp.fit(linear(), other, public=PUBLIC, callback=lambda _: None, out=tmp_path / "two", **BUDGET)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".two")] == []
    assert list(scratch.iterdir()) == []


def test_records_are_private_while_they_lie_on_the_disk(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def look(event: ProgressEvent) -> None:
        for folder in tmp_path.glob(".run.records-*"):
            for file in folder.iterdir():
                seen[file.name] = (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(file.stat().st_mode))

    distqexp.fit(linear(), PRIVATE, public=PUBLIC, out=tmp_path / "run", callback=look, **BUDGET)
    assert seen["private-0000.h5"] == (0o700, 0o600)
    assert list(tmp_path.glob(".run.records-*")) == []
    distqexp.fit(
        linear(), frame(PRIVATE), public=frame(PUBLIC), target="died", out=tmp_path / "table" / "run", callback=look,
        population="table", **BUDGET,
    )  # fmt: skip
    assert os.listdir(tmp_path / "table") == ["run"]
