"""A linear model with one logit, as vectors: what objective perturbation and DP-Newton work on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from benchmarks.problems import Problem
from distqexp.arrays import FloatArray
from distqexp.problem.records import Records


@dataclass(frozen=True)
class Whitened:
    """A linear task in coordinates that public records alone define: features z = W x, parameters v with theta = W v.

    Attributes:
        features: float64 (n, d), of the private records. Not clipped.
        labels: float64 (n,), 0 or 1.
        start: v of the pretrained model, (d,).
        matrix: W, (d, d), symmetric.
        curvature: The mean eigenvalue of the public records' mean Hessian, before whitening.
        norm: The root mean square of the norm of a public record's whitened features.
        gradient_norm: That of its gradient at the start.
        hessian_norm: The mean Frobenius norm of its Hessian at the start.
    """

    features: FloatArray
    labels: FloatArray
    start: FloatArray
    matrix: FloatArray
    curvature: float
    norm: float
    gradient_norm: float
    hessian_norm: float


@dataclass(frozen=True, eq=False)
class LinearTask:
    """Features float64 (n, d), with a column of ones for a bias; labels (n,); the pretrained theta (d,)."""

    features: FloatArray
    labels: FloatArray
    public_features: FloatArray
    public_labels: FloatArray
    start: FloatArray

    def whitened(self, damping: float) -> Whitened:
        """Return the task whitened by (H / unit + damping)^(-1/2), H the public mean Hessian and unit its mean eigenvalue."""
        return _whitened(self, damping)


def linear_task(problem: Problem) -> LinearTask | None:
    """Return the vectors of a problem whose model is one linear layer with one logit, all of it trainable; else None."""
    module = problem.module()
    layers = [part for part in module.modules() if not isinstance(part, nn.Sequential | nn.Flatten | nn.Identity)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear) or layers[0].out_features != 1:
        return None
    (layer,) = layers
    trainable = all(parameter.requires_grad for parameter in module.parameters())
    if not trainable or problem.config.model.loss != "binary-cross-entropy":
        return None
    bias = layer.bias is not None
    start = torch.cat([parameter.detach().reshape(-1) for parameter in layer.parameters()]).double().numpy()
    return LinearTask(*vectors_of(problem.private, bias), *vectors_of(problem.public, bias), start)


def clip_rows(rows: FloatArray, bound: float) -> FloatArray:
    """Return the rows, each scaled down to a norm of at most ``bound``."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1.0, bound / np.maximum(norms, 1e-300))


def vectors_of(records: Records, bias: bool) -> tuple[FloatArray, FloatArray]:
    """Return the features (n, d) of records, with a column of ones for a bias, and their labels (n,)."""
    features = records.inputs.reshape(len(records.inputs), -1).double().numpy()
    if bias:
        features = np.hstack([features, np.ones((len(features), 1))])
    return features, records.targets.double().numpy().reshape(-1)


@cache
def spectrum(task: LinearTask) -> tuple[float, FloatArray, FloatArray]:
    """Return the mean eigenvalue of the public mean Hessian at the start, its eigenvalues by that, (d,), and eigenvectors (d, d)."""
    public, shares = task.public_features, expit(task.public_features @ task.start)
    hessian = (public * (shares * (1 - shares))[:, None]).T @ public / len(public)
    unit = float(np.trace(hessian)) / len(hessian)
    values, vectors = np.linalg.eigh(hessian / unit)
    return unit, np.maximum(values, 0.0), vectors


@cache
def _whitened(task: LinearTask, damping: float) -> Whitened:
    public = task.public_features
    shares = expit(public @ task.start)
    bends = shares * (1 - shares)
    unit, values, vectors = spectrum(task)
    roots = np.sqrt(values + damping)
    matrix = (vectors / roots) @ vectors.T
    squares = np.square(public @ matrix).sum(axis=1)
    return Whitened(
        features=task.features @ matrix,
        labels=task.labels,
        start=(vectors * roots) @ vectors.T @ task.start,
        matrix=matrix,
        curvature=unit,
        norm=float(np.sqrt(squares.mean())),
        gradient_norm=float(np.sqrt((np.square(shares - task.public_labels) * squares).mean())),
        hessian_norm=float((bends * squares).mean()),
    )
