"""The connections of `worker.py`: sockets on which no thread waits for long for its client, plain or with TLS."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

TAKES_WITHIN_S = 20.0
"""So long a client may take nothing of its answer."""
READS_WITHIN_S = 1.0
AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""There is nothing to be read yet: the handshake goes on by reading too."""


class TlsError(ValueError):
    """No certificate, or not with its private key."""

    exit_code = 2


class _Patience:
    """For a socket's class: it is as if the client had gone when it takes or sends nothing."""

    settimeout: Callable[..., None]
    gettimeout: Callable[[], float | None]
    send: Callable[..., int]

    def setblocking(self, flag: bool) -> None:
        self.settimeout(TAKES_WITHIN_S if flag else 0.0)

    def sendall(self, data: Any, flags: int = 0) -> None:
        left = memoryview(data).cast("B")
        try:
            while left:
                left = left[self.send(left, flags) :]
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "the client takes nothing") from None

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Hardly anything is left to be read in a thread: what the server reads of a request that it refuses."""
        read: Callable[[int, int], bytes] = super().recv  # type: ignore[misc]
        patience = self.gettimeout()
        if not patience:
            return read(size, flags)
        self.settimeout(min(patience, READS_WITHIN_S))
        try:
            return read(size, flags)
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "the client sends nothing") from None
        finally:
            self.settimeout(patience)


class Patient(_Patience, socket.socket):
    """Without TLS."""

    def end(self) -> None:
        """Says that no more is sent. Raises OSError."""
        self.shutdown(socket.SHUT_WR)


class PatientTls(_Patience, ssl.SSLSocket):  # type: ignore[misc]
    """With TLS, whose handshake is made by the first reads: no thread waits for that either."""

    def end(self) -> None:
        """The same, in TLS's own words first (RFC 8446, section 6.1): without them an answer may have been cut off."""
        self.setblocking(False)
        with suppress(OSError, ValueError):
            self.unwrap()
        self.shutdown(socket.SHUT_WR)


class Tls(NamedTuple):
    """Files in PEM: a chain of certificates, and the private key of the first."""

    certificate: Path
    key: Path


def checked_tls(certificate: Path | None, key: Path | None) -> Tls | None:
    """Both, or None for neither. Raises TlsError for one alone, and as `tls_context` does."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise TlsError(f"{'tls_cert' if key is None else 'tls_key'} alone: allowed are --tls-cert and --tls-key together")
    tls_context(certificate, key)
    return Tls(certificate, key)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server with this chain of certificates and its private key, both PEM. Raises TlsError naming the option."""
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"{name} = {str(path)!r}: cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # else it would ask for one
    except (ssl.SSLError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise TlsError(
            f"tls_cert = {str(certificate)!r}, tls_key = {str(key)!r}: allowed are a certificate in PEM and its private key, "
            f"without a password ({why})"
        ) from None
    context.sslsocket_class = PatientTls
    return context


def patient(descriptor: int, tls: ssl.SSLContext | None) -> Patient | PatientTls:
    """The accepted connection of that descriptor. Raises OSError where its client has gone."""
    plain = Patient(fileno=descriptor)
    if tls is None:
        return plain
    plain.settimeout(0.0)
    try:
        wrapped: Any = tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:
        plain.close()
        raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
    found: PatientTls = wrapped
    return found
