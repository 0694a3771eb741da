"""Texts of any length: a small family, its bundle, and latencies over the length that are written down."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles import LatencyMs, Measurement, Profile
from exporter.bundle import Bundle
from tests.conftest import device_info
from tests.helpers.figures import ranks, written_down

if TYPE_CHECKING:
    from trainer import Family

LENGTHS = (16, 32, 64, 128, 256)
VOCABULARY, TOKENS, CLASSES = 40, 12, 3  # of the bundle; so many tokens have its example inputs


def latency(ms: float) -> LatencyMs:
    return LatencyMs(p50=ms, p90=1.1 * ms, p99=1.5 * ms, mean=1.05 * ms, n=20)


def measurement(of: Mapping[int, float], energy_mj: float | None = None, memory_mb: float | None = None) -> Measurement:
    """Medians by length; all else at the longest."""
    figures = {k: v for k, v in (("energy_mj", energy_mj), ("memory_mb", memory_mb)) if v is not None}
    lengths = {length: latency(ms) for length, ms in of.items()}
    source = dict.fromkeys(("latency_ms", *figures), "measured")
    return Measurement.model_validate({"latency_ms": lengths[max(of)], "lengths": lengths, **figures, "source": source})


def taking(weight: float, length: int) -> float:
    """Milliseconds of a made-up encoder: some that every call takes, some for each token, some for each pair of tokens."""
    return weight * (0.2 + 0.02 * length + 5e-5 * length**2)


def profile_of(weights: Mapping[str, float], bundle: str = "0" * 64, device: str = "bench") -> Profile:
    """So heavy sub-models at LENGTHS; the heavier, the more memory and energy."""
    submodels = {
        name: measurement({n: taking(weight, n) for n in LENGTHS}, energy_mj=10 * weight, memory_mb=weight)
        for name, weight in weights.items()
    }
    info, now = device_info(name=device), datetime(2026, 1, 1, tzinfo=UTC)
    return Profile(device=info, bundle=bundle, measured_at=now, length=max(LENGTHS), submodels=submodels)


def words() -> Family:
    """Mean of word vectors, classified; axes: width and hidden width. Any number of texts of any length."""
    import torch
    from torch import Tensor, nn

    from trainer import Family, SubModel

    class Mean(nn.Module):
        def __init__(self, width: int, hidden: int) -> None:
            super().__init__()
            self.embedding, self.hidden = nn.Embedding(VOCABULARY, width), nn.Linear(width, hidden)
            self.classifier = nn.Linear(hidden, CLASSES)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.hidden(self.embedding(tokens)).relu().mean(dim=1))
            return logits

    class Words(Family):
        axes = {"width": (4, 8), "hidden": (8, 16)}  # noqa: RUF012
        dynamic_axes = {"tokens": {0: "batch", 1: "sequence"}}  # noqa: RUF012

        def config(self) -> dict[str, int]:
            return {}

        def build(self, sub: SubModel) -> nn.Module:
            width, hidden = sub["width"], sub["hidden"]
            assert isinstance(width, int)
            assert isinstance(hidden, int)
            return Mean(width, hidden)

        def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
            return {"tokens": torch.randint(0, VOCABULARY, (batch_size, TOKENS))}

    return Words()


def words_bundle(path: Path) -> Bundle:
    """Exported, with accuracies and a profile by length that are written down: the more accurate, the heavier."""
    import torch

    from exporter import export
    from trainer import NestedModel

    torch.manual_seed(0)  # whichever tests came before: not every network makes a cascade that keeps a floor
    export(NestedModel(words()), path, show_progress=False)
    bundle = Bundle(written_down(path))
    bundle.save_profile(profile_of(ranks(bundle), bundle.fingerprint), overwrite=True)
    return bundle
