"""Which version of a bundle a service has for this device, and what the device tells of the one that it tries."""

from __future__ import annotations

import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
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
    tries: bool  # whether it would try a new version

    def tell(self, target: Path) -> Placed:
        """How the version at `target` does. Raises PullError, GoneError where the service knows no such bundle."""
        path = f"/v1/bundles/{_quoted(self.bundle)}/rings/{_quoted(self.device)}"
        report = report_of(target, _model(target, self.device), tries=self.tries)
        return _placed(self.client, path, self.client.document(path, report.model_dump(mode="json"), token=self.token))


def placed(client: Client, bundle: str, target: Path, reporter: Reporter | None) -> Placed:
    """By the device's ring, which is told what is known at `target`; of one that does not say who it is what everyone gets. A
    service that knows no rings has one version for all. Raises PullError."""
    try:
        if reporter is not None:
            return reporter.tell(target)
        path = f"/v1/bundles/{_quoted(bundle)}/rings"
        return _placed(client, path, client.document(path).get("everyone"))
    except GoneError:  # also where there is no such bundle, which the next request says
        return Placed(bundle=bundle)


def _placed(client: Client, path: str, document: object) -> Placed:
    try:
        return Placed.model_validate(document)
    except ValidationError:
        raise PullError(f"{client.shown}{path}: an answer that this version does not understand") from None


def _model(target: Path, device: str) -> str:
    """The device's, by its profile, or by what this machine is."""
    with suppress(BundleError):
        return model_of(Bundle(target, verify=False).profile(device).device)
    return model_of(describe_device(onnxruntime="", execution_provider="CPUExecutionProvider"))


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
