"""Calls of ``fit`` that can't be: one line about the argument, never about a scratch file or a key of a config that nobody wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from live_records import EVALUATION, PRIVATE, PUBLIC, linear
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import distqexp
from distqexp.errors import DistqexpError, UsageError
from distqexp.live.wording import Wording
from distqexp.privacy.ledger import Ledger
from distqexp.report.progress import Progress
from distqexp.sklearn import PrivateClassifier, PrivateRegressor, PrivateValueError

pytestmark = pytest.mark.process  # a small process watches over the scratch folder

NOT_OF_A_SCRIPT = re.compile(r"distqexp-records|\.h5|\.parquet|\.safetensors|config key|data\.|privacy\.|model\.|--\w")
(X, Y), (PUBLIC_X, PUBLIC_Y) = PRIVATE, PUBLIC
TOKENS = {"input_ids": np.arange(120).reshape(40, 3) % 5, "labels": np.arange(40) % 2}


class Single(Dataset[Any]):
    """Records one by one, each made of its place."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def frame(pair: tuple[Any, Any] = PRIVATE, **columns: Any) -> pandas.DataFrame:
    return pandas.DataFrame(pair[0], columns=list("abcd")).assign(died=pair[1]).assign(**columns)


def frames(private: dict[str, Any] | None = None, public: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A call with DataFrames, and these columns in them."""
    other = frame(PUBLIC, **(public or {}))
    return {"private": frame(**(private or {})), "public": other, "target": "died", **more}


def broken() -> nn.Module:
    model = linear()
    nn.init.constant_(model[0].weight, float("nan"))
    return model


DAY = pandas.Timestamp("2021-01-01")
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "no targets": ({"private": X}, r"private: found ndarray; expected \(features, targets\)"),
    "None": ({"private": None}, "private: found NoneType; expected"),
    "a path": ({"private": "records.csv"}, "private: found str; expected"),
    "targets None": ({"private": (X, None)}, "private: targets are None"),
    "public targets None": ({"public": (PUBLIC_X, None)}, "public: targets are None"),
    "lengths": ({"private": (X[:9], Y)}, "private: arrays with different numbers of rows"),
    "public lengths": ({"public": (PUBLIC_X[:9], PUBLIC_Y)}, "public: arrays with different numbers of rows"),
    "ragged": ({"private": ([[1, 2], [1]], [0, 1])}, "private: list can't be made an array"),
    "no record": ({"private": (X[:0], Y[:0])}, "private: no record"),
    "no public record": ({"public": (PUBLIC_X[:0], PUBLIC_Y[:0])}, "public: no record"),
    "texts": ({"private": (X.astype(str), Y)}, "private: features of type <U"),
    "objects": ({"public": (PUBLIC_X.astype(object), PUBLIC_Y)}, "public: features of type object"),
    "dates": ({"private": (np.full((400, 4), np.datetime64("2021-01-01")), Y)}, "private: features of type datetime64"),
    "complex": ({"private": (X + 1j, Y)}, "private: features of type complex128"),
    "a third part": ({"private": (X, Y, Y)}, r"private: records of 3 parts; .*unit='patient'"),
    "pairs": ({"private": list(zip(X, Y, strict=True))}, "private: records of many parts; .*make a torch Dataset"),
    "a loader without labels": ({"private": DataLoader(Single(lambda _: torch.zeros(4)))}, "private: records of Tensor"),
    "a dataset of features": ({"private": TensorDataset(torch.from_numpy(X))}, "private: records of 1 parts"),
    "dicts": ({"private": Single(lambda at: {"pixel": X[at], "label": Y[at]})}, r"private: a mapping with \['pixel', 'label'\]"),
    "a mapping without labels": ({"private": {"x": X}}, r"private: a mapping with \['x'\]; expected one of target"),
    "two names for features": ({"private": {"features": X, "x": X, "y": Y}}, "private: a mapping with .*one of features"),
    "units under add-remove": ({"settings": {"privacy.adjacency": "add-remove"}}, "units: not given"),
    "another shape": ({"private": iter([(X[:9], Y[:9]), (X[:9, :3], Y[:9])])}, r"private: features of shape \(3,\) after"),
    "shapes": ({"private": (X[:, :3], Y)}, r"private: records of shape \(3,\); public ones are of shape \(4,\)"),
    "the shape of evaluation": ({"evaluation": (X[:, :3], Y)}, r"evaluation: records of shape \(3,\); public ones"),
    "tokens and numbers": ({"private": TOKENS}, "private: found another kind than public ones, which are numbers"),
    "the model's shape": ({"model": nn.Sequential(nn.Linear(7, 2))}, r"model: refuses records of shape \(4,\)"),
    "outputs for classes": ({"model": linear(1), "loss": "cross-entropy"}, "public targets: a label is out of range; .* from 0 to 0"),
    "outputs for a logit": ({"model": linear(3), "loss": "binary-cross-entropy"}, "model outputs: .*give the model one"),
    "outputs for targets": ({"model": linear(3), "loss": "mean-squared-error"}, r"public: targets of shape \(\); expected 3 numbers"),
    "labels out of range": ({"public": (PUBLIC_X, PUBLIC_Y + 5)}, "public targets: a label is out of range; .*from 0 to 1"),
    "labels of two columns": ({"private": (X, np.eye(2, dtype=int)[Y])}, r"private: labels of shape \(2,\)"),
    "public labels missing": ({"public": (PUBLIC_X, PUBLIC_Y * np.nan)}, "public: none of the records"),
    "unknown labels": ({"classes": ["alive", "dead"]}, "public targets: a label is out of range"),
    "one class": ({"classes": ["a"]}, "classes: found"),
    "classes of dicts": ({"classes": [{}, {}]}, "classes: found"),
    "classes a text": ({"classes": "ab"}, r"classes: 'ab' is a text; .*classes=\['ab'\]"),
    "features a text": (frames(features="a"), r"features: 'a' is a text"),
    "epsilon 0": ({"epsilon": 0}, "epsilon: found 0.0; expected a finite number above 0"),
    "epsilon a text": ({"epsilon": "1"}, "epsilon: '1' is a text"),
    "delta 2": ({"delta": 2}, "delta: found 2.0; expected a number from 0 to below 1"),
    "no units": ({"units": 0}, "units: found 0; expected"),
    "units a fraction": ({"units": 10.5}, "units: 10.5 is a number; expected whole number"),
    "ids of another number": ({"unit": np.arange(9)}, "unit: not as many ids as records in private"),
    "a name for the ids of arrays": ({"unit": "patient"}, "private: records of 2 parts; .*unit=ids"),
    "no model": ({"model": 0}, "model: found int; expected a torch.nn.Module"),
    "a class": ({"model": nn.Linear}, "model: found type; expected"),
    "no factory": ({"model": "nowhere:it", "loss": "cross-entropy"}, "model: 'nowhere:it' can't be imported"),
    "nothing to train": ({"model": linear().requires_grad_(False)}, "model: none of its 2 parameters has requires_grad"),
    "no parameter": ({"model": nn.Sequential(nn.Flatten())}, "model: none of its 0 parameters"),
    "not finite": ({"model": broken()}, "model: '0.weight' holds values that aren't finite"),
    "coupled": ({"model": nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))}, "model: 0 is BatchNorm1d"),
    "an unknown loss": ({"loss": "hinge"}, "loss: found 'hinge'; expected one of cross-entropy"),
    "a loss that is none": ({"loss": 3}, "loss: 'builtins.int' is a int"),
    "an unknown setting": ({"settings": {"mechanism.foo": 1}}, "settings: mechanism.foo: unknown"),
    "a setting of another type": ({"settings": {"mechanism.rounds": "two"}}, "settings: mechanism.rounds: 'two' is a text"),
    "settings a list": ({"settings": ["mechanism.rounds"]}, "settings: found list; expected a mapping"),
    "a section's value": ({"settings": {"privacy": 3}}, "settings: privacy: found 3"),
    "a scheduler without a port": ({"settings": {"engine.kind": "dask", "engine.scheduler": "node1"}}, "settings: engine.scheduler: found"),
    "population a number": ({"population": 3}, "population: 3 is a whole number; expected text"),
    "a folder in use": ({"out": "/etc"}, r"out /etc: not empty; choose a new folder, or resume=True"),
    "resume alone": ({"resume": True, "out": None}, "resume: True, and out is not given"),
    "no target": (frames() | {"target": None}, "target: not given"),
    "another target": (frames() | {"target": "dead"}, "target: no column 'dead' in private"),
    "the target twice": (frames() | {"private": frame().set_axis([*"abc", "died", "died"], axis=1)}, "private: column 'died' .*twice"),
    "columns differ": (frames(public={"b2": 1.0}), "private: no column 'b2'; expected the columns of public"),
    "a column more": (frames({"e": 1.0, "f": 1.0}), "private: column 'e', 'f' is not in public"),
    "features that aren't there": (frames(features=["a", "y", "z"]), "private: no column 'y', 'z'; expected the features"),
    "evaluation's columns": (frames(evaluation=frame(EVALUATION).drop(columns=["a", "b"])), "evaluation: no column 'a', 'b'"),
    "the unit's column": (frames(unit="patient"), "unit: no column 'patient' in private"),
    "an empty frame": (frames() | {"private": frame().iloc[:0]}, "private: no record"),
    "no feature": (frames() | {"private": frame()[["died"]], "public": frame()[["died"]]}, "private: no column but the target"),
    "a frame and arrays": ({"private": frame(), "target": "died"}, "private: private is a DataFrame and public is not"),
    "texts without public": (frames({"s": "x", "t": "y"}) | {"public": None}, "private: column 's', 't' holds texts"),
    "dates without public": (frames({"s": DAY}) | {"public": None}, "private: column 's' holds dates"),
    "texts for numbers": (frames({"b": "x"}), "private: column 'b' holds texts, and another kind in public"),
    "numbers for dates": (frames(public={"b": DAY}), "private: column 'b' holds numbers, and another kind in public"),
    "mixed": (frames({"b": [1, "x"] * 200}), "private: column 'b' holds values of several types"),
    "lists": (frames(public={"b": [[1, 2]] * 120}), "public: column 'b' holds list"),
    "spans": (frames({"b": pandas.Timedelta("1D")}), "private: column 'b' holds spans of time"),
    "text labels": (frames({"died": "yes"}), "private: targets are texts; .*classes="),
    "dates as labels": (frames({"died": DAY}, {"died": DAY}), "public column 'died': an entry is not a number; .*recode 'died'"),
    "free texts": (
        frames({"s": [f"note {n}" for n in range(400)]}, {"s": [f"note {n}" for n in range(120)]}, loss="cross-entropy"),
        r"""public column 's': .*set settings\["columns"\] = \{ "exclude": \["s"\] \}""",
    ),
    "levels the model doesn't take": (
        frames({"s": ["u", "v"] * 200}, {"s": ["u", "v"] * 60}),
        r"model: refuses records of shape \(7,\), where 's' is an input for each of its levels and one for all others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_told_in_words_of_its_arguments(name: str, tmp_path: Path) -> None:
    """Nothing of it stays but lines of progress, nothing is charged, and no count or value of a record is told."""
    changes, words = CALLS[name]
    call: dict[str, Any] = {
        "private": PRIVATE,
        "public": PUBLIC,
        "epsilon": 2.0,
        "delta": 1e-4,
        "out": tmp_path / "run",
        **changes,
    }
    model = call.pop("model", None)
    with pytest.raises(DistqexpError, match=f"^{words}") as caught:
        distqexp.fit(linear() if model is None else model, call.pop("private"), callback=lambda _: None, **call)
    text = str(caught.value)
    assert not NOT_OF_A_SCRIPT.search(text.replace("torch.nn.modules", "")), text
    assert text.rstrip(" ;") == text
    assert "\n" not in text
    assert "400" not in text
    assert {path.name for path in tmp_path.rglob("*")} <= {"run", "progress.jsonl", "plan.h5"}
    with Ledger.open() as ledger:
        assert list(ledger.rows()) == []


def test_what_a_settings_line_says_is_what_mends_it() -> None:
    """The line of "free texts" above; numbers may be those of NumPy and torch."""
    changes, _ = CALLS["free texts"]
    result = distqexp.fit(
        linear(), callback=lambda _: None, insecure_noise_seed=1, epsilon=np.float32(2.0), delta=torch.tensor(1e-4),
        units=np.int64(400), **{**changes, "settings": {"columns": {"exclude": ["s"]}}},
    )  # fmt: skip
    assert result.card.schema.names == ("a", "b", "c", "d")


def test_an_estimator_speaks_of_its_own_arguments() -> None:
    for options, words in (
        ({"public": (PUBLIC_X[:, :3], PUBLIC_Y)}, "X, y: records of shape"),
        ({"public": PUBLIC_X}, r"public: found ndarray; expected a pair \(X, y\)"),
        ({"epsilon": 0.0}, "epsilon: found 0.0"),
    ):
        with pytest.raises(PrivateValueError, match=f"^{words}"):
            PrivateClassifier(classes=[0, 1], **options).fit(X, Y)
    with pytest.raises(PrivateValueError, match=r"^unit: not as many ids as records in X; "):
        PrivateClassifier(classes=[0, 1], public=PUBLIC).fit(X, Y, unit=np.arange(3))
    with pytest.raises(PrivateValueError, match=r"^public: targets of shape \(\); expected 3 numbers"):
        PrivateRegressor(linear(3), public=PUBLIC).fit(X, X[:, 0])


def test_predictions_speak_of_data(tmp_path: Path) -> None:
    result = distqexp.fit(linear(), **frames(), epsilon=2.0, delta=1e-4, callback=lambda _: None, insecure_noise_seed=1)
    for data, words in ((frame().drop(columns="b"), "no column 'b'"), (frame(b=[[1]] * 400), "column 'b' holds list")):
        with pytest.raises(UsageError, match=f"^data: {words}"):
            result.predict(data)


def test_lines_of_a_plan_are_put_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    """An argument of a factory keeps its name, as ``settings`` is where it was given."""
    line = "data.public: 'id' looks like an id; set unit = \"id\" in data.public, data.private and data.eval; see model.args"
    for module, last in ((True, "see model"), (False, "see model.args")):
        with Progress() as progress:
            progress.wording = Wording(module, {}).of
            progress.write([line])
        said = capsys.readouterr().err.strip()
        assert said == f"public: 'id' looks like an id; set unit = \"id\" in public, private and evaluation; {last}"
