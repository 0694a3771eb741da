"""Profiles of models that generate text, written down: so heavy sub-models, their prompts and contexts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from device_profiles import Decoding, Measurement, Profile
from device_profiles.decoding import CONTEXTS, PROMPTS
from tests.conftest import device_info
from tests.helpers.lengths import latency


def first_token(weight: float, prompt: int) -> float:
    """Milliseconds until the first token of a made-up decoder."""
    return weight * (2.0 + 0.5 * prompt + 1e-4 * prompt**2)


def per_token(weight: float, context: int) -> float:
    """Milliseconds of a further token."""
    return weight * (10.0 + 0.005 * context)


def measurement(weight: float, energy_mj: float | None = None, memory_mb: float | None = None) -> Measurement:
    """At the numbers of tokens that are measured by default."""
    figures = {k: v for k, v in (("energy_mj", energy_mj), ("memory_mb", memory_mb)) if v is not None}
    decoding = Decoding(
        prefill={n: latency(first_token(weight, n)) for n in PROMPTS},
        token={n: latency(per_token(weight, n)) for n in CONTEXTS},
    )
    source = dict.fromkeys(("latency_ms", *figures), "measured")
    longest = decoding.token[max(CONTEXTS)]
    return Measurement.model_validate({"latency_ms": longest, "decoding": decoding, **figures, "source": source})


def profile_of(weights: Mapping[str, float], bundle: str = "0" * 64, device: str = "bench") -> Profile:
    """The heavier, the more memory and energy."""
    submodels = {name: measurement(w, energy_mj=100 * w, memory_mb=50 * w) for name, w in weights.items()}
    info, now = device_info(name=device), datetime(2026, 1, 1, tzinfo=UTC)
    return Profile(device=info, bundle=bundle, measured_at=now, length=max(CONTEXTS), submodels=submodels)
