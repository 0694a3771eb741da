"""Gets documents and files from the service, over connections that break. The standard library's urllib: it knows proxies,
redirects and certificates, and a pull makes too few requests for a kept connection to be worth a dependency on a device.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import json
import math
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selector.fetch.redirects import Redirects

TRIES = 6
"""Without a single byte in between; a transfer that goes on is taken up again however often it breaks."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
_CHUNK = 64 * 1024
_MAX_DOCUMENT = 64 * 2**20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_BROKEN = (OSError, http.client.HTTPException)  # urllib's and the sockets' errors are OSErrors


class PullError(Exception):
    """What was asked for cannot be had from there; nothing in the target was changed."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class GoneError(PullError):
    """The file is not there (any more): ask anew what there is."""


@dataclass(frozen=True)
class Client:
    """A service, by its address. `wait` is told how many seconds to wait before another try, and why. User and password in the
    address are sent (Basic), and are in no message."""

    url: str
    timeout: float = 30.0  # seconds without a byte
    tries: int = TRIES
    wait: Callable[[float, str], None] = lambda seconds, why: time.sleep(seconds)

    @property
    def shown(self) -> str:
        """The address without user and password."""
        parts = urllib.parse.urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def document(self, path: str, body: Mapping[str, Any] | None = None, *, token: str | None = None) -> Any:
        """The JSON document that GET gives, or POST with a body; PUT with that of whom the token is. Raises PullError with what
        the service says."""
        data = None if body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip", **kind}
        failed = 0
        while True:
            try:
                with self._open(path, headers, data, token) as response:
                    if response.headers.get_content_type() != "application/json":
                        raise ValueError(response.headers.get_content_type())
                    return json.loads(_content(response))
            except _BROKEN as error:
                failed += 1
                self._again(path, error, failed)
            except ValueError as error:
                raise PullError(f"{self.shown}{path}: answers no JSON ({error}); is it a sortednet service?", 2) from None

    def content(self, path: str, known: str | None = None) -> bytes | None:
        """The bytes of a small file as they are; None where they still have the SHA-256 that is `known`. Raises GoneError where
        there is none, PullError."""
        headers = {"Accept-Encoding": "identity"} | ({"If-None-Match": f'"{known}"'} if known else {})
        failed = 0
        while True:
            try:
                with self._open(path, headers) as response:
                    return _content(response)
            except urllib.error.HTTPError as error:
                if error.code == 304:
                    error.close()
                    return None
                failed += 1
                self._again(path, error, failed)
            except _BROKEN as error:
                failed += 1
                self._again(path, error, failed)
            except ValueError as error:
                raise PullError(f"{self.shown}{path}: {error}") from None

    def file(
        self,
        path: str,
        sha256: str,
        size: int,
        target: Path,
        advance: Callable[[int], None],
        *,
        begin: int = 0,
        good: Callable[[Path], bool] | None = None,
    ) -> None:
        """Downloads a file of known content to `target`, which appears when it is whole and its hash is right.

        With `good` only `size` bytes of the file from `begin` on, for which that says whether they are right.

        What was received is kept beside it as `.part` and gone on with, by this call or by a later one. `advance` is told of
        bytes that were received, and with a negative number of such that are of no use. Raises GoneError when it is not there,
        PullError when it cannot be had or is not what it should be.
        """
        partial = target.with_name(f"{target.name}.part")
        whole = good is None
        right = good or (lambda found: sha256_of(found) == sha256)
        failed = wrong = 0
        have = partial.stat().st_size if partial.exists() else 0
        most = have
        advance(min(have, size))
        while True:
            have = partial.stat().st_size if partial.exists() else 0
            if have >= size:
                if size == 0:
                    partial.touch()
                if have == size and right(partial):
                    partial.replace(target)
                    return
                wrong += 1
                partial.unlink()
                advance(-min(have, size))
                if wrong > 2:
                    raise PullError(
                        f"{path}: what arrives is not what the manifest says (sha256 {sha256[:12]}…), {wrong} times"
                    )
                continue
            try:
                wanted = None if whole else (begin, begin + size)
                self._append(path, sha256, size, partial, have, advance, wanted)
            except _BROKEN as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise PullError(f"{str(target.parent)!r}: the disk is full; the target was not changed") from None
                received = partial.stat().st_size if partial.exists() else 0
                failed = 1 if received > most else failed + 1
                most = max(most, received)
                self._again(path, error, failed)

    def _append(
        self,
        path: str,
        sha256: str,
        size: int,
        partial: Path,
        have: int,
        advance: Callable[[int], None],
        wanted: tuple[int, int] | None = None,
    ) -> None:
        """Receives the rest, of the whole file or of the bytes that are wanted. Raises an OSError or HTTPException where the
        connection breaks; what came before is kept."""
        headers = {"Accept-Encoding": "identity"}
        first = have + (wanted[0] if wanted else 0)
        if have or wanted:
            headers |= {"Range": f"bytes={first}-{wanted[1] - 1 if wanted else ''}", "If-Range": f'"{sha256}"'}
        with self._open(f"{path}?sha256={sha256}", headers) as response:
            if "Range" in headers and response.status == 206:
                found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
                if found is None or int(found[1]) != first or (wanted is None and int(found[3]) != size):
                    partial.unlink(missing_ok=True)
                    advance(-have)
                    raise http.client.HTTPException(f"the range is {response.headers.get('Content-Range')!r}")
            elif wanted:
                _skip(response, first)  # the whole is coming, through a proxy that knows no ranges
            elif have:
                partial.unlink()  # the whole is coming
                advance(-have)
                have = 0
            with partial.open("ab") as file:
                while have < size and (chunk := response.read1(min(_CHUNK, size - have))):
                    file.write(chunk)
                    have += len(chunk)
                    advance(len(chunk))
            if have < size:
                raise http.client.HTTPException(f"the connection ended after {have} of {size} bytes")

    def _open(
        self, path: str, headers: Mapping[str, str], data: bytes | None = None, token: str | None = None
    ) -> http.client.HTTPResponse:
        method = None if token is None else "PUT"
        given = {"User-Agent": "sortednet", **headers}
        request = urllib.request.Request(f"{self.shown}{path}", data=data, headers=given, method=method)
        user, at, _ = urllib.parse.urlsplit(self.url).netloc.rpartition("@")
        if token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        elif at:
            encoded = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {encoded}")
        response: http.client.HTTPResponse = _OPENER.open(request, timeout=self.timeout)
        return response

    def _again(self, path: str, error: Exception, failed: int) -> None:
        """Waits before another try. Raises PullError where it would be of no use, or was of none."""
        wanted = 0.0
        if isinstance(error, urllib.error.HTTPError):
            with error:
                why = _problem(error)
                wanted = _seconds(error.headers.get("Retry-After"))
            if error.code in (404, 410):
                raise GoneError(f"{self.shown}{path}: {why}", 2)
            if error.code not in _AGAIN:
                raise PullError(f"{self.shown}{path}: {why}", 2 if error.code < 500 else 1)
        else:
            cause = getattr(error, "reason", None) or error
            why = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
        if failed >= self.tries:
            raise PullError(f"{self.shown}{path}: {why} ({failed} tries); what has arrived is kept for the next pull")
        doubling = FIRST_WAIT_S * 2 ** (failed - 1) * (0.5 + random.random() / 2)  # a fleet must not come back all at once
        self.wait(min(LONGEST_WAIT_S, max(wanted, doubling)), why)


def _skip(response: http.client.HTTPResponse, count: int) -> None:
    while count:
        chunk = response.read1(min(_CHUNK, count))
        if not chunk:
            raise http.client.HTTPException("the connection ended before what is wanted")
        count -= len(chunk)


def service_url(url: str) -> tuple[str, str | None]:
    """The service's address without a slash at its end, and the bundle where the URL is a bundle's. Raises PullError."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or re.search(r"[\x00-\x20\x7f]", url):
        shown = re.sub(r"//[^/]*@", "//…@", url)  # a password is not repeated
        raise PullError(f"url = {shown!r}: allowed is http://HOST[:PORT] or https://…, perhaps with /v1/bundles/NAME", 2)
    path, _, name = parts.path.rstrip("/").partition("/v1/bundles")
    base = f"{parts.scheme}://{parts.netloc}{path}"
    return base, urllib.parse.unquote(name.strip("/").partition("/")[0]) or None


