"""What a device takes that is kept busy: from the drift of the one sub-model that was run without a pause.

A device that gets warm lowers its clock, whatever it computes. So what the one took at the end, over what it took in the first
minute, is taken for all of them: the latency at each percentile, and the energy where that is known. Pure Python: choosing a
sub-model takes less time than to import numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device_profiles.schema import Decoding, Figure, LatencyMs, Measurement, Source, Sustained


@dataclass(frozen=True)
class Lasting:
    """By how much steady work is slower than the first minute, by statistic (p50, p90, p99, mean), and what it takes more."""

    latency: Mapping[str, float]
    energy: float = 1.0

    @classmethod
    def of(cls, sustained: Sustained) -> Lasting:
        """Of latencies never less than in the first minute: one that was noisy is no promise for the rest."""
        names = ("p50", "p90", "p99", "mean")
        latency = {name: max(1.0, getattr(sustained.after, name) / getattr(sustained.first, name)) for name in names}
        before, after = sustained.first_energy_mj, sustained.after_energy_mj
        return cls(latency, after / before if before and after is not None else 1.0)

    def at(self, percentile: int) -> float:
        """For p50, p90 or p99."""
        return self.latency[f"p{percentile}"]

    def costs(self, first: Measurement) -> Measurement:
        """What the sub-model costs in steady work, of what it costs in the first minute; what that changes is marked as
        predicted. Memory and the time to open it are the same."""
        source: dict[Figure, Source] = dict(first.source)
        source["latency_ms"] = "predicted"
        lengths = {length: self._latency(one) for length, one in first.lengths.items()}
        update: dict[str, object] = {"latency_ms": self._latency(first.latency_ms), "lengths": lengths, "source": source}
        if first.decoding is not None:
            prefill, token = (
                {tokens: self._latency(one) for tokens, one in part.items()}
                for part in (first.decoding.prefill, first.decoding.token)
            )
            update["decoding"] = Decoding(prefill=prefill, token=token)
        if first.energy_mj is not None and self.energy != 1:
            source["energy_mj"] = "predicted"
            update["energy_mj"] = first.energy_mj * self.energy
        return first.model_copy(update=update)

    def _latency(self, first: LatencyMs) -> LatencyMs:
        p50, p90, p99 = (getattr(first, name) * self.latency[name] for name in ("p50", "p90", "p99"))
        p90 = max(p50, p90)
        return LatencyMs(p50=p50, p90=p90, p99=max(p90, p99), mean=first.mean * self.latency["mean"], n=0)


def in_words(sustained: Sustained) -> str:
    """One line for people."""
    first, after, minutes = sustained.first, sustained.after, sustained.minutes
    said = (
        f"{sustained.submodel} without a pause for {minutes:g} min: p50 {first.p50:.3f} ms in the first minute, "
        f"{after.p50:.3f} ms after ({after.p50 / first.p50:.2f} times), p99 {first.p99:.3f} and {after.p99:.3f} ms"
    )
    if sustained.first_energy_mj is not None and sustained.after_energy_mj is not None:
        said += f", energy {sustained.first_energy_mj:.4g} and {sustained.after_energy_mj:.4g} mJ"
    settled = sustained.settled_minutes
    return f"{said}; {'it was still drifting at the end' if settled is None else f'settled after {settled:.1f} min'}"
