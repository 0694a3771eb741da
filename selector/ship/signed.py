"""`signed.json` and `signed.sig`: what a bundle holds, and who says so.

`signed.json` holds the manifest as it was exported, which has the SHA-256 of every file, every graph among them; the SHA-256
of the manifest's own file; the cascades; and of each weights file the ranges that graphs read, each with its SHA-256 and, by
graph, which of them that graph needs. So a device that has some of the graphs and some of the ranges can check every byte.

`signed.sig` is the signature of that one file by OpenSSF model signing: a Sigstore bundle, of which `model_signing verify`,
given the bundle's folder and `--ignore_unsigned_files`, says the same. Profiles are not signed: devices write them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from exporter.bundle import SIGNATURE_FILE, SIGNED_FILE, BundleError
from exporter.bundle.manifest import Manifest, RelativePath, Sha256, checked

MOST_BYTES = 64 * 2**20
"""Of either file."""
PASSWORD_VARIABLE = "SORTEDNET_KEY_PASSWORD"


class SignatureError(BundleError):
    """A signature that is missing, wrong or somebody else's, or a bundle that is not what was signed. `exit_code`: 2 where what
    was asked for is wrong."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Trust:
    """Whose signature is taken: that of a key (the path of its public half, an elliptic curve's in PEM), or that of an identity
    which an OpenID Connect issuer vouches for (Sigstore, for which a network is needed)."""

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None

    def __post_init__(self) -> None:
        if self.key is not None and (self.identity or self.issuer):
            raise SignatureError("key and identity: allowed is one of the two", 2)
        if self.key is None and not (self.identity and self.issuer):
            raise SignatureError("allowed are --key PUBLIC.pem, or both --identity and --issuer", 2)

    @classmethod
    def of(cls, key: Path | None, identity: str | None, issuer: str | None) -> Trust | None:
        """None where nothing is given. Raises SignatureError (exit code 2) where too much or too little is."""
        return cls(key, identity, issuer) if key or identity or issuer else None


class Range(BaseModel):
    """Bytes of a weights file, from the first to before the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    begin: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]
    sha256: Sha256


class Signed(BaseModel):
    """The document that is signed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    format_version: Literal[1]
    version: Annotated[int, Field(ge=0)]  # the greater is the newer; no clock of a device is asked
    manifest_sha256: Sha256  # of the file
    manifest: dict[str, Any]  # the document
    ranges: dict[RelativePath, tuple[Range, ...]]  # by weights file, in their order
    needs: dict[RelativePath, dict[RelativePath, tuple[int, ...]]]  # by graph and weights file: places in `ranges`
    cascades: dict[str, Any] | None  # the document; None where there is none

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, ranges in self.ranges.items():
            entry = self.content.files.get(name)
            ends = [0, *(one.end for one in ranges)]
            if entry is None or ends[-1] > entry.bytes or any(r.begin < e or r.end <= r.begin for r, e in zip(ranges, ends)):  # noqa: B905
                raise ValueError(f"ranges of {name} do not fit the file")
        for graph, files in self.needs.items():
            if any(not 0 <= place < len(self.ranges.get(name, ())) for name, places in files.items() for place in places):
                raise ValueError(f"needs of {graph} name a range that is not there")
        if missing := {graph for entry in self.content.submodels for graph in entry.graphs} - set(self.needs):
            raise ValueError(f"needs: {min(missing)} is not there")
        return self

    @cached_property
    def content(self) -> Manifest:
        """The manifest, checked. Raises ValueError."""
        return checked(self.manifest)

    @property
    def manifest_text(self) -> str:
        """Of a `manifest.json` that holds everything."""
        return json.dumps(self.manifest, indent=1) + "\n"


def read_signed(text: bytes) -> Signed:
    """Raises SignatureError naming the field; says nothing of the signature."""
    try:
        return Signed.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SignatureError(f"{SIGNED_FILE}: {place or 'document'}: {first['msg']}") from None


