"""`cascades.json`: the cascades of a bundle, and what each is expected to cost on a device.

The file is written after the export and is not in the manifest, as profiles are not. Without numpy, whose import takes longer
than choosing a sub-model: how a cascade is run and calibrated is in `selector.run.cascade`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from device_profiles import LatencyMs, Measurement, Profile
from exporter.bundle import Bundle
from selector.choose.budget import BudgetError

CASCADES_FILE = "cascades.json"
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Cascade(BaseModel):
    """Two sub-models and when the second is asked: where the first's margin, its largest softmax probability less its second
    largest, is below the threshold. Raises pydantic.ValidationError (a ValueError) naming the field and the value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    first: str
    then: str
    threshold: Share
    escalation: Share  # of the certifying examples, how many were passed on
    accuracy: Share  # on the certifying examples
    floor: Share  # what the accuracy is above, with this confidence
    confidence: Share
    examples: Annotated[int, Field(ge=1)]

    @property
    def words(self) -> str:
        """For a reason: which sub-models it asks, and how often the second."""
        return f"a cascade: {self.first}, and where that is not sure ({self.escalation:.0%}) {self.then}"


def read_cascades(bundle: Bundle) -> list[Cascade]:
    """Those of the bundle; none where there is no file. Raises BudgetError naming the field when the file is damaged, two have
    the same name, or one names what is not in the bundle."""
    try:
        found = TypeAdapter(list[Cascade]).validate_json((bundle.path / CASCADES_FILE).read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BudgetError(f"{CASCADES_FILE}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        shown = f" = {first['input']!r}" if isinstance(first["input"], (str, float)) and place else ""
        raise BudgetError(f"{CASCADES_FILE}: {place or 'document'}{shown}: {first['msg'].lower()}") from None
    names: set[str] = set()
    for cascade in found:
        for name in (cascade.first, cascade.then):
            if name not in bundle.submodels:
                raise BudgetError(f"{CASCADES_FILE}: {cascade.id} names {name!r}, which is not in this bundle")
        if cascade.id in bundle.submodels or cascade.id in names:
            raise BudgetError(f"{CASCADES_FILE}: id = {cascade.id!r}: there is another one of that name; allowed is each once")
        names.add(cascade.id)
    return found


def write_cascades(bundle: Bundle, cascades: Sequence[Cascade]) -> Path:
    """Replaces the file in one step. Raises BudgetError when it cannot be written."""
    path = bundle.path / CASCADES_FILE
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(TypeAdapter(list[Cascade]).dump_json(list(cascades), indent=1))
        return partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise BudgetError(f"{CASCADES_FILE}: cannot be written to {str(bundle.path)!r}: {error.strerror}") from None


def with_cascades(profile: Profile, cascades: Sequence[Cascade]) -> Profile:
    """The profile with what each cascade is expected to cost on that device, marked as predicted; without those of which it
    does not know both sub-models. Energy is the mean, memory both sub-models'."""
    submodels = dict(profile.submodels)
    for cascade in cascades:
        if cascade.first in profile.submodels and cascade.then in profile.submodels:
            first, then = profile.submodels[cascade.first], profile.submodels[cascade.then]
            submodels[cascade.id] = _expected(first, then, cascade.escalation)
    return profile.model_copy(update={"submodels": submodels})


def _expected(first: Measurement, then: Measurement, escalation: float) -> Measurement:
    """At a percentile both sub-models' latency where more than the rest is passed on; at the median at least the mean, so that
    a cascade is never taken to cost what its first sub-model does."""
    a, b = first.latency_ms, then.latency_ms

    def at(percentile: int) -> float:
        both = escalation > 1 - percentile / 100
        return float(getattr(a, f"p{percentile}") + (getattr(b, f"p{percentile}") if both else 0.0))

    p50 = max(at(50), a.p50 + escalation * b.p50)
    p90 = max(p50, at(90))
    latency = LatencyMs(p50=p50, p90=p90, p99=max(p90, at(99)), mean=a.mean + escalation * b.mean, n=0)
    figures: dict[str, Any] = {"latency_ms": latency}
    if first.energy_mj is not None and then.energy_mj is not None:
        figures["energy_mj"] = first.energy_mj + escalation * then.energy_mj
    if first.memory_mb is not None and then.memory_mb is not None:
        figures["memory_mb"] = first.memory_mb + then.memory_mb
    return Measurement.model_validate({**figures, "source": dict.fromkeys(figures, "predicted")})
