"""What goes out of the paths of the fleet's profiles; what goes in is `Profile`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from device_profiles import Profile


class StoredDocument(BaseModel):
    """A version of a device's profile in the store. `sha256` is its ETag; `created`: it is a new version."""

    bundle: str
    device: str
    model: str
    version: int
    sha256: str
    received_at: datetime
    created: bool


class ProfileSummary(BaseModel):
    """One line of a bundle's list: `fleet`, the newest that the device sent; or `bundle`, a file that lies in the bundle."""

    device: str
    source: Literal["fleet", "bundle"]
    model: str | None = None
    version: int | None = None
    sha256: str | None = None
    received_at: datetime | None = None


class ProfileList(BaseModel):
    """A page, by the devices' names. `next`: what to give as `after` for the next page, null on the last."""

    profiles: list[ProfileSummary]
    next: str | None


class DeviceModelSummary(BaseModel):
    """A device model and the number of its devices."""

    model: str
    devices: int


class DeviceModelList(BaseModel):
    """A page, by the models' names. `next`: what to give as `after` for the next page, null on the last."""

    models: list[DeviceModelSummary]
    next: str | None


class DeviceModelDocument(BaseModel):
    """The median over a model's devices. `used`: of so many of them, those that sent their profiles last."""

    model: str
    aggregated: Literal["median"] = "median"
    devices: int
    used: int
    profile: Profile
