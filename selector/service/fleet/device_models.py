"""Device models: what many devices of one kind measured, as one profile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median_high
from typing import Any, get_args

from device_profiles import Decoding, DeviceInfo, LatencyMs, Measurement, Profile
from device_profiles.schema import Figure, Source, Sustained

SOURCES: tuple[Source, ...] = ("measured", "predicted", "declared")  # the best first
FIGURES: tuple[Figure, ...] = get_args(Figure)


def comparable(found: Sequence[Profile]) -> list[Profile]:
    """Those whose reference length of the input is that of the newest."""
    first = max(found, key=lambda profile: profile.measured_at)
    return [profile for profile in found if profile.length == first.length]


def aggregate(model: str, found: Sequence[Profile]) -> Profile:
    """The median over devices of every figure of every sub-model, as a profile under the model's name. Of an even number it is
    the larger of the two in the middle: rather promised too slow than too fast.

    A sub-model's figure is the median of those measured; only where no device measured it, of those predicted, else declared.
    `n` is the number of runs in all, `measured_at` that of the newest, `label` says what this is. The order of percentiles
    stays: medians of ascending triples ascend. What holds in steady work is that of one device, the one in the middle. Devices
    that are not `comparable` are left out.
    """
    found = comparable(found)
    first = max(found, key=lambda profile: profile.measured_at)
    names = dict.fromkeys(name for profile in found for name in profile.submodels)
    costs = {name: [p.submodels[name] for p in found if name in p.submodels] for name in names}
    submodels = {name: _median(measured) for name, measured in costs.items()}
    predicted = {figure for one in submodels.values() for figure, source in one.source.items() if source == "predicted"}
    errors = {figure: [p.prediction[figure] for p in found if figure in p.prediction] for figure in sorted(predicted)}
    return Profile(
        device=DeviceInfo(
            name=model,
            cpu=first.device.cpu,
            cores=median_high(profile.device.cores for profile in found),
            threads=first.device.threads,
            ram_mb=median_high(profile.device.ram_mb for profile in found),
            os=_common(profile.device.os for profile in found),
            onnxruntime=_common(profile.device.onnxruntime for profile in found),
            execution_provider=first.device.execution_provider,
            energy=_common(profile.device.energy for profile in found),
            label=f"aggregated: the median of {len(found)} device{'s' if len(found) > 1 else ''}",
        ),
        bundle=first.bundle,
        length=first.length,
        measured_at=first.measured_at,
        submodels=submodels,
        prediction={figure: max(some, key=lambda error: error.p95) for figure, some in errors.items() if some},
        sustained=_typical([profile.sustained for profile in found if profile.sustained is not None]),
    )


def _typical(found: Sequence[Sustained]) -> Sustained | None:
    """That of the device in the middle, by how much slower it got; of an even number of them the slower of the two."""
    drifts = sorted(found, key=lambda one: one.after.p50 / one.first.p50)
    return drifts[len(drifts) // 2] if drifts else None


def _median(costs: Sequence[Measurement]) -> Measurement:
    values: dict[str, Any] = {}
    sources: dict[Figure, Source] = {}
    for figure in FIGURES:
        source = min((one.source[figure] for one in costs if figure in one.source), key=SOURCES.index, default=None)
        if source is None:
            continue
        sources[figure] = source
        measured = [one for one in costs if one.source.get(figure) == source]
        best = [getattr(one, figure) for one in measured]
        if figure == "latency_ms":
            values[figure] = _median_latency(best)
            common = sorted(set.intersection(*(set(one.lengths) for one in measured)))
            values["lengths"] = {length: _median_latency([one.lengths[length] for one in measured]) for length in common}
            values["decoding"] = _median_decoding([one.decoding for one in measured])
        else:
            values[figure] = median_high(best)
    return Measurement(**values, source=sources)


def _median_decoding(found: Sequence[Decoding | None]) -> Decoding | None:
    """At the numbers of tokens that all measured; None where one measured no decoding, or there are no such numbers."""
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    medians = {}
    for part in ("prefill", "token"):
        by_tokens = [getattr(one, part) for one in known]
        common = sorted(set.intersection(*map(set, by_tokens)))
        medians[part] = {tokens: _median_latency([one[tokens] for one in by_tokens]) for tokens in common}
    return Decoding(**medians) if all(medians.values()) else None


def _median_latency(found: Sequence[LatencyMs]) -> LatencyMs:
    four = {name: median_high(getattr(one, name) for one in found) for name in ("p50", "p90", "p99", "mean")}
    return LatencyMs(**four, n=sum(one.n for one in found))


def _common(values: Iterable[str]) -> str:
    different = sorted(set(values))
    return different[0] if len(different) == 1 else f"several: {', '.join(different)[:200]}"
