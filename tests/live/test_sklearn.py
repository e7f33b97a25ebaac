"""The estimators for scikit-learn: its own checks, pipelines, clones, cross-validation and what that costs."""

from __future__ import annotations

import pickle
import re
import traceback
import warnings
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from live_records import EVALUATION, PRIVATE, PUBLIC, SETTINGS, OwnNet, unequal
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from distqexp import sklearn as estimators
from distqexp.errors import BudgetError
from distqexp.privacy.ledger import Ledger
from distqexp.sklearn import PrivacyWarning, PrivateClassifier, PrivateRegressor, PrivateValueError

pytestmark = pytest.mark.process

OPTIONS: dict[str, Any] = {"epsilon": 4.0, "settings": SETTINGS}
SEEDED: dict[str, Any] = {**OPTIONS, "insecure_noise_seed": 1}


@pytest.fixture(autouse=True)
def no_fit_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of other tests don't count."""
    monkeypatch.setattr(estimators, "_UNNAMED", [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PrivateClassifier, PrivateRegressor])
def test_the_checks_of_scikit_learn_pass(kind: Any) -> None:
    """All of them: none is expected to fail. Without seeded noise the estimator says that it is not deterministic."""
    settings = {"mechanism.clip_natural": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            kind(epsilon=20.0, settings=settings, insecure_noise_seed=0), on_fail=None, on_skip=None
        )
    bad = [
        (result["check_name"], result["exception"])
        for result in results
        if result["status"] not in ("passed", "skipped")
    ]
    assert bad == []
    assert len(results) > 40
    assert {result["check_name"] for result in results if result["status"] == "skipped"} <= {"check_array_api_input"}
    assert kind().__sklearn_tags__().non_deterministic


def test_a_classifier_learns_and_its_labels_are_ones_own() -> None:
    names = np.array(["alive", "dead"])
    classifier = PrivateClassifier(public=(PUBLIC[0], names[PUBLIC[1]]), population="a", **SEEDED)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrivacyWarning)
        fitted = classifier.fit(PRIVATE[0], names[PRIVATE[1]])
    assert fitted is classifier
    assert classifier.classes_.tolist() == ["alive", "dead"]
    assert classifier.score(EVALUATION[0], names[EVALUATION[1]]) > 0.75
    chances = classifier.predict_proba(EVALUATION[0])
    np.testing.assert_allclose(chances.sum(axis=1), 1.0)
    assert classifier.certificate_["epsilon"] <= 4
    assert len(classifier.history_) == 2
    assert classifier.budget_["population"] == "a"
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(again.predict_proba(EVALUATION[0]), chances)


