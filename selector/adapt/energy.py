"""What runs are estimated to take of the battery: by the profile's energies, of what really ran."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from device_profiles import Profile
from device_profiles.lengths import Curve
from device_profiles.schema import Source
from device_profiles.sustained import Lasting
from selector.choose.candidates import Key

EnergySource = Literal["measured", "declared", "predicted", "unknown"]
"""Where the profile has the energies from that an estimate is made of; of several the weakest."""
_FROM_BEST: tuple[EnergySource, ...] = ("measured", "predicted", "declared", "unknown")


class Energy(NamedTuple):
    """Estimated millijoules; None, and "unknown", where the profile has none of something that ran."""

    mj: float | None = None
    source: EnergySource = "unknown"

    @property
    def words(self) -> str:
        return "energy unknown" if self.mj is None else f"about {self.mj:.4g} mJ ({self.source})"


UNKNOWN = Energy()
NONE_YET = Energy(0.0, "measured")
"""Of nothing that ran."""


class Energies:
    """Of one device's profiles. A run takes what the profile says of each of its sub-models, times the examples that this one
    saw, at the length of the input; not what a counter says, which sees all else on the device too."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._known: dict[Key, tuple[float, Source]] = {}
        self._curves: dict[Key, Curve] = {}
        self._lasting = {p.device.name: Lasting.of(p.sustained).energy for p in profiles if p.sustained is not None}
        for profile in profiles:
            for name, costs in profile.submodels.items():
                if costs.energy_mj is not None:
                    self._known[name, profile.device.name] = costs.energy_mj, costs.source["energy_mj"]
                    if costs.by_length:
                        self._curves[name, profile.device.name] = Curve(costs.by_length)

    def of_run(
        self, parts: Iterable[tuple[str, float]], device: str, examples: int, length: int | None, *, lasts: bool = False
    ) -> Energy:
        """Of a call of so many examples of that length. `parts`: each sub-model, and which share of them it saw. `lasts`: of
        steady work, where the profile knows of it."""
        found = NONE_YET
        for submodel, share in parts:
            found = added(found, self.of((submodel, device), share * examples, length, lasts=lasts))
        return found

    def of(self, key: Key, inferences: float, length: int | None, *, lasts: bool = False) -> Energy:
        """Of so many inferences of a sub-model; where text is generated, of so many tokens after so many."""
        known = self._known.get(key)
        if known is None:
            return Energy()
        energy, source = known
        curve = None if length is None else self._curves.get(key)
        if curve is not None and length is not None:
            energy *= curve.share(length)
        if lasts:
            energy *= self._lasting.get(key[1], 1.0)
        return Energy(energy * inferences, source)


def added(one: Energy, other: Energy) -> Energy:
    """Both together: known where both are."""
    if one.mj is None or other.mj is None:
        return Energy()
    return Energy(one.mj + other.mj, max(one.source, other.source, key=_FROM_BEST.index))
