"""Estimators for scikit-learn: ``PrivateClassifier`` and ``PrivateRegressor``, fitted by ``distqexp.fit``.

What a pipeline learns before them (a scaler, an encoder) it learns from the records themselves, outside of the guarantee: fit such
steps on public records and freeze them, see docs/python.md. Every fit costs its epsilon, those of a search or a cross-validation too.
"""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_is_fitted, column_or_1d, validate_data
from torch import nn

from distqexp.errors import FileContentError, UsageError
from distqexp.live import Fitted, fit
from distqexp.live.alignment import require_aligned
from distqexp.live.matrices import NotANumberError, as_numbers, as_targets, require_numbers
from distqexp.live.predictor import Predictor
from distqexp.privacy.gdp import epsilon as gdp_epsilon

ModelOption = nn.Module | Callable[[int, int], nn.Module] | None

_UNNAMED: list[float] = []
"""The mu of every fit of this process whose population has no name."""


class PrivacyWarning(UserWarning):
    """Something about a fit that its certificate can't cover."""


class PrivateValueError(UsageError, ValueError):
    """A refusal of distqexp, in the class that scikit-learn expects."""


class _PrivateEstimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share."""

    predictor_: Predictor
    _classes_private = False

    def __init__(
        self,
        model: ModelOption = None,
        *,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        public: tuple[Any, Any] | None = None,
        standardise: bool = True,
        population: str | None = None,
        settings: Mapping[str, Any] | None = None,
        ledger: str | Path | None = None,
        insecure_noise_seed: int | None = None,
    ) -> None:
        self.model = model
        self.epsilon = epsilon
        self.delta = delta
        self.public = public
        self.standardise = standardise
        self.population = population
        self.settings = settings
        self.ledger = ledger
        self.insecure_noise_seed = insecure_noise_seed

    @property
    def model_(self) -> nn.Module:
        """The fine-tuned module, in evaluation mode."""
        check_is_fitted(self)
        return self.predictor_.model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True  # medians of the public records stand for missing values, zeros without any
        tags.non_deterministic = self.insecure_noise_seed is None
        return tags

    def _fit(self, X: NDArray[Any], y: NDArray[Any], public: Any, outputs: int, loss: str, unit: Any) -> None:
        population = self.population or f"sklearn-{uuid.uuid4()}"
        try:
            result: Fitted = fit(
                self._module(X.shape[1], outputs), (X, y), public=public, epsilon=self.epsilon, delta=self.delta, loss=loss, unit=unit,
                population=population, settings=self._settings(), standardise=self.standardise, ledger=self.ledger,
                callback=lambda _: None, insecure_noise_seed=self.insecure_noise_seed,
            )  # fmt: skip
        except (UsageError, FileContentError) as error:
            text = str(error).replace("private:", "X, y:", 1).replace(" in private;", " in X;")
            raise PrivateValueError(text) from error
        self.predictor_ = Predictor(result.network, result.card)
        self.certificate_, self.history_, self.budget_ = result.certificate, result.history, result.budget
        if self.population is None:
            _warn_of_others(float(result.certificate["mu"]), self.delta)

    def _settings(self) -> dict[str, Any]:
        """Return the keys of a config, with what the certificate has to say of the classes."""
        settings = dict(self.settings or {})
        return {**settings, "data.classes_private": True} if self._classes_private else settings

    def _public_pair(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return the public records as arrays (n, features) and (n,), if any. Raises PrivateValueError for anything but a pair."""
        if self.public is None:
            return None
        if not isinstance(self.public, tuple | list) or len(self.public) != 2:
            raise PrivateValueError(f"public: found {type(self.public).__name__}; expected a pair (X, y)")
        return np.asarray(self.public[0]), np.asarray(self.public[1]).reshape(-1)

    def _checked(
        self, X: Any, y: Any, unit: Any, converted: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return private features (n, features) and targets (n,). A refusal shows no entry of them, which scikit-learn's own would."""
        if y is None:
            validate_data(self, X[:0], y)  # says that y is required
        with _refusals():
            require_aligned("X", X, unit)
            require_numbers(X, least=2)
            X = validate_data(self, X, ensure_all_finite=False)
            targets: NDArray[Any] = column_or_1d(converted(as_targets(y, X)), warn=True)
        if targets.dtype.kind == "f" and not np.isfinite(targets).any():
            assert_all_finite(targets, input_name="y")
        return X, targets

    def _module(self, inputs: int, outputs: int) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return self.model
        if self.model is not None:
            return self.model(inputs, outputs)
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        return nn.Sequential(layer)

    def _outputs(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        with _refusals():
            require_numbers(X)
        return self.predictor_.outputs(validate_data(self, X, reset=False, ensure_all_finite="allow-nan"))


class PrivateClassifier(ClassifierMixin, _PrivateEstimator):  # type: ignore[misc]
    """A classifier that is fitted with differential privacy: cross-entropy of a linear model, or of a module of one's own.

    Args:
        model: A module (n, features) to (n, classes), or to (n, 1) for two classes; or a function (features, outputs) that makes one;
            a linear model when None. A module is copied, never changed.
        epsilon: What one fit may cost.
        delta: The delta of the guarantee, below 1 / units.
        public: Public records (X, y) in the estimator's own input space, for moments, curvature and clip.
        classes: The labels, declared without a look at the private ones; when None they are those of ``public``, and without it those
            of ``y``: that is outside of the guarantee, warned of, and said in the certificate. A record with another label
            contributes nothing.
        standardise: Whether features are standardised by the moments of ``public``.
        population: The name that the ledger keeps the budget under; fits of one name are refused beyond its cap. When None every fit is
            a population of its own, and what all of them together may cost is warned of.
        settings: Further keys of a config, such as {"mechanism.rounds": 4}.
        ledger: The ledger's file; the user's own when None.
        insecure_noise_seed: Seed of the noise, for tests: the result is NOT PRIVATE.

    Attributes:
        classes_: (classes,), the labels.
        model_: The fine-tuned module.
        certificate_: What was released under which guarantee.
        history_: A mapping for each round.
        budget_: What the ledger says of the population.
        n_features_in_: The number of features.
    """

    def __init__(
        self,
        model: ModelOption = None,
        *,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        public: tuple[Any, Any] | None = None,
        classes: Sequence[Any] | None = None,
        standardise: bool = True,
        population: str | None = None,
        settings: Mapping[str, Any] | None = None,
        ledger: str | Path | None = None,
        insecure_noise_seed: int | None = None,
    ) -> None:
        super().__init__(
            model, epsilon=epsilon, delta=delta, public=public, standardise=standardise, population=population,
            settings=settings, ledger=ledger, insecure_noise_seed=insecure_noise_seed,
        )  # fmt: skip
        self.classes = classes

    def fit(self, X: Any, y: Any, unit: Any = None) -> Self:
        """Fit on private records: X (n, features), y (n,), and the unit id of each record, (n,), where a unit has several.

        Raises:
            BudgetError: The population hasn't enough left.
            ValueError: The records or the parameters can't be used.
        """
        X, y = self._checked(X, y, unit)
        pair = self._public_pair()
        public_y = None if pair is None else pair[1]
        self.classes_ = self._classes_of(y, public_y)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__}: found one class; expected two or more different labels")
        outputs = 1 if self._is_binary(X.shape[1]) else len(self.classes_)
        public = None if pair is None else (pair[0], self._codes(pair[1]))
        loss = "binary-cross-entropy" if outputs == 1 else "cross-entropy"
        self._fit(X, self._codes(y), public, outputs, loss, unit)
        return self

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probability of each class, (n, classes), in the order of ``classes_``."""
        outputs = self._outputs(X)
        return self.predictor_.probabilities_of(outputs)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each record, (n,)."""
        probabilities = self.predict_proba(X)
        labels: NDArray[Any] = self.classes_[np.argmax(probabilities, axis=1)]
        return labels

    def _classes_of(self, y: NDArray[Any], public_y: NDArray[Any] | None) -> NDArray[Any]:
        """Return the labels: declared ones, or those of public records, or else of the private ``y``, with a warning."""
        self._classes_private = False
        if self.classes is not None:
            return np.asarray(self.classes)
        if public_y is not None:
            return np.unique(public_y)
        check_classification_targets(y)
        warnings.warn(
            "the classes were taken from the private labels, which is outside of the guarantee, as the certificate says: declare them, "
            "classes=[0, 1]",
            PrivacyWarning,
            stacklevel=3,
        )
        self._classes_private = True
        return np.unique(y)

    def _is_binary(self, inputs: int) -> bool:
        """Whether the model gives one logit for two classes."""
        if len(self.classes_) != 2:
            return False
        if not isinstance(self.model, nn.Module):
            return True
        parameter = next(self.model.parameters(), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        training = self.model.training
        try:
            with torch.no_grad():
                width = self.model.eval()(torch.zeros(2, inputs, dtype=dtype)).reshape(2, -1).shape[1]
        except RuntimeError as error:
            raise PrivateValueError(
                f"model: refuses records of {inputs} features ({' '.join(str(error).split())})"
            ) from None
        finally:
            self.model.train(training)
        return bool(width == 1)

    def _codes(self, labels: Any) -> NDArray[np.int64]:
        """Return the place of each label among the classes, -1 for another one."""
        places = {value: place for place, value in enumerate(self.classes_.tolist())}
        known = (value if isinstance(value, Hashable) else None for value in np.asarray(labels).tolist())
        return np.array([places.get(value, -1) for value in known], dtype=np.int64)


class PrivateRegressor(RegressorMixin, _PrivateEstimator):  # type: ignore[misc]
    """A regression that is fitted with differential privacy: the squared error of a linear model, or of a module of one's own.

    Its parameters and attributes are those of ``PrivateClassifier``, classes aside; ``model`` gives (n, 1). Targets are scaled by those of
    ``public``. Without it, which is warned of, they should be of the order of 1: the guarantee bounds what a record moves, so that far
    larger ones are hardly learnt.
    """

    def fit(self, X: Any, y: Any, unit: Any = None) -> Self:
        """Fit on private records: X (n, features), y (n,), and the unit id of each record, (n,), where a unit has several.

        Raises:
            BudgetError: The population hasn't enough left.
            ValueError: The records or the parameters can't be used.
        """
        X, y = self._checked(X, y, unit, as_numbers)
        if self.public is None:
            warnings.warn(
                "without public records nothing says how large the targets are; expected ones around the model's own outputs, within about "
                "1 of them: others are hardly learnt. Give public=(X, y), or divide y by a public number first",
                UserWarning,
                stacklevel=2,
            )
        self._fit(X, y, self._public_pair(), 1, "mean-squared-error", unit)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the predicted target of each record, (n,)."""
        return self._outputs(X)[:, 0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # of a few dozen records with targets of any size
        return tags


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise refusals in the classes that scikit-learn expects."""
    try:
        yield
    except NotANumberError:
        raise
    except UsageError as error:
        raise PrivateValueError(str(error)) from None


def _warn_of_others(mu: float, delta: float) -> None:
    """Warn, from the second fit without a named population on, of what all of them together may cost one person."""
    _UNNAMED.append(mu)
    if len(_UNNAMED) < 2:
        return
    together = gdp_epsilon(delta, math.sqrt(math.fsum(mu * mu for mu in _UNNAMED)))
    warnings.warn(
        f"{len(_UNNAMED)} fits of this process named no population: whoever is in all of them (every fold of a cross-validation, every "
        f"setting of a search) pays epsilon {together:.3g} at delta {delta:g}, not that of one fit; population='...' lets the ledger "
        "count and refuse",
        PrivacyWarning,
        stacklevel=4,
    )
