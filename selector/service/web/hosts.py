"""Which names the service answers under: a page of another origin whose name was made to point here (DNS rebinding) would
otherwise be taken by a browser for one of ours, and could read whatever the service says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from flask import Flask, request

from selector.service.web.problems import Problem

EXEMPT = ("/healthz", "/readyz", "/metrics")
"""Asked by machines, under whatever name; they tell nothing of what the service holds."""

ANY = "*"
_name = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?").fullmatch


class HostError(ValueError):
    """No name of a host."""

    exit_code = 2


class Hosts:
    """`names`: host names and addresses without port, `*` for all. Those of loopback are known, and the address to which the
    connection was made; under an unspecified address (0.0.0.0, ::) any, because one in front may lead here, and an address
    cannot be rebound. Raises HostError naming the option."""

    def __init__(self, names: Sequence[str]) -> None:
        self._any = ANY in names
        self._names = {_plain(name) for name in names if name != ANY}
        self._any_address = any(address.is_unspecified for address in map(_address, self._names) if address is not None)
        for name in self._names:
            if _address(name) is None and not _name(name):
                raise HostError(f"allowed_host = {name!r}: allowed is a name or an address, without port; * for all")

    def know(self, host: str, connected: str) -> bool:
        """`host`: as the request names it, perhaps with a port; `connected`: the address to which it was sent."""
        try:
            name = _plain(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False
        address = _address(name)
        if self._any or name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        return address is not None and (address.is_loopback or self._any_address or address == _address(_plain(connected)))


def register(app: Flask, hosts: Hosts) -> None:
    """A request under another name is answered with 421; one without any, which no browser sends, is not."""

    @app.before_request
    def refuse_unknown() -> None:
        host = request.environ.get("HTTP_HOST", "")
        if host and request.path not in EXEMPT and not hosts.know(host, request.environ.get("SERVER_NAME", "")):
            raise Problem(
                421,
                f"host {host[:256]!r} is not known here; where it is one of this service's, start it with --allowed-host NAME",
            )


def _plain(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(name)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