def test_three_classes_a_module_of_ones_own_and_units() -> None:
    labels = PRIVATE[1] + (PRIVATE[0][:, 0] > 1)
    module = OwnNet(3)
    before = OwnNet(3)
    before.load_state_dict(module.state_dict())
    classifier = PrivateClassifier(module, classes=[0, 1, 2], population="a", **OPTIONS)
    classifier.fit(PRIVATE[0], labels, unit=np.arange(400) // 4)
    assert classifier.certificate_["units"] == 100
    assert classifier.certificate_["unit_column"] == "unit"
    assert classifier.predict_proba(EVALUATION[0]).shape == (300, 3)
    assert not unequal(module, before)
    assert unequal(classifier.model_, before)
    made = PrivateClassifier(lambda inputs, outputs: torch.nn.Linear(inputs, outputs), classes=[0, 1, 2], **OPTIONS)
    assert made.fit(PRIVATE[0], labels).predict(EVALUATION[0]).dtype == labels.dtype
    with pytest.raises(PrivateValueError, match="refuses records of 2 features"):
        PrivateClassifier(OwnNet(), classes=[0, 1], **OPTIONS).fit(PRIVATE[0][:, :2], PRIVATE[1])
    single = PrivateClassifier(OwnNet(1), classes=[0, 1], **OPTIONS).fit(PRIVATE[0], PRIVATE[1])
    assert single.predict_proba(EVALUATION[0]).shape == (300, 2)


def test_classes_of_private_labels_are_warned_of_and_stand_in_the_certificate() -> None:
    """One record with another label changes the model's shape: the certificate doesn't cover that, and says so."""
    labels = np.where(np.arange(400) == 3, 2, PRIVATE[1])
    with pytest.warns(PrivacyWarning, match="taken from the private labels"):
        classifier = PrivateClassifier(population="a", **SEEDED).fit(PRIVATE[0], labels)
    assert classifier.classes_.tolist() == [0, 1, 2]
    said = [
        text for text in classifier.certificate_["not_covered"] if "classes were taken from the private labels" in text
    ]
    assert len(said) == 1
    declared = PrivateClassifier(classes=[0, 1, 2], population="b", **SEEDED).fit(PRIVATE[0], labels)
    assert not any("private labels" in text for text in declared.certificate_["not_covered"])
    with pytest.raises(NotFittedError):
        PrivateClassifier(**OPTIONS).predict(PRIVATE[0])


def test_a_bad_private_record_ends_nothing() -> None:
    features = PRIVATE[0].copy()
    features[3, 1], features[5, 0] = np.inf, np.nan
    classifier = PrivateClassifier(public=PUBLIC, population="a", **SEEDED).fit(features, PRIVATE[1])
    assert classifier.score(*EVALUATION) > 0.75
    with pytest.raises(ValueError, match="infinity"):
        classifier.predict(features)


SECRET = "Mr John Smith"


def objects(entry: Any) -> Any:
    features = PRIVATE[0].astype(object)
    features[3, 1] = entry
    return features


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a text": (objects(SECRET), PRIVATE[1], "X: column 1 holds texts"),
    "a mapping": (objects({"name": SECRET}), PRIVATE[1], "X: column 1 holds texts"),
    "texts": (objects(SECRET).astype(str), PRIVATE[1], "X: column 1 holds texts"),
    "a column": (pandas.DataFrame(objects(SECRET), columns=list("abcd")), PRIVATE[1], "X: column 'b' holds texts"),
    "categories": (pandas.DataFrame(objects(SECRET)).astype("category"), PRIVATE[1], "X: column 1 holds texts"),
    "complex": (PRIVATE[0] + 7.25j, PRIVATE[1], "X: column 0 holds complex"),
    "one dimension": (PRIVATE[0][:, 0], PRIVATE[1], "X: Expected 2D array"),
    "ragged": ([[1.0, 2.0], [7.25]], [0, 1], "X: list can't be made an array"),
    "lengths": (PRIVATE[0], PRIVATE[1][:-1], "X, y: different numbers of rows"),
    "two labels": (PRIVATE[0], np.eye(2)[PRIVATE[1]], "y should be a 1d array"),
    "one record": (PRIVATE[0][:1], PRIVATE[1][:1], "X: one sample or none"),
}


@pytest.mark.parametrize("kind", [PrivateClassifier, PrivateRegressor])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_shows_no_entry_of_private_records(kind: Any, name: str) -> None:
    features, labels, words = REFUSED[name]
    with pytest.raises((PrivateValueError, TypeError), match=f"^{re.escape(words)}") as caught:
        kind(public=PUBLIC).fit(features, labels)
    assert not re.search(r"7\.25|399|400", str(caught.value))
    shown = "".join(traceback.format_exception(caught.value))  # with the errors that it came from
    assert SECRET not in shown
    assert str(PRIVATE[0][0, 0])[:6] not in shown


