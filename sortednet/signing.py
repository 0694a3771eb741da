"""`sign`, and what `verify`, `pull` and `serve` have in common: whose signature is taken."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sortednet.console import print_json, say
from sortednet.options import BundlePath, JsonOption

if TYPE_CHECKING:
    from exporter.bundle import Bundle
    from selector.ship import Signed


def sign_command(
    bundle: BundlePath,
    key: Annotated[
        Path | None,
        typer.Option(
            help="PRIVATE.pem of an elliptic curve. A password of it is in SORTEDNET_KEY_PASSWORD.", show_default=False
        ),
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="By who you are, which a browser asks for; needs a network.")
    ] = False,
    identity_token: Annotated[
        str | None,
        typer.Option(envvar="SIGSTORE_ID_TOKEN", help="With --sigstore: instead of the browser.", show_default=False),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="Greater than that of what it replaces. Default: the seconds since 1970.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle: manifest, graphs, ranges of the weights and cascades, not the profiles."""
    from exporter.bundle import SIGNATURE_FILE, Bundle
    from selector.ship import SignatureError

    if (key is None) == (not sigstore):
        raise SignatureError("allowed is one of --key PRIVATE.pem and --sigstore", 2)
    options = None
    if sigstore:
        options = {"identity_token": identity_token} if identity_token else {"use_ambient_credentials": True}
    opened = Bundle(bundle)
    signed = sign(opened, key=key, version=version, sigstore=options)
    ranges = sum(map(len, signed.ranges.values()))
    if as_json:
        print_json({"version": signed.version, "files": len(signed.content.files), "ranges": ranges})
        return
    say(f"Signed version {signed.version}: {len(signed.content.files)} files, {ranges} ranges of the weights.")
    typer.echo(f"Next: sortednet verify {shlex.quote(str(bundle))} --key PUBLIC.pem    ({SIGNATURE_FILE} is the signature)")


def sign(
    bundle: Bundle, *, key: Path | None = None, version: int | None = None, sigstore: Mapping[str, Any] | None = None
) -> Signed:
    """Signs the bundle in its folder with a private key (elliptic curve, PEM), or through Sigstore, and returns what was
    signed.

    `version`: greater than that of what it is to replace. Default: the seconds since 1970 at which it is signed, or one more
    than that of the signature that is here. Raises SignatureError for a key that is of no use, BundleError for a graph that
    reads what is not there, and when the bundle cannot be written.
    """
    from device_profiles.atomic import replacing
    from exporter.bundle import SIGNATURE_FILE, SIGNED_FILE, BundleError
    from exporter.ranges import described
    from selector.ship.signed import SignatureError, read_signed, signature_of

    bundle.verify_files()
    before = _version_here(bundle.path)
    chosen = max(int(time.time()), before + 1) if version is None else version
    if chosen < before:
        raise SignatureError(
            f"version = {chosen}: the signature that is here has {before}; allowed is that or a greater one", 2
        )
    text = (json.dumps(described(bundle, chosen), separators=(",", ":")) + "\n").encode()
    signed = read_signed(text)
    signature = signature_of(text, key=key, options=sigstore)
    try:
        (bundle.path / SIGNATURE_FILE).unlink(missing_ok=True)  # killed here, it is not signed, rather than wrongly
        for name, content in ((SIGNED_FILE, text), (SIGNATURE_FILE, signature)):
            with replacing(bundle.path / name) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise BundleError(f"{SIGNED_FILE}: cannot be written to {str(bundle.path)!r}: {error.strerror}") from None
    return signed


def _version_here(bundle: Path) -> int:
    """Of the signature that is here; 0 where there is none that can be read."""
    from exporter.bundle import SIGNED_FILE
    from selector.ship.signed import SignatureError, is_signed, read_signed

    try:
        return read_signed((bundle / SIGNED_FILE).read_bytes()).version if is_signed(bundle) else 0
    except (OSError, SignatureError):
        return 0
