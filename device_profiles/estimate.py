"""Predicts what was not measured: latency, load time and memory of a bundle's sub-models from those of a few.

The cost of a sub-model is the sum of its layers' costs. A layer's cost is a linear function of its shape, the same for all,
times a deviation that similar layers share: a Gaussian process over layer shapes (Rasmussen & Williams 2006, sections 2.2,
2.7 and 5.4.1), seen through sums. So a channel count that suits the hardware badly is learned from one sub-model that has
it, and depth is additive by construction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from device_profiles.schema import Decoding, Figure, LatencyMs, Measurement, PredictionError, Source

Array = NDArray[np.float64]

VECTOR_CHANNELS = 16
"""Channels are computed in blocks of up to so many (AVX-512); what is missing in the last one costs as much."""


_ADDITIONAL: tuple[Figure, ...] = ("load_ms", "memory_mb", "energy_mj")


class LayerShape(Protocol):
    """What is known of a layer: one convolution or matrix product."""

    @property
    def kind(self) -> str: ...
    @property
    def macs(self) -> int: ...
    @property
    def weights(self) -> int: ...
    @property
    def activations(self) -> int: ...
    @property
    def channels_in(self) -> int: ...
    @property
    def channels_out(self) -> int: ...


class Hyper(NamedTuple):
    """Of the deviation of layer costs, and of the measurements."""

    channels: float  # length scale over channel counts and sizes, in octaves
    filling: float  # length scale over how full the last block of channels is
    shared: float  # part of the variance that similar layers share
    deviation: float  # standard deviation relative to the layer's linear cost
    noise: float  # standard deviation of a measured figure, relative to it


HYPERS = [
    Hyper(*values)
    for values in itertools.product(
        (0.5, 1.0, 2.0, 4.0), (0.5, 1.0, 2.0, 100.0), (0.5, 0.9, 0.99), (0.1, 0.2, 0.4, 0.8), (0.01, 0.03, 0.1)
    )
]
_BEFORE = Hyper(1.0, 1.0, 0.9, 0.3, 0.02)  # as long as nothing is measured


class Estimator:
    """Estimates one bundle's sub-models. `layers` lists all layer shapes, `counts` how many of each a sub-model has.

    Raises ValueError for a bundle without layers.
    """

    def __init__(self, layers: Sequence[LayerShape], counts: Mapping[str, Mapping[int, int]]) -> None:
        if not layers or not all(counts.values()):
            raise ValueError("no layers are known of some sub-model")
        self.submodels = list(counts)
        self._index = {name: row for row, name in enumerate(self.submodels)}
        self._counts = np.zeros((len(counts), len(layers)))
        for row, of_submodel in enumerate(counts.values()):
            for layer, count in of_submodel.items():
                self._counts[row, layer] = count
        self._linear = np.array([[1, layer.macs, layer.weights, layer.activations] for layer in layers], dtype=float)
        self._shapes = np.array([_shape(layer) for layer in layers])
        self._kinds = np.array([layer.kind for layer in layers])
        self._alike_by_scales: dict[tuple[float, float], Array] = {}

    def choose(self, count: int) -> list[str]:
        """The sub-models to measure: one after another that which tells most about all, given those before."""
        totals = self._counts @ self._linear
        weights = 1 / totals.mean(axis=0)
        layer_costs, costs = self._linear @ weights, totals @ weights
        terms = totals * weights / costs[:, None]
        covariance = self._covariance(_BEFORE, layer_costs) / np.outer(costs, costs) + terms @ terms.T
        chosen: list[int] = []
        for _ in range(min(count, len(self.submodels))):
            gain = (covariance**2).sum(axis=0) / (covariance.diagonal() + _BEFORE.noise**2)
            gain[chosen] = -1
            best = int(gain.argmax())
            chosen.append(best)
            column = covariance[:, best]
            covariance = covariance - np.outer(column, column) / (column[best] + _BEFORE.noise**2)
        return [self.submodels[row] for row in sorted(chosen)]

    def fit(self, measured: Mapping[str, float]) -> Fitted:
        """From a positive figure of some sub-models, the figure of all."""
        rows = [self._index[name] for name in measured]
        values = np.array(list(measured.values()))
        totals = np.c_[self._counts @ self._linear, np.ones(len(self._counts))]
        weights = _positive_least_squares(totals[rows] / values[:, None])
        prior = totals @ weights
        layer_costs = self._linear @ weights[:-1]
        layer_costs = np.maximum(layer_costs, 1e-3 * prior.mean() / self._counts.sum(axis=1).mean())
        relative = self._counts[rows] * layer_costs / values[:, None]
        residual = 1 - prior[rows] / values
        best = max(HYPERS, key=lambda hyper: _log_likelihood(relative, self._of_layers(hyper), residual, hyper.noise))
        covariance = self._covariance(best, layer_costs)
        inverse = np.linalg.inv(covariance[np.ix_(rows, rows)] / np.outer(values, values) + best.noise**2 * np.eye(len(rows)))
        coefficients = inverse @ residual
        found = prior + covariance[:, rows] @ (coefficients / values)
        floor = 0.1 * values.min()
        predicted = {name: max(float(v), floor) for name, v in zip(self.submodels, found, strict=True)}
        return Fitted(predicted, np.abs(coefficients / inverse.diagonal()))

    def _covariance(self, hyper: Hyper, layer_costs: Array) -> Array:
        """Of the costs of all sub-models."""
        weighted = self._counts * layer_costs
        product: Array = weighted @ self._of_layers(hyper) @ weighted.T
        return product

    def _of_layers(self, hyper: Hyper) -> Array:
        """Covariance of the layers' deviations."""
        alike = self._alike(hyper.channels, hyper.filling)
        return hyper.deviation**2 * (hyper.shared * alike + (1 - hyper.shared) * np.eye(len(alike)))

    def _alike(self, channels: float, filling: float) -> Array:
        if (channels, filling) not in self._alike_by_scales:
            scaled = self._shapes / np.array([channels] * 4 + [filling] * 2)
            distance = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=2)
            self._alike_by_scales[channels, filling] = np.exp(-distance / 2) * (self._kinds[:, None] == self._kinds[None])
        return self._alike_by_scales[channels, filling]