def test_targets_that_are_none_end_nothing_or_show_nothing() -> None:
    """A label that isn't declared contributes nothing, of whatever type; a regression's target must be a number."""
    labels = np.array(["no", "yes"], dtype=object)[PRIVATE[1]]
    public = (PUBLIC[0], np.array(["no", "yes"])[PUBLIC[1]])
    odd = labels.copy()
    odd[:4] = [SECRET, 0.5, None, {}]
    classifier = PrivateClassifier(public=public, population="a", **SEEDED).fit(PRIVATE[0], odd)
    assert classifier.classes_.tolist() == ["no", "yes"]
    fractions = PRIVATE[1].astype(float)
    fractions[0], fractions[1] = 0.5, np.nan
    assert PrivateClassifier(public=PUBLIC, population="b", **SEEDED).fit(PRIVATE[0], fractions).classes_.tolist() == [
        0,
        1,
    ]
    with pytest.raises(PrivateValueError, match=r"^y: holds texts") as caught:
        PrivateRegressor(public=PUBLIC).fit(PRIVATE[0], odd)
    assert SECRET not in str(caught.value)


def test_in_a_pipeline_with_a_column_transformer_that_public_records_fitted() -> None:
    def table(pair: tuple[Any, Any]) -> pandas.DataFrame:
        frame = pandas.DataFrame(pair[0], columns=list("abcd"))
        return frame.assign(d=np.where(frame["d"] > 0, "high", "low"))

    columns = ColumnTransformer([("numbers", StandardScaler(), list("abc")), ("texts", OneHotEncoder(), ["d"])])
    columns.fit(table(PUBLIC))
    classifier = PrivateClassifier(public=(columns.transform(table(PUBLIC)), PUBLIC[1]), population="a", **SEEDED)
    pipeline = Pipeline([("columns", FrozenEstimator(columns)), ("classifier", classifier)])
    pipeline.fit(table(PRIVATE), PRIVATE[1])
    assert pipeline.score(table(EVALUATION), EVALUATION[1]) > 0.75
    copied = clone(pipeline)
    assert copied.get_params()["classifier__epsilon"] == 4.0
    assert copied.get_params()["classifier__population"] == "a"
    with pytest.raises(NotFittedError):
        copied.predict(table(EVALUATION))


def test_cross_validation_says_what_all_folds_cost_together() -> None:
    classifier = PrivateClassifier(public=PUBLIC, **OPTIONS)
    with pytest.warns(PrivacyWarning) as caught:
        scores = cross_val_score(classifier, *PRIVATE, cv=3)
    assert len(scores) == 3
    said = [str(warning.message) for warning in caught if issubclass(warning.category, PrivacyWarning)]
    assert [text.split()[0] for text in said] == ["2", "3"]
    found = re.search(r"pays epsilon ([0-9.]+) at delta 1e-05", said[-1])
    assert found is not None
    assert 4 < float(found[1]) < 12  # three fits of epsilon 4, and composition is better than the sum


def test_a_population_with_a_name_is_counted_by_the_ledger() -> None:
    classifier = PrivateClassifier(public=PUBLIC, population="icu", **OPTIONS)
    with pytest.raises(BudgetError, match="budget spent"):
        cross_val_score(classifier, *PRIVATE, cv=3, error_score="raise")
    with Ledger.open() as ledger:
        ledger.set_cap("icu", 20.0, 1e-5)
    assert len(cross_val_score(classifier, *PRIVATE, cv=2)) == 2
    with Ledger.open() as ledger:
        assert 4 < ledger.spent("icu").epsilon(1e-5) < 20


def test_a_regression() -> None:
    targets = PRIVATE[0] @ np.array([0.5, -0.5, 0.2, 0.0])
    public = (PUBLIC[0], PUBLIC[0] @ np.array([0.5, -0.5, 0.2, 0.0]))
    regressor = PrivateRegressor(public=public, population="a", **SEEDED).fit(PRIVATE[0], targets)
    assert regressor.predict(EVALUATION[0]).shape == (300,)
    assert regressor.score(EVALUATION[0], EVALUATION[0] @ np.array([0.5, -0.5, 0.2, 0.0])) > 0.5


def test_a_regression_without_public_records_is_warned_of() -> None:
    targets = PRIVATE[0] @ np.array([0.5, -0.5, 0.2, 0.0])
    with pytest.warns(UserWarning, match="nothing says how large the targets are"):
        PrivateRegressor(population="a", **SEEDED).fit(PRIVATE[0], targets)
