"""The devices, qualities and cascades that the vectors choose among."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from device_profiles.lengths import bucket

INFO = {"cpu": "made up", "cores": 4, "threads": 1, "ram_mb": 4096, "os": "Linux", "onnxruntime": "1"}
Document = dict[str, Any]


@dataclass(frozen=True)
class Set:
    """What one bundle is on one device. `exact`: limits that a candidate just keeps; `asked`: whole queries; `mixed`: how many
    random ones; `traces`: budgets of runs one after the other."""

    name: str
    profiles: Sequence[Document]
    qualities: Mapping[str, float | None]
    metric: str = "accuracy"
    cascades: Sequence[Document] = ()
    policy: Document = field(default_factory=dict)
    exact: Sequence[Document] = ()
    asked: Sequence[Document] = ()
    mixed: int = 24
    traces: Sequence[Document] = ()

    @property
    def lasting(self) -> bool:
        """Whether queries speak of steady work."""
        return any("sustained" in profile for profile in self.profiles)

    @property
    def lengths(self) -> bool:
        return any("lengths" in one for profile in self.profiles for one in profile["submodels"].values())

    def document(self) -> Document:
        """As it stands in the file; profiles hold what a selection reads of them."""
        return {
            "metric": self.metric,
            "profiles": list(self.profiles),
            "qualities": dict(self.qualities),
            "cascades": list(self.cascades),
            "policy": self.policy or None,
        }


def profile(name: str, submodels: Document, length: int | None = None, sustained: Document | None = None) -> Document:
    device = {"name": name, **INFO, "execution_provider": "CPUExecutionProvider"}
    document = {"device": device, "bundle": "0" * 64, "measured_at": "2026-01-01T00:00:00Z", "submodels": submodels}
    document |= {} if length is None else {"length": length}
    return document | ({} if sustained is None else {"sustained": sustained})


def warm(times: float, tail: float, energy: float | None = None) -> Document:
    """What a device holds that is kept busy: so many times slower than in the first minute, with such a tail."""
    first, after = _latency(10.0, 1.2), _latency(round(10.0 * times, 4), tail)
    energies = {} if energy is None else {"first_energy_mj": 20.0, "after_energy_mj": 20.0 * energy}
    return {"submodel": "l", "minutes": 10.0, "first": first, "after": after, **energies}


def costs(p50: float, *, tail: float = 1.3, energy: float | None = None, memory: float | None = None, n: int = 100) -> Document:
    """A measurement whose p99 is `tail` times its median."""
    found: Document = {"latency_ms": _latency(p50, tail, n), "source": {"latency_ms": "measured" if n else "predicted"}}
    for figure, value in (("energy_mj", energy), ("memory_mb", memory)):
        if value is not None:
            found[figure] = value
            found["source"][figure] = "declared"
    return found


def _latency(p50: float, tail: float, n: int = 100) -> Document:
    return {
        "p50": p50,
        "p90": round(p50 * (1 + (tail - 1) / 3), 5),
        "p99": round(p50 * tail, 5),
        "mean": round(p50 * (1 + (tail - 1) / 5), 5),
        "n": n,
    }


def _phone() -> Document:
    return {
        f"w{width}-d{depth}": costs(
            round(0.35 * width * depth**0.9, 4),
            tail=1.6 - 0.05 * width,
            energy=round(6.1 * width * depth**0.8, 3),
            memory=round(1.2 + 0.9 * width + 0.3 * depth, 3),
        )
        for width in (1, 2, 4, 8)
        for depth in (1, 2, 3)
    }


def _rising(names: Sequence[str], seed: str) -> dict[str, float | None]:
    """Qualities that rise, not quite in the order of the sizes."""
    dice = random.Random(seed)
    return {name: round(0.62 + 0.33 * (place + dice.uniform(-1.2, 1.2)) / len(names), 4) for place, name in enumerate(names)}


def _texts() -> Document:
    found = {}
    for name, a, b, c in (("narrow", 0.2, 0.004, 0.0), ("middle", 0.5, 0.012, 1e-5), ("wide", 0.9, 0.03, 6e-5)):
        by = {str(n): _latency(round(a + b * n + c * n * n, 5), 1.25) for n in (16, 32, 64, 128, 256)}
        by["128"] = _latency(round(1.15 * (a + b * 128 + c * 128 * 128), 5), 1.25)  # a step of the hardware
        found[name] = {**costs(by["256"]["p50"], energy=round(80 * (a + b * 256), 3), memory=4 + 8 * a), "lengths": by}
        found[name]["latency_ms"] = by["256"]
    return found


_PHONE = _phone()
_ODD = {
    "a": costs(1.0, memory=2.0),
    "b": costs(1.0, memory=2.0),  # as a, of the same quality
    "c": costs(1.0, memory=3.0),  # beaten by a
    "d": costs(2.5, tail=4.0, memory=2.0),
    "e": costs(2.5, tail=1.05),  # its memory nobody knows
    "f": costs(10.0625, tail=1.1, memory=8.0),
    "unknown": costs(0.2, memory=1.0),
}
_PIECES = {
    name: costs(ms, energy=mj, memory=mb) for name, ms, mj, mb in (("s", 0.8, 9.5, 3), ("m", 3.2, 41, 7), ("l", 14, 200, 21))
}
_CASCADES = [
    {"id": "s+l", "first": "s", "then": "l", "threshold": 0.6, "escalation": 0.125, "accuracy": 0.955, "then_accuracy": 0.95},
    {"id": "s+m", "first": "s", "then": "m", "threshold": 0.4, "escalation": 0.45, "accuracy": 0.9},
    {"id": "m+l", "first": "m", "then": "l", "threshold": 0.3, "escalation": 0.02, "accuracy": 0.949, "then_accuracy": 0.95},
    {
        "id": "s+l-strict",
        "first": "s",
        "then": "l",
        "threshold": 0.9,
        "escalation": 0.4,
        "accuracy": 0.975,
        "then_accuracy": 0.955,
        "first_accuracy": 0.84,
    },
]
_CASCADES = [{**one, "floor": 0.9, "confidence": 0.95, "examples": 500} for one in _CASCADES]
_LEVELS = [
    {"below_percent": 70, "until_percent": 75, "objective": "quality", "keep_quality": 0.99, "energy_share": 0.6},
    {"below_percent": 20, "objective": "energy", "keep_quality": 0.9, "latency_share": 0.5},
]

SETS: tuple[Set, ...] = (
    Set(
        "phone",
        [profile("phone", _PHONE)],
        _rising(sorted(_PHONE), "phone"),
        exact=[{"latency_ms": _PHONE["w4-d2"]["latency_ms"]["p50"]}, {"memory_mb": _PHONE["w2-d3"]["memory_mb"]}],
        mixed=40,
        traces=[
            {"latency_ms": 2.6},
            {"latency_ms": 6, "percentile": 99},
            {"latency_ms": 1.3, "percentile": 90},
            {"latency_ms": 0.05},
        ],
    ),
    Set(
        "no-energy",
        [
            profile(
                "board",
                {
                    name: {**one, "source": {"latency_ms": "measured"}, "energy_mj": None, "memory_mb": None}
                    for name, one in _PHONE.items()
                },
            )
        ],
        _rising(sorted(_PHONE), "board"),
        metric="mean_iou",
        traces=[{"latency_ms": 3, "percentile": 90}],
    ),
    Set(
        "odd",
        [profile("odd", _ODD)],
        {"a": 0.7, "b": 0.7, "c": 0.7, "d": 0.8, "e": 0.8, "f": 0.9, "unknown": None},
        exact=[{"latency_ms": 1.0}, {"latency_ms": 10.0625}, {"latency_ms": 2.5, "min_quality": 0.8}, {"memory_mb": 2.0}],
    ),
    Set(
        "two-profiles",
        [
            profile(
                "laptop-1t",
                {name: costs(ms, energy=mj, memory=5) for name, ms, mj in (("s", 2, 20), ("m", 6, 70), ("l", 15, 190))},
            ),
            profile(
                "laptop-4t",
                {
                    name: costs(ms, tail=2.5, energy=mj, memory=6)
                    for name, ms, mj in (("s", 1.9, 44), ("m", 3, 95), ("l", 5, 240))
                },
            ),
        ],
        {"s": 0.71, "m": 0.82, "l": 0.9},
        mixed=30,
        traces=[
            {"latency_ms": 7, "percentile": 90},
            {"latency_ms": 12, "objective": "energy"},
            {"latency_ms": 0.9, "min_quality": 0.8},
        ],
    ),
    Set(
        "cascades",
        [profile("camera", _PIECES)],
        {"s": 0.82, "m": 0.9, "l": 0.951},
        cascades=_CASCADES,
        mixed=30,
        traces=[{"latency_ms": 6}],
    ),
    Set("texts", [profile("bench", _texts(), 256)], {"narrow": 0.61, "middle": 0.74, "wide": 0.83}, metric="f1", mixed=36),
    Set(
        "predicted",
        [profile("new", {name: costs(ms, n=0) for name, ms in (("s", 1.5), ("l", 9.0))})],
        {"s": 0.6, "l": 0.9},
        mixed=8,
    ),
    Set(
        "levels",
        [profile("watch", _PHONE)],
        _rising(sorted(_PHONE), "watch"),
        policy={"levels": _LEVELS, "charging": "hold"},
        mixed=30,
    ),
    Set(
        "part-energy",
        [
            profile("robot", _PIECES),
            profile("robot-gpu", {name: costs(ms, memory=90) for name, ms in (("m", 2.1), ("l", 4.5))}),
        ],
        {"s": 0.82, "m": 0.9, "l": 0.951},
        policy={"levels": _LEVELS},
        asked=[{"budget": {}, "battery": {"percent": percent, "discharging": True}} for percent in (64.5, 12)],
        mixed=16,
    ),
    Set("low-power", [profile("watch", _PIECES)], {"s": 0.82, "m": 0.9, "l": 0.951}, policy={"low_power": True}, mixed=10),
    Set(
        "warm",
        [profile("tablet", _PIECES, sustained=warm(1.6, 1.15, 1.25))],
        {"s": 0.82, "m": 0.9, "l": 0.951},
        cascades=_CASCADES,
        mixed=24,
        traces=[
            {"latency_ms": 6, "sustained": True},
            {"latency_ms": 22, "sustained": True, "percentile": 99},
            {"latency_ms": 22, "percentile": 99},
        ],
    ),
    Set(
        "warm-texts",
        [profile("warm", _texts(), 256, warm(1.9, 1.6)), profile("cool", _texts(), 256, warm(1.05, 1.0))],
        {"narrow": 0.61, "middle": 0.74, "wide": 0.83},
        metric="f1",
        mixed=24,
    ),
    Set(
        "only-one",
        [profile("one", {"it": costs(3.0, memory=9)})],
        {"it": 0.5},
        metric="r2",
        exact=[{"latency_ms": 4, "sustained": True}],
        mixed=6,
    ),
)
assert bucket(300) > 256  # some lengths lie beyond the longest