def _log_likelihood(relative: Array, of_layers: Array, residual: Array, noise: float) -> float:
    """But for a constant."""
    covariance = relative @ of_layers @ relative.T + noise**2 * np.eye(len(residual))
    return float(-0.5 * residual @ np.linalg.solve(covariance, residual) - 0.5 * np.linalg.slogdet(covariance)[1])


@dataclass(frozen=True)
class Fitted:
    """A figure of all sub-models, and the relative errors of the measured ones, each predicted from the others."""

    predicted: Mapping[str, float]
    errors: Array


def predict(
    layers: Sequence[LayerShape], counts: Mapping[str, Mapping[int, int]], measured: Mapping[str, Measurement]
) -> tuple[dict[str, Measurement], dict[Figure, PredictionError]]:
    """The measurements with those of all other sub-models of `counts` predicted, and how far each figure may be off.

    The upper percentiles of a predicted latency lie as far above its median as those of the measured do, in the median. At
    lengths of the input, or of prompts and contexts, it is predicted where all of these were measured at them.
    Raises ValueError for a bundle without layers, or when nothing was measured.
    """
    if not measured:
        raise ValueError("nothing to predict from: no sub-model was measured")
    estimator = Estimator(layers, counts)
    figures: dict[Figure, dict[str, float]] = {
        "latency_ms": {name: m.latency_ms.p50 for name, m in measured.items()},
        **{
            figure: {name: max(getattr(m, figure), 1e-3) for name, m in measured.items()}
            for figure in _ADDITIONAL
            if all(getattr(m, figure) is not None for m in measured.values())
        },
    }
    fitted = {figure: estimator.fit(values) for figure, values in figures.items()}

    def latencies(of: Callable[[Measurement], Mapping[int, LatencyMs]]) -> dict[str, dict[int, LatencyMs]]:
        """Of each sub-model that was not measured, by the lengths at which all that were have them."""
        common = sorted(set.intersection(*(set(of(m)) for m in measured.values())))
        there = {length: {name: of(m)[length] for name, m in measured.items()} for length in common}
        medians = {n: estimator.fit({name: one.p50 for name, one in found.items()}).predicted for n, found in there.items()}
        return {
            name: {n: _predicted_latency(medians[n][name], [*found.values()]) for n, found in there.items()}
            for name in counts
            if name not in measured
        }

    lengths = latencies(lambda m: m.lengths)
    prefill = latencies(lambda m: m.decoding.prefill if m.decoding else {})
    token = latencies(lambda m: m.decoding.token if m.decoding else {})
    source: dict[Figure, Source] = dict.fromkeys(figures, "predicted")
    found = {}
    for name in counts:
        if name in measured:
            found[name] = measured[name]
            continue
        latency = _predicted_latency(fitted["latency_ms"].predicted[name], [m.latency_ms for m in measured.values()])
        decoding = Decoding(prefill=prefill[name], token=token[name]) if prefill[name] and token[name] else None
        others: dict[str, Any] = {figure: round(f.predicted[name], 3) for figure, f in fitted.items() if figure != "latency_ms"}
        more: dict[str, Any] = {"lengths": lengths[name], "decoding": decoding}
        found[name] = Measurement(latency_ms=latency, **more, **others, source=source)
    errors = {
        figure: PredictionError(median=float(np.median(f.errors)), p95=float(np.percentile(f.errors, 95)))
        for figure, f in fitted.items()
    }
    return found, errors


def _predicted_latency(p50: float, measured: Sequence[LatencyMs]) -> LatencyMs:
    """Around that median, spread as those of the measured are in the median."""
    spread = {name: float(np.median([getattr(one, name) / one.p50 for one in measured])) for name in ("p90", "p99", "mean")}
    return LatencyMs(p50=round(p50, 5), **{k: round(p50 * max(s, 1.0), 5) for k, s in spread.items()}, n=0)


def _shape(layer: LayerShape) -> list[float]:
    sizes = (layer.channels_in, layer.channels_out, layer.activations, layer.macs)
    empty = [4 * (-channels % VECTOR_CHANNELS) / VECTOR_CHANNELS for channels in (layer.channels_in, layer.channels_out)]
    return [*(float(np.log2(max(size, 1))) for size in sizes), *empty]


def _positive_least_squares(terms: Array) -> Array:
    """Weights of the terms (columns), none below zero, whose sums come nearest to 1. Tries every subset: there are 31."""
    scale = np.linalg.norm(terms, axis=0)
    scale[scale == 0] = 1.0
    best, weights = np.inf, np.zeros(terms.shape[1])
    for used in itertools.product((False, True), repeat=terms.shape[1]):
        columns = np.flatnonzero(used)
        if not columns.size:
            continue
        found = np.linalg.lstsq(terms[:, columns] / scale[columns], np.ones(len(terms)), rcond=None)[0]
        error = float(((terms[:, columns] / scale[columns] @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < best - 1e-9:
            best, weights = error, np.zeros(terms.shape[1])
            weights[columns] = found / scale[columns]
    return weights