def verified(text: bytes, signature: bytes, trust: Trust) -> Signed:
    """The document, whose signature holds. Raises SignatureError, also for a key that cannot be read (exit code 2), and
    ModuleNotFoundError where the extra `sign` is not installed."""
    from model_signing import verifying

    config = verifying.Config()
    try:
        if trust.key is not None:
            config.use_elliptic_key_verifier(public_key=trust.key)
        else:
            config.use_sigstore_verifier(identity=trust.identity or "", oidc_issuer=trust.issuer or "")
    except Exception as error:  # the library lets through whatever it met: OSError, ValueError, those of two more libraries
        raise _no_key(trust.key or "sigstore", "public", error) from None
    with tempfile.TemporaryDirectory(prefix="sortednet-signed-") as folder:  # of the bytes that are held: files may change
        model, beside = Path(folder, "bundle"), Path(folder, SIGNATURE_FILE)
        model.mkdir()
        (model / SIGNED_FILE).write_bytes(text)
        beside.write_bytes(signature)
        try:
            config.verify(model, beside)
        except Exception as error:
            who = f"the key {str(trust.key)!r}" if trust.key is not None else f"{trust.identity} ({trust.issuer})"
            raise SignatureError(f"{SIGNATURE_FILE}: is no signature of {SIGNED_FILE} by {who}{_because(error)}") from None
    if hashlib.sha256(text).hexdigest() not in _digests(signature):
        raise SignatureError(f"{SIGNATURE_FILE}: is a signature, but not of {SIGNED_FILE}")
    return read_signed(text)


def signature_of(text: bytes, *, key: Path | None = None, options: Mapping[str, Any] | None = None) -> bytes:
    """The signature by the private key, or through Sigstore with these options of `use_sigstore_signer`. A key's password is in
    the environment variable SORTEDNET_KEY_PASSWORD. Raises SignatureError."""
    from model_signing import signing

    config = signing.Config()
    try:
        if key is not None:
            password = os.environ.get(PASSWORD_VARIABLE)
            config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        else:
            config.use_sigstore_signer(**(options or {}))
    except Exception as error:
        raise _no_key(key or "sigstore", "private", error) from None
    with tempfile.TemporaryDirectory(prefix="sortednet-signed-") as folder:
        model, out = Path(folder, "bundle"), Path(folder, SIGNATURE_FILE)
        model.mkdir()
        (model / SIGNED_FILE).write_bytes(text)
        try:
            config.sign(model, out)
        except Exception as error:
            raise SignatureError(f"cannot be signed{_because(error)}") from None
        return out.read_bytes()


def files_of(bundle: Path) -> tuple[bytes, bytes]:
    """`signed.json` and its signature. Raises SignatureError where the bundle has none."""
    found = []
    for name in (SIGNED_FILE, SIGNATURE_FILE):
        path = bundle / name
        if path.is_symlink() or not path.is_file():
            raise SignatureError(f"{str(bundle)!r} is not signed: it has no {name}; `sortednet sign` signs a bundle")
        if path.stat().st_size > MOST_BYTES:
            raise SignatureError(f"{name}: {path.stat().st_size:,} bytes; allowed are {MOST_BYTES:,}")
        found.append(path.read_bytes())
    return found[0], found[1]


def _digests(signature: bytes) -> list[str]:
    """The hashes of files named `signed.json` in a signature that holds: a statement may be of nothing, or ignore files."""
    try:
        statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        return [one["digest"] for one in statement["predicate"]["resources"] if one["name"] == SIGNED_FILE]
    except (ValueError, KeyError, TypeError):
        return []


def is_signed(bundle: Path) -> bool:
    """Whether it claims to be."""
    return any((bundle / name).exists() for name in (SIGNED_FILE, SIGNATURE_FILE))


def _no_key(key: object, kind: str, error: Exception) -> SignatureError:
    unread = isinstance(error, OSError) and error.strerror is not None
    why = f"cannot be read: {error.strerror}; " if unread else ""  # type: ignore[attr-defined]
    end = "" if unread else _because(error)
    return SignatureError(f"key = {str(key)!r}: {why}allowed is the {kind} key of an elliptic curve in PEM{end}", 2)


def _because(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f" ({words[:300]})" if words else ""
