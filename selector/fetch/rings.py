"""Which version of a bundle a service has for this device, and what the device tells of the one that it tries."""

from __future__ import annotations

import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ValidationError

from device_profiles import describe_device
from device_profiles.models import model_of
from exporter.bundle import Bundle, BundleError
from selector.fetch.transfer import Client, GoneError, PullError
from selector.ship.state import Content, report_of


class Placed(BaseModel):
    """`bundle`: the name under which the service has the version for this device, `version` what it calls it. `withdrawn`: why
    the version that this device tries is not to be tried any more; None where it may be."""

    bundle: str
    version: Content | None = None
    withdrawn: str | None = None


@dataclass(frozen=True)
class Reporter:
    """A device that tells: its name, and a token of the service's that may write its profile."""

    client: Client
    bundle: str  # its name on the service
    device: str
    token: str

    def tell(self, target: Path) -> Placed:
        """How the version at `target` does. Raises PullError, GoneError where the service knows no such bundle."""
        path = f"/v1/bundles/{_quoted(self.bundle)}/rings/{_quoted(self.device)}"
        report = report_of(target, _model(target, self.device))
        return _placed(self.client, path, self.client.document(path, report.model_dump(mode="json"), token=self.token))


def placed(client: Client, bundle: str, target: Path, device: str | None, token: str | None) -> Placed:
    """With a token by the device's ring, which is told what is known at `target`; else what everyone gets. A service that knows
    no rings has one version for all. Raises PullError."""
    try:
        if token is not None:
            if device is None:
                raise PullError("token: needs --device NAME, whose token it is", 2)
            return Reporter(client, bundle, device, token).tell(target)
        path = f"/v1/bundles/{_quoted(bundle)}/rings"
        return _placed(client, path, client.document(path).get("everyone"))
    except GoneError:  # also where there is no such bundle, which the next request says
        return Placed(bundle=bundle)


def told(client: Client, bundle: str, target: Path, device: str | None, token: str | None) -> None:
    """What has just been found out, as far as the service can be reached: the next pull tells it too."""
    if token is not None and device is not None:
        with suppress(PullError):
            Reporter(client, bundle, device, token).tell(target)


def _placed(client: Client, path: str, document: object) -> Placed:
    try:
        return Placed.model_validate(document)
    except ValidationError:
        raise PullError(f"{client.shown}{path}: an answer that this version does not understand") from None


def _model(target: Path, device: str) -> str:
    """The device's, by its profile, or by what this machine is."""
    with suppress(BundleError):
        return model_of(Bundle(target, verify=False).profile(device).device)
    return model_of(describe_device(onnxruntime=version("onnxruntime"), execution_provider="CPUExecutionProvider"))


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
