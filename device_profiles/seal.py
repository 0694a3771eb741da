"""The checksum inside a document that is written beside a bundle's manifest: profiles, `cascades.json`, `written.json`.

`sha256` is the SHA-256 of the whole JSON object without that member, in the canonical form of RFC 8785 (JCS), which has
libraries in most languages: whoever writes a profile elsewhere can seal it, and members that this version does not know count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_profiles.atomic import replacing

SEAL = "sha256"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class SealError(ValueError):
    """A document whose own checksum does not fit, or that has no canonical form."""


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with its checksum as the last member. Raises SealError as `seal_of` does."""
    rest = {key: value for key, value in document.items() if key != SEAL}
    return {**rest, SEAL: seal_of(rest)}


def seal_of(document: Mapping[str, Any]) -> str:
    """Its checksum, 64 hexadecimal digits, whether one is in it or not. Raises SealError where it holds what RFC 8785 has no
    form for: NaN, an infinite number, half a surrogate pair, what is no JSON value."""
    import rfc8785  # here, because it takes longer to import than most that need a profile take in all

    rest = {key: value for key, value in document.items() if key != SEAL}
    try:
        try:
            text = rfc8785.dumps(rest)
        except rfc8785.IntegerDomainError:
            text = rfc8785.dumps(_as_doubles(rest))
    except (ValueError, OverflowError) as error:
        raise SealError(f"has no canonical form (RFC 8785): {error}") from None
    return hashlib.sha256(text).hexdigest()


def check_seal(document: Mapping[str, Any]) -> bool:
    """Whether it has a checksum; one from before there were any has none. Raises SealError where it does not fit."""
    if SEAL not in document:
        return False
    own = document[SEAL]
    if not (isinstance(own, str) and _DIGEST.fullmatch(own)):
        raise SealError(f"{SEAL} = {own!r}: allowed are 64 hexadecimal digits")
    if own != seal_of(document):
        raise SealError(f"was altered since it was written (its own {SEAL} does not fit)")
    return True


def write_sealed(document: Mapping[str, Any], path: str | Path) -> None:
    """Replaces the file with the sealed document in one step. Raises OSError, and SealError as `seal_of` does."""
    text = json.dumps(sealed(document), indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _as_doubles(value: Any) -> Any:
    """With integers beyond 2^53 as the floating-point numbers that they are to RFC 8785: languages whose numbers are doubles
    write 1e20 without a point."""
    if isinstance(value, dict):
        return {key: _as_doubles(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_doubles(one) for one in value]
    return float(value) if type(value) is int and abs(value) >= 2**53 else value