def _opener() -> urllib.request.OpenerDirector:
    """For http and https alone: a redirect must not lead to a file of this device."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        Redirects,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


_OPENER = _opener()


def _content(response: http.client.HTTPResponse | urllib.error.HTTPError) -> bytes:
    """The whole body, unpacked. Raises HTTPException where it breaks off, which `read` with a number does not notice, and
    ValueError where it is too large or damaged."""
    content = response.read(_MAX_DOCUMENT + 1)
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and len(content) < min(int(announced), _MAX_DOCUMENT):
        raise http.client.IncompleteRead(content, int(announced) - len(content))
    if response.headers.get("Content-Encoding") == "gzip":
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            content = unpacker.decompress(content, _MAX_DOCUMENT + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not unpacker.eof and len(content) <= _MAX_DOCUMENT:
            raise ValueError("gzip without an end")
    if len(content) > _MAX_DOCUMENT:
        raise ValueError(f"more than {_MAX_DOCUMENT} bytes")
    return content


def _problem(error: urllib.error.HTTPError) -> str:
    """What a problem document says, in a line."""
    try:
        document = json.loads(_content(error))
        detail = str(document["detail"])
        fields = [f"{item['field']}: {item['message']}" for item in document.get("errors", ()) if item["message"] not in detail]
        return " ".join(": ".join(filter(None, (detail, "; ".join(fields)))).split())[:1000]
    except (*_BROKEN, ValueError, KeyError, TypeError, AttributeError):
        return f"HTTP {error.code} {error.reason}"


def _seconds(retry_after: str | None) -> float:
    try:
        seconds = float(retry_after or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
