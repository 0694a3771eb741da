"""What goes out of the paths of a bundle's new version; what goes in is `Report`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from selector.ship.state import Figures


class VersionDocument(BaseModel):
    """A version: the name under which it is served, the first of its content's hash, and the number of its signature."""

    bundle: str
    version: str
    number: int | None


class PlacedDocument(VersionDocument):
    """The version for a device, and why. `withdrawn`: why the one that it tries is not to be tried any more."""

    ring: Literal["canary", "all"]
    why: str
    withdrawn: str | None = None


class ModelRingDocument(BaseModel):
    """A device model: who gets the new version, its first devices, all, or no further one; how many devices are where; and
    medians over those that know: latency over that before, how many more runs miss their deadline, quality lost."""

    model: str
    ring: Literal["canary", "all", "stopped"]
    why: str
    trying: int
    accepted: int
    taken_back: int
    slower: float | None
    missed: float | None
    points: float | None


class TrialDocument(BaseModel):
    """What a device told last of the new version."""

    device: str
    model: str
    state: str
    reason: str | None
    figures: Figures
    told_at: datetime


class RingsDocument(BaseModel):
    """`everyone`: what devices get that do not say who they are. `canary`: the new version, null where there is none."""

    everyone: VersionDocument
    canary: VersionDocument | None
    models: list[ModelRingDocument]
    devices: list[TrialDocument]
